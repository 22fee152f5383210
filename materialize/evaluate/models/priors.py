"""How likely an item is whoever asks: popularity before the cut-off, and among training users."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from materialize.evaluate.models.logistic import fit_logistic

if TYPE_CHECKING:
    from materialize.evaluate.cohort import Cohort
    from materialize.evaluate.models.base import Pairs

__all__ = ["FittedPrior", "ItemPrior"]

Int64 = npt.NDArray[np.int64]


class ItemPrior:
    """Two numbers of an item that every model of pairs weighs: the same help for all.

    Popularity before the cut-off is out of date where items live for hours (news), so the second
    counts the training rows that consume the item within their horizon. A training row does not
    count itself, or its label would be its own input.

    Parameters
    ----------
    cohort : Cohort

    Notes
    -----
    State: ``log_past`` and ``recent`` float64 (n_items,). Nothing changes afterwards.
    """

    def __init__(self, cohort: Cohort) -> None:
        self.log_past = np.log1p(cohort.catalogue.popularity)
        self.recent = np.asarray(
            cohort.future[np.flatnonzero(cohort.training)].sum(axis=0), np.float64
        ).ravel()
        self._training = cohort.training
        self._future = cohort.future.astype(bool)
        future = cohort.future.tocoo()
        self._n_items = len(self.log_past)
        self._consumed = np.sort(future.row.astype(np.int64) * self._n_items + future.col)

    def features(self, row: Int64, item: Int64) -> npt.NDArray[np.float64]:
        """Return float64 (n_pairs, 2): log of past popularity, log of other rows' consumption."""
        pair = row.astype(np.int64) * self._n_items + item
        place = np.minimum(np.searchsorted(self._consumed, pair), len(self._consumed) - 1)
        own = self._training[row] & (self._consumed[place] == pair)
        return np.stack([self.log_past[item], np.log1p(self.recent[item] - own)], axis=1)

    def full_features(self, rows: Int64) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return both for every item: float64 (n_items,) and (len(rows), n_items)."""
        own = self._future[rows].toarray() & self._training[rows][:, None]
        return self.log_past, np.log1p(self.recent - own)


class FittedPrior:
    """Log odds of a pair by the item's prior alone: where every learned model of pairs starts.

    Parameters
    ----------
    cohort : Cohort
    pairs : Pairs
        Of training rows.

    Notes
    -----
    State: ``weights`` float64 (3,), two slopes and a constant. Nothing changes afterwards.
    """

    def __init__(self, cohort: Cohort, pairs: Pairs) -> None:
        self._prior = ItemPrior(cohort)
        x = self._prior.features(pairs.row, pairs.item)
        self.weights = fit_logistic(x, pairs.y, pairs.offset)

    def logits(self, row: Int64, item: Int64) -> npt.NDArray[np.float64]:
        """Return float64 (n_pairs,), the same for all test rows."""
        features = self._prior.features(row, item)
        return np.asarray(features @ self.weights[:-1] + self.weights[-1], np.float64)
