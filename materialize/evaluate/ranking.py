"""Task ``ranking``: which items come next, ranked over the whole catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy import sparse

from encoder.errors import EvaluationFault
from encoder.resampling import column_means, user_draws
from materialize.evaluate.measurement import EMBEDDING, Measurement
from materialize.evaluate.models.registry import choose, full_ranker
from materialize.evaluate.top_lists import hits, ndcg_at, recall_at, top_lists

if TYPE_CHECKING:
    from encoder.artifact import EncoderArtifact
    from materialize.evaluate.cohort import Cohort
    from materialize.evaluate.models.base import FullRanker
    from materialize.evaluate.task import Progress

__all__ = ["KS", "Judged", "RankingTask", "judged_rows", "ranked"]

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

KS = (10, 50)
"""Lengths of the lists that are judged."""

_CELLS_PER_CHUNK = 2**23
"""Scores held at a time: 32 MiB of float32, and the copy that seen items are taken out of."""


@dataclass(frozen=True, eq=False)
class Judged:
    """Test rows that consume an item they have not consumed before.

    Attributes
    ----------
    rows : int64 (n_judged,)
        Of the cohort.
    relevant : csr_array bool (n_judged, n_items)
        Items consumed within the horizon, without those consumed before.
    n_relevant : int64 (n_judged,)
        At least 1.
    """

    rows: Int64
    relevant: sparse.csr_array
    n_relevant: Int64


def judged_rows(cohort: Cohort) -> Judged:
    """Return the test rows with a new item in their future.

    Raises
    ------
    EvaluationFault
        There is none.
    """
    test = np.flatnonzero(~cohort.training)
    new = _without(cohort.future[test], cohort.history[test])
    n_relevant = np.diff(new.indptr).astype(np.int64)
    some = n_relevant > 0
    if not some.any():
        raise EvaluationFault(
            f"None of {len(test)} test row(s) consumes an item of the catalogue for the first time "
            "within the horizon, so there is nothing to rank. Choose a longer horizon, or a later "
            "cut-off that knows more items."
        )
    return Judged(test[some], new[some], n_relevant[some])


def ranked(model: FullRanker, cohort: Cohort, rows: Int64, k: int) -> Int64:
    """Return the ``k`` items that a fitted model puts first for each row, seen items left out.

    Parameters
    ----------
    model : FullRanker
        Fitted.
    cohort : Cohort
    rows : int64 (n_rows,)
    k : int

    Returns
    -------
    int64 (n_rows, k)
        Positions in the catalogue, best first; -1 where a row has fewer unseen items. Of equal
        scores the more popular item comes first, so that a model that knows nothing of a user
        recommends what is popular.

    Raises
    ------
    EvaluationFault
        Scores of another shape, or NaN.

    Notes
    -----
    The score matrix is made in chunks of about 32 MiB, whatever the sizes of cohort and catalogue.
    """
    popularity = cohort.catalogue.popularity
    tie_rank = np.empty(len(popularity), np.int64)
    tie_rank[np.argsort(-popularity, kind="stable")] = np.arange(len(popularity))
    step = max(1, _CELLS_PER_CHUNK // len(popularity))
    parts = []
    for start in range(0, len(rows), step):
        chunk = rows[start : start + step]
        scores = np.array(model.scores(chunk), np.float32)
        if scores.shape != (len(chunk), len(popularity)) or np.isnan(scores).any():
            raise EvaluationFault(
                f"{model.name} gave scores of shape {scores.shape}, NaN among them: "
                f"{bool(np.isnan(scores).any())}; ({len(chunk)}, {len(popularity)}) without NaN "
                "expected."
            )
        seen = cohort.history[chunk].tocoo()
        scores[seen.row, seen.col] = -np.inf
        parts.append(top_lists(scores, k, tie_rank))
    return np.concatenate(parts)


class RankingTask:
    """Judges what a model recommends: the next items, among all that are known.

    Test rows that consume an item of the catalogue (an event before the cut-off) for the first time
    within the horizon. Each model ranks the whole catalogue, items that the user has consumed
    before left out, and is judged by ``recall@k`` (hits over ``min(k, new items)``) and ``ndcg@k``
    of the new items, k = 10 and 50; means over rows, resampled by user.

    The embedding and the other representations are read by a light two-tower head that is trained
    on the training users' futures, the representation frozen; recommenders (item neighbours, ALS,
    EASE, SASRec) are fitted on events before the cut-off and fold the row's history in. Of a judged
    user all of them know the events up to the moment. Of an item all of them know what
    ``models.priors.ItemPrior`` says, ``popularity`` too: its share of all events before the row's
    moment and of those of the last horizon before it, as far as the cut-off.
    """

    name = "ranking"

    def unavailable(self, cohort: Cohort) -> str | None:
        """Return why there is nothing to rank, or None."""
        try:
            judged_rows(cohort)
        except EvaluationFault as fault:
            return str(fault)
        return None

    def measure(
        self,
        cohort: Cohort,
        encoder: EncoderArtifact,
        seed: int,
        *,
        models: Sequence[str] | None,
        n_resamples: int,
        progress: Progress,
    ) -> list[Measurement]:
        """Return the figures of the embedding and of the baselines; see ``Task.measure``."""
        judged = judged_rows(cohort)
        draws = user_draws(cohort.user_id[judged.rows], n_resamples)
        members = {name: mask[judged.rows] for name, mask in cohort.groups.items()}
        progress.detail(
            "rows",
            {
                "judged": len(judged.rows),
                "new_items_a_row": float(judged.n_relevant.mean()),
                "items": len(cohort.catalogue),
            },
        )
        wanted = None if models is None else [EMBEDDING, *models]
        names, left_out = choose("ranking", wanted, cohort.others)
        for name, reason in left_out.items():
            progress.skip(name, reason)
        found: list[Measurement] = []
        for name in names:
            model = full_ranker(name)
            model.fit(cohort, encoder, seed)
            lists = ranked(model, cohort, judged.rows, max(KS))
            columns = _figures(lists, judged)
            values = np.column_stack(list(columns.values()))
            for group, member in members.items():
                if not member.any():
                    continue
                ours = draws.take(member)
                found += [
                    Measurement.of(
                        figure,
                        ours,
                        task=self.name,
                        metric=metric,
                        group=group,
                        model=name,
                        seed=seed,
                    )
                    for metric, figure in zip(
                        columns, column_means(values[member], ours), strict=True
                    )
                ]
            progress.step(f"ranking: {name}")
        return found


def _figures(lists: Int64, judged: Judged) -> dict[str, Float64]:
    hit = hits(lists, judged.relevant)
    found = {f"recall@{k}": recall_at(k, hit, judged.n_relevant) for k in KS}
    return found | {f"ndcg@{k}": ndcg_at(k, hit, judged.n_relevant) for k in KS}


def _without(future: sparse.csr_array, history: sparse.csr_array) -> sparse.csr_array:
    """Return the entries of ``future`` that ``history`` does not have, bool of the same shape."""
    entries, seen = future.tocoo(), history.tocoo()
    width = future.shape[1]
    mine = entries.row.astype(np.int64) * width + entries.col
    new = ~np.isin(mine, seen.row.astype(np.int64) * width + seen.col) & entries.data.astype(bool)
    return sparse.csr_array(
        (np.ones(int(new.sum()), bool), (entries.row[new], entries.col[new])), shape=future.shape
    )
