"""The light head: what frozen vectors of users know of the items that follow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from encoder.errors import EvaluationFault
from materialize.evaluate.models.base import PairModel, Pairs, UserModel, check_pairs
from materialize.evaluate.models.item_side import item_features
from materialize.evaluate.models.two_tower import (
    ItemTower,
    TowerSettings,
    TwoTower,
    fit_network,
    score_network,
)
from materialize.evaluate.models.user_towers import LinearTower, standardise

if TYPE_CHECKING:
    from encoder.artifact import EncoderArtifact
    from materialize.evaluate.cohort import Cohort

__all__ = [
    "LightHead",
    "als_vectors",
    "coles",
    "embedding",
    "frozen",
    "mean_vectors",
    "raw_inputs",
]

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


class LightHead:
    """Scores pairs by a bilinear form of frozen user vectors and items.

    ``logit = (A z) . (B v_i + e_i) + b_i + prior_i``: z the user's vector, v the item's vectors,
    clusters and tags, e and b free numbers of the item, ``A`` and ``B`` of rank 32. Only A, B, e, b
    and the prior's weights are fitted: frozen means frozen. Every representation gets the same
    head, of the same rank, with weight decay and epoch chosen on held-out training users.

    Parameters
    ----------
    users : UserModel
    settings : TowerSettings, optional
    """

    task_specific = False

    def __init__(self, users: UserModel, settings: TowerSettings | None = None) -> None:
        self.users = users
        self.name = users.name
        self.settings = TowerSettings() if settings is None else settings

    def fit(self, cohort: Cohort, encoder: EncoderArtifact, pairs: Pairs, seed: int) -> None:
        """Fit the head. Raises as every pair model does."""
        check_pairs(cohort, pairs)
        z = standardise(frozen(self.users, cohort, encoder, seed), cohort.training)
        features, factors = item_features(cohort), self.settings.factors

        def make(start: int) -> TwoTower:
            items = ItemTower(features, pairs.item, factors, start + 1)
            return TwoTower(LinearTower(z, factors, start), items)

        self.fitted = fit_network(make, cohort, pairs, self.settings, seed)

    def score(self, row: Int64, item: Int64) -> Float32:
        """Return log odds float32 (n_pairs,)."""
        return score_network(self.fitted, row, item)


def frozen(users: UserModel, cohort: Cohort, encoder: EncoderArtifact, seed: int) -> Float32:
    """Return a model's vectors of the cohort's rows, checked.

    Raises
    ------
    EvaluationFault
        Not one row of numbers for each of the cohort's, or NaN or infinity.
    """
    vectors = users.vectors(cohort, encoder, seed)
    n_rows = len(cohort.user_id)
    if vectors.ndim != 2 or len(vectors) != n_rows:
        raise EvaluationFault(
            f"{users.name} gave vectors of shape {vectors.shape}, ({n_rows}, k) expected: one for "
            "each of the cohort's rows."
        )
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if bad.size:
        raise EvaluationFault(
            f"{users.name} gave NaN or infinity in {bad.size} row(s), first for user "
            f"{cohort.user_id[bad[0]]!r}. A representation is finite for every row."
        )
    return np.asarray(vectors, np.float32)


def _head(name: str) -> PairModel:
    from materialize.evaluate.models.registry import user_model

    return LightHead(user_model(name))


def embedding() -> PairModel:
    """Return the light head on the embedding that is judged."""
    return _head("embedding")


def of_space(name: str) -> PairModel:
    """Return the light head on the embedding of another space."""
    return _head(name)


def mean_vectors() -> PairModel:
    """Return the light head on mean item vectors."""
    return _head("mean_vectors")


def raw_inputs() -> PairModel:
    """Return the light head on the preprocessed raw features."""
    return _head("raw_inputs")


def als_vectors() -> PairModel:
    """Return the light head on the factors of ALS."""
    return _head("als_vectors")


def coles() -> PairModel:
    """Return the light head on CoLES vectors."""
    return _head("coles")
