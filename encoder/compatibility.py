"""Backward-compatible training: a new encoder that stays close to an earlier one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from encoder.columns import RawBatch
from encoder.errors import TrainingFault
from encoder.rows import InputMatrix

__all__ = ["Compatibility", "CompatibilityLoss", "Reference", "variance_of"]

_READ_ROWS = 8192


class Reference(Protocol):
    """The encoder to stay close to; `encoder.artifact.EncoderArtifact` is one."""

    @property
    def encoder_version(self) -> str:
        """Content hash of the encoder."""

    def encode(self, batch: RawBatch) -> npt.NDArray[np.float32]:
        """Return the embeddings float32 (n_rows, embedding_dim) of raw features."""


@dataclass(frozen=True)
class Compatibility:
    """What a training is to stay compatible with."""

    reference: Reference
    """Reads the same raw rows: the same modality version, and columns that the new schema has."""
    weight: float = 1.0
    """Of the term beside the losses of reconstruction and prediction, as a share of their weights;
    0.5 halves, 2 doubles it."""

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(
                f"compatibility weight {self.weight} given, more than 0 expected. Leave the "
                "setting out to train without it."
            )


class CompatibilityLoss(nn.Module):
    r"""Squared distance of the embedding to the reference's, as a share of its variance.

    For row i with embedding :math:`z_i` and the reference's :math:`z'_i`:
    :math:`\lVert z_i - z'_i \rVert^2 / V` with :math:`V = \frac{1}{n} \sum_j \lVert z'_j - \bar z'
    \rVert^2` over the training rows. It is near 1 for a constant guess, as the losses of the blocks
    are, so that one weight means the same for every reference.

    Parameters
    ----------
    variance : float
        V.

    References
    ----------
    Hu et al. 2022, "Learning Backward Compatible Embeddings" (BC-Aligner), arXiv 2206.03040: the
    loss of the intended task plus a squared distance to the earlier version's embedding. There the
    new embedding goes through a linear map that is learned with it; here the map is the identity.
    """

    def __init__(self, variance: float) -> None:
        super().__init__()
        self.variance = variance

    def forward(self, embedding: Tensor, reference: Tensor) -> Tensor:
        """Return the loss of each row, float32 (n,)."""
        distance = (embedding.float() - reference).square().sum(dim=1)  # (n,)
        return distance / self.variance


def variance_of(matrix: InputMatrix, first: int) -> float:
    """Return the mean squared distance of the columns from ``first`` on to their mean.

    Raises
    ------
    TrainingFault
        It is 0: every row has the same reference embedding.
    """
    total = np.zeros(matrix.n_inputs - first)
    squares = 0.0
    for rows in matrix.in_order(_READ_ROWS):
        vectors = rows[:, first:].astype(np.float64)
        total += vectors.sum(axis=0)
        squares += float(np.square(vectors).sum())
    variance = squares / matrix.n_rows - float(np.square(total / matrix.n_rows).sum())
    if not variance > 0:
        raise TrainingFault(
            "The encoder to be compatible with gives all training rows the same embedding. "
            "Choose another space, or train without `compatibility`."
        )
    return variance
