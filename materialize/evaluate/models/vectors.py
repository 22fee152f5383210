"""Representations of users that need no fit of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from materialize.evaluate.models.base import UserModel

if TYPE_CHECKING:
    from encoder.artifact import EncoderArtifact
    from materialize.evaluate.cohort import Cohort

__all__ = ["embedding", "mean_vectors", "of_space", "raw_inputs"]

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Read:
    """Vectors that the cohort itself gives."""

    name: str
    read: Callable[[Cohort, EncoderArtifact], Float32]

    def vectors(self, cohort: Cohort, encoder: EncoderArtifact, seed: int) -> Float32:
        return self.read(cohort, encoder)


def embedding() -> UserModel:
    """Return the embedding of the encoder that is judged."""
    return _Read("embedding", lambda cohort, encoder: cohort.encode(encoder))


def of_space(name: str) -> UserModel:
    """Return the embedding of another space, one of ``Cohort.others``."""
    return _Read(name, lambda cohort, _: cohort.encode(cohort.others[name]))


def mean_vectors() -> UserModel:
    """Return the weighted mean of the item vectors that a user consumed, all modalities."""
    return _Read("mean_vectors", lambda cohort, _: cohort.mean_vectors())


def raw_inputs() -> UserModel:
    """Return the preprocessed raw features, what the encoder itself reads."""
    return _Read("raw_inputs", lambda cohort, encoder: cohort.inputs(encoder))
