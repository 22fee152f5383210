"""How likely an item is whoever asks: its popularity as it was known at the row's moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy import sparse

from materialize.evaluate.models.logistic import fit_logistic

if TYPE_CHECKING:
    from materialize.evaluate.cohort import Cohort
    from materialize.evaluate.models.base import Pairs

__all__ = ["FittedPrior", "ItemPrior"]

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


class ItemPrior:
    """Two numbers of an item that every model of pairs weighs: the same help for all.

    Logarithms of the item's share of all events before the row's moment, and of those of the last
    horizon before it, one event added to each item. Whole days count, and of later test rows those
    before ``judged_from``: nothing of a row's own horizon.

    Parameters
    ----------
    cohort : Cohort

    Notes
    -----
    Nothing changes afterwards. Holds ``Catalogue.daily`` once more, ordered by item.
    """

    def __init__(self, cohort: Cohort) -> None:
        daily = cohort.catalogue.daily
        self._n_days, self._n_items = daily.shape
        self._daily = daily
        end = cohort.judged_from.astype("datetime64[D]").astype(np.int64)
        day = cohort.moment.astype("datetime64[D]").astype(np.int64)
        # Days of the table before the row's moment.
        self._known = np.clip(day - end + self._n_days, 0, self._n_days)
        self._horizon = cohort.horizon_days
        by_item = daily.tocsc()
        by_item.sort_indices()
        item = np.repeat(np.arange(self._n_items), np.diff(by_item.indptr))
        self._cells = item * self._n_days + by_item.indices
        self._before_cell = np.concatenate([[0.0], np.cumsum(by_item.data)])
        self._first_cell = by_item.indptr.astype(np.int64)
        self._before_day = np.concatenate([[0.0], np.cumsum(np.asarray(daily.sum(axis=1)))])

    def features(self, row: Int64, item: Int64) -> Float64:
        """Return float64 (n_pairs, 2): log shares of all events, and of the last horizon's."""
        until = self._known[row]
        since = np.maximum(until - self._horizon, 0)
        whole = self._events(item, until)
        return np.stack(
            [
                self._log_share(whole, self._before_day[until]),
                self._log_share(
                    whole - self._events(item, since),
                    self._before_day[until] - self._before_day[since],
                ),
            ],
            axis=1,
        )

    def full_features(self, rows: Int64) -> tuple[Float64, Float64]:
        """Return both for every item, float64 (len(rows), n_items).

        Or (1, n_items) where they are the same for all rows, as for test rows.
        """
        which, whole, recent = self.by_day(rows)
        take = which if len(whole) > 1 else np.zeros(1, np.int64)
        return whole[take], recent[take]

    def by_day(self, rows: Int64, items: Int64 | None = None) -> tuple[Int64, Float64, Float64]:
        """Return each row's line of two tables, and these: both float64 (n_days, n_items).

        Parameters
        ----------
        rows : int64 (n,)
        items : int64 (n_items,), optional
            Default: all.
        """
        days, which = np.unique(self._known[rows], return_inverse=True)
        daily = self._daily if items is None else sparse.csr_array(self._daily[:, items])
        whole, recent = np.empty((2, len(days), daily.shape[1]))
        for line, until in enumerate(days.tolist()):
            since = max(until - self._horizon, 0)
            of_days = self._before_day[until] - self._before_day[since]
            late = np.asarray(daily[since:until].sum(axis=0), np.float64)
            early = np.asarray(daily[:since].sum(axis=0), np.float64)
            whole[line] = self._log_share(early + late, self._before_day[until])
            recent[line] = self._log_share(late, of_days)
        return which, whole, recent

    def _events(self, item: Int64, until: Int64) -> Float64:
        """Return each item's events on the first ``until`` days."""
        place = np.searchsorted(self._cells, item * self._n_days + until)
        found: Float64 = self._before_cell[place] - self._before_cell[self._first_cell[item]]
        return found

    def _log_share(self, events: Float64, of: Float64 | float) -> Float64:
        found: Float64 = np.log((events + 1) / (of + self._n_items))
        return found


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

    def logits(self, row: Int64, item: Int64) -> Float64:
        """Return float64 (n_pairs,), the same for all test rows."""
        features = self._prior.features(row, item)
        return np.asarray(features @ self.weights[:-1] + self.weights[-1], np.float64)
