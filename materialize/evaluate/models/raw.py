"""The bar: a network on the raw features, trained for this one task."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from materialize.evaluate.models.base import Pairs, check_pairs
from materialize.evaluate.models.item_side import item_features
from materialize.evaluate.models.two_tower import (
    ItemTower,
    TowerSettings,
    TwoTower,
    fit_network,
    score_network,
)
from materialize.evaluate.models.user_towers import NetworkTower, standardise

if TYPE_CHECKING:
    from encoder.artifact import EncoderArtifact
    from materialize.evaluate.cohort import Cohort

__all__ = ["RawNetwork"]

Int64 = npt.NDArray[np.int64]

_HIDDEN = (256, 128)
_DROPOUT = 0.3
# Dropout does a part of what weight decay does for the head.
_SETTINGS = TowerSettings(weight_decays=(1.0, 5.0))


class RawNetwork:
    """Scores pairs as the light head does, with a network in place of the frozen vectors.

    The network reads every preprocessed raw feature, as the encoder does, and is trained end to end
    on the task's pairs: what an embedding could know at best, if it were made for this task alone.
    Item side, prior, loss and held-out choice are those of the light head.

    State: ``fitted``; a second ``fit`` replaces it.
    """

    name = "raw"
    task_specific = True

    def __init__(self, settings: TowerSettings | None = None) -> None:
        self.settings = _SETTINGS if settings is None else settings

    def fit(self, cohort: Cohort, encoder: EncoderArtifact, pairs: Pairs, seed: int) -> None:
        """Train the network. Raises as every pair model does."""
        check_pairs(cohort, pairs)
        inputs = standardise(cohort.inputs(encoder), cohort.training)
        features, factors = item_features(cohort), self.settings.factors

        def make(start: int) -> TwoTower:
            users = NetworkTower(inputs, _HIDDEN, factors, _DROPOUT, start)
            return TwoTower(users, ItemTower(features, pairs.item, factors, start + 1))

        self.fitted = fit_network(make, cohort, pairs, self.settings, seed)

    def score(
        self, row: npt.NDArray[np.int64], item: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """Return log odds float32 (n_pairs,)."""
        return score_network(self.fitted, row, item)
