"""What `palate demo stream` runs beside itself: a private Redis, a worker, and watches on rows."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import redis
from google.protobuf.timestamp_pb2 import Timestamp

from encoder.errors import DataFault, TransientError, VerificationFailed

__all__ = ["Probe", "Probes", "redis_beside", "until", "worker_beside"]

_DEADLINE_SECONDS = 180.0
_PROBES_AT_ONCE = 200


def until(ready: Callable[[], bool], what: str, seconds: float = _DEADLINE_SECONDS) -> None:
    """Wait until a condition holds.

    Raises
    ------
    TransientError
        It does not within ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TransientError(f"{what} took more than {seconds:.0f} s.")
        time.sleep(0.01)


@contextmanager
def redis_beside(folder: Path, given: str | None) -> Iterator[str]:
    """Yield ``host:port`` of an empty Redis: the given one, or one that ends with the block.

    Raises
    ------
    DataFault
        No Redis program in PATH, or the given database is not empty.
    """
    if given is not None:
        host, _, port = given.partition(":")
        try:
            with redis.Redis(host or "127.0.0.1", int(port or 6379), socket_timeout=5) as client:
                held = client.dbsize()
        except (redis.RedisError, ValueError) as exc:
            raise DataFault(f"--redis {given}: host:port of a Redis expected: {exc}") from exc
        if held:
            raise DataFault(f"The Redis at {given} holds {held} keys; the demo needs an empty one.")
        yield f"{host or '127.0.0.1'}:{port or 6379}"
        return
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        raise DataFault(
            "Neither redis-server nor valkey-server is in PATH. Install one (for example "
            "`apt install redis-server`), or name a running, empty one with --redis host:port."
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [program, "--port", port, "--bind", "127.0.0.1", "--dir", str(folder)]
    log = folder / "redis.log"
    with log.open("wb") as out:
        process = subprocess.Popen(  # noqa: S603
            [*command, "--save", "", "--appendonly", "no"], stdout=out, stderr=subprocess.STDOUT
        )
    try:
        with redis.Redis("127.0.0.1", int(port)) as client:
            until(lambda: _answers(client, process, log), "The start of Redis")
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _answers(client: redis.Redis, process: subprocess.Popen[bytes], log: Path) -> bool:
    if process.poll() is not None:
        raise VerificationFailed(f"Redis ended with {process.returncode}:\n{log.read_text()}")
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


@contextmanager
def worker_beside(
    repo: Path, folder: Path, owned: Callable[[], bool], *options: str
) -> Iterator[None]:
    """Run `palate stream run` until the block ends; ready when ``owned`` says so.

    Raises
    ------
    VerificationFailed
        It ended before its time, or did not end well.
    """
    command = [
        sys.executable, "-c", "from materialize.cli import main; main()", "stream", "run",
        "--repo", str(repo), "--quiet", *options,
    ]  # fmt: skip
    log = folder / "worker.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)  # noqa: S603

    def ready() -> bool:
        if process.poll() is not None:
            raise VerificationFailed(f"The worker ended early:\n{log.read_text()}")
        return owned()

    try:
        until(ready, "The start of the worker")
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(_DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
    if code:
        raise VerificationFailed(f"The worker ended with {code}:\n{log.read_text()}")


class Probe:
    """An event whose effect is waited for: a row as of this event, or of a later one.

    Taken before the event is appended; ``appended`` is to be called right after.

    Parameters
    ----------
    client : redis.Redis
    key, field : bytes
        Hash and field that hold the row's event time.
    event_us : int
    """

    def __init__(self, client: Any, key: bytes, field: bytes, event_us: int) -> None:
        self.key, self.field = key, field
        self._before, self._event_us = client.hget(key, field), event_us
        self.began = self.seen = 0.0

    def is_in(self, value: bytes | None) -> bool:
        """Return whether a row of this time holds the event."""
        if value is None or value == self._before:
            return False
        moment = Timestamp.FromString(value)
        event_us: int = moment.seconds * 1_000_000 + moment.nanos // 1000
        return event_us >= self._event_us

    def appended(self) -> None:
        """Start the clock."""
        self.began = time.perf_counter()

    @property
    def milliseconds(self) -> float:
        """From append to readable."""
        return (self.seen - self.began) * 1000


class Probes:
    """Polls the online store for the effects of probes, in a thread, with a client of its own."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._open: list[Probe] = []
        self.done: list[Probe] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Probes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def add(self, probe: Probe) -> None:
        """Wait for a probe, too."""
        with self._lock:
            self._open.append(probe)

    def settle(self) -> None:
        """Wait until all probes are seen."""
        until(lambda: not self._open, "Rows of appended events")

    def percentiles(self, *shares: float) -> Sequence[float]:
        """Return percentiles of the milliseconds from append to readable."""
        times: npt.NDArray[np.float64] = np.array([one.milliseconds for one in self.done])
        found: list[float] = np.percentile(times, shares).tolist()
        return found

    def _run(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                waiting = self._open[:_PROBES_AT_ONCE]
            if not waiting:
                self._stop.wait(0.001)
                continue
            with self._client.pipeline(transaction=False) as pipe:
                for one in waiting:
                    pipe.hget(one.key, one.field)
                found = pipe.execute()
            now = time.perf_counter()
            seen = [p for p, value in zip(waiting, found, strict=True) if p.is_in(value)]
            for one in seen:
                one.seen = now
            with self._lock:
                self.done += seen
                self._open = [one for one in self._open if not one.seen]
