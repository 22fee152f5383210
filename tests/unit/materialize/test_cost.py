"""Task cost on a planted cohort: what training takes, and what is left out with its reason."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from encoder.resampling import Replicates
from materialize.evaluate.cost import CostTask
from materialize.evaluate.cost_reads import raw_features
from materialize.evaluate.cost_training import Fitted, cheapest_equal, interests_of
from materialize.evaluate.measurement import EMBEDDING
from materialize.evaluate.task import Progress
from tests.cohorts import tiny_cohort
from tests.repositories import TinyRepository

SPREAD = np.linspace(-0.01, 0.01, 100)


def _fitted(name: str, parameters: int, auc: float, spread: float = 1.0) -> Fitted:
    return Fitted(name, 10, parameters, 1.0, Replicates(auc, auc + spread * SPREAD))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> TinyRepository:
    return TinyRepository.make(tmp_path_factory.mktemp("cost"))


Found = tuple[dict[tuple[str, str], Any], Progress]


@pytest.fixture(scope="module")
def measured(repository: TinyRepository) -> Found:
    return _measure(repository, None)


def _measure(repository: TinyRepository, models: tuple[str, ...] | None) -> Found:
    planted, progress = tiny_cohort(), Progress()
    found = CostTask(repository.settings).measure(
        planted.cohort, planted.encoder, 0, models=models, n_resamples=100, progress=progress
    )
    return {(m.metric, m.model): m for m in found}, progress


def test_training_is_told_for_both_and_raw_reads_more_numbers(measured: Found) -> None:
    found, progress = measured
    planted = tiny_cohort()
    assert found["model_numbers", EMBEDDING].value == 8
    assert found["model_numbers", "raw"].value == planted.cohort.inputs(planted.encoder).shape[1]
    assert found["train_s", EMBEDDING].value > 0
    assert not found["train_s", "raw"].higher_is_better
    # The planted tastes are found by both.
    assert found["auc", EMBEDDING].value > 0.8
    detail = cast("dict[str, Any]", progress.details["training"])
    chosen = {step["model"]: step for step in detail["raw"]}[detail["raw_chosen"]]
    assert found["parameters", "raw"].value == chosen["parameters"]
    assert found["auc", "raw"].value == chosen["auc"]["value"]


def test_reads_of_an_encoder_that_is_no_space_are_left_out_with_the_reason(measured: Found) -> None:
    found, progress = measured
    assert not {"read_ms", "value_bytes", "training_set_s"} & {metric for metric, _ in found}
    reads = cast("dict[str, str]", progress.details["reads"])
    assert "is no space of this ledger" in reads["left_out"]


def test_without_baselines_only_the_embedding_is_measured(repository: TinyRepository) -> None:
    found, _ = _measure(repository, ())
    assert {model for _, model in found} == {EMBEDDING}


def test_kinds_that_everybody_or_nobody_wants_are_no_task() -> None:
    # One segment: every user consumes its only genre.
    assert interests_of(tiny_cohort(n_segments=1).cohort) is None
    reason = CostTask(cast("Any", None)).unavailable(tiny_cohort(n_segments=1).cohort)
    assert reason is not None
    assert "no kind of item" in reason
    task = interests_of(tiny_cohort().cohort)
    assert task is not None
    assert task.y.shape == (len(tiny_cohort().cohort), len(task.targets))


def test_the_smallest_model_that_is_not_worse_is_chosen() -> None:
    wanted = Replicates(0.7, 0.7 - SPREAD)  # paired with the others' noise: differences are wide
    ladder = [_fitted("small", 10, 0.60), _fitted("middle", 20, 0.69), _fitted("large", 30, 0.71)]
    chosen, equal = cheapest_equal(ladder, wanted)
    assert (chosen.model, equal) == ("middle", True)


def test_where_all_are_worse_the_best_is_chosen_and_said_to_be_worse() -> None:
    ladder = [_fitted("small", 10, 0.65), _fitted("large", 30, 0.62)]
    chosen, equal = cheapest_equal(ladder, Replicates(0.7, 0.7 + SPREAD))
    assert (chosen.model, equal) == ("small", False)


def test_raw_features_are_fields_without_times_and_versions() -> None:
    fields = raw_features(tiny_cohort().cohort.schema)
    assert "user_activity:activity_pooled" in fields
    assert len(fields) == len(set(fields))
    assert not [f for f in fields if f.endswith(("_as_of", "_modality"))]
