"""A full ranking as a model of pairs: its score and the item's prior, weighed on training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from materialize.evaluate.models.base import FullRanker, Pairs, check_pairs
from materialize.evaluate.models.logistic import fit_logistic
from materialize.evaluate.models.priors import ItemPrior

if TYPE_CHECKING:
    from encoder.artifact import EncoderArtifact
    from materialize.evaluate.cohort import Cohort

__all__ = ["CalibratedRanker", "Factorised", "scores_of_pairs"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

_ROWS = 512
_PAIRS = 1 << 16


@runtime_checkable
class Factorised(Protocol):
    """A ranker whose score is a product of factors: single pairs need no full row.

    Attributes
    ----------
    user_factors : float32 (n_rows, factors)
    item_factors : float32 (n_items, factors)
    """

    user_factors: Float32
    item_factors: Float32


class CalibratedRanker:
    """Scores pairs by a logistic regression on a ranking's score and the item's prior.

    A ranking's score has no scale that means anything from user to user, and a recommender mixes
    taste and popularity in a proportion that need not suit the task. Six numbers that are fitted on
    training pairs mend both: weights of the score, of the score relative to the row's spread, of
    the two parts of ``ItemPrior``, of relative score times past popularity, and a constant.

    Parameters
    ----------
    ranker : FullRanker

    Notes
    -----
    State: the fitted ranker, and ``weights`` float64 (6,). A second ``fit`` replaces both.
    """

    def __init__(self, ranker: FullRanker) -> None:
        self.ranker = ranker
        self.name = ranker.name
        self.task_specific = ranker.task_specific

    def fit(self, cohort: Cohort, encoder: EncoderArtifact, pairs: Pairs, seed: int) -> None:
        """Fit the ranker, then the six numbers. Raises as every pair model does."""
        check_pairs(cohort, pairs)
        self.ranker.fit(cohort, encoder, seed)
        self._prior = ItemPrior(cohort)
        raw = self._features(pairs.row, pairs.item)
        self._mean, spread = raw.mean(axis=0), raw.std(axis=0)
        self._scale = np.where(spread > 1e-12, spread, 1.0)
        self.weights = fit_logistic(self._standardised(raw), pairs.y, pairs.offset)

    def score(self, row: Int64, item: Int64) -> Float32:
        """Return log odds float32 (n_pairs,)."""
        standardised = self._standardised(self._features(row, item))
        logits: Float64 = standardised @ self.weights[:-1] + self.weights[-1]
        return logits.astype(np.float32)

    def full_parts(self, rows: Int64) -> tuple[Float32, Float32]:
        """Return log odds of every item in two parts: float32 (len(rows), n_items), to be added.

        What the ranker's score says, and what the prior and the constant say; the second may be
        (1, n_items), the same for all rows.
        """
        score = np.array(self.ranker.scores(rows), np.float32)
        spread = score.std(axis=1, keepdims=True, dtype=np.float64)
        mean = score.mean(axis=1, keepdims=True, dtype=np.float64)
        log_past, recent = self._prior.full_features(rows)
        slope = (self.weights[:-1] / self._scale).astype(np.float32)
        relative = _relative(score.astype(np.float64), mean, spread)
        personal = slope[0] * score + relative * (slope[1] + slope[4] * log_past)
        prior = slope[2] * log_past + slope[3] * recent  # (1 or len(rows), n_items)
        constant = self.weights[-1] - float(self._mean @ (self.weights[:-1] / self._scale))
        return personal.astype(np.float32), (prior + constant).astype(np.float32)

    def _features(self, row: Int64, item: Int64) -> Float64:
        score, relative = scores_of_pairs(self.ranker, row, item)
        prior = self._prior.features(row, item)
        return np.column_stack([score, relative, prior, relative * prior[:, 0]])

    def _standardised(self, raw: Float64) -> Float64:
        scaled: Float64 = (raw - self._mean) / self._scale
        return scaled


def scores_of_pairs(ranker: FullRanker, row: Int64, item: Int64) -> tuple[Float64, Float64]:
    """Return each pair's score, and the same in standard deviations from its row's mean.

    Both float64 (n_pairs,). A row whose items all have one score (nothing is known of the user) has
    0 for the second.
    """
    if isinstance(ranker, Factorised):
        return _scores_of_factors(ranker, row, item)
    score, relative = np.empty(len(row)), np.empty(len(row))
    order = np.argsort(row, kind="stable")
    rows, first = np.unique(row[order], return_index=True)
    edges = np.append(first, len(row))
    for start in range(0, len(rows), _ROWS):
        chosen = rows[start : start + _ROWS]
        full = ranker.scores(chosen)
        pairs = order[edges[start] : edges[start + len(chosen)]]
        place = np.searchsorted(chosen, row[pairs])
        score[pairs] = full[place, item[pairs]]
        mean = full.mean(axis=1, dtype=np.float64)
        spread = full.std(axis=1, dtype=np.float64)
        relative[pairs] = _relative(score[pairs], mean[place], spread[place])
    return score, relative


def _scores_of_factors(ranker: Factorised, row: Int64, item: Int64) -> tuple[Float64, Float64]:
    """Return the same as ``scores_of_pairs`` without scoring the catalogue."""
    items = ranker.item_factors.astype(np.float64)
    centre = items.mean(axis=0)
    covariance = (items - centre).T @ (items - centre) / len(items)
    rows, place = np.unique(row, return_inverse=True)
    users = ranker.user_factors[rows].astype(np.float64)
    mean = users @ centre
    spread = np.sqrt(np.maximum(((users @ covariance) * users).sum(axis=1), 0))
    score = np.empty(len(row))
    for start in range(0, len(row), _PAIRS):
        part = slice(start, start + _PAIRS)
        score[part] = np.einsum("pf,pf->p", users[place[part]], items[item[part]])
    return score, _relative(score, mean[place], spread[place])


def _relative(score: Float64, mean: Float64, spread: Float64) -> Float64:
    # Rounding alone spreads equal scores.
    differs = spread > 1e-6 * np.abs(mean)
    found: Float64 = np.divide(score - mean, spread, out=np.zeros(score.shape), where=differs)
    return found
