"""Several workers, each in a process of its own: started, watched, started again, stopped."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ensure_running
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

from encoder.errors import EmbeddingError, TerminalError
from materialize.config import RepoSettings
from materialize.context import Context
from materialize.stream.connect import is_transient
from materialize.stream.metrics import StreamMetrics, added_up, summary
from materialize.stream.progress import ProgressLine
from materialize.stream.service import RunOptions, prepare, run_worker
from materialize.stream.source import Lag

__all__ = ["run_stream", "stopping"]

logger = logging.getLogger(__name__)

_AGAIN_SECONDS = (0.5, 30.0)
"""Before a worker that died is started again: the first time, and at most."""
_PRELOADED = [
    *("materialize.stream.apply", "materialize.stream.offline", "materialize.stream.worker"),
    *("materialize.stores.redis", "materialize.stream.redis_source", "onnxruntime"),
]
_LATER = 75
"""Exit code of a worker whose stores did not answer when it started (EX_TEMPFAIL of sysexits.h)."""
_HEALTHY_SECONDS = 120.0
"""After so long a death counts as the first one again."""
_TICK_SECONDS = 0.2
_END_SECONDS = 60.0
"""How long workers may take to end after they were told to, before they are killed: harmless, what
they did not acknowledge is handed out again."""


def run_stream(
    context: Context, options: RunOptions, workers: int, *, quiet: bool
) -> dict[str, Any]:
    """Run workers until a signal, or until nothing is left; return what they did together.

    Raises
    ------
    StreamConflict
        The stream or the states are not fit to begin: see `materialize.stream.service.prepare`.
    EmbeddingError
        Work cannot go on.
    """
    line = ProgressLine(quiet)
    with stopping(impatient=True) as stop:
        forks = _server_of_forks() if workers > 1 else None
        prepare(context, options)
        began = time.monotonic()
        if forks is None:
            snapshots = [_run_here(context, options, stop, line)]
        else:
            snapshots = _Supervisor(context.settings, options, workers, forks, stop, line).run()
    line.end()
    return summary(snapshots, time.monotonic() - began)


@contextmanager
def stopping(*, impatient: bool) -> Iterator[threading.Event]:
    """Yield an event that SIGTERM and SIGINT set.

    Parameters
    ----------
    impatient : bool
        A second signal ends the process at once. Not for a process that is told twice: by the
        terminal or service manager, and by the one that started it.
    """
    stop = threading.Event()
    before: dict[signal.Signals, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()
        if impatient:
            for name in before:
                signal.signal(name, signal.SIG_DFL)

    for name in (signal.SIGTERM, signal.SIGINT):
        before[name] = signal.signal(name, handle)
    try:
        yield stop
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _server_of_forks() -> ForkServerContext:
    """Return the context of a process that begins now to import what workers need.

    A fork of this one would inherit its threads and sockets; and `import feast` costs seconds,
    which the server pays once, and while this one pays them too.
    """
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(_PRELOADED)
    ensure_running()
    return forks


def _run_here(
    context: Context, options: RunOptions, stop: threading.Event, line: ProgressLine
) -> dict[str, Any]:
    metrics = StreamMetrics()
    run_worker(
        context,
        options,
        metrics,
        stop,
        metrics_port=context.settings.file.stream.metrics_port,
        on_look=lambda lag: line.show([metrics.snapshot()], lag),
    )
    return metrics.snapshot()


@dataclass
class _Place:
    """One of the workers: its process now, and what the ones before it did."""

    index: int
    process: BaseProcess | None = None
    pipe: Connection | None = None
    snapshot: dict[str, Any] | None = None
    former: dict[str, Any] = field(default_factory=lambda: added_up([]))
    deaths: int = 0
    start_at: float = 0.0
    done: bool = False


class _Supervisor:
    def __init__(
        self,
        settings: RepoSettings,
        options: RunOptions,
        workers: int,
        forks: ForkServerContext,
        stop: threading.Event,
        line: ProgressLine,
    ) -> None:
        self._settings, self._options = settings, options
        self._stop, self._line = stop, line
        self._places = [_Place(index) for index in range(workers)]
        self._processes = forks
        self._told = False

    def run(self) -> list[dict[str, Any]]:
        failed = False
        try:
            while not all(place.done for place in self._places):
                self._start_due()
                self._listen()
                for place in self._places:
                    failed |= self._reap(place)
                if (failed or self._stop.is_set()) and not self._told:
                    self._tell_all()
        finally:
            self._end_all()
        if failed:
            raise TerminalError("A worker of the stream failed, so all were stopped; see above.")
        return self._snapshots()

    def _start_due(self) -> None:
        now = time.monotonic()
        for place in self._places:
            if place.process is not None or place.done:
                continue
            if self._stop.is_set():
                place.done = True
                continue
            if place.start_at > now:
                continue
            here, there = self._processes.Pipe(duplex=False)
            port = self._settings.file.stream.metrics_port
            place.process = self._processes.Process(
                target=_work,
                args=(self._settings, self._options, port + place.index if port else 0, there),
                name=f"stream-{place.index}",
            )
            place.process.start()
            there.close()
            place.pipe = here

    def _listen(self) -> None:
        pipes = [place.pipe for place in self._places if place.pipe is not None]
        if not pipes:
            self._stop.wait(_TICK_SECONDS)
            return
        ready, lag = wait(pipes, _TICK_SECONDS), None
        for place in self._places:
            if place.pipe is None or place.pipe not in ready:
                continue
            try:
                place.snapshot, found = place.pipe.recv()
            except (EOFError, OSError):  # OSError: it was killed in the middle of a message
                place.pipe.close()
                place.pipe = None
            else:
                lag = found or lag
        if lag is not None:
            self._line.show(self._snapshots(), lag)

    def _reap(self, place: _Place) -> bool:
        """Take leave of a process that ended; return whether it failed for good."""
        process = place.process
        if process is None or place.pipe is not None or process.exitcode is None:
            return False
        code = process.exitcode
        process.close()
        place.process = None
        if place.snapshot is not None:
            place.former = added_up([place.former, place.snapshot])
            place.snapshot = None
        if code >= 0 and (code != _LATER or self._stop.is_set()):
            place.done = True
            return code != 0
        now = time.monotonic()
        place.deaths = 0 if now - place.start_at > _HEALTHY_SECONDS else place.deaths
        delay = min(_AGAIN_SECONDS[0] * 2**place.deaths, _AGAIN_SECONDS[1])
        place.deaths += 1
        place.start_at = now + delay
        why = "stores that do not answer" if code == _LATER else signal.Signals(-code).name
        logger.warning(
            "worker %d was ended by %s; another starts in %.1f s", place.index, why, delay
        )
        return False

    def _tell_all(self) -> None:
        self._told = True
        self._stop.set()
        for place in self._places:
            if place.process is not None:
                place.process.terminate()

    def _end_all(self) -> None:
        """Wait for those that are left, when this process leaves with an error of its own."""
        self._tell_all()
        until = time.monotonic() + _END_SECONDS
        for place in self._places:
            if place.process is None:
                continue
            place.process.join(max(0.0, until - time.monotonic()))
            if place.process.exitcode is None:
                place.process.kill()
                place.process.join()

    def _snapshots(self) -> list[dict[str, Any]]:
        return [
            one
            for place in self._places
            for one in (place.former, place.snapshot)
            if one is not None
        ]


def _work(settings: RepoSettings, options: RunOptions, port: int, pipe: Connection) -> None:
    """Run a worker in a process that the supervisor started."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    context = Context(settings.repo)
    context.settings = settings
    metrics = StreamMetrics()
    with stopping(impatient=False) as stop, pipe:

        def tell(lag: Lag | None) -> None:
            try:
                pipe.send((metrics.snapshot(), lag))
            except BrokenPipeError:  # the supervisor is gone, so nobody would stop this process
                stop.set()

        try:
            run_worker(context, options, metrics, stop, metrics_port=port, on_look=tell)
        except Exception as exc:
            if not is_transient(exc) and not isinstance(exc, EmbeddingError):
                raise
            logger.error("%s", exc)
            raise SystemExit(_LATER if is_transient(exc) else 1) from exc
        finally:
            tell(None)
