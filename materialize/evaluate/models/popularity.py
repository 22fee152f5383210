"""Popularity: what most consumed, for everybody."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from materialize.evaluate.models.base import FullRanker, Pairs, check_pairs
from materialize.evaluate.models.calibrated_ranking import CalibratedRanking
from materialize.evaluate.models.priors import FittedPrior, ItemPrior

if TYPE_CHECKING:
    from encoder.artifact import EncoderArtifact
    from materialize.evaluate.cohort import Cohort

__all__ = ["Popularity", "PopularityPairs", "ranking"]

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


def ranking() -> FullRanker:
    """Return the model that ranks the catalogue, by past and present popularity."""
    return CalibratedRanking(Popularity())


class Popularity:
    """Ranks items by their share of the events before the row's moment.

    State: ``prior``. Nothing is learned.
    """

    name = "popularity"
    task_specific = False

    def fit(self, cohort: Cohort, encoder: EncoderArtifact, seed: int) -> None:
        """Count; nothing is learned."""
        self.prior = ItemPrior(cohort)

    def scores(self, rows: Int64) -> Float32:
        """Return float32 (len(rows), n_items), the same for all test rows; read-only."""
        share, _ = self.prior.full_features(rows)
        return np.broadcast_to(share.astype(np.float32), (len(rows), share.shape[1]))


class PopularityPairs:
    """Log odds of a pair by what the item is to everybody: the prior that all models weigh.

    State: ``prior``, fitted on training pairs. A second ``fit`` replaces it.
    """

    name = "popularity"
    task_specific = False

    def fit(self, cohort: Cohort, encoder: EncoderArtifact, pairs: Pairs, seed: int) -> None:
        """Fit slopes and constant. Raises as every pair model does."""
        check_pairs(cohort, pairs)
        self.prior = FittedPrior(cohort, pairs)

    def score(self, row: Int64, item: Int64) -> Float32:
        """Return log odds float32 (n_pairs,), the same for all test rows."""
        return self.prior.logits(row, item).astype(np.float32)
