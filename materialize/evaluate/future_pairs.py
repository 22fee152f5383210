"""Pairs of a row and an item: what was consumed soon after, and sampled items that were not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy import sparse

from materialize.evaluate.models.base import Pairs

if TYPE_CHECKING:
    from materialize.evaluate.cohort import Cohort

__all__ = ["NEGATIVES", "POSITIVES", "SAMPLINGS", "future_pairs", "repeats_happen", "rows_for"]

SAMPLINGS = ("popularity", "uniform")
"""How negatives are drawn."""

POSITIVES = 20
"""Positives of a row at most."""

NEGATIVES = 4
"""Negatives for each positive, in each sampling."""

_REPEAT_SHARE = 0.01
_ROUNDS = 20

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Taken:
    """Which (row, item) cells must not be drawn as negatives, as sorted keys."""

    keys: Int64
    n_items: int

    @classmethod
    def of(cls, *cells: sparse.csr_array) -> _Taken:
        n_items = cells[0].shape[1]
        parts = [c.tocoo() for c in cells]
        keys = [p.row.astype(np.int64) * n_items + p.col for p in parts]
        return cls(np.unique(np.concatenate(keys)), n_items)

    def has(self, row: Int64, item: Int64) -> npt.NDArray[np.bool_]:
        key = row * self.n_items + item
        at = np.searchsorted(self.keys, key)
        found = np.zeros(len(key), bool)
        inside = at < len(self.keys)
        found[inside] = self.keys[at[inside]] == key[inside]
        return found


def repeats_happen(cohort: Cohort) -> bool:
    """Return whether users consume again what they know, judged on training rows.

    False where less than 1% of what comes next was consumed before (films are rated once). Then an
    item of the user's history is no question: such items are neither positives nor negatives.
    """
    future, history = cohort.future[cohort.training], cohort.history[cohort.training]
    again = future.multiply(history != 0).sum()
    return bool(again >= _REPEAT_SHARE * future.sum() and again > 0)


def rows_for(cohort: Cohort, rows: Int64, most_pairs: int, seed: int) -> Int64:
    """Return as many of the rows, drawn by the seed, as give about so many pairs in all samplings.

    Parameters
    ----------
    cohort : Cohort
    rows : int64 (n_rows,), ascending
    most_pairs : int
    seed : int

    Returns
    -------
    int64 (n_chosen,), ascending
        All of them where they give no more; at least one.
    """
    positives = np.minimum(np.diff(cohort.future.indptr), POSITIVES)[rows]
    order = np.random.default_rng(seed).permutation(len(rows))
    pairs = np.cumsum(positives[order]) * (1 + NEGATIVES) * len(SAMPLINGS)
    n = max(1, int(np.searchsorted(pairs, most_pairs, side="right")))
    return np.sort(rows[order[:n]])


def future_pairs(
    cohort: Cohort, rows: Int64, sampling: str, seed: int, *, with_repeats: bool
) -> Pairs:
    """Return positives of some rows and four times as many sampled negatives.

    Parameters
    ----------
    cohort : Cohort
    rows : int64 (n_rows,)
        Whose future is asked; a row without a positive gives no pair.
    sampling : {"popularity", "uniform"}
        Negatives are drawn by the number of events before the cut-off, or all alike.
    seed : int
        Of the negatives, and of which 20 positives a row with more of them has.
    with_repeats : bool
        False: items of the row's history are left out of both.

    Returns
    -------
    Pairs
        Ordered by row, the positives of a row before the negatives. Their ``log_q`` is the log of
        the item's chance to be drawn against a uniform one's, so that pairs of both samplings may
        be fitted together.

    Notes
    -----
    A negative is not consumed in the row's horizon, and may be drawn twice. Draws that hit what
    was consumed are repeated up to 20 times and then left out, so that a user who consumed nearly
    all that is popular has fewer negatives.
    """
    popularity = cohort.catalogue.popularity
    n_items = len(popularity)
    share = (
        popularity / popularity.sum() if sampling == "popularity" else np.full(n_items, 1 / n_items)
    )
    rng = np.random.default_rng([seed, SAMPLINGS.index(sampling)])
    future, history = cohort.future[rows], cohort.history[rows]
    cells = (future,) if with_repeats else (future, history)
    taken = _Taken.of(*cells)
    positive_row, positive_item = _positives(future, None if with_repeats else history, seed)
    row = np.repeat(positive_row, NEGATIVES)
    item = _drawn(share, len(row), rng)
    again = np.flatnonzero(taken.has(row, item))
    for _ in range(_ROUNDS):
        item[again] = _drawn(share, len(again), rng)
        again = again[taken.has(row[again], item[again])]
    kept = np.ones(len(row), bool)
    kept[again] = False
    row, item = row[kept], item[kept]
    all_rows = np.concatenate([positive_row, row])
    y = np.arange(len(all_rows)) < len(positive_row)
    order = np.argsort(all_rows, kind="stable")
    all_items = np.concatenate([positive_item, item])[order]
    log_q = np.log(share * n_items).astype(np.float32)
    return Pairs(rows[all_rows[order]], all_items, y[order], log_q[all_items])


def _positives(
    future: sparse.csr_array, history: sparse.csr_array | None, seed: int
) -> tuple[Int64, Int64]:
    """Return row and item of up to 20 positives a row, ordered by row."""
    if history is not None:
        future = sparse.csr_array(future.astype(np.int8) - future.multiply(history != 0))
        future.eliminate_zeros()
    cells = future.tocoo()
    # The same 20 in both samplings.
    noise = np.random.default_rng(seed).random(len(cells.row))
    order = np.lexsort((noise, cells.row))
    row, item = cells.row[order].astype(np.int64), cells.col[order].astype(np.int64)
    first = np.searchsorted(row, row)
    kept = np.arange(len(row)) - first < POSITIVES
    return row[kept], item[kept]


def _drawn(share: npt.NDArray[np.float64], n: int, rng: np.random.Generator) -> Int64:
    edges = np.cumsum(share)
    at = np.searchsorted(edges, rng.random(n) * edges[-1], side="right")
    return np.asarray(np.minimum(at, len(share) - 1), np.int64)
