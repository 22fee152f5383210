"""Hybrid factorisation in the manner of LightFM: users and items are sums of their features."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import nn
from torch.nn.functional import embedding_bag

from materialize.evaluate.models.base import Pairs, check_pairs
from materialize.evaluate.models.item_side import item_tags
from materialize.evaluate.models.two_tower import (
    ItemTower,
    TowerSettings,
    TwoTower,
    fit_network,
    score_network,
)

if TYPE_CHECKING:
    from encoder.artifact import EncoderArtifact
    from materialize.evaluate.cohort import Cohort

__all__ = ["FeatureSum", "LightFm", "user_features"]

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

_MAX_TAGS = 256
_MIN_ROWS = 2
# A column of the sparse features learns from few rows: larger steps, less decay than the head's.
_SETTINGS = TowerSettings(learning_rate=3e-3, weight_decays=(0.03, 0.3, 3.0))


class FeatureSum(nn.Module):
    """Factors of a user: the weighed sum of the factors of the user's features.

    Parameters
    ----------
    features : csr_array float32 (n_rows, n_features)
    factors : int
    seed : int
    """

    def __init__(self, features: sparse.csr_array, factors: int, seed: int) -> None:
        super().__init__()
        self.starts = torch.from_numpy(features.indptr.astype(np.int64))
        self.columns = torch.from_numpy(features.indices.astype(np.int64))
        self.values = torch.from_numpy(features.data.astype(np.float32))
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(features.shape[1], factors, generator=generator)
        self.weight = nn.Parameter(0.1 * start / factors**0.5)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return (n, factors)."""
        sizes = self.starts[rows + 1] - self.starts[rows]
        bags = torch.cumsum(sizes, 0) - sizes
        entries = torch.arange(int(sizes.sum())) + torch.repeat_interleave(
            self.starts[rows] - bags, sizes
        )
        return embedding_bag(
            self.columns[entries],
            self.weight,
            bags,
            mode="sum",
            per_sample_weights=self.values[entries],
        )


class LightFm:
    """Scores pairs by the product of summed features: what LightFM does, with a logistic loss.

    A user is the sum of one embedding for each profile and context category and each item of the
    history; an item is its own embedding and those of its tags. All are trained on the task's
    pairs; prior, loss and held-out choice are those of the light head. (LightFM itself does not
    build with the Python versions that Feast needs.)

    State: ``fitted``; a second ``fit`` replaces it.

    References
    ----------
    Kula. Metadata embeddings for user and item cold-start recommendations. CBRecSys 2015.
    """

    name = "lightfm"
    task_specific = True

    def __init__(self, settings: TowerSettings | None = None) -> None:
        self.settings = _SETTINGS if settings is None else settings

    def fit(self, cohort: Cohort, encoder: EncoderArtifact, pairs: Pairs, seed: int) -> None:
        """Fit all embeddings. Raises as every pair model does."""
        check_pairs(cohort, pairs)
        users, tags = user_features(cohort), item_tags(cohort, _MAX_TAGS)
        factors = self.settings.factors

        def make(start: int) -> TwoTower:
            items = ItemTower(tags, pairs.item, factors, start + 1)
            return TwoTower(FeatureSum(users, factors, start), items)

        self.fitted = fit_network(make, cohort, pairs, self.settings, seed)

    def score(self, row: Int64, item: Int64) -> Float32:
        """Return log odds float32 (n_pairs,)."""
        return score_network(self.fitted, row, item)


def user_features(cohort: Cohort) -> sparse.csr_array:
    """Return categories and history of each row, float32 (n_rows, n_features).

    One column a category's value and one an item of the history, where at least two training rows
    have it; history is binary and divided by the root of the row's number of items. The last column
    is 1 for everybody.
    """
    n_rows, training = len(cohort.user_id), np.flatnonzero(cohort.training)
    parts = []
    for values in cohort.profile.values():
        names, code = np.unique(values.astype(str), return_inverse=True)
        one_hot = sparse.csr_array(
            (np.ones(n_rows, np.float32), (np.arange(n_rows), code)), shape=(n_rows, len(names))
        )
        parts.append(one_hot[:, np.flatnonzero(names != "")])
    history = sparse.csr_array(cohort.history, copy=True).astype(np.float32)
    history.data[:] = np.repeat(
        1 / np.sqrt(np.maximum(np.diff(history.indptr), 1)), np.diff(history.indptr)
    )
    parts.append(history)
    joined = sparse.csr_array(sparse.hstack(parts, format="csr"))
    used = np.bincount(joined[training].indices, minlength=joined.shape[1]) >= _MIN_ROWS
    everybody = sparse.csr_array(np.ones((n_rows, 1), np.float32))
    kept = sparse.hstack([joined[:, np.flatnonzero(used)], everybody], format="csr")
    return sparse.csr_array(kept)
