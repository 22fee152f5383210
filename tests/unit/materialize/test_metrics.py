"""A run's metrics say what it did, in Prometheus' own format, over HTTP and in a file."""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from materialize.metrics import STAGES, RunMetrics, serve_metrics
from tests.architecture.modules import ROOT
from tests.servers import free_port

VIEW = "user_embedding_s1"
SECONDS = {"read": 0.5, "encode": 1.0, "offline": 0.25, "online": 2.0}


def _parsed(text: str) -> dict[tuple[str, ...], float]:
    """Return (name, label values except the view's) -> value; every sample must name the view."""
    samples = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("view") == VIEW
            samples[(sample.name, *labels.values())] = sample.value
    return samples


def _now(metrics: RunMetrics) -> dict[tuple[str, ...], float]:
    return _parsed(generate_latest(metrics.registry).decode())


def _run() -> RunMetrics:
    metrics = RunMetrics(VIEW, "0123456789abcdef")
    metrics.spent("exchange", 3.0)
    metrics.set_total(rows=100, partitions=3)
    metrics.partition_done(40, 40, 0, SECONDS)
    metrics.partition_done(30, 30, 7, SECONDS)
    return metrics


def test_a_new_run_shows_zeros_and_no_success() -> None:
    samples = _now(RunMetrics(VIEW, "0123456789abcdef"))
    assert samples.pop(("palate_run_duration_seconds",)) >= 0.0
    assert samples.pop(("palate_run_info", "0123456789abcdef")) == 1.0
    assert set(samples.values()) == {0.0}
    assert ("palate_run_last_success_timestamp_seconds",) not in samples


def test_partitions_add_up() -> None:
    samples = _now(_run())
    assert samples["palate_run_rows_total", "offline"] == 70
    assert samples["palate_run_rows_total", "online"] == 70
    assert samples["palate_run_stale_rows_total",] == 7
    assert samples["palate_run_rows_planned",] == 100
    assert samples["palate_run_partitions", "done"] == 2
    assert samples["palate_run_partitions", "open"] == 1
    # two partitions of SECONDS each
    spent = [samples["palate_run_stage_seconds_total", stage] for stage in STAGES]
    assert spent == [3.0, 1.0, 2.0, 0.5, 4.0]


def test_a_resumed_run_starts_with_the_partitions_that_are_done() -> None:
    metrics = RunMetrics(VIEW, "0123456789abcdef")
    metrics.set_total(rows=100, partitions=20, done=15)
    metrics.partition_done(5, 0, 0, {"encode": 1.0})
    samples = _now(metrics)
    assert samples["palate_run_partitions", "done"] == 16
    assert samples["palate_run_partitions", "open"] == 4
    assert samples["palate_run_rows_total", "offline"] == 5


def test_no_count_is_lost_between_threads() -> None:
    metrics = RunMetrics(VIEW, "0123456789abcdef")
    metrics.set_total(rows=2000, partitions=2000)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: metrics.partition_done(1, 1, 1, SECONDS), range(2000)))
    samples = _now(metrics)
    assert samples["palate_run_rows_total", "online"] == 2000
    assert samples["palate_run_partitions", "open"] == 0
    assert samples["palate_run_stage_seconds_total", "read"] == 1000.0


@pytest.mark.parametrize("outcome", ["committed", "unchanged"])
def test_a_success_is_dated_and_stops_the_clock(outcome: str) -> None:
    metrics = _run()
    metrics.finished(outcome)
    samples = _now(metrics)
    assert abs(samples["palate_run_last_success_timestamp_seconds",] - time.time()) < 60
    assert samples["palate_run_failed",] == 0
    assert samples == _now(metrics)


def test_a_failure_is_shown() -> None:
    metrics = _run()
    metrics.finished("failed")
    samples = _now(metrics)
    assert samples["palate_run_failed",] == 1
    assert ("palate_run_last_success_timestamp_seconds",) not in samples


