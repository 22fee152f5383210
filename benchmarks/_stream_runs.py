"""Two ways to run workers: events offered at a rate, and a backlog to drain."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import redis

from benchmarks._stream_data import Replay
from benchmarks._stream_load import commands, schedule, write_load
from benchmarks._stream_probe import Fields, write_sample
from benchmarks._stream_process import together
from benchmarks._stream_repo import Prepared, note, serving
from benchmarks._stream_worker import Ended, Running, running
from materialize.config import RepoSettings
from tests.servers import Server

__all__ = ["Bench", "Drained", "Offered", "Session", "growth", "stages"]

Floats = npt.NDArray[np.float64]

_WATCH_SECONDS = 0.25
_PROBES_PER_SECOND = 100
_SEEN_SECONDS = 60.0
"""How long after the last event the prober waits for those that cannot be seen yet."""
_FOREVER_SECONDS = 3_600.0
_FLUSH = ("--flush-seconds", str(_FOREVER_SECONDS))


@dataclass
class Offered:
    """What came of events offered at a rate."""

    rate: float
    events: int
    users: int
    """Distinct ones."""
    milliseconds: Floats
    """From due to readable, of each sampled event."""
    unseen: int
    """Sampled events that never became readable."""
    late_ms: list[float]
    """How late the producer was: p50, p99 and max."""
    backlog: list[tuple[float, int]] = field(default_factory=list)
    """(seconds since the start, undelivered events), while events were offered."""

    def percentile(self, share: float) -> float:
        """Return a percentile of the milliseconds."""
        return float(np.percentile(self.milliseconds, share))

    @property
    def growth(self) -> float:
        """Events a second by which the backlog grew in the second half of the offered time."""
        return growth(self.backlog)


@dataclass
class Drained:
    """What came of a backlog."""

    events: int
    applied_seconds: float
    """From the first event's append until none was undelivered."""
    seconds: float
    """Until all were acknowledged: raw rows and embeddings online and offline."""
    ended: Ended


def growth(backlog: list[tuple[float, int]]) -> float:
    """Return the slope of a backlog over the second half of its samples, events a second.

    Examples
    --------
    >>> growth([(0.0, 0), (1.0, 50), (2.0, 50), (3.0, 150), (4.0, 250)])
    100.0
    """
    half = backlog[len(backlog) // 2 :]
    if len(half) < 2:
        return 0.0
    seconds, events = np.array(half, np.float64).T
    return round(float(np.polyfit(seconds, events, 1)[0]), 6)


@dataclass(frozen=True)
class Bench:
    """What all sections work with."""

    prepared: Prepared
    settings: RepoSettings
    fields: Fields
    replay: Replay
    folder: Path

    @contextmanager
    def session(self, name: str) -> Iterator[Session]:
        """Run a Redis from the snapshot; what is written offline meanwhile is removed again."""
        before = set(self._offline())
        with serving(self.prepared, self.folder / name) as server:
            try:
                with redis.Redis(port=server.port) as client:
                    yield Session(self, server, client, self.folder / name)
            finally:
                for path in set(self._offline()) - before:
                    path.unlink()

    def _offline(self) -> Iterator[Path]:
        for folder in (self.settings.features_dir, self.settings.offline_dir):
            yield from folder.rglob("*.parquet")


@dataclass
class Session:
    """A Redis that was just started from the snapshot."""

    bench: Bench
    server: Server
    client: redis.Redis
    folder: Path

    @property
    def project(self) -> str:
        """The repository's Feast project."""
        return "palate"

    @property
    def partitions(self) -> int:
        """Of the event stream."""
        return self.bench.settings.file.stream.partitions

    @contextmanager
    def workers(self, number: int, *options: str) -> Iterator[Running]:
        """Run workers from when they own all partitions."""
        note(f"start {number} worker(s)")
        with running(
            self.bench.prepared.repository,
            self.client,
            self.project,
            self.partitions,
            number,
            self.folder,
            *options,
        ) as found:
            yield found

    def offer(
        self,
        workers: Running,
        replay: Replay,
        rate: float,
        at_end: Callable[[float, Floats], None] | None = None,
    ) -> Offered:
        """Append events at a rate, ask for a sample of them, and return when nothing is left.

        Parameters
        ----------
        workers : Running
        replay : Replay
        rate : float
            Events a second.
        at_end : callable, optional
            Called when the last event is due, with the moment of the start by ``time.monotonic()``
            and when each event was due after it.
        """
        seconds = len(replay) / rate
        note(f"offer {len(replay):,} events at {rate:,.0f}/s, {seconds:.0f} s")
        due = schedule(len(replay), rate)
        load, sample = self.folder / "load.npz", self.folder / "sample.npz"
        write_load(load, commands(replay, self.project, self.partitions), due)
        each = max(1, round(rate / _PROBES_PER_SECOND))
        write_sample(sample, self.bench.fields, replay, due, each)
        where = (self.server.host, self.server.port)
        backlog: list[tuple[float, int]] = []
        with together() as calls:
            calls.add("load", "benchmarks._stream_load:produce", str(load), *where)
            give_up = seconds + _SEEN_SECONDS
            calls.add("probe", "benchmarks._stream_probe:probe", str(sample), *where, give_up)
            start = calls.start()
            while (now := time.monotonic()) < start + seconds:
                if now > start:
                    backlog.append((now - start, workers.backlog().undelivered))
                time.sleep(max(0.0, min(_WATCH_SECONDS, start + seconds - time.monotonic())))
            if at_end is not None:
                at_end(start, due)
            told = calls.results()
        produced = told["load"]
        assert produced["events"] == len(replay), "Redis has acknowledged every event"
        workers.wait_until_delivered()
        return Offered(
            rate=rate,
            events=len(replay),
            users=len(np.unique(replay.user)),
            milliseconds=np.array(told["probe"]["milliseconds"]),
            unseen=told["probe"]["unseen"],
            late_ms=produced["late_ms"],
            backlog=backlog,
        )

    def drain(self, replay: Replay, number: int, *options: str) -> Drained:
        """Append all events at once, and time the workers until all are acknowledged.

        Rows are flushed when a worker holds enough of them, and at the end.
        """
        note(f"drain {len(replay):,} events with {number} worker(s)")
        load = self.folder / "load.npz"
        write_load(load, commands(replay, self.project, self.partitions), np.zeros(len(replay)))
        with self.workers(number, *_FLUSH, *options) as workers, together() as calls:
            where = (self.server.host, self.server.port)
            calls.add("load", "benchmarks._stream_load:produce", str(load), *where)
            start = calls.start()
            told = calls.results()
            assert told["load"]["events"] == len(replay)
            applied = workers.wait_until_delivered()
            ended = workers.stop()
        done = ended.summary
        assert done["events"] == len(replay), f"{done['events']} events of {len(replay)} applied"
        assert not done["dead_letters"], f"dead letters: {done['dead_letters']}"
        return Drained(len(replay), applied - start, ended.acknowledged - start, ended)


def stages(summary: dict[str, Any]) -> dict[str, float]:
    """Return microseconds an event by stage, of what workers say; without waiting."""
    spent = summary["stage_seconds"]
    return {
        name: seconds * 1e6 / summary["events"]
        for name, seconds in sorted(spent.items(), key=lambda one: -one[1])
        if name != "wait"
    }
