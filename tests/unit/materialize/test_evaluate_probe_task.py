from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from materialize.evaluate.measurement import Measurement
from materialize.evaluate.probe_task import ProbeTask, cohort_labels
from materialize.evaluate.task import Progress
from tests.cohorts import tiny_cohort


def measure(models: Any, purity: float = 0.9) -> tuple[dict[Any, Measurement], Progress]:
    tiny, told = tiny_cohort(n_users=400, purity=purity), Progress()
    found = ProbeTask().measure(
        tiny.cohort, tiny.encoder, 0, models=models, n_resamples=100, progress=told
    )
    return {(m.metric, m.group, m.model): m for m in found}, told


@pytest.fixture(scope="module")
def planted() -> tuple[dict[Any, Measurement], Progress]:
    return measure(None)


def test_labels_are_the_kinds_that_a_row_consumes_later() -> None:
    cohort = tiny_cohort().cohort
    labels = cohort_labels(cohort)
    assert labels.targets == cohort.tag_names
    assert (labels.y == cohort.future_tags.toarray()).all()
    # Every item has one kind: their shares of the events before the cut-off add up to 1.
    assert labels.popularity.sum() == pytest.approx(1.0)
    assert (np.diff(labels.popularity) <= 0).all()


def test_planted_taste_is_read_off_the_embedding_as_well_as_off_all_inputs(
    planted: tuple[dict[Any, Measurement], Progress],
) -> None:
    found, _ = planted
    embedding = found["auc_macro", "all", "embedding"]
    assert embedding.value > 0.7
    for name in ("raw_pooled", "raw_inputs", "raw"):
        other = found["auc_macro", "all", name].figure
        assert abs(embedding.figure.minus(other).value) < 0.1
    assert found["auc_macro", "all", "popularity"].value == 0.5


def test_every_group_has_its_test_users(planted: tuple[dict[Any, Measurement], Progress]) -> None:
    found, _ = planted
    cohort = tiny_cohort(n_users=400).cohort
    for name, member in cohort.groups.items():
        assert found["auc_micro", name, "embedding"].n_rows == (member & ~cohort.training).sum()


def test_report_of_the_probe_is_kept_for_the_page(
    planted: tuple[dict[Any, Measurement], Progress],
) -> None:
    report = planted[1].details["report"]
    assert report["control"]["low"] - 0.05 < 0.5 < report["control"]["high"] + 0.05
    of_all = report["groups"]["all"]
    assert set(of_all["differences"]) == {"raw_pooled", "raw_inputs", "raw", "popularity"}
    assert report["n_bootstrap"] == 100


def test_only_the_baselines_asked_for_are_run() -> None:
    found, _ = measure(())
    assert {model for _, _, model in found} == {"embedding"}
    found, _ = measure(["popularity"])
    assert {model for _, _, model in found} == {"embedding", "popularity"}


def test_nothing_planted_is_nothing_found() -> None:
    interval = measure((), purity=1 / 3)[0]["auc_macro", "all", "embedding"].figure.interval
    slack = (interval.high - interval.low) / 2
    assert interval.low - slack < 0.5 < interval.high + slack


def test_items_without_kinds_cannot_be_asked_about() -> None:
    cohort = tiny_cohort().cohort
    assert ProbeTask().unavailable(cohort) is None
    assert "neither tags nor clusters" in (
        ProbeTask().unavailable(replace(cohort, tag_names=())) or ""
    )
