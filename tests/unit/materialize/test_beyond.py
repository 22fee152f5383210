from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from materialize.evaluate import beyond
from materialize.evaluate.beyond import BeyondTask
from materialize.evaluate.measurement import Measurement
from materialize.evaluate.task import Progress
from tests.cohorts import TinyCohort, tiny_cohort

LESS_IS_BETTER = ("ece", "miscalibration", "gini", "top_exposure", "exposure_gap", "ndcg_gap")


@pytest.fixture(scope="module")
def planted() -> TinyCohort:
    return tiny_cohort()


@pytest.fixture(scope="module")
def measured(planted: TinyCohort) -> tuple[list[Measurement], Progress]:
    progress = Progress()
    found = BeyondTask().measure(
        planted.cohort,
        planted.encoder,
        0,
        models=["popularity"],
        n_resamples=100,
        progress=progress,
    )
    return found, progress


@pytest.fixture(scope="module")
def found(
    measured: tuple[list[Measurement], Progress],
) -> Mapping[tuple[str, str, str], Measurement]:
    return {(m.metric, m.group, m.model): m for m in measured[0]}


def test_lists_by_taste_are_calibrated_to_the_past_and_reach_further_than_popular_ones(
    found: Mapping[tuple[str, str, str], Measurement],
) -> None:
    own, popular = (
        {metric: found[f"{metric}@10", "all", model].figure for metric in (
            "miscalibration", "coverage", "p90_coverage", "gini", "top_exposure")}
        for model in ("embedding", "popularity")
    )  # fmt: skip
    for metric in ("miscalibration", "gini", "top_exposure"):
        assert own[metric].minus(popular[metric]).interval.high < 0
    for metric in ("coverage", "p90_coverage"):
        assert own[metric].minus(popular[metric]).interval.low > 0


def test_probabilities_of_fitted_models_are_about_what_happens(
    found: Mapping[tuple[str, str, str], Measurement],
) -> None:
    # A fifth of the pairs are positive: whoever said 0 or 1 would be wrong by .2 or .8.
    for model in ("embedding", "popularity"):
        for sampling in ("popularity", "uniform"):
            assert 0 < found[f"ece@{sampling}", "all", model].value < 0.15


def test_device_that_is_chance_makes_no_gap_beyond_chance(
    found: Mapping[tuple[str, str, str], Measurement],
) -> None:
    metric = "ndcg_gap@10_context_device"
    gap, chance = (found[metric, "all", model].figure for model in ("embedding", "chance"))
    assert gap.minus(chance).interval.low < 0.02


def test_metric_of_which_less_is_better_says_so(
    found: Mapping[tuple[str, str, str], Measurement],
) -> None:
    for (metric, _, _), m in found.items():
        assert m.higher_is_better != metric.startswith(LESS_IS_BETTER)
        assert len(m.replicates) == 100
        assert np.isfinite(m.value)


def test_details_are_json_with_a_reliability_diagram_of_each_model(
    measured: tuple[list[Measurement], Progress],
) -> None:
    details: dict[str, Any] = json.loads(json.dumps(measured[1].details, allow_nan=False))
    assert set(details["reliability"]) == {"embedding", "popularity"}
    for bins in details["reliability"]["embedding"].values():
        assert sum(one["share"] for one in bins) == pytest.approx(1)
    assert set(details["ndcg_by_group"]["embedding"]) >= {"activity", "context_device"}
    for shares in details["exposure_by_tenth"]["popularity"].values():
        assert sum(shares) == pytest.approx(1)


def test_embedding_alone_is_judged_as_studies_ask(planted: TinyCohort) -> None:
    alone = BeyondTask().measure(
        planted.cohort, planted.encoder, 0, models=(), n_resamples=20, progress=Progress()
    )
    assert {m.model for m in alone} == {"embedding", "chance"}


def test_without_fairlearn_gaps_are_left_out_and_it_is_said(
    planted: TinyCohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beyond, "find_spec", lambda name: None)
    progress = Progress()
    found = BeyondTask().measure(
        planted.cohort, planted.encoder, 0, models=(), n_resamples=20, progress=progress
    )
    assert "fairlearn is not installed" in progress.skipped["chance"]
    assert not [m.metric for m in found if "ndcg" in m.metric]


def test_cohort_whose_test_users_find_nothing_new_says_so(planted: TinyCohort) -> None:
    cohort = planted.cohort
    empty = sparse.csr_array(cohort.future.shape, dtype=bool)
    why = BeyondTask().unavailable(replace(cohort, future=empty))
    assert "consumes an item of the catalogue for the first time" in str(why)
    only_test = cohort.future.toarray() & ~cohort.training[:, None]
    why = BeyondTask().unavailable(replace(cohort, future=sparse.csr_array(only_test)))
    assert str(why).startswith("no training user consumes")
    assert BeyondTask().unavailable(cohort) is None
