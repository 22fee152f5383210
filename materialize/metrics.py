"""Prometheus metrics of runs: scraped over HTTP while they last, or left in files afterwards."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

__all__ = ["STAGES", "RunMetrics", "serve_metrics"]

STAGES = ("exchange", "read", "encode", "offline", "online")
"""What a run does, in this order: raw rows are sorted into partitions once, then each partition is
read, encoded and written to both stores."""

_SUCCESSES = ("committed", "unchanged")
_OUTCOMES = (*_SUCCESSES, "failed")
_LAST_SUCCESS = "palate_run_last_success_timestamp_seconds"


class RunMetrics(Collector):
    """What one run of one view has done so far.

    Parameters
    ----------
    view : str
        Name of the feature view; the label ``view`` of every metric.
    run_id : str

    State: plain numbers behind a lock, so that any thread of the run's driver may call. They start
    at 0 with every instance. ``registry`` holds this run's metrics and nothing else.

    Notes
    -----
    A collector of its own instead of prometheus_client's ``Counter`` and ``Gauge``: `import feast`
    (0.67) switches those to multiprocess mode, where a value lies in a file by its name and labels,
    is shared by all runs of a process, and shows up in the metrics of Feast's feature server.
    """

    def __init__(self, view: str, run_id: str) -> None:
        self.view, self.run_id = view, run_id
        self._lock = threading.Lock()
        self._began = time.perf_counter()
        self._seconds: float | None = None
        self._rows = {"offline": 0, "online": 0}
        self._stale = 0
        self._stage_seconds = dict.fromkeys(STAGES, 0.0)
        self._partitions = {"done": 0, "open": 0}
        self._rows_planned = 0
        self._failed = False
        self._last_success: float | None = None
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def set_total(self, rows: int, partitions: int, done: int = 0) -> None:
        """Say what the run has before it.

        Parameters
        ----------
        rows, partitions : int
            Of the whole run.
        done : int
            Partitions that an earlier attempt has finished.
        """
        with self._lock:
            self._rows_planned = rows
            self._partitions = {"done": done, "open": partitions - done}

    def spent(self, stage: str, seconds: float) -> None:
        """Add seconds to a stage, one of ``STAGES``.

        Raises
        ------
        ValueError
            An unknown stage.
        """
        if stage not in STAGES:
            raise ValueError(f"stage {stage!r} given, one of {', '.join(STAGES)} expected")
        with self._lock:
            self._stage_seconds[stage] += seconds

    @property
    def stage_seconds(self) -> dict[str, float]:
        """Seconds so far by stage."""
        with self._lock:
            return dict(self._stage_seconds)

    def partition_done(
        self, rows: int, online_rows: int, stale: int, seconds: Mapping[str, float]
    ) -> None:
        """Count one partition that is in the stores.

        Parameters
        ----------
        rows, online_rows : int
            Rows written offline, and rows handed to the online store.
        stale : int
            Of ``online_rows``, those left out because the store holds a newer row.
        seconds : mapping of str to float
            By stage, of ``STAGES``; a stage that was not needed may be missing.

        Raises
        ------
        ValueError
            An unknown stage.
        """
        for stage, duration in seconds.items():
            self.spent(stage, duration)
        with self._lock:
            self._rows["offline"] += rows
            self._rows["online"] += online_rows
            self._stale += stale
            self._partitions["done"] += 1
            self._partitions["open"] -= 1

    def finished(self, outcome: str) -> None:
        """Say how the run ended: ``committed``, ``unchanged`` or ``failed``.

        Raises
        ------
        ValueError
            Another outcome.
        """
        if outcome not in _OUTCOMES:
            raise ValueError(f"outcome {outcome!r} given, one of {', '.join(_OUTCOMES)} expected")
        with self._lock:
            self._seconds = time.perf_counter() - self._began
            self._failed = outcome == "failed"
            if outcome in _SUCCESSES:
                self._last_success = time.time()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        with self._lock:
            rows, stale, stage_seconds = dict(self._rows), self._stale, dict(self._stage_seconds)
            partitions, planned = dict(self._partitions), self._rows_planned
            seconds, failed, last_success = self._seconds, self._failed, self._last_success
        if seconds is None:
            seconds = time.perf_counter() - self._began
        view = self.view
        info = InfoMetricFamily("palate_run", "The newest run of a view.", labels=["view"])
        info.add_metric([view], {"run_id": self.run_id})
        yield info
        by_store = CounterMetricFamily(
            "palate_run_rows", "Rows written, by store.", labels=["view", "stage"]
        )
        for stage, count in rows.items():
            by_store.add_metric([view, stage], count)
        yield by_store
        left_out = CounterMetricFamily(
            "palate_run_stale_rows",
            "Rows not written online because the store held a newer one.",
            labels=["view"],
        )
        left_out.add_metric([view], stale)
        yield left_out
        by_stage = CounterMetricFamily(
            "palate_run_stage_seconds",
            "Seconds spent in each stage, added up over the workers.",
            labels=["view", "stage"],
        )
        for stage, spent in stage_seconds.items():
            by_stage.add_metric([view, stage], spent)
        yield by_stage
        by_state = GaugeMetricFamily(
            "palate_run_partitions", "Partitions, done and still open.", labels=["view", "state"]
        )
        for state, count in partitions.items():
            by_state.add_metric([view, state], count)
        yield by_state
        yield self._gauge("palate_run_rows_planned", "Rows that the whole run has.", planned)
        yield self._gauge(
            "palate_run_duration_seconds", "Time since the run began, or that it took.", seconds
        )
        yield self._gauge("palate_run_failed", "1 when the newest run failed, else 0.", failed)
        if last_success is not None:
            yield self._gauge(
                _LAST_SUCCESS, "When a run of the view last ended well, since 1970.", last_success
            )

    def write_textfile(self, folder: Path) -> Path:
        """Write ``palate_<view>.prom`` for node_exporter's textfile collector, in one step.

        The time of the last success in an earlier file stays when this run has none, so that an
        alert on its age works through failures.

        Parameters
        ----------
        folder : Path
            Made when missing: ``--collector.textfile.directory`` of node_exporter.

        Returns
        -------
        Path
            The file.
        """
        path = folder / f"palate_{self.view}.prom"
        folder.mkdir(parents=True, exist_ok=True)
        with self._lock:
            if self._last_success is None and path.exists():
                self._last_success = _last_success(path)
        write_to_textfile(str(path), self.registry)
        return path

    def _gauge(self, name: str, text: str, value: float) -> GaugeMetricFamily:
        family = GaugeMetricFamily(name, text, labels=["view"])
        family.add_metric([self.view], value)
        return family


class _Together(Collector):
    """Metrics of several runs; one family each, as the text format wants it."""

    def __init__(self, runs: Sequence[Collector]) -> None:
        self._runs = runs

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for run in self._runs:
            for family in run.collect():
                if family.name in families:
                    families[family.name].samples.extend(family.samples)
                else:
                    families[family.name] = family
        yield from families.values()


@contextmanager
def serve_metrics(
    port: int,
    runs: Sequence[Collector],
    address: str = "0.0.0.0",  # noqa: S104
) -> Iterator[None]:
    """Answer ``http://address:port/metrics`` during the body.

    Parameters
    ----------
    port : int
        0: serve nothing.
    runs : sequence of Collector
        `RunMetrics` of different views, or a worker's `StreamMetrics`.
    address : str
        Of the interface; by default all of them, because the scraper is another machine.

    Raises
    ------
    OSError
        The port is taken.
    """
    if port == 0:
        yield
        return
    registry = CollectorRegistry()
    registry.register(_Together(runs))
    server, thread = start_http_server(port, address, registry)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _last_success(path: Path) -> float | None:
    for family in text_string_to_metric_families(path.read_text(encoding="utf-8")):
        if family.name == _LAST_SUCCESS:
            return float(family.samples[0].value)
    return None
