"""Task cost of a space that is served: what is read from the repository's own stores."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from materialize.evaluate.cohort_build import build_cohort
from materialize.evaluate.cost import CostTask
from materialize.evaluate.cost_reads import online_costs, training_set_seconds
from materialize.evaluate.measurement import EMBEDDING
from materialize.evaluate.task import Progress
from tests.e2e.conftest import Story
from transforms.layout import ACTIVITY, field
from transforms.names import stored_view
from transforms.runtime import load_encoder

Found = tuple[dict[tuple[str, str], Any], Progress]


@pytest.fixture(scope="module")
def measured(story: Story) -> Found:
    settings, progress = story.context.settings, Progress()
    cohort = build_cohort(settings, max_rows=500, progress=False)
    encoder = load_encoder(settings.artifacts_url, story.space.encoder_version)
    found = CostTask(settings).measure(
        cohort, encoder, 0, models=None, n_resamples=50, progress=progress
    )
    return {(m.metric, m.model): m for m in found}, progress


def test_the_embedding_is_one_field_of_sixteen_numbers(measured: Found) -> None:
    found, _ = measured
    assert found["fields", EMBEDDING].value == 1
    assert found["numbers", EMBEDDING].value == 16
    # Four bytes a number, and the message around them.
    assert 64 < found["value_bytes", EMBEDDING].value < 80


def test_raw_features_are_more_fields_numbers_and_bytes(measured: Found, story: Story) -> None:
    found, _ = measured
    schema = load_encoder(
        story.context.settings.artifacts_url, story.space.encoder_version
    ).preprocessor.schema
    assert found["fields", "raw"].value == len({block.column for block in schema.blocks})
    # Users without onboarding have fewer; the widest row has all.
    assert found["numbers", "raw"].value == sum(block.width for block in schema.blocks)
    assert found["value_bytes", "raw"].value > 10 * found["value_bytes", EMBEDDING].value


def test_times_have_intervals_and_say_where_they_were_taken(measured: Found) -> None:
    found, progress = measured
    for metric in ("read_ms", "training_set_s"):
        for model in (EMBEDDING, "raw"):
            figure = found[metric, model]
            interval = figure.figure.interval
            assert 0 < interval.low <= figure.value <= interval.high
            assert not figure.higher_is_better
    reads = cast("dict[str, Any]", progress.details["reads"])
    assert "Sqlite" in reads["online_store"]
    assert reads["space"] == 1
    assert not [name for name in reads if name.endswith("left_out")]


def test_a_view_that_is_not_there_is_the_reason(story: Story) -> None:
    lists = {EMBEDDING: [f"{stored_view(7)}:embedding"]}
    reason = online_costs(story.context.store, lists, [1], users_a_request=1, requests=1, seed=0)
    assert isinstance(reason, str)
    assert stored_view(7) in reason


def test_users_without_rows_are_the_reason(story: Story) -> None:
    store = story.context.store
    lists = {EMBEDDING: [f"{stored_view(1)}:embedding"]}
    strangers = ["nobody", "no one"]
    reason = online_costs(store, lists, strangers, users_a_request=2, requests=1, seed=0)
    assert isinstance(reason, str)
    assert "no row online" in reason
    moments = np.array(["2024-07-01", "2024-07-01"], "datetime64[us]")
    spent = training_set_seconds(
        store,
        lists | {"raw": [f"{ACTIVITY}:{field(ACTIVITY, 'pooled')}"]},
        np.array(strangers, object),
        moments,
        repeats=1,
    )
    assert isinstance(spent, str)
    assert "no row offline" in spent