def test_the_guide_and_its_alerts_name_metrics_that_exist() -> None:
    guide = (ROOT / "docs" / "guides" / "monitoring.md").read_text(encoding="utf-8")
    metrics = _run()
    metrics.finished("committed")
    shown = {name for name, *_ in _now(metrics)}
    assert set(re.findall(r"palate_run_\w+", guide)) == shown


def test_unknown_outcome_and_stage_are_refused() -> None:
    metrics = _run()
    with pytest.raises(ValueError, match="outcome 'done' given, one of committed, unchanged"):
        metrics.finished("done")
    before = _now(metrics)["palate_run_rows_total", "online"]
    with pytest.raises(ValueError, match="stage 'sleep' given, one of exchange, read"):
        metrics.partition_done(1, 1, 0, {"sleep": 1.0})
    assert _now(metrics)["palate_run_rows_total", "online"] == before


def test_runs_in_a_process_that_imported_feast_share_no_counts() -> None:
    import feast  # noqa: F401 - it switches prometheus_client to multiprocess mode

    _run()
    assert _now(RunMetrics(VIEW, "x"))["palate_run_rows_total", "online"] == 0


def test_a_run_is_scraped_while_it_lasts_and_not_longer() -> None:
    metrics, port = _run(), free_port()
    url = f"http://127.0.0.1:{port}/metrics"
    with serve_metrics(port, [metrics], "127.0.0.1"):
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=")
            first = _parsed(answer.read().decode())
        metrics.partition_done(30, 30, 0, SECONDS)
        with urllib.request.urlopen(url, timeout=10) as answer:
            second = _parsed(answer.read().decode())
    assert first["palate_run_rows_total", "online"] == 70
    assert second["palate_run_rows_total", "online"] == 100
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(url, timeout=10)


def test_the_port_is_free_again_when_the_run_fails() -> None:
    metrics, port = _run(), free_port()
    with (
        pytest.raises(RuntimeError, match="on purpose"),
        serve_metrics(port, [metrics], "127.0.0.1"),
    ):
        raise RuntimeError("on purpose")
    with serve_metrics(port, [metrics], "127.0.0.1"):
        pass


def test_runs_of_one_pass_are_scraped_together() -> None:
    """The text format wants each family once, with the samples of both views."""
    port = free_port()
    runs = [_run(), RunMetrics("user_embedding_s2", "b" * 16)]
    with (
        serve_metrics(port, runs, "127.0.0.1"),
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer,
    ):
        text = answer.read().decode()
    kinds = [line for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(kinds) == len(set(kinds))
    views = {
        sample.labels["view"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "palate_run_rows_total" and sample.labels["stage"] == "online"
    }
    assert views == {VIEW: 70, "user_embedding_s2": 0}


def test_port_0_serves_nothing() -> None:
    with serve_metrics(0, [_run()]):
        pass


def test_a_textfile_is_whole_and_replaced_in_one_step(tmp_path: Path) -> None:
    metrics = _run()
    folder = tmp_path / "textfiles"
    path = metrics.write_textfile(folder)
    assert [p.name for p in folder.iterdir()] == [f"palate_{VIEW}.prom"]
    with path.open(encoding="utf-8") as earlier:
        metrics.finished("committed")
        assert metrics.write_textfile(folder) == path
        # The reader that had opened the earlier file still sees it whole.
        assert ("palate_run_last_success_timestamp_seconds",) not in _parsed(earlier.read())
    assert _parsed(path.read_text(encoding="utf-8")) == _now(metrics)
    assert [p.name for p in folder.iterdir()] == [f"palate_{VIEW}.prom"]


def test_a_failed_run_keeps_the_time_of_the_last_success_in_the_file(tmp_path: Path) -> None:
    good = _run()
    good.finished("committed")
    success = _parsed(good.write_textfile(tmp_path).read_text(encoding="utf-8"))
    for _ in range(2):
        bad = _run()
        bad.finished("failed")
        failure = _parsed(bad.write_textfile(tmp_path).read_text(encoding="utf-8"))
        name = ("palate_run_last_success_timestamp_seconds",)
        assert failure[name] == success[name]
        assert failure["palate_run_failed",] == 1
