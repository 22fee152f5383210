"""Users of planted tastes with what they consumed, and an encoder that was trained on them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from encoder.artifact import EncoderArtifact
from encoder.autoencoder import AutoencoderConfig
from encoder.export import export_artifact
from encoder.modality import ItemVectors, ModalityEncoders
from encoder.preprocessing import Preprocessor
from encoder.rows import RowSource
from encoder.training import TrainingConfig, train
from tests.strategies import random_batch, to_table
from transforms.layout import Modality, RawLayout

__all__ = ["DIM", "ITEMS", "SEGMENTS", "USERS", "World", "make_world"]

SEGMENTS, ITEMS, USERS, DIM = 4, 400, 2_000, 16


@dataclass(frozen=True)
class World:
    """Users of four tastes, who consume items of their taste more, and popular ones most.

    ``consumed`` is bool (n_users, n_items); items without a vector are nobody's.
    """

    artifact: EncoderArtifact
    embedding: npt.NDArray[np.float32]
    user_segment: npt.NDArray[np.int64]
    item_segment: npt.NDArray[np.int64]
    consumed: npt.NDArray[np.bool_]


def make_world(folder: Path) -> World:
    """Train an encoder of eight numbers on users of four tastes; ``folder`` exists."""
    rng = np.random.default_rng(0)
    item_segment = rng.integers(0, SEGMENTS, ITEMS)
    user_segment = rng.integers(0, SEGMENTS, USERS)
    centres = rng.standard_normal((SEGMENTS, DIM))
    vectors = (centres[item_segment] + rng.standard_normal((ITEMS, DIM))).astype(np.float32)
    vectors[-3:] = 0
    popularity = 1 / (1 + rng.permutation(ITEMS)) ** 0.7 * vectors.any(axis=1)
    chance = np.where(item_segment == user_segment[:, None], 4.0, 1.0) * popularity
    chance /= chance.sum(axis=1, keepdims=True)
    # Windows of a week and a month: 5 and 20 items.
    draws = [np.array([rng.choice(ITEMS, n, p=c) for c in chance]) for n in (5, 20)]
    encoders = ModalityEncoders(
        pa.array([f"item {n}" for n in range(ITEMS)]),
        (ItemVectors("collaborative", vectors, np.zeros(ITEMS, np.int32), 2, centres[:2] * 1.0),),
        np.ones(ITEMS, np.bool_),
        {"cutoff": "2026-01-01T00:00:00+00:00"},
    )
    schema = RawLayout((Modality("collaborative", DIM, 2),), (7, 30)).schema(encoders.version)
    batch = random_batch(schema, USERS, 0, present=1.1)
    pooled = batch.columns["user_activity__activity_pooled"].values
    pooled[:] = np.concatenate([vectors[d].mean(axis=1) for d in draws], axis=1)
    batch.columns["user_activity__activity_modality"].values[:] = encoders.version
    artifact = _trained(folder, schema, batch, encoders)
    consumed = np.zeros((USERS, ITEMS), np.bool_)
    np.put_along_axis(consumed, draws[1], values=True, axis=1)
    return World(artifact, artifact.encode(batch), user_segment, item_segment, consumed)


def _trained(
    folder: Path, schema: object, batch: object, encoders: ModalityEncoders
) -> EncoderArtifact:
    pq.write_table(to_table(batch), folder / "rows.parquet")  # type: ignore[arg-type]
    rows = RowSource(folder / "rows.parquet", schema)  # type: ignore[arg-type]
    preprocessor = Preprocessor.fit(schema, [batch])  # type: ignore[arg-type, list-item]
    config = TrainingConfig(
        model=AutoencoderConfig(8, (64,)), batch_size=128, max_epochs=15,
        learning_rate=3e-3, device="cpu",
    )  # fmt: skip
    result = train(rows, preprocessor, config, folder / "c", progress=False)
    return export_artifact(
        result, config, preprocessor, encoders, dataset={"name": "planted"},
        data_cutoff=datetime(2026, 1, 1, tzinfo=timezone.utc),
    )  # fmt: skip
