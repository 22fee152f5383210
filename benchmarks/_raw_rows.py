"""Raw feature rows for the encoder's benchmarks: a planted low-rank structure under noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from encoder.columns import RawBatch, raw_batch
from encoder.schema import FeatureSchema
from transforms.layout import Modality, RawLayout

MODALITY_VERSION = "0123456789ab"
LAYOUT = RawLayout(
    (Modality("collaborative", 64, 32), Modality("content", 64, 32)),
    (7, 30, 180),
    context=("country", "device"),
    categories=("gender", "age"),
    numbers=("income",),
)
"""About 640 inputs, as the demo's data sets have."""

SMALL = RawLayout(
    (Modality("collaborative", 24, 12),),
    (7, 30, 180),
    context=("country", "device"),
    categories=("gender", "age"),
    numbers=("income",),
)
"""About 200 inputs in 9 columns: what serving is measured with."""

_TASTES = 16
_PIECE = 10_000


def schema(layout: RawLayout = LAYOUT) -> FeatureSchema:
    """Return the schema of a layout's rows."""
    return layout.schema(MODALITY_VERSION)


def table(
    n: int, seed: int, first_user: int = 0, contract: FeatureSchema | None = None
) -> pa.Table:
    """Return ``n`` rows of a schema, one a user, each column null for one user in ten."""
    rng = np.random.default_rng(seed)
    contract = contract or schema()
    tastes = rng.dirichlet(np.full(_TASTES, 0.3), n)
    columns: dict[str, Any] = {"user_id": np.arange(first_user, first_user + n)}
    for name, width in contract.array_columns.items():
        # The same loadings in every call: the structure is the data's, not the piece's.
        loadings = np.random.default_rng(width).standard_normal((_TASTES, width))
        values = tastes @ loadings + 0.1 * rng.standard_normal((n, width))
        if not name.endswith("pooled"):
            values = np.abs(values)
        columns[name] = _lists(values.astype(np.float32).ravel(), n, width, rng)
    for name, width in contract.text_columns.items():
        words = np.array([f"{k}" for k in range(20)], object)
        columns[name] = _lists(words[rng.integers(0, 20, n * width)], n, width, rng)
    for name in contract.as_of_columns:
        columns[name] = rng.integers(1, 2**50, n)
    for name in contract.modality_columns:
        columns[name] = pa.array([MODALITY_VERSION] * n)
    return pa.table(columns)


def batch(n: int, seed: int, contract: FeatureSchema | None = None) -> RawBatch:
    """Return ``table`` as the encoder reads it."""
    contract = contract or schema()
    return raw_batch(table(n, seed, contract=contract), contract)


def write(folder: Path, n: int, seed: int) -> None:
    """Write ``n`` rows as Parquet files of at most 10,000 rows."""
    folder.mkdir(parents=True)
    for start in range(0, n, _PIECE):
        piece = table(min(_PIECE, n - start), seed + start, start)
        pq.write_table(piece, folder / f"{start:09d}.parquet", compression="zstd")


def _lists(flat: npt.NDArray[Any], n: int, width: int, rng: np.random.Generator) -> pa.ListArray:
    offsets = pa.array(np.arange(n + 1, dtype=np.int32) * width)
    return pa.ListArray.from_arrays(offsets, pa.array(flat), mask=pa.array(rng.random(n) < 0.1))
