"""The worker's loop: nothing is acknowledged before its rows are kept, and no place is lost."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import redis

from encoder.errors import DataFault, StreamConflict, TransientError
from materialize.config import StreamSettings
from materialize.stream import worker as worker_module
from materialize.stream.apply import ApplyReport, Rejected
from materialize.stream.file_source import FileSource
from materialize.stream.metrics import StreamMetrics
from materialize.stream.source import Delivery
from materialize.stream.worker import Worker

N = 25
ROWS = pa.table({"user_id": [1]})


class Told:
    """What happened, in order; and faults: step -> errors that it raises before it succeeds."""

    def __init__(self, **faults: Sequence[Exception]) -> None:
        self.steps: list[str] = []
        self._faults = {step: list(errors) for step, errors in faults.items()}

    def note(self, step: str) -> None:
        left = self._faults.get(step)
        if left:
            raise left.pop(0)
        self.steps.append(step)

    def first(self, step: str) -> int:
        return self.steps.index(step)


class Source(FileSource):
    """A file that notes what is asked of it."""

    def __init__(self, path: Path, told: Told) -> None:
        super().__init__(path)
        self.told = told

    def poll(self, max_events: int, wait_ms: int) -> list[Delivery]:
        self.told.note("poll" if wait_ms else "poll more")
        return super().poll(max_events, wait_ms)

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        self.told.note("ack")
        super().ack(deliveries)

    def reject(self, delivery: Delivery, reason: str, detail: str) -> None:
        self.told.note("reject")
        super().reject(delivery, reason, detail)

    def close(self) -> None:
        super().close()
        self.told.note("close")


class Applier:
    """Applies everything but what begins with "bad"; each micro-batch leaves a row."""

    def __init__(self, told: Told, stop: threading.Event, stop_after: int | None) -> None:
        self.told, self.applied = told, list[bytes]()
        self._stop, self._stop_after = stop, stop_after

    def apply(self, deliveries: list[Delivery]) -> ApplyReport:
        self.told.note("apply")
        good = [one for one in deliveries if not one.payload.startswith(b"bad")]
        bad = [Rejected(one, "not_json", "d") for one in deliveries if one not in good]
        self.applied += [one.payload for one in good]
        if self._stop_after is not None and len(self.applied) >= self._stop_after:
            self._stop.set()
        return ApplyReport(
            outcomes={("consume", "applied"): len(good)},
            rejected=tuple(bad),
            offline={"view": ROWS} if good else {},
            users=len(good),
            written=len(good),
            conflicts=0,
            newest_event_us=0,
            seconds={"write": 0.001},
        )

    def refresh(self) -> None:
        self.told.note("refresh")


class Offline:
    """Holds rows until it is due."""

    def __init__(self, told: Told, due_at: int) -> None:
        self.told, self.due_at, self.held, self.leaving = told, due_at, 0, 0

    def __len__(self) -> int:
        return self.held

    def add(self, view: str, table: pa.Table, now: float) -> None:
        self.held += len(table)

    def due(self, now: float) -> bool:
        return self.held >= self.due_at

    def set_off(self) -> None:
        self.leaving, self.held = self.leaving + self.held, 0

    def flush(self) -> int:
        self.told.note("flush")
        rows, self.leaving = self.leaving, 0
        return rows


class Run:
    """A worker over a file of events."""

    def __init__(
        self,
        folder: Path,
        told: Told,
        *,
        lines: Sequence[str] = tuple(map(str, range(N))),
        due_at: int = 1_000,
        stop_after: int | None = None,
        check: Callable[[], None] = lambda: None,
        restarted: Callable[[], bool] = lambda: False,
        **settings: Any,
    ) -> None:
        self.path = folder / "events"
        self.path.write_text("\n".join(lines))
        self.told, self.stop = told, threading.Event()
        self.source = Source(self.path, told)
        self.applier = Applier(told, self.stop, stop_after)
        self.offline = Offline(told, due_at)
        self.metrics = StreamMetrics()
        self.worker = Worker(
            self.applier,
            self.source,
            self.offline,
            StreamSettings(**({"batch_events": 10, "linger_ms": 0} | settings)),
            self.metrics,
            check=check,
            restarted=restarted,
            until_idle=True,
        )

    def __call__(self) -> None:
        self.worker.run(self.stop)

    def position(self) -> dict[str, int]:
        found: dict[str, int] = json.loads((self.path.parent / "events.position").read_text())
        return found

    @property
    def size(self) -> int:
        return self.path.stat().st_size


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "_BACKOFF_SECONDS", (0.001, 0.01))
    monkeypatch.setattr(worker_module, "_WAIT_MS", 5)


def test_everything_is_applied_kept_and_acknowledged_in_this_order(tmp_path: Path) -> None:
    run = Run(tmp_path, Told())
    run()
    assert sorted(map(int, run.applier.applied)) == list(range(N))
    steps = run.told.steps
    assert steps.count("apply") == 3
    assert run.told.first("flush") > max(n for n, step in enumerate(steps) if step == "apply")
    assert run.told.first("ack") > run.told.first("flush")
    assert run.position()["acknowledged"] == run.size
    assert steps[-1] == "close"


def test_events_are_applied_while_rows_of_earlier_ones_are_written(tmp_path: Path) -> None:
    applied_meanwhile = threading.Event()

    class Slow(Told):
        def note(self, step: str) -> None:
            if step == "flush" and "flush" not in self.steps:
                assert applied_meanwhile.wait(30), "no event was applied meanwhile"
                assert run.position()["acknowledged"] == 0
            if step == "apply" and self.steps.count("apply") == 1:
                applied_meanwhile.set()
            super().note(step)

    run = Run(tmp_path, Slow(), due_at=1)
    run()
    assert sorted(map(int, run.applier.applied)) == list(range(N))
    assert run.told.steps.count("flush") >= 2
    assert run.position()["acknowledged"] == run.size


def test_what_a_server_may_have_forgotten_is_applied_again_before_it_is_acknowledged(
    tmp_path: Path,
) -> None:
    restarts = iter([True])

    def restarted() -> bool:
        if len(run.applier.applied) < N:
            return False
        return next(restarts, False)

    run = Run(tmp_path, Told(), restarted=restarted)
    run()
    assert sorted(map(int, run.applier.applied)) == sorted([*range(N)] * 2)
    assert run.position()["acknowledged"] == run.size


def test_a_restart_while_a_micro_batch_is_finished_leaves_it_unacknowledged(tmp_path: Path) -> None:
    told = Told(reject=[redis.ConnectionError()])
    restarts = iter([True])
    run = Run(
        tmp_path,
        told,
        lines=["bad", *map(str, range(5))],
        restarted=lambda: "apply" in told.steps and next(restarts, False),
    )
    run()
    assert sorted(map(int, run.applier.applied)) == sorted([*range(5)] * 2)
    assert run.position()["acknowledged"] == run.size


def test_nothing_is_acknowledged_while_its_rows_wait(tmp_path: Path) -> None:
    seen: list[int] = []

    class Watching(Told):
        def note(self, step: str) -> None:
            if step == "flush":
                seen.append(run.position()["acknowledged"])
            super().note(step)

    run = Run(tmp_path, Watching(), due_at=2)
    run()
    assert seen[0] == 0
    assert 0 < seen[1] < run.size


def test_events_without_rows_are_acknowledged_at_once(tmp_path: Path) -> None:
    run = Run(tmp_path, Told(), lines=["bad 1", "bad 2"])
    run()
    assert "flush" not in run.told.steps
    assert run.told.steps.count("reject") == 2
    assert run.position()["acknowledged"] == run.size
    assert run.metrics.snapshot()["dead"] == {"not_json": 2}


def test_many_events_that_leave_few_rows_are_acknowledged_before_the_rows_are_old(
    tmp_path: Path,
) -> None:
    run = Run(tmp_path, Told(), flush_rows=10)
    run()
    assert run.told.steps.count("flush") == 3


@pytest.mark.parametrize(
    ("step", "errors"),
    [
        ("poll", [redis.ConnectionError("gone"), redis.TimeoutError("slow")]),
        ("poll more", [redis.ConnectionError("gone")]),
        ("apply", [TransientError("conflicts"), redis.exceptions.BusyLoadingError("loading")]),
        ("reject", [ConnectionResetError("reset")]),
        ("flush", [OSError(28, "No space left on device")]),
        ("ack", [redis.ConnectionError("gone")]),
        ("refresh", [TransientError("registry")]),
    ],
)
def test_a_step_that_fails_is_repeated_and_no_place_is_lost(
    tmp_path: Path, step: str, errors: Sequence[Exception]
) -> None:
    checks: list[str] = []
    told = Told(**{step: errors})
    lines = [*map(str, range(N)), "bad"]
    run = Run(tmp_path, told, lines=lines, check=lambda: checks.append("check"))
    run()
    assert sorted(map(int, run.applier.applied)) == list(range(N))
    assert run.position()["acknowledged"] == run.size
    assert sum(run.metrics.snapshot()["retries"].values()) == len(errors)
    assert len(checks) >= 1 + len(errors)  # on each look, and before going on


@pytest.mark.parametrize(
    ("step", "error"),
    [
        ("apply", DataFault("raw features are gone")),
        ("flush", PermissionError(13, "Permission denied")),
        ("flush", DataFault("the view is not applied")),
        ("poll", redis.exceptions.AuthenticationError("wrong password")),
        ("poll", redis.exceptions.ResponseError("WRONGTYPE")),
    ],
)
def test_what_another_try_cannot_mend_ends_the_run_without_acknowledging(
    tmp_path: Path, step: str, error: Exception
) -> None:
    run = Run(tmp_path, Told(**{step: [error]}))
    with pytest.raises(type(error)):
        run()
    assert "ack" not in run.told.steps
    assert run.told.steps[-1] == "close"
    position = tmp_path / "events.position"
    assert not position.exists() or run.position()["acknowledged"] == 0


def test_states_that_are_gone_end_the_run_before_anything_more_is_applied(tmp_path: Path) -> None:
    def check() -> None:
        if run.applier.applied:
            raise StreamConflict("no states")

    told = Told(ack=[redis.ConnectionError("gone")])
    run = Run(tmp_path, told, due_at=1, check=check)
    with pytest.raises(StreamConflict, match="no states"):
        run()
    # Rows of the first micro-batch are written, and acknowledged, beside the second.
    assert len(run.applier.applied) == 20 < N
    assert "ack" not in told.steps


def test_what_changed_is_taken_up_before_events_of_a_new_partition_are_applied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_LOOK_SECONDS", 3_600)

    class Growing(Source):
        polls = 0

        def poll(self, max_events: int, wait_ms: int) -> list[Delivery]:
            self.polls += wait_ms > 0
            return super().poll(max_events, wait_ms)

        @property
        def owned(self) -> frozenset[int]:
            return frozenset({0} if self.polls < 2 else {0, 1})

    run = Run(tmp_path, Told())
    run.source.__class__ = Growing
    run()
    steps = [step for step in run.told.steps if step in ("poll", "refresh", "apply")]
    first, second = ["poll", "refresh", "apply"], ["poll", "apply"]
    assert steps[:8] == [*first, *first, *second]


def test_a_worker_that_is_told_to_stop_finishes_what_it_holds(tmp_path: Path) -> None:
    run = Run(tmp_path, Told(), stop_after=1)
    run()
    assert len(run.applier.applied) == 10
    assert run.told.steps[-3:] == ["flush", "ack", "close"]
    assert 0 < run.position()["acknowledged"] < run.size


def test_a_worker_that_is_told_to_stop_does_not_wait_forever_for_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_LEAVING_SECONDS", 0.1)
    endless = [redis.ConnectionError("gone")] * 10_000
    run = Run(tmp_path, Told(ack=endless), stop_after=1)
    with pytest.raises(redis.ConnectionError):
        run()
    assert run.told.steps[-1] == "close"
    assert run.position()["acknowledged"] == 0


def test_a_source_that_does_not_answer_at_the_end_does_not_hide_what_was_done(
    tmp_path: Path,
) -> None:
    run = Run(tmp_path, Told(close=[redis.ConnectionError("gone")]))
    run()
    assert run.position()["acknowledged"] == run.size
