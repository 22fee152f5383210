"""A ranking that weighs a recommender's score and the item's prior, as every head does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from encoder.errors import EvaluationFault
from materialize.evaluate.models.base import FullRanker, Pairs
from materialize.evaluate.models.calibrated import CalibratedRanker

if TYPE_CHECKING:
    from encoder.artifact import EncoderArtifact
    from materialize.evaluate.cohort import Cohort

__all__ = ["CalibratedRanking"]

_ROWS = 4_000
_POSITIVES = 20
_NEGATIVES = 20

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
    20 uniformly drawn items that the row has not consumed. State: the fitted ranker and numbers.
    """

    def __init__(self, ranker: FullRanker) -> None:
        self._model = CalibratedRanker(ranker)
        self.name = ranker.name
        self.task_specific = ranker.task_specific

    def fit(self, cohort: Cohort, encoder: EncoderArtifact, seed: int) -> None:
        """Fit the ranker, then the six numbers. Raises as every ranker does."""
        self._model.fit(cohort, encoder, _new_items(cohort, seed), seed)

    def scores(self, rows: Int64) -> npt.NDArray[np.float32]:
        """Return log odds float32 (len(rows), n_items)."""
        return self._model.full_scores(rows)


def _new_items(cohort: Cohort, seed: int) -> Pairs:
    """Return training rows' first-time items, and items drawn uniformly that are not consumed."""
    rng = np.random.default_rng(seed)
    n_items = len(cohort.catalogue.popularity)
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
        drawn = rng.integers(n_items, size=_NEGATIVES * len(asked))
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
    return Pairs(owners.astype(np.int64), items.astype(np.int64), y)
