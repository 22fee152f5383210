"""A tiny training: its schema, its settings, and whether two runs end with the same weights."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from encoder.autoencoder import AutoencoderConfig
from encoder.preprocessing import Preprocessor
from encoder.rows import RowSource
from encoder.training import TrainingConfig
from tests.strategies import VERSION
from transforms.future import future_schema
from transforms.layout import Modality, RawLayout

__all__ = ["CONFIG", "FUTURE", "SCHEMA", "fit", "same", "weights"]

LAYOUT = RawLayout((Modality("collaborative", 4, 3),), (7,), categories=("gender",))
SCHEMA, FUTURE = LAYOUT.schema(VERSION), future_schema(LAYOUT, (3, 9), VERSION)
CONFIG = TrainingConfig(
    model=AutoencoderConfig(8, (16,)),
    batch_size=32,
    max_epochs=3,
    warmup_steps=5,
    buffer_rows=1024,
    device="cpu",
)


def weights(result: object) -> dict[str, npt.NDArray[np.float32]]:
    return {k: v.numpy() for k, v in result.model.state_dict().items()}  # type: ignore[attr-defined]


def same(a: object, b: object) -> bool:
    first, second = weights(a), weights(b)
    return all(np.array_equal(first[k], second[k]) for k in first | second)


def fit(rows: RowSource) -> Preprocessor:
    return Preprocessor.fit(rows.schema, rows.batches("training"))
