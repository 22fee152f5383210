"""What a worker counts adds up, and Prometheus can read it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from materialize.stream.apply import ApplyReport, Rejected
from materialize.stream.latency import LatencyHistogram
from materialize.stream.metrics import StreamMetrics, summary
from materialize.stream.progress import ProgressLine
from materialize.stream.source import Delivery, Lag, PartitionLag

LAG = Lag((PartitionLag(0, 5, 2, 1_500, "w"), PartitionLag(1, 1, 0, 200, None)))


def counted() -> StreamMetrics:
    """Three events appended at 0, 100 and 960 ms, readable at 1,000 ms; one is a dead letter."""
    deliveries = [
        Delivery(0, b"1", b"", False, 0),
        Delivery(0, b"2", b"", True, 100),
        Delivery(0, b"3", b"", False, 960),
    ]
    report = ApplyReport(
        outcomes={("consume", "applied"): 2, ("unknown", "not_json"): 1},
        rejected=(Rejected(deliveries[0], "not_json", "d"),),
        offline={},
        users=2,
        written=2,
        conflicts=1,
        newest_event_us=400_000,
        seconds={"write": 0.25, "encode": 0.5},
    )
    metrics = StreamMetrics()
    metrics.applied(report, deliveries, 1_000.0)
    metrics.spent("wait", 2.0)
    metrics.flushed(7)
    metrics.retried("apply")
    metrics.saw(LAG, 1, 3)
    return metrics


def samples(metrics: StreamMetrics) -> dict[tuple[str, ...], float]:
    registry = CollectorRegistry()
    registry.register(metrics)
    text = generate_latest(registry).decode()
    return {
        (
            sample.name.removeprefix("palate_stream_"),
            *(value for _, value in sorted(sample.labels.items())),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_prometheus_reads_what_was_counted() -> None:
    found = samples(counted())
    expected = {
        ("events_total", "applied", "consume"): 2,
        ("events_total", "not_json", "unknown"): 1,
        ("dead_letters_total", "not_json"): 1,
        ("redelivered_total",): 1,
        ("users_written_total",): 2,
        ("conflicts_total",): 1,
        ("offline_rows_total",): 7,
        ("flushes_total",): 1,
        ("gone_total",): 3,
        ("retries_total", "apply"): 1,
        ("stage_seconds_total", "encode"): 0.5,
        ("batch_events_count",): 1,
        ("batch_events_sum",): 3,
        ("batch_events_bucket", "1.0"): 0,
        ("batch_events_bucket", "10.0"): 1,
        ("batch_events_bucket", "+Inf"): 1,
        ("undelivered", "0"): 5,
        ("unacknowledged", "0"): 2,
        ("oldest_age_seconds", "0"): 1.5,
        ("oldest_age_seconds", "1"): 0.2,
        ("owned_partitions",): 1,
    }

    assert {key: found[key] for key in expected} == expected
    assert found["event_lag_seconds",] == pytest.approx(0.6)
    assert 0 < found["busy_ratio",] <= 1


def test_freshness_leaves_dead_letters_out() -> None:
    found = samples(counted())
    # 900 ms and 40 ms: the first one, 1,000 ms, was never readable.
    assert found["freshness_seconds_count",] == 2
    assert found["freshness_seconds_sum",] == pytest.approx(0.94)
    assert found["freshness_seconds_bucket", "0.025"] == 0
    assert found["freshness_seconds_bucket", "0.05"] == 1
    assert found["freshness_seconds_bucket", "1.0"] == 2


def test_a_worker_that_has_done_nothing_can_be_scraped() -> None:
    found = samples(StreamMetrics())
    assert found["freshness_seconds_count",] == 0
    assert found["busy_ratio",] == 0


def test_a_summary_adds_workers_up() -> None:
    told = summary([counted().snapshot(), counted().snapshot()], 2.0)
    assert told["events"] == 6
    assert told["events_per_second"] == 3.0
    assert told["outcomes"] == {"consume": {"applied": 4}, "unknown": {"not_json": 2}}
    assert told["dead_letters"] == {"not_json": 2}
    assert told["batches"] == 2
    assert told["stage_seconds"]["encode"] == 1.0
    assert told["freshness_ms"]["p50"] == pytest.approx(40, rel=0.06)
    assert told["freshness_ms"]["p99"] == pytest.approx(900, rel=0.06)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.99, 1.0])
def test_a_quantile_is_five_percent_too_large_at_most(share: float) -> None:
    values = np.random.default_rng(0).lognormal(4, 2, 5_000)
    values = values[(values >= 1) & (values < 1e7)]
    times = LatencyHistogram()
    times.add(values)
    exact = float(np.quantile(values, share, method="inverted_cdf"))
    assert exact <= times.quantile(share) * (1 + 1e-9)
    assert times.quantile(share) <= exact * 1.05 * (1 + 1e-9)


def test_times_beyond_the_buckets_and_none_at_all_are_told_apart() -> None:
    times = LatencyHistogram()
    assert math.isnan(times.quantile(0.5))
    times.add(np.array([-5.0, 1e12]))
    assert times.quantile(0.5) == 1.0
    assert times.quantile(1.0) == math.inf
    assert times.at_most(60_000) == 1


def test_progress_says_rate_lag_and_freshness(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("materialize.stream.progress._LOG_SECONDS", 0.0)
    snapshot = counted().snapshot()
    ProgressLine(quiet=True).show([snapshot], LAG)
    line = ProgressLine(quiet=False)
    line.show([snapshot], LAG)
    line.end()
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    for part in ("3 events", "undelivered 6", "unacknowledged 2", "p99", "dead letters 1"):
        assert part in told.err
