from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from encoder.errors import EvaluationFault
from encoder.universal_probe import ProbeConfig
from materialize.evaluate.cohort import Cohort
from materialize.evaluate.run import chosen_tasks
from materialize.evaluate.task import Progress
from materialize.evaluate.tasks import TASKS
from materialize.evaluate.universal import HORIZON_DAYS, UniversalTask, full_width, questions
from tests.cohorts import CUTOFF, TinyCohort, tiny_cohort

SMALL = ProbeConfig(thin=32, wide=64, min_steps=20)


@cache
def _known(purity: float = 0.9) -> TinyCohort:
    """A planted cohort in which those who had few events do not come back."""
    tiny = tiny_cohort(purity=purity)
    cohort = tiny.cohort
    few = np.diff(cohort.history.indptr) < 4
    gone = sparse.diags_array((~few).astype(float))
    known = replace(
        cohort,
        future_events=np.where(few, 0, cohort.future_events),
        future=sparse.csr_array(gone @ cohort.future.astype(float)).astype(bool),
        future_tags=sparse.csr_array(gone @ cohort.future_tags.astype(float)).astype(bool),
    )
    return replace(tiny, cohort=known)


def _asked_of(known: Cohort, days: list[int] | None = None) -> Cohort:
    """Return the cohort as the runner hands it over: it knows how to get at all known users."""

    def known_users(horizon_days: int) -> Cohort:
        if days is not None:
            days.append(horizon_days)
        return known

    return replace(known, _known=known_users)


def _measure(tiny: TinyCohort, models: Any = (), seed: int = 0) -> tuple[Any, Progress]:
    progress = Progress()
    found = UniversalTask(SMALL).measure(
        _asked_of(tiny.cohort), tiny.encoder, seed, models=models, n_resamples=50, progress=progress
    )
    return found, progress


def test_the_original_width_runs_only_where_it_is_asked_for() -> None:
    usual, _ = chosen_tasks(None)
    assert "universal" in usual
    assert "universal_full" not in usual
    assert chosen_tasks(["universal_full"]) == (["universal_full"], {})
    task = full_width()
    assert task.name == "universal_full"
    assert TASKS["universal_full"].attribute == "full_width"


def test_questions_are_the_challenges() -> None:
    known = _known().cohort
    asked, left_out = questions(known)
    assert [q.name for q in asked] == ["churn", "category", "item"]
    assert left_out == {}
    churn, category, item = asked
    assert np.array_equal(churn.y[:, 0], known.future_events == 0)
    assert category.popularity is not None
    assert item.popularity is not None
    # Most consumed by training users first; popularity counts the training users.
    assert (np.diff(item.popularity) <= 0).all()
    assert np.array_equal(item.popularity, item.y[known.training].sum(axis=0))
    assert item.y.shape[1] <= 100


def test_only_the_hundred_most_consumed_are_asked_for() -> None:
    known = tiny_cohort(n_items=240).cohort
    (*_, item), _ = questions(known)
    counts = np.asarray(known.future[known.training].astype(int).sum(axis=0)).ravel()
    assert item.y.shape[1] == 100
    assert item.popularity is not None
    assert item.popularity.tolist() == sorted(counts, reverse=True)[:100]


def test_a_question_with_one_class_only_is_left_out_with_the_reason() -> None:
    asked, left_out = questions(tiny_cohort().cohort)  # everybody comes back
    assert [q.name for q in asked] == ["category", "item"]
    assert left_out == {"churn": "training and test users have one class only"}


def test_a_cohort_of_which_nothing_can_be_asked_is_refused() -> None:
    tiny = _known()
    known = tiny.cohort
    nothing = replace(
        known,
        future_events=np.zeros_like(known.future_events),
        future=sparse.csr_array(known.future.shape, dtype=bool),
        future_tags=sparse.csr_array(known.future_tags.shape, dtype=bool),
    )
    with pytest.raises(EvaluationFault, match="No question of the universal probe"):
        _measure(replace(tiny, cohort=nothing))


@pytest.mark.parametrize(("days_behind", "expected"), [(28, HORIZON_DAYS), (27, 7)])
def test_the_horizon_is_fourteen_days_where_the_data_reach(days_behind: int, expected: int) -> None:
    tiny = _known()
    end = CUTOFF + np.timedelta64(days_behind, "D")
    days: list[int] = []
    UniversalTask(SMALL).measure(
        _asked_of(replace(tiny.cohort, data_end=end), days),
        tiny.encoder,
        0,
        models=(),
        n_resamples=10,
        progress=Progress(),
    )
    assert days == [expected]


def test_planted_tastes_and_departures_are_found_and_the_score_is_the_weighted_sum() -> None:
    found, progress = _measure(_known(), models=("mean_vectors",))
    by = {(m.model, m.group, m.metric): m for m in found}
    everybody = {metric: m for (model, group, metric), m in by.items() if group == "all"}
    assert set(everybody) == {
        "churn_auroc",
        *(f"{q}_{m}" for q in ("category", "item") for m in _PARTS),
    }
    assert by["embedding", "all", "category_auroc"].value > 0.65
    assert by["embedding", "all", "churn_auroc"].value > 0.8
    for question in ("category", "item"):
        auroc, novelty, diversity, score = (
            by["embedding", "all", f"{question}_{part}"] for part in _PARTS
        )
        assert score.value == pytest.approx(
            0.8 * auroc.value + 0.1 * novelty.value + 0.1 * diversity.value
        )
        assert score.replicates == pytest.approx(
            0.8 * auroc.replicates + 0.1 * novelty.replicates + 0.1 * diversity.replicates
        )
    assert {m.model for m in found} == {"embedding", "mean_vectors"}
    protocol = progress.details["protocol"]
    assert protocol["probe"]["thin"] == 32
    assert protocol["training_users"] + protocol["judged_users"] == len(_known().cohort)


_PARTS = ("auroc", "novelty", "diversity", "score")


def test_no_planted_taste_leaves_the_categories_at_chance() -> None:
    values = []
    for seed in range(3):
        found, _ = _measure(_known(purity=1 / 3), seed=seed)
        # Among those who come back: who does not consumes no category, which is no taste.
        values += [
            m.value for m in found if (m.metric, m.group) == ("category_auroc", "established")
        ]
    # The best of three epochs is chosen on the judged users: a little above one half.
    assert np.mean(values) == pytest.approx(0.5, abs=0.1)


def test_the_same_seed_measures_the_same() -> None:
    (first, _), (second, _) = (_measure(_known(), seed=3) for _ in range(2))
    assert [m.value for m in first] == [m.value for m in second]


def test_a_representation_too_wide_for_the_challenge_is_left_out_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("materialize.evaluate.universal._MAX_DIM", 20)
    found, progress = _measure(_known(), models=("raw_inputs",))
    assert {m.model for m in found} == {"embedding"}
    assert "the challenge takes 20" in progress.skipped["raw_inputs"]
