"""Items near the mean of what a user consumed: no training at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from materialize.evaluate.models.base import FullRanker, PairModel
from materialize.evaluate.models.calibrated import CalibratedRanker
from materialize.evaluate.models.calibrated_ranking import CalibratedRanking

if TYPE_CHECKING:
    from encoder.artifact import EncoderArtifact
    from materialize.evaluate.cohort import Cohort

__all__ = ["MeanCosine", "pairs", "ranking"]

Float32 = npt.NDArray[np.float32]


def pairs() -> PairModel:
    """Return the model of pairs."""
    return CalibratedRanker(MeanCosine())


def ranking() -> FullRanker:
    """Return the model that ranks the catalogue."""
    return CalibratedRanking(MeanCosine())


class MeanCosine:
    """Ranks items by the cosine of their vector and the user's mean item vector, all modalities.

    The cosines of the modalities are summed. Zeros where a user or an item has no vector.

    State: ``user_factors`` and ``item_factors``, whose products are the sums of cosines.
    """

    name = "mean_cosine"
    task_specific = False

    def fit(self, cohort: Cohort, encoder: EncoderArtifact, seed: int) -> None:
        """Read the vectors; nothing is learned."""
        vectors = cohort.catalogue.vectors
        edges = np.cumsum([v.shape[1] for v in vectors.values()])[:-1]
        means = np.split(cohort.mean_vectors(), edges, axis=1)
        self.user_factors = np.concatenate([_unit(part) for part in means], axis=1)
        self.item_factors = np.concatenate([_unit(v) for v in vectors.values()], axis=1)

    def scores(self, rows: npt.NDArray[np.int64]) -> Float32:
        """Return float32 (len(rows), n_items)."""
        scores: Float32 = self.user_factors[rows] @ self.item_factors.T
        return scores


def _unit(vectors: Float32) -> Float32:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Float32 = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
    return scaled
