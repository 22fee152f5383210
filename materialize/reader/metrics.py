"""Prometheus metrics of a process that reads embeddings."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

__all__ = ["OUTCOMES", "USERS", "ReaderMetrics"]

OUTCOMES = ("ok", "timed_out", "transient", "terminal", "other")
"""How a call ended: with an answer, or by the kind of its error."""

USERS = (
    *("stored", "cached", "on_demand"),
    *("not_found", "corrupt", "other_modality", "not_encodable"),
)
"""What users were answered with: the stored row, a kept one or one encoded on demand; nobody there;
a damaged row. The last two are users whose raw features were newer and could not be encoded, and
who were answered with the stored row, if any: they count under that, too."""

_BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class ReaderMetrics(Collector):
    """What one client has done so far.

    Parameters
    ----------
    consumer : str
        The label ``consumer`` of every metric.

    Notes
    -----
    Register it with the process's own registry: ``registry.register(client.metrics)``. A collector
    of its own for the reason that `materialize.metrics.RunMetrics` gives.

    State: plain numbers behind a lock.
    """

    def __init__(self, consumer: str) -> None:
        self._consumer = consumer
        self._lock = threading.Lock()
        self._outcomes: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))
        self._users: Counter[str] = Counter(dict.fromkeys(USERS, 0))
        self._buckets = [0] * (len(_BOUNDS) + 1)
        self._seconds = 0.0

    def called(self, outcome: str, seconds: float) -> None:
        """Count a call, one of ``OUTCOMES``."""
        with self._lock:
            self._outcomes[outcome] += 1
            self._buckets[bisect_left(_BOUNDS, seconds)] += 1
            self._seconds += seconds

    def answered(self, **users: int) -> None:
        """Count users by what they were answered with, of ``USERS``."""
        with self._lock:
            for kind, count in users.items():
                self._users[kind] += count

    @property
    def users(self) -> dict[str, int]:
        """Users so far by what they were answered with."""
        with self._lock:
            return dict(self._users)

    @property
    def outcomes(self) -> dict[str, int]:
        """Calls so far by how they ended."""
        with self._lock:
            return dict(self._outcomes)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        with self._lock:
            outcomes, users = dict(self._outcomes), dict(self._users)
            buckets, seconds = list(self._buckets), self._seconds
        calls = CounterMetricFamily(
            "palate_reader_calls", "Reads, by how they ended.", labels=["consumer", "outcome"]
        )
        for outcome, count in outcomes.items():
            calls.add_metric([self._consumer, outcome], count)
        yield calls
        answered = CounterMetricFamily(
            "palate_reader_users",
            "Users of reads, by what they were answered with.",
            labels=["consumer", "answer"],
        )
        for answer, count in users.items():
            answered.add_metric([self._consumer, answer], count)
        yield answered
        took = HistogramMetricFamily(
            "palate_reader_seconds", "Time of a read with all its waits.", labels=["consumer"]
        )
        bounds, below = [*map(str, _BOUNDS), "+Inf"], 0
        summed = []
        for bound, count in zip(bounds, buckets, strict=True):
            below += count
            summed.append((bound, below))
        took.add_metric([self._consumer], summed, seconds)
        yield took
