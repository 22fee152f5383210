"""Artifacts with real modality encoders, made in milliseconds: their graph is never run."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import numpy as np
import pyarrow as pa

from encoder.artifact import EncoderArtifact
from encoder.kinds import GRAPH
from encoder.modality import Items, ModalityEncoders, ModalitySpec, fit_modalities
from encoder.preprocessing import Preprocessor
from tests.encoders import LAYOUT
from tests.strategies import random_batch

__all__ = ["N_ITEMS", "SPECS", "TAGS", "build_artifact", "fit_encoders"]

N_ITEMS = 12
TAGS = [[f"genre {i % 3}"] for i in range(N_ITEMS)]
SPECS = [ModalitySpec("collaborative", 4, 3), ModalitySpec("content", 3, 3)]


def fit_encoders(
    specs: list[ModalitySpec] = SPECS, n_items: int = N_ITEMS, **changes: Any
) -> ModalityEncoders:
    """Fit on the same sessions, whatever else differs; item 11 is never consumed."""
    session = np.repeat(np.arange(60), 3)
    item = np.sort(np.random.default_rng(0).integers(0, 11, (60, 3)), axis=1).ravel()
    arguments: dict[str, Any] = {
        "cutoff": "2026-01-01T00:00:00+00:00",
        "popularity": np.bincount(item, minlength=n_items),
        "sessions": lambda: [(session, item)],
        "seed": 0,
    }
    items = Items(pa.array(range(n_items)), ["about"] * n_items, TAGS[:n_items])
    return fit_modalities(items, specs, **(arguments | changes))


def build_artifact(
    modalities: ModalityEncoders, weight: float = 1.0, **changes: Any
) -> EncoderArtifact:
    """Put an artifact together; ``changes`` are arguments of ``EncoderArtifact.build``."""
    schema = LAYOUT.schema(modalities.version)
    record = {
        **{"epoch": 1, "train_loss": 0.5, "validation_loss": 0.4, "seconds": 1.5},
        "block_errors": {"gender": 0.25},
    }
    arguments: dict[str, Any] = {
        "preprocessor": Preprocessor.fit(schema, [random_batch(schema, 100, seed=0)]),
        "weights": {"encoder.w": np.full(3, weight, np.float32)},
        "graphs": {GRAPH: b"graph"},
        "modality": modalities,
        "model": {
            **{"kind": "denoising_autoencoder", "n_inputs": 1, "embedding_dim": 8},
            **{"hidden": [16], "seed": 0, "noise_std": 0.1},
        },
        "dataset": {"dataset": "tiny", "windows": [7]},
        "data_cutoff": datetime(2026, 1, 1, tzinfo=timezone.utc),
        "training": {
            "config": {"seed": 0, "block_weights": {"gender": 2.0}, "model": {"seed": 0}},
            "history": [record],
            **{"best_epoch": 1, "stopped_early": False},
            **{"n_training_rows": 90, "n_validation_rows": 10},
        },
        "created_at": datetime(2026, 1, 2, tzinfo=timezone.utc),
    }
    return EncoderArtifact.build(**(arguments | changes))
