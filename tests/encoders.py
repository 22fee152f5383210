"""A tiny encoder artifact, made the same way every time."""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from encoder.artifact import EncoderArtifact, ModalityState
from encoder.autoencoder import AutoencoderConfig, DenoisingAutoencoder
from encoder.export import export_artifact
from encoder.preprocessing import Preprocessor
from encoder.training import TrainingConfig, TrainingResult
from tests.strategies import VERSION, random_batch
from transforms.layout import Modality, RawLayout

__all__ = ["LAYOUT", "MODEL", "SCHEMA", "WHEN", "VectorState", "export_tiny", "tiny_artifact"]

LAYOUT = RawLayout(
    (Modality("collaborative", 4, 3),), (7,), categories=("gender",), onboarding=True
)
SCHEMA = LAYOUT.schema(VERSION)
MODEL = AutoencoderConfig(8, (16,))
WHEN = datetime(2026, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class VectorState:
    """What an artifact keeps of modality encoders, with three items."""

    version: str = VERSION

    def state(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """Return three vectors and their ids."""
        return {"vectors": np.arange(6, dtype=np.float32).reshape(3, 2)}, {"ids": ["a", "ü", "c"]}


_THREE_ITEMS = VectorState()


def tiny_artifact(
    seed: int = 0, layout: RawLayout = LAYOUT, modality: ModalityState = _THREE_ITEMS
) -> EncoderArtifact:
    """Return an artifact with initial weights; equal seeds give equal numbers.

    Each is a copy of its own, without sessions. Torch's exporter takes seconds, so that it is asked
    once a process for the artifact of a seed and a layout.
    """
    if modality is not _THREE_ITEMS:
        return export_tiny(seed, layout, modality)
    kept = _exported(seed, layout)
    own = {name: copy.deepcopy(getattr(kept, name)) for name in _CHANGEABLE}
    return replace(kept, **own, _sessions={}, _making=threading.Lock())


_CHANGEABLE = ("manifest", "preprocessor", "weights")


@cache
def _exported(seed: int, layout: RawLayout) -> EncoderArtifact:
    return export_tiny(seed, layout)


def export_tiny(
    seed: int = 0, layout: RawLayout = LAYOUT, modality: ModalityState = _THREE_ITEMS
) -> EncoderArtifact:
    """Make what `tiny_artifact` returns, each time anew."""
    schema = layout.schema(modality.version)
    batch = random_batch(schema, 200)
    preprocessor = Preprocessor.fit(schema, [batch])
    model = replace(MODEL, seed=seed)
    network = DenoisingAutoencoder(preprocessor.input_slices, model)
    result = TrainingResult(network, (), 1, False, 180, 20, preprocessor.transform(batch))
    return export_artifact(
        result,
        TrainingConfig(model=model),
        preprocessor,
        modality,
        dataset={"name": "tiny"},
        data_cutoff=WHEN,
    )
