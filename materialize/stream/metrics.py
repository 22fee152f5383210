"""What a worker of the stream counts, for Prometheus and for the summary at the end."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from materialize.stream.latency import LatencyHistogram

if TYPE_CHECKING:
    from materialize.stream.apply import ApplyReport
    from materialize.stream.source import Delivery, Lag

__all__ = ["StreamMetrics", "added_up", "summary"]

_FRESHNESS_MS = (5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 60_000, 600_000)
_BATCH_EVENTS = (1, 10, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000)
_WINDOW_SECONDS = 10.0
"""What the busy ratio looks back on."""
_SECOND_US = 1_000_000


class StreamMetrics(Collector):
    """What one worker has done so far.

    State: plain numbers behind a lock, because the scraper's thread reads them. They start at 0
    with every instance.

    Notes
    -----
    A collector of its own, for the reason of `materialize.metrics.RunMetrics`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._events: Counter[tuple[str, str]] = Counter()
        self._dead: Counter[str] = Counter()
        self._batches: Counter[float] = Counter()
        self._batch_events = 0
        self._stages: Counter[str] = Counter()
        self._seconds: dict[str, float] = {}
        self._retries: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self.freshness = LatencyHistogram()
        self._event_lag_seconds: float | None = None
        self._lag: Lag | None = None
        self._owned = 0
        self._busy: deque[tuple[float, float]] = deque()

    def applied(
        self, report: ApplyReport, deliveries: Sequence[Delivery], readable_ms: float
    ) -> None:
        """Count a micro-batch.

        Parameters
        ----------
        report : ApplyReport
        deliveries : sequence of Delivery
        readable_ms : float
            When its rows could be read, by the source's clock.
        """
        dead = {(one.delivery.partition, one.delivery.id) for one in report.rejected}
        appended = [d.appended_ms for d in deliveries if (d.partition, d.id) not in dead]
        bound = next((float(b) for b in _BATCH_EVENTS if len(deliveries) <= b), float("inf"))
        with self._lock:
            for key, count in report.outcomes.items():
                self._events[key] += count
            for one in report.rejected:
                self._dead[one.reason] += 1
            self._batches[bound] += 1
            self._batch_events += len(deliveries)
            self._counts["users"] += report.written
            self._counts["conflicts"] += report.conflicts
            self._counts["redelivered"] += sum(d.redelivered for d in deliveries)
            self.freshness.add(readable_ms - np.array(appended, np.float64))
            if report.newest_event_us:
                newest = report.newest_event_us / _SECOND_US
                self._event_lag_seconds = readable_ms / 1000 - newest
        for stage, seconds in report.seconds.items():
            self.spent(stage, seconds)

    def spent(self, stage: str, seconds: float, *, beside: bool = False) -> None:
        """Add time of a stage; ``wait`` is the time in which there was nothing to do.

        ``beside``: the worker went on meanwhile.
        """
        now = time.monotonic()
        with self._lock:
            self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds
            self._busy.append((now, 0.0 if beside or stage == "wait" else seconds))
            while self._busy[0][0] < now - _WINDOW_SECONDS:
                self._busy.popleft()

    def flushed(self, rows: int) -> None:
        """Count rows that are offline now."""
        with self._lock:
            self._counts["offline_rows"] += rows
            self._counts["flushes"] += 1

    def retried(self, step: str) -> None:
        """Count a try that failed and is repeated."""
        with self._lock:
            self._retries[step] += 1

    def saw(self, lag: Lag, owned: int, gone: int) -> None:
        """Keep what is left to do, how many partitions this worker owns, and what is gone.

        Parameters
        ----------
        lag : Lag
        owned : int
        gone : int
            Entries so far that were deleted before they were acknowledged.
        """
        with self._lock:
            self._lag, self._owned = lag, owned
            self._counts["gone"] = gone

    def busy_ratio(self) -> float:
        """Return the share of the last ten seconds in which this worker worked."""
        now = time.monotonic()
        with self._lock:
            busy = sum(spent for at, spent in self._busy if at >= now - _WINDOW_SECONDS)
        return min(1.0, busy / max(1e-9, min(_WINDOW_SECONDS, now - self._began)))

    def snapshot(self) -> dict[str, Any]:
        """Return everything that adds up over workers, as plain types."""
        with self._lock:
            return {
                "events": dict(self._events),
                "dead": dict(self._dead),
                "counts": dict(self._counts) | {"batches": sum(self._batches.values())},
                "seconds": dict(self._seconds),
                "retries": dict(self._retries),
                "freshness": (self.freshness.counts.tolist(), self.freshness.sum_ms),
            }

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        busy = self.busy_ratio()
        with self._lock:
            yield from self._counters()
            yield from self._histograms()
            yield from self._gauges(busy)

    def _counters(self) -> Iterator[Metric]:
        events = CounterMetricFamily(
            "palate_stream_events", "Events, by type and outcome.", labels=["type", "outcome"]
        )
        for (kind, outcome), count in self._events.items():
            events.add_metric([kind, outcome], count)
        yield events
        for name, text, label, values in (
            ("dead_letters", "Events set aside, by reason.", "reason", self._dead),
            ("retries", "Tries that failed and were repeated, by step.", "step", self._retries),
            ("stage_seconds", "Seconds, by stage; wait: nothing to do.", "stage", self._seconds),
        ):
            family = CounterMetricFamily(f"palate_stream_{name}", text, labels=[label])
            counted: Mapping[str, float] = values
            for key, value in counted.items():
                family.add_metric([key], value)
            yield family
        for name, key, text in (
            ("redelivered", "redelivered", "Events handed out again."),
            ("users_written", "users", "Users written online, once each micro-batch."),
            ("conflicts", "conflicts", "Steps taken again because another writer came first."),
            ("offline_rows", "offline_rows", "Rows appended to the offline store."),
            ("flushes", "flushes", "Flushes to the offline store."),
            ("gone", "gone", "Entries deleted from the stream before they were acknowledged."),
        ):
            yield CounterMetricFamily(f"palate_stream_{name}", text, self._counts[key])

    def _histograms(self) -> Iterator[Metric]:
        freshness = HistogramMetricFamily(
            "palate_stream_freshness_seconds", "From append to readable online."
        )
        buckets = [(str(ms / 1000), float(self.freshness.at_most(ms))) for ms in _FRESHNESS_MS]
        buckets.append(("+Inf", float(self.freshness.count)))
        freshness.add_metric([], buckets, self.freshness.sum_ms / 1000)
        yield freshness
        sizes = HistogramMetricFamily("palate_stream_batch_events", "Events of a micro-batch.")
        counted, buckets = 0, []
        for bound in (*map(float, _BATCH_EVENTS), float("inf")):
            counted += self._batches[bound]
            buckets.append(("+Inf" if bound == float("inf") else str(bound), float(counted)))
        sizes.add_metric([], buckets, float(self._batch_events))
        yield sizes

    def _gauges(self, busy: float) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "palate_stream_busy_ratio",
            "Share of the last ten seconds in which the worker worked.",
            busy,
        )
        yield GaugeMetricFamily(
            "palate_stream_owned_partitions", "Partitions of this worker.", self._owned
        )
        if self._event_lag_seconds is not None:
            yield GaugeMetricFamily(
                "palate_stream_event_lag_seconds",
                "From the newest event's own time to when it was readable.",
                self._event_lag_seconds,
            )
        if self._lag is None:
            return
        for name, text in (
            ("undelivered", "Events that no worker was handed."),
            ("unacknowledged", "Events handed out whose effect is not yet offline."),
            ("oldest_age_ms", "Age of the oldest of both."),
        ):
            metric = "oldest_age_seconds" if name == "oldest_age_ms" else name
            scale = 1000 if name == "oldest_age_ms" else 1
            family = GaugeMetricFamily(f"palate_stream_{metric}", text, labels=["partition"])
            for one in self._lag.partitions:
                family.add_metric([str(one.partition)], getattr(one, name) / scale)
            yield family


