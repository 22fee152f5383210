"""Workers of a stream in processes of their own, which can be killed, stopped, or made to die at a
chosen step.

Each is forked with everything imported (`tests.e2e.killable`), and reaches Redis by a line of its
own that can be held and cut.
"""

from __future__ import annotations

import importlib
import logging
import os
import random
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import materialize.stream.apply
import materialize.stream.redis_source
from materialize.context import Context
from materialize.stream.apply import Applier
from materialize.stream.metrics import StreamMetrics
from materialize.stream.redis_source import RedisSource
from materialize.stream.service import RunOptions, run_worker
from materialize.stream.source import Lag
from tests.e2e.killable import FORKS
from tests.e2e.redis_faults import Line

__all__ = ["STEPS", "Parts", "Place", "StreamProcess"]

FORKS.set_forkserver_preload([__name__, "materialize.stores.redis", "onnxruntime"])
_READY_SECONDS, _END_SECONDS = 120.0, 60.0


_WITHIN_SECONDS = 0.003


@dataclass(frozen=True)
class Place:
    """Before or after a call of a function, or within it: in its first milliseconds."""

    module: str
    attribute: str
    when: Literal["before", "within", "after"]

    def arm(self, sent: signal.Signals) -> None:
        """Send this process a signal at the next call."""
        owner = importlib.import_module(self.module)
        *path, name = self.attribute.split(".")
        for part in path:
            owner = getattr(owner, part)
        original = getattr(owner, name)
        armed = threading.Lock()

        def deadly(*args: Any, **kwargs: Any) -> Any:
            mine = armed.acquire(blocking=False)
            if mine and self.when == "before":
                os.kill(os.getpid(), sent)
            if mine and self.when == "within":
                seconds = random.SystemRandom().uniform(0, _WITHIN_SECONDS)
                threading.Timer(seconds, os.kill, (os.getpid(), sent)).start()
            result = original(*args, **kwargs)
            if mine and self.when == "after":
                os.kill(os.getpid(), sent)
            return result

        setattr(owner, name, deadly)


_APPLIER, _OFFLINE = "materialize.stream.apply", "materialize.stream.offline"
_SOURCE = "materialize.stream.redis_source"
STEPS = {
    "events handed out, nothing applied": Place(_APPLIER, "Applier.apply", "before"),
    "before the step in Redis": Place("materialize.stream.atomic", "UserHashes.commit", "before"),
    "after the step in Redis": Place("materialize.stream.atomic", "UserHashes.commit", "after"),
    "within the step in Redis": Place("materialize.stream.atomic", "UserHashes.commit", "within"),
    "between sending and answer": Place("redis.connection", "Connection.read_response", "before"),
    "applied, not offline": Place(_OFFLINE, "OfflineRows.flush", "before"),
    "within the offline flush": Place(_OFFLINE, "OfflineRows.flush", "within"),
    "between two files of a flush": Place("materialize.stores.parquet", "append_rows", "after"),
    "offline, not acknowledged": Place(_OFFLINE, "OfflineRows.flush", "after"),
    "before the acknowledgement": Place(_SOURCE, "RedisSource.ack", "before"),
    "after the acknowledgement": Place(_SOURCE, "RedisSource.ack", "after"),
    "while a partition is taken over": Place(_SOURCE, "RedisSource._open", "after"),
}


@dataclass(frozen=True)
class Parts:
    """What a worker is made of; tests of the harness name faulty ones."""

    applier: type[Applier] = Applier
    source: type[RedisSource] = RedisSource


class StreamProcess:
    """One worker.

    Parameters
    ----------
    repo : Path
    port : int
        Of Redis.
    name : str
        Unlike that of any other worker.
    parts : Parts
    """

    def __init__(self, repo: Path, port: int, name: str, parts: Parts) -> None:
        self.name, self.line = name, Line(port)
        self._here, there = FORKS.Pipe()
        self._process = FORKS.Process(
            target=_work, args=(str(repo), self.line.port, name, parts, there)
        )
        self._process.start()
        there.close()
        self._ready = False

    def wait_ready(self) -> None:
        """Wait until it takes events; again: it did."""
        if not self._ready:
            assert self._here.poll(_READY_SECONDS), "the worker is ready in time"
            assert self._here.recv() == "ready"
            self._ready = True

    def owns(self, lag: Lag) -> bool:
        """Return whether a partition is this worker's."""
        return any(f"-{self._process.pid}-" in (one.owner or "") for one in lag.partitions)

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def arm(self, place: Place, sent: signal.Signals) -> None:
        """Let it be sent a signal at the next call of a function."""
        self._here.send((place, sent))
        assert self._here.poll(_END_SECONDS), "the worker listens"
        assert self._here.recv() == "armed"

    def wait_dead(self, seconds: float) -> bool:
        self._process.join(seconds)
        return not self.alive

    def wait_stopped(self, is_over: Callable[[], bool]) -> bool:
        """Return True when the kernel has stopped it, or False when ``is_over`` comes first."""
        while not self._is_stopped():
            if is_over():
                return False
        return True

    def _is_stopped(self) -> bool:
        stat = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii")
        return stat.rpartition(")")[2].split()[0] == "T"

    def send(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()
        self._process.join(_END_SECONDS)
        self._close()

    def end(self) -> None:
        """Let it end in order; it must do so."""
        self.send(signal.SIGTERM)
        self._process.join(_END_SECONDS)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
            self._process.join(_END_SECONDS)
        self._close()
        assert code == 0, f"{self.name} ended with {code}"

    def _close(self) -> None:
        self.line.close()
        self._here.close()


def _work(repo: str, port: int, name: str, parts: Parts, parent: Connection) -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    logging.basicConfig(
        filename=Path(repo) / f"{name}.log",
        level=logging.INFO,
        format="%(asctime)s %(name)s %(message)s",
    )
    try:
        _run(Path(repo), port, parts, stop, parent)
    except BaseException:
        logging.exception("the worker ends")
        raise


def _run(repo: Path, port: int, parts: Parts, stop: threading.Event, parent: Connection) -> None:
    """Do what `palate stream run` does in a worker's process."""
    context = Context(repo)
    # A way to Redis of its own, instead of the one that feature_store.yaml names.
    config = context.store.config
    config.online_config["connection_string"] = f"127.0.0.1:{port}"
    config._online_store = None
    materialize.stream.apply.Applier = parts.applier  # type: ignore[misc]
    materialize.stream.redis_source.RedisSource = parts.source  # type: ignore[misc]
    threading.Thread(target=_listen, args=(parent,), daemon=True).start()
    ready = threading.Event()

    def tell(lag: Lag) -> None:
        if not ready.is_set():
            ready.set()
            parent.send("ready")

    run_worker(context, RunOptions(), StreamMetrics(), stop, metrics_port=0, on_look=tell)


def _listen(parent: Connection) -> None:
    """Arm what the test asks for, until it is gone."""
    while True:
        try:
            place, sent = parent.recv()
        except (EOFError, OSError):
            return
        place.arm(sent)
        parent.send("armed")
