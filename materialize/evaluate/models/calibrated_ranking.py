"""A ranking that weighs a recommender's score and the item's prior, as every head does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy import sparse

from encoder.errors import EvaluationFault
from materialize.evaluate.models.base import FullRanker, Pairs
from materialize.evaluate.models.calibrated import CalibratedRanker
from materialize.evaluate.models.holdout import HeldOut, ndcg_of_hidden

if TYPE_CHECKING:
    from encoder.artifact import EncoderArtifact
    from materialize.evaluate.cohort import Cohort

__all__ = ["CalibratedRanking", "choose_personal"]

_ROWS = 4_000
_POSITIVES = 20
_NEGATIVES = 20
_CHOICE_ROWS = 400
_CHUNK = 200
_PERSONAL = (1.0, 0.0, 0.25, 0.5, 2.0, 4.0)
"""The first of equal ones is taken."""

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


class CalibratedRanking:
    """Ranks by the six numbers of ``CalibratedRanker``, fitted on what training rows do next.

    A head over vectors learns from training users' futures which items are consumed now, a
    recommender that is fitted on the past does not. Without this a comparison would be one of
    that knowledge.

    Parameters
    ----------
    ranker : FullRanker

    Notes
    -----
    The numbers are fitted on new items of up to 4,000 training rows, 20 a row at most, each against
    20 items that the row has not consumed, drawn half by past popularity and half uniformly: what
    tells popular items apart decides the top of a ranking. Log odds of pairs are not yet the best
    order, so how much the ranker's score counts beside the prior (0 to 4 times what the numbers
    say) is chosen by the nDCG@50 of up to 400 training rows. State: the fitted ranker, the
    numbers, and ``personal``, the chosen factor.
    """

    def __init__(self, ranker: FullRanker) -> None:
        self._model = CalibratedRanker(ranker)
        self.name = ranker.name
        self.task_specific = ranker.task_specific

    def fit(self, cohort: Cohort, encoder: EncoderArtifact, seed: int) -> None:
        """Fit the ranker, then the six numbers. Raises as every ranker does."""
        pairs = _new_items(cohort, seed)
        self._model.fit(cohort, encoder, pairs, seed)
        rows = np.unique(pairs.row)
        if len(rows) > _CHOICE_ROWS:
            rows = np.sort(np.random.default_rng(seed).permutation(rows)[:_CHOICE_ROWS])
        self.personal = choose_personal(cohort, rows, self._model.full_parts)

    def scores(self, rows: Int64) -> npt.NDArray[np.float32]:
        """Return float32 (len(rows), n_items)."""
        personal, prior = self._model.full_parts(rows)
        personal *= self.personal
        personal += prior
        return personal


def choose_personal(
    cohort: Cohort, rows: Int64, parts: Callable[[Int64], tuple[Float32, Float32]]
) -> float:
    """Return how much a ranking should heed the user, by the nDCG@50 of rows' new items.

    Parameters
    ----------
    cohort : Cohort
    rows : int64 (n,)
        Training rows with a new item in their future.
    parts : callable
        Rows to the personal part float32 (n, n_items) and the prior, of a shape to be added.

    Returns
    -------
    float
        0, a quarter, a half, 1, 2 or 4.
    """
    found = np.zeros(len(_PERSONAL))
    for start in range(0, len(rows), _CHUNK):
        chunk = rows[start : start + _CHUNK]
        known, future = cohort.history[chunk], cohort.future[chunk].astype(np.float32)
        new = sparse.csr_array(future - future.multiply(known != 0))
        new.eliminate_zeros()
        some = np.flatnonzero(np.diff(new.indptr))
        held = HeldOut(known[:0], known[some], new[some])
        if some.size:
            personal, prior = parts(chunk[some])
            found += [
                len(some) * ndcg_of_hidden(held, factor * personal + prior) for factor in _PERSONAL
            ]
    return _PERSONAL[int(np.argmax(found))]


def _new_items(cohort: Cohort, seed: int) -> Pairs:
    """Return training rows' first-time items, and drawn items that are not consumed."""
    rng = np.random.default_rng(seed)
    popularity = cohort.catalogue.popularity
    share = 0.5 / len(popularity) + 0.5 * popularity / popularity.sum()
    rows = np.flatnonzero(cohort.training & (np.diff(cohort.future.indptr) > 0))
    rows = np.sort(rng.permutation(rows)[:_ROWS])
    parts = []
    for row in rows:
        future = cohort.future.indices[slice(*cohort.future.indptr[row : row + 2])]
        known = cohort.history.indices[slice(*cohort.history.indptr[row : row + 2])]
        positive = np.setdiff1d(future, known)
        if not positive.size:
            continue
        asked = rng.permutation(positive)[:_POSITIVES]
        drawn = rng.choice(len(share), _NEGATIVES * len(asked), p=share)
        drawn = drawn[~np.isin(drawn, future) & ~np.isin(drawn, known)]
        parts.append((row, asked, drawn))
    if not parts:
        raise EvaluationFault(
            f"None of {int(cohort.training.sum())} training row(s) consumes an item for the first "
            "time within the horizon. Choose a longer horizon or more rows."
        )
    items = np.concatenate([np.concatenate([asked, drawn]) for _, asked, drawn in parts])
    owners = np.concatenate([np.full(len(a) + len(d), row) for row, a, d in parts])
    y = np.concatenate([np.arange(len(a) + len(d)) < len(a) for _, a, d in parts])
    log_q = np.log(share * len(share)).astype(np.float32)
    return Pairs(owners.astype(np.int64), items.astype(np.int64), y, log_q[items])
