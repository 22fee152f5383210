from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from encoder.errors import EvaluationFault
from materialize.evaluate.cohort import Cohort
from materialize.evaluate.ranking import KS, RankingTask, judged_rows, ranked
from materialize.evaluate.task import Progress
from materialize.evaluate.top_lists import hits, recall_at
from tests.cohorts import tiny_cohort


class _Given:
    """Scores that are given: a ranker whose answer is known."""

    name = "given"
    task_specific = False

    def __init__(self, scores: Any) -> None:
        self.all = np.asarray(scores, np.float32)

    def fit(self, cohort: Cohort, encoder: Any, seed: int) -> None:
        raise AssertionError("ranked() takes a fitted model")

    def scores(self, rows: Any) -> Any:
        return self.all[rows]


def _figures(found: Any, metric: str, group: str = "all") -> dict[str, float]:
    return {m.model: m.value for m in found if (m.metric, m.group) == (metric, group)}


def test_judged_rows_are_test_rows_with_an_item_that_is_new_to_them() -> None:
    cohort = tiny_cohort().cohort
    judged = judged_rows(cohort)
    assert not cohort.training[judged.rows].any()
    relevant = judged.relevant.toarray()
    assert (relevant.sum(axis=1) == judged.n_relevant).all()
    assert judged.n_relevant.min() >= 1
    future = cohort.future[judged.rows].toarray().astype(bool)
    seen = cohort.history[judged.rows].toarray() > 0
    assert np.array_equal(relevant, future & ~seen)


def test_a_ranker_that_knows_the_future_finds_all_of_it() -> None:
    cohort = tiny_cohort().cohort
    judged = judged_rows(cohort)
    lists = ranked(_Given(cohort.future.toarray()), cohort, judged.rows, 10)
    assert recall_at(10, hits(lists, judged.relevant), judged.n_relevant) == pytest.approx(1.0)


def test_seen_items_are_not_recommended() -> None:
    cohort = tiny_cohort().cohort
    judged = judged_rows(cohort)
    lists = ranked(_Given(cohort.history.toarray()), cohort, judged.rows, 50)
    seen = cohort.history[judged.rows].toarray() > 0
    row, place = np.nonzero(lists >= 0)
    assert not seen[row, lists[row, place]].any()


def test_a_ranker_that_knows_nothing_recommends_what_is_popular() -> None:
    cohort = tiny_cohort().cohort
    judged = judged_rows(cohort)
    nothing = np.zeros((len(cohort), len(cohort.catalogue)))
    popular = nothing + cohort.catalogue.popularity
    ours, theirs = (ranked(_Given(s), cohort, judged.rows, 10) for s in (nothing, popular))
    assert np.array_equal(ours, theirs)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = tiny_cohort().cohort
    judged = judged_rows(cohort)
    model = _Given(np.random.default_rng(0).standard_normal(cohort.history.shape))
    whole = ranked(model, cohort, judged.rows, 10)
    monkeypatch.setattr("materialize.evaluate.ranking._CELLS_PER_CHUNK", 7 * len(cohort.catalogue))
    assert np.array_equal(ranked(model, cohort, judged.rows, 10), whole)


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_scores_with_nan_or_of_another_catalogue_are_refused(value: float) -> None:
    cohort = tiny_cohort().cohort
    width = len(cohort.catalogue) + int(value == 0.0)
    model = _Given(np.full((len(cohort), width), value))
    with pytest.raises(EvaluationFault, match="given gave scores of shape"):
        ranked(model, cohort, judged_rows(cohort).rows, 10)


def test_a_cohort_without_new_items_has_nothing_to_rank() -> None:
    cohort = tiny_cohort().cohort
    nothing = sparse.csr_array(cohort.future.shape, dtype=bool)
    repeated = replace(cohort, future=nothing)
    reason = RankingTask().unavailable(repeated)
    assert reason is not None
    assert "for the first time" in reason
    assert RankingTask().unavailable(cohort) is None


def test_the_embedding_finds_the_planted_taste_that_popularity_does_not() -> None:
    tiny = tiny_cohort()
    progress = Progress()
    found = RankingTask().measure(
        tiny.cohort, tiny.encoder, 0, models=("popularity",), n_resamples=100, progress=progress
    )
    assert {m.metric for m in found} == {f"{name}@{k}" for name in ("recall", "ndcg") for k in KS}
    assert {m.group for m in found} <= set(tiny.cohort.groups)
    ndcg = _figures(found, "ndcg@10")
    assert ndcg["embedding"] > 1.3 * ndcg["popularity"]
    (rows,) = {m.n_rows for m in found if m.group == "all"}
    assert rows == progress.details["rows"]["judged"]


def test_nothing_planted_gives_the_embedding_no_lead() -> None:
    tiny = tiny_cohort(n_users=900, purity=1 / 3)
    found = RankingTask().measure(
        tiny.cohort,
        tiny.encoder,
        0,
        models=("popularity",),
        n_resamples=100,
        progress=Progress(),
    )
    ndcg = _figures(found, "ndcg@10")
    assert ndcg["embedding"] == pytest.approx(ndcg["popularity"], abs=0.05)
