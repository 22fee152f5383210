"""Kinds of item: tags, or item clusters where the items have none."""

from __future__ import annotations

from dataclasses import dataclass

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import sparse

from encoder.modality import ItemVectors, ModalityEncoders
from transforms.clean import CleanTables
from transforms.dataset import Dataset
from transforms.engine import arrow_table, quoted

__all__ = ["ItemKinds", "cluster_targets", "has_tags", "item_kinds"]

_MOST_KINDS = 1_000


@dataclass(frozen=True, eq=False)
class ItemKinds:
    """Which items are of which kind.

    Attributes
    ----------
    names : tuple of str (n_kinds,)
        Those of items with an event before the cut-off, most events first; at most 1,000.
    matrix : csr_array float32 (n_all_items, n_kinds)
        Ones, for all items of the modality encoders.
    tags : tuple of tuples of str (n_known_items,)
        Tags of the items with an event before the cut-off, in order; () where items have no tags.
    """

    names: tuple[str, ...]
    matrix: sparse.csr_array
    tags: tuple[tuple[str, ...], ...]


def has_tags(dataset: Dataset) -> bool:
    """Return whether the data set's items have tags."""
    return dataset.items is not None and dataset.items.tags is not None


def cluster_targets(encoders: ModalityEncoders) -> pa.Table:
    """Return item_id and target, the content cluster; of the first modality without content."""
    named: dict[str, ItemVectors] = {m.name: m for m in encoders.modalities}
    chosen = named.get("content", encoders.modalities[0])
    known = chosen.cluster_of >= 0
    clusters = chosen.cluster_of[known].tolist()
    return pa.table(
        {
            "item_id": encoders.item_ids.filter(pa.array(known)),
            "target": [f"{chosen.name} {k}" for k in clusters],
        }
    )


def item_kinds(
    db: duckdb.DuckDBPyConnection,
    dataset: Dataset,
    clean: CleanTables,
    encoders: ModalityEncoders,
    popularity: npt.NDArray[np.float64],
) -> ItemKinds:
    """Return the kinds of all items.

    Parameters
    ----------
    db : duckdb connection
    dataset : Dataset
    clean : CleanTables
    encoders : ModalityEncoders
    popularity : float64 (n_all_items,)
        Events before the cut-off, in the encoders' order.
    """
    tagged = has_tags(dataset)
    if tagged:
        pairs = arrow_table(
            db,
            "SELECT DISTINCT item_id, unnest(tags) AS target FROM "
            f"read_parquet({quoted(clean.items)})",
        )
    else:
        pairs = cluster_targets(encoders)
    item = encoders.index_of(pairs["item_id"])
    name = pairs["target"].combine_chunks().dictionary_encode()
    names = np.array(name.dictionary.to_pylist(), object)
    kind = name.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    used = (item >= 0) & (names[kind] != "") if len(names) else np.zeros(len(item), np.bool_)
    item, kind = item[used], kind[used]
    events = np.bincount(kind, popularity[item], minlength=len(names))
    order = np.lexsort((names.astype(str), -events))
    order = order[events[order] > 0][:_MOST_KINDS]
    place = np.full(len(names), -1, np.int64)
    place[order] = np.arange(len(order))
    kept = place[kind] >= 0
    matrix = sparse.csr_array(
        (np.ones(int(kept.sum()), np.float32), (item[kept], place[kind[kept]])),
        shape=(len(popularity), len(order)),
    )
    known = np.flatnonzero(popularity > 0)
    tags = _lists(item, names[kind], known) if tagged else ((),) * len(known)
    return ItemKinds(tuple(names[order].tolist()), matrix, tags)


def _lists(
    item: npt.NDArray[np.int64], name: npt.NDArray[np.object_], known: npt.NDArray[np.int64]
) -> tuple[tuple[str, ...], ...]:
    order = np.lexsort((name.astype(str), item))
    item, name = item[order], name[order]
    start, end = (np.searchsorted(item, known, side=side) for side in ("left", "right"))
    return tuple(tuple(name[a:b].tolist()) for a, b in zip(start, end, strict=True))
