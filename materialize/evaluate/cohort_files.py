"""A cohort on disk: Parquet for what has names and texts, npz for matrices; no pickle."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import sparse

from encoder.errors import EvaluationFault
from encoder.modality import ModalityEncoders
from encoder.schema import FeatureSchema
from materialize.evaluate.cohort import Catalogue, Cohort, Histories
from transforms.names import ITEM_KEY, USER_KEY

__all__ = ["load_cohort", "save_cohort"]

_MATRICES = ("history", "future", "history_tags", "future_tags", "past")
_DAILY = "daily"
_CSR = ("data", "indices", "indptr")
_NUMBERS = ("training", "n_events", "future_events", "future_outside")
_META, _ARRAYS = "cohort.json", "arrays.npz"


def save_cohort(cohort: Cohort, folder: Path) -> None:
    """Write a cohort into ``folder``, in one step; one that is there already stays."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(mkdtemp(prefix=f"{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        _write(cohort, temporary)
        os.replace(temporary, folder)
    except OSError:
        # Another process was faster; what it wrote is the same.
        if not (folder / _META).exists():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_cohort(folder: Path, encoders: ModalityEncoders) -> Cohort:
    """Read what ``save_cohort`` wrote.

    Parameters
    ----------
    folder : Path
    encoders : ModalityEncoders
        Those that the cohort was built with: vectors and clusters are not written twice.

    Raises
    ------
    EvaluationFault
        The encoders are of another version.
    """
    meta = json.loads((folder / _META).read_text(encoding="utf-8"))
    schema = FeatureSchema.from_dict(meta["schema"])
    if schema.modality_version != encoders.version:
        raise EvaluationFault(
            f"Cohort {folder.name} was built with modality encoders {schema.modality_version}, "
            f"{encoders.version} were given. Build the cohort again."
        )
    with np.load(folder / _ARRAYS, allow_pickle=False) as arrays:
        found = dict(arrays)
    rows = pq.read_table(folder / "rows.parquet")
    items = pq.read_table(folder / "items.parquet")
    return Cohort(
        name=meta["name"],
        cutoff=np.datetime64(meta["cutoff_us"], "us"),
        judged_from=np.datetime64(meta["judged_from_us"], "us"),
        vectors_cutoff=np.datetime64(meta["vectors_cutoff_us"], "us"),
        data_end=np.datetime64(meta["data_end_us"], "us"),
        horizon_days=meta["horizon_days"],
        fingerprint=meta["fingerprint"],
        user_id=_ids(rows[USER_KEY]),
        moment=_instants(found["moment"]),
        raw=pq.read_table(folder / "raw.parquet"),
        schema=schema,
        texts=FeatureSchema.from_dict(meta["texts"]) if meta.get("texts") else None,
        as_of=_instants(found["as_of"]),
        status=_texts(rows["status"]),
        groups={name: found[f"group {name}"] for name in meta["groups"]},
        profile={name: _texts(rows[f"profile {name}"]) for name in meta["profile"]},
        tag_names=tuple(meta["tag_names"]),
        catalogue=_catalogue(items, _matrix(_DAILY, found), encoders),
        past_events=meta["past_events"],
        past_users=_ids(pq.read_table(folder / "past_users.parquet")[USER_KEY]),
        sequences=pq.read_table(folder / "sequences.parquet"),
        history_sequences=Histories(
            found["sequence offsets"], found["sequence item"], _instants(found["sequence ts"])
        ),
        **{name: found[name] for name in _NUMBERS},
        **{name: _matrix(name, found) for name in _MATRICES},
    )


def _write(cohort: Cohort, folder: Path) -> None:
    pq.write_table(cohort.raw, folder / "raw.parquet", compression="zstd")
    rows = {USER_KEY: pa.array(cohort.user_id), "status": pa.array(cohort.status)}
    rows |= {f"profile {name}": pa.array(texts) for name, texts in cohort.profile.items()}
    pq.write_table(pa.table(rows), folder / "rows.parquet")
    catalogue = cohort.catalogue
    items = {
        ITEM_KEY: catalogue.item_ids,
        "popularity": catalogue.popularity,
        "tags": pa.array(catalogue.tags, pa.list_(pa.string())),
    }
    pq.write_table(pa.table(items), folder / "items.parquet")
    pq.write_table(pa.table({USER_KEY: cohort.past_users}), folder / "past_users.parquet")
    pq.write_table(cohort.sequences, folder / "sequences.parquet", compression="zstd")
    arrays: dict[str, npt.NDArray[Any]] = {name: getattr(cohort, name) for name in _NUMBERS}
    matrices = {name: getattr(cohort, name) for name in _MATRICES} | {_DAILY: catalogue.daily}
    for name, matrix in matrices.items():
        arrays |= {
            f"{name} {part}": getattr(matrix, part) for part in ("data", "indices", "indptr")
        }
        arrays[f"{name} shape"] = np.array(matrix.shape)
    arrays |= {f"group {name}": members for name, members in cohort.groups.items()}
    sequences = cohort.history_sequences
    arrays |= {
        "moment": cohort.moment.astype(np.int64),
        "as_of": cohort.as_of.astype(np.int64),
        "sequence offsets": sequences.offsets,
        "sequence item": sequences.item,
        "sequence ts": sequences.ts.astype(np.int64),
    }
    np.savez(folder / _ARRAYS, **arrays)  # type: ignore[arg-type]
    meta = {
        "name": cohort.name,
        "cutoff_us": int(cohort.cutoff.astype(np.int64)),
        "judged_from_us": int(cohort.judged_from.astype(np.int64)),
        "vectors_cutoff_us": int(cohort.vectors_cutoff.astype(np.int64)),
        "past_events": cohort.past_events,
        "data_end_us": int(cohort.data_end.astype(np.int64)),
        "horizon_days": cohort.horizon_days,
        "fingerprint": cohort.fingerprint,
        "schema": cohort.schema.to_dict(),
        "texts": cohort.texts and cohort.texts.to_dict(),
        "groups": list(cohort.groups),
        "profile": list(cohort.profile),
        "tag_names": list(cohort.tag_names),
    }
    (folder / _META).write_text(json.dumps(meta), encoding="utf-8")


def _catalogue(items: pa.Table, daily: sparse.csr_array, encoders: ModalityEncoders) -> Catalogue:
    ids = items[ITEM_KEY].combine_chunks()
    place = encoders.index_of(ids)
    return Catalogue(
        item_ids=ids,
        popularity=items["popularity"].to_numpy(),
        daily=daily,
        tags=tuple(map(tuple, items["tags"].to_pylist())),
        vectors={m.name: m.vectors[place] for m in encoders.modalities},
        clusters={m.name: m.cluster_of[place] for m in encoders.modalities},
    )


def _matrix(name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> sparse.csr_array:
    parts = tuple(arrays[f"{name} {part}"] for part in _CSR)
    return sparse.csr_array(parts, shape=tuple(arrays[f"{name} shape"].tolist()))


def _ids(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    ids: npt.NDArray[Any] = column.to_numpy()
    return ids


def _texts(column: pa.ChunkedArray) -> npt.NDArray[np.object_]:
    return np.array(column.to_pylist(), object)


def _instants(us: npt.NDArray[np.int64]) -> npt.NDArray[np.datetime64]:
    return us.astype("datetime64[us]")
