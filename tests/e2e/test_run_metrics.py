"""What a run leaves for Prometheus."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from materialize.batch import materialize_space
from tests.e2e.conftest import END, Story


@pytest.mark.slow
def test_a_run_that_finds_nothing_new_is_a_success_with_its_rows(
    story: Story, tmp_path: Path
) -> None:
    context = story.context
    report = materialize_space(
        context.store,
        context.settings.with_job(metrics_folder=str(tmp_path)),
        context.ledger,
        story.space,
        end=END,
        progress=False,
    )
    assert report.outcome == "unchanged"
    text = (tmp_path / "palate_user_embedding_s1.prom").read_text(encoding="utf-8")
    samples = {
        (sample.name, sample.labels.get("state")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["palate_run_failed", None] == 0
    assert samples["palate_run_rows_planned", None] == report.rows > 0
    assert samples["palate_run_partitions", "done"] == report.partitions
    assert samples["palate_run_partitions", "open"] == 0
    assert samples["palate_run_last_success_timestamp_seconds", None] > 1.7e9
