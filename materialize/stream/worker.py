"""The loop of one worker: poll, apply, set bad events aside, keep rows offline, acknowledge."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

import tenacity

from materialize.stream.connect import is_transient
from materialize.stream.source import Delivery, EventSource, Lag

if TYPE_CHECKING:
    import pyarrow as pa

    from materialize.config import StreamSettings
    from materialize.stream.apply import ApplyReport, Rejected
    from materialize.stream.metrics import StreamMetrics

__all__ = ["Applies", "KeepsRows", "Worker"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_WAIT_MS = 200
"""How long one poll waits for an event, and a signal for the worker."""
_LOOK_SECONDS = 1.0
"""Between two looks at live spaces and at the lag."""
_BACKOFF_SECONDS = (0.05, 5.0)
_LEAVING_SECONDS = 10.0
"""How long a worker that was told to stop tries to reach stores that do not answer."""
_PERMANENT = (FileNotFoundError, NotADirectoryError, PermissionError)


class Applies(Protocol):
    """What a worker needs of `materialize.stream.apply.Applier`."""

    def apply(self, deliveries: list[Delivery]) -> ApplyReport:
        """Apply a micro-batch."""
        ...

    def refresh(self) -> None:
        """Take up what changed."""
        ...


class KeepsRows(Protocol):
    """What a worker needs of `materialize.stream.offline.OfflineRows`."""

    def __len__(self) -> int: ...

    def add(self, view: str, table: pa.Table, now: float) -> None:
        """Hold rows."""
        ...

    def due(self, now: float) -> bool:
        """Return whether a flush is due."""
        ...

    def set_off(self) -> None:
        """Take what is held for the next flush."""
        ...

    def flush(self) -> int:
        """Append what was set off; called in a thread of its own."""
        ...


class Worker:
    """Applies the events of a source until it is told to stop.

    Parameters
    ----------
    applier : Applier
    source : EventSource
    offline : OfflineRows
    settings : StreamSettings
    metrics : StreamMetrics
    check : callable
        Called about once a second, and before work goes on after a store did not answer; raises
        when the states are gone.
    restarted : callable
        Called as often, and before events are acknowledged: whether a server was started anew, and
        may have forgotten what was not yet on its disk.
    until_idle : bool
        End when nothing is left.
    on_look : callable, optional
        Called about once a second with what is left to do.

    Notes
    -----
    State: deliveries in hand (applied next), applied ones whose rows wait, and those whose rows a
    thread writes offline meanwhile (events would wait for the disk otherwise). Losing all of it is
    harmless: what is not acknowledged is handed out again.
    """

    def __init__(
        self,
        applier: Applies,
        source: EventSource,
        offline: KeepsRows,
        settings: StreamSettings,
        metrics: StreamMetrics,
        *,
        check: Callable[[], None],
        restarted: Callable[[], bool],
        until_idle: bool = False,
        on_look: Callable[[Lag], None] | None = None,
    ) -> None:
        self._applier, self._source, self._offline = applier, source, offline
        self._settings, self._metrics = settings, metrics
        self._check, self._restarted = check, restarted
        self._until_idle, self._on_look = until_idle, on_look
        self._stop = threading.Event()
        self._stopped_at: float | None = None
        self._hand: list[Delivery] = []
        self._applied: list[Delivery] = []
        self._leaving: list[Delivery] = []
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="offline")
        self._writing: Future[int] | None = None
        self._shaken = False
        self._restarts = 0
        self._looked = -float("inf")
        self._owned: frozenset[int] = frozenset()

    def run(self, stop: threading.Event) -> None:
        """Work until ``stop`` is set, or nothing is left.

        Ends in order: the micro-batch in hand is applied, rows are flushed, events acknowledged and
        the source closed.

        Raises
        ------
        TransientError, redis.RedisError
            A store did not answer for ten seconds after the worker was told to stop.
        TerminalError
            Work cannot go on; what is not acknowledged is handed out again.
        """
        self._stop = stop
        try:
            while not stop.is_set():
                self._persist("poll", self._gather)
                self._look()
                if self._hand:
                    self._apply()
                elif self._until_idle and self._is_idle():
                    break
                if self._writing is not None and self._writing.done():
                    self._end_flush()
                if self._flush_is_due():
                    self._begin_flush()
            if self._hand:
                self._apply()
            self._flush()
        finally:
            self._leave()

    def _gather(self) -> None:
        """Fill the hand with a micro-batch; what is in it stays when a second poll fails."""
        most, linger = self._settings.batch_events, self._settings.linger_ms / 1000
        began = time.monotonic()
        if not self._hand:
            self._hand = self._source.poll(most, _WAIT_MS)
            if self._hand and len(self._hand) < most and linger:
                time.sleep(linger)
        if 0 < len(self._hand) < most:
            self._hand += self._source.poll(most - len(self._hand), 0)
        full = len(self._hand) == most
        self._metrics.spent("poll" if full else "wait", time.monotonic() - began)

    def _apply(self) -> None:
        deliveries = self._hand
        report = self._persist("apply", lambda: self._applier.apply(deliveries))
        restarts = self._restarts
        readable = self._source.now_ms() - report.seconds.get("report", 0.0) * 1000
        now = time.monotonic()
        for view, table in report.offline.items():
            self._offline.add(view, table, now)
        rejected = set()
        for one in report.rejected:
            self._persist("reject", partial(self._source.reject, *_of(one)))
            rejected.add((one.delivery.partition, one.delivery.id))
        self._hand = []
        if self._restarts == restarts:
            self._applied += [d for d in deliveries if (d.partition, d.id) not in rejected]
        else:
            self._source.again(())
        self._metrics.applied(report, deliveries, readable)

    def _flush_is_due(self) -> bool:
        if not self._applied:
            return False
        return (
            len(self._offline) == 0  # nothing to wait for
            or self._offline.due(time.monotonic())
            or len(self._applied) >= self._settings.flush_rows
            or self._source.waited_for
        )

    def _begin_flush(self) -> None:
        """Have rows written offline; waits for the flush before, so that two lots are held at most.

        Whoever waits for a partition gets it once everything is acknowledged: then it is no use to
        go on meanwhile.
        """
        self._end_flush()
        self._leaving, self._applied = self._applied, []
        if len(self._offline):
            self._offline.set_off()
            self._writing = self._writer.submit(self._append)
        if self._writing is None or self._source.waited_for:
            self._end_flush()

    def _append(self) -> int:
        began = time.monotonic()
        rows = self._offline.flush()
        self._metrics.flushed(rows)
        self._metrics.spent("offline", time.monotonic() - began, beside=True)
        return rows

    def _end_flush(self) -> None:
        """Acknowledge what the rows of the flush came from: in this order."""
        if self._writing is not None:
            self._persist("offline", self._written)
            self._writing = None
        if self._leaving:
            began = time.monotonic()
            self._persist("ack", self._doubt_if_restarted)
            self._persist("ack", lambda: self._source.ack(self._leaving))
            self._leaving = []
            self._metrics.spent("ack", time.monotonic() - began)

    def _written(self) -> int:
        """Wait for the thread; after a failure that was told, try again here."""
        writing, self._writing = self._writing, None
        return self._append() if writing is None else writing.result()

    def _flush(self) -> None:
        """Write all rows offline, and acknowledge everything."""
        self._begin_flush()
        self._end_flush()

    def _is_idle(self) -> bool:
        """Return whether nothing is left for anybody, after a flush of what this worker holds."""
        if self._persist("lag", self._source.lag).undelivered:
            return False
        self._flush()
        lag = self._persist("lag", self._source.lag)
        return lag.undelivered == 0 and lag.unacknowledged == 0

    def _look(self) -> None:
        """Take up what changed, once a second, and before events of a new partition are applied.

        Its last owner may have known item vectors that this worker does not know yet: rows made
        without them would say less than those that are there.
        """
        owned = self._source.owned
        if time.monotonic() - self._looked < _LOOK_SECONDS and owned <= self._owned:
            return
        began = time.monotonic()
        self._persist("refresh", self._refresh)
        self._owned = owned
        lag = self._persist("lag", self._source.lag)
        self._looked = time.monotonic()
        self._metrics.saw(lag, len(self._source.owned), self._source.gone)
        self._metrics.spent("look", self._looked - began)
        if self._on_look is not None:
            self._on_look(lag)

    def _doubt_if_restarted(self) -> None:
        """Have events handed out again whose effect a server may have forgotten.

        Its file ends with a write of its last second: what is acknowledged in it has its effect in
        it, but what was applied and is not acknowledged may be in it or not.
        """
        if self._restarted():
            self._restarts += 1
            self._applied, self._leaving = [], []
            self._source.again(self._hand)
            logger.warning("a Redis was started anew: what is not acknowledged is applied again")

    def _refresh(self) -> None:
        self._check()
        self._doubt_if_restarted()
        self._applier.refresh()

    def _persist(self, step: str, call: Callable[[], T]) -> T:
        """Return what a call returns, repeated with growing pauses while stores do not answer."""

        def attempt() -> T:
            if self._shaken:
                self._check()
                self._doubt_if_restarted()
                self._shaken = False
            return call()

        return tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda exc: _may_pass(step, exc)),
            wait=tenacity.wait_random_exponential(*_BACKOFF_SECONDS),
            stop=lambda _: self._gives_up(),
            sleep=self._sleep,
            before_sleep=lambda state: self._failed(step, state),
            reraise=True,
        )(attempt)

    def _failed(self, step: str, state: tenacity.RetryCallState) -> None:
        self._shaken = True
        self._metrics.retried(step)
        error = state.outcome.exception() if state.outcome else None
        logger.warning("%s failed (attempt %d), again: %s", step, state.attempt_number, error)
        if step in ("apply", "offline"):
            _unless_silent(self._source.renew, "the source does not answer either")

    def _sleep(self, seconds: float) -> None:
        if self._stop.is_set():
            time.sleep(min(seconds, _BACKOFF_SECONDS[0]))
        else:
            self._stop.wait(seconds)

    def _gives_up(self) -> bool:
        if not self._stop.is_set():
            return False
        now = time.monotonic()
        if self._stopped_at is None:
            self._stopped_at = now
        return now - self._stopped_at > _LEAVING_SECONDS

    def _leave(self) -> None:
        """Release what this worker owns; a source that does not answer releases it in time."""
        self._writer.shutdown()
        _unless_silent(self._source.close, "leases were not released and end by themselves")


def _of(rejected: Rejected) -> tuple[Delivery, str, str]:
    return rejected.delivery, rejected.reason, rejected.detail


def _unless_silent(call: Callable[[], None], told: str) -> None:
    """Call; where the other side does not answer, only say so."""
    try:
        call()
    except Exception as exc:
        if not is_transient(exc):
            raise
        logger.warning("%s: %s", told, exc)


def _may_pass(step: str, error: BaseException) -> bool:
    if step == "offline" and isinstance(error, OSError):
        return not isinstance(error, _PERMANENT)  # a full disk, a network file system
    return is_transient(error)
