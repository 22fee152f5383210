"""A cohort whose items are kinds of item: tags, or item clusters where items have no tags."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import sparse

from materialize.evaluate.cohort import Catalogue, Histories

if TYPE_CHECKING:
    from materialize.evaluate.cohort import Cohort

__all__ = ["item_kind_matrix", "kind_cohort"]


def item_kind_matrix(cohort: Cohort) -> sparse.csr_array:
    """Return which items of the catalogue are of which kind, float32 ones (n_items, n_tags).

    Columns are ``cohort.tag_names``.
    """
    place = {name: k for k, name in enumerate(cohort.tag_names)}
    catalogue = cohort.catalogue
    if any(catalogue.tags):
        cells = [(i, place[t]) for i, tags in enumerate(catalogue.tags) for t in tags if t in place]
        item, kind = np.array(cells, np.int64).reshape(-1, 2).T
    else:
        item, kind = _clusters(catalogue, place)
    shape = (len(catalogue), len(place))
    return sparse.csr_array((np.ones(len(item), np.float32), (item, kind)), shape=shape)


def kind_cohort(cohort: Cohort) -> Cohort:
    """Return the same rows, with kinds as the items of catalogue, histories and futures.

    A kind's vector is the mean of its items' vectors, weighed by their events before the cut-off;
    kinds have no clusters. In sequences, an event of an item with several kinds stands once for
    each of them, at the same time. Raw features, and what an encoder makes of them, stay.
    """
    kinds = item_kind_matrix(cohort)
    catalogue = cohort.catalogue
    weighed = sparse.csr_array(kinds.multiply(catalogue.popularity[:, None]))
    popularity = np.asarray(weighed.sum(axis=0), np.float64)
    means = sparse.csr_array(weighed.multiply(1 / popularity[None, :])).T
    return replace(
        cohort,
        fingerprint=f"{cohort.fingerprint}-kinds",
        history=cohort.history_tags,
        future=cohort.future_tags,
        catalogue=Catalogue(
            item_ids=pa.array(cohort.tag_names, pa.string()),
            popularity=popularity,
            daily=sparse.csr_array(catalogue.daily @ kinds),
            tags=tuple((name,) for name in cohort.tag_names),
            vectors={
                name: np.asarray(means @ vectors, np.float32)
                for name, vectors in catalogue.vectors.items()
            },
            clusters={name: np.full(len(popularity), -1, np.int32) for name in catalogue.clusters},
        ),
        past=sparse.csr_array(cohort.past @ kinds).astype(np.float32),
        sequences=_sequences(cohort.sequences, kinds),
        history_sequences=_histories(cohort.history_sequences, kinds),
    )


def _clusters(
    catalogue: Catalogue, place: dict[str, int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return item and kind where kinds are named ``<modality> <cluster>``."""
    modality = next(iter(place)).rsplit(" ", 1)[0]
    names = [f"{modality} {k}" for k in catalogue.clusters[modality].tolist()]
    kind = np.array([place.get(name, -1) for name in names], np.int64)
    item = np.flatnonzero(kind >= 0)
    return item, kind[item]


def _sequences(sequences: pa.Table, kinds: sparse.csr_array) -> pa.Table:
    event, kind = _spread(sequences["item"].to_numpy(), kinds)
    taken = sequences.take(pa.array(event))
    return taken.set_column(
        taken.schema.get_field_index("item"), "item", pa.array(kind.astype(np.int32))
    )


def _histories(histories: Histories, kinds: sparse.csr_array) -> Histories:
    event, kind = _spread(histories.item, kinds)
    return Histories(
        offsets=np.searchsorted(event, histories.offsets).astype(np.int64),
        item=kind.astype(np.int32),
        ts=histories.ts[event],
    )


def _spread(
    item: npt.NDArray[np.int32], kinds: sparse.csr_array
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the position of an event and one of its kinds, for each of them, in event order."""
    per_item = np.diff(kinds.indptr)
    n = per_item[item]
    event = np.repeat(np.arange(len(item)), n)
    within = np.arange(len(event)) - np.repeat(np.cumsum(n) - n, n)
    return event, kinds.indices[np.repeat(kinds.indptr[item], n) + within].astype(np.int64)