def added_up(snapshots: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what workers did together, in the form of `StreamMetrics.snapshot`."""
    made: dict[str, Any] = {
        name: Counter() for name in ("events", "dead", "counts", "seconds", "retries")
    }
    freshness = LatencyHistogram()
    for snapshot in snapshots:
        for name, counter in made.items():
            counter.update(snapshot[name])
        freshness.merge(*snapshot["freshness"])
    return made | {"freshness": (freshness.counts.tolist(), freshness.sum_ms)}


def summary(snapshots: Sequence[Mapping[str, Any]], seconds: float) -> dict[str, Any]:
    """Return what workers did together, as plain JSON types.

    Parameters
    ----------
    snapshots : sequence of `StreamMetrics.snapshot`
    seconds : float
        How long the run took.
    """
    added = added_up(snapshots)
    outcomes: dict[str, dict[str, int]] = {}
    for (kind, outcome), count in sorted(added["events"].items()):
        outcomes.setdefault(kind, {})[outcome] = count
    total = sum(added["events"].values())
    counts = added["counts"]
    made: dict[str, Any] = {
        "events": total,
        "outcomes": outcomes,
        "dead_letters": dict(added["dead"]),
        "redelivered": counts["redelivered"],
        "batches": counts["batches"],
        "users_written": counts["users"],
        "conflicts": counts["conflicts"],
        "offline_rows": counts["offline_rows"],
        "retries": dict(added["retries"]),
        "seconds": round(seconds, 2),
        "events_per_second": round(total / seconds, 1) if seconds > 0 else None,
        "stage_seconds": {name: round(spent, 2) for name, spent in added["seconds"].items()},
    }
    freshness = LatencyHistogram()
    freshness.merge(*added["freshness"])
    if freshness.count:
        made["freshness_ms"] = {
            f"p{share}": round(freshness.quantile(share / 100), 1) for share in (50, 95, 99)
        }
    return made
