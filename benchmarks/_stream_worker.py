"""`palate stream run` as a process of its own, watched from outside."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import redis

from materialize.stream.keys import GROUP, events_key, lease_key

__all__ = ["Backlog", "Ended", "Running", "running"]

_START_SECONDS = 180.0
_DRAIN_SECONDS = 300.0
_LOOK_SECONDS = 0.01
_STOP_SECONDS = 60.0


@dataclass(frozen=True)
class Backlog:
    """What is left to do in all partitions."""

    undelivered: int
    unacknowledged: int


@dataclass
class Ended:
    """What workers said and took, from when all of them owned partitions."""

    summary: dict[str, Any]
    """What `palate stream run` prints."""
    cpu_seconds: float
    peak_bytes: int
    """Largest resident memory of one worker."""
    acknowledged: float = field(default=float("nan"))
    """When nothing was left unacknowledged, by ``time.monotonic()``."""


class Running:
    """Workers that own all partitions.

    Parameters
    ----------
    process : subprocess.Popen
    client : redis.Redis
        Of the stream.
    project : str
    partitions : int
    output : Path
        Takes what the process prints.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        client: redis.Redis,
        project: str,
        partitions: int,
        output: Path,
    ) -> None:
        self._process, self._client, self._output = process, client, output
        self._streams = [events_key(project, p) for p in range(partitions)]
        self._leases = [lease_key(project, p) for p in range(partitions)]
        self._cpu_before = 0.0

    def wait_until_ready(self, workers: int) -> None:
        """Return when so many workers share all partitions, and own them for good."""
        deadline = time.monotonic() + _START_SECONDS
        while True:
            owners = self._client.mget(self._leases)
            if None not in owners and len(set(owners)) == workers:
                break
            self._check(deadline)
            time.sleep(_LOOK_SECONDS)
        self._cpu_before = sum(_cpu(one) for one in self._processes())

    def backlog(self) -> Backlog:
        """Return what is left to do, as Redis tells it."""
        with self._client.pipeline(transaction=False) as pipe:
            for stream in self._streams:
                pipe.xinfo_groups(stream)
                pipe.xlen(stream)
            answers = pipe.execute(raise_on_error=False)
        undelivered = unacknowledged = 0
        for groups, length in zip(answers[::2], answers[1::2], strict=True):
            if isinstance(groups, redis.ResponseError):
                continue  # no event yet, so that there is no such key
            (group,) = [one for one in groups if one["name"] == GROUP.encode()] or [None]
            undelivered += length if group is None else int(group["lag"])
            unacknowledged += 0 if group is None else int(group["pending"])
        return Backlog(undelivered, unacknowledged)

    def wait_until_delivered(self) -> float:
        """Return the moment from which on no event was left undelivered."""
        deadline = time.monotonic() + _DRAIN_SECONDS
        while self.backlog().undelivered:
            self._check(deadline)
            time.sleep(_LOOK_SECONDS)
        return time.monotonic()

    def stop(self) -> Ended:
        """Tell the workers to end: they apply what they hold, flush and acknowledge."""
        peak = max(_peak(one) for one in self._processes())
        self._process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _DRAIN_SECONDS
        while self.backlog().unacknowledged and self._process.poll() is None:
            if time.monotonic() > deadline:
                raise RuntimeError(f"Workers did not acknowledge what they hold:\n{self._said()}")
            time.sleep(_LOOK_SECONDS)
        acknowledged = time.monotonic()
        # Of a process and of those that it waited for; Popen would throw the figures away.
        _, status, used = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        if self._process.returncode != 0:
            raise RuntimeError(f"Workers ended with {self._process.returncode}:\n{self._said()}")
        if self.backlog().unacknowledged:
            raise RuntimeError("Workers ended and left events unacknowledged.")
        summary = json.loads(self._output.read_text(encoding="utf-8"))
        cpu = used.ru_utime + used.ru_stime - self._cpu_before
        return Ended(summary, cpu, peak, acknowledged)

    def kill(self) -> None:
        """End the processes at once."""
        if self._process.returncode is None:
            for one in self._processes():
                one.kill()
            self._process.wait(_STOP_SECONDS)

    def _processes(self) -> list[psutil.Process]:
        first = psutil.Process(self._process.pid)
        return [first, *first.children(recursive=True)]

    def _check(self, deadline: float) -> None:
        if self._process.poll() is not None:
            raise RuntimeError(f"Workers ended with {self._process.returncode}:\n{self._said()}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"Workers take too long:\n{self._said()}")

    def _said(self) -> str:
        return self._output.with_suffix(".err").read_text(encoding="utf-8")


@contextmanager
def running(
    repository: Path,
    client: redis.Redis,
    project: str,
    partitions: int,
    workers: int,
    folder: Path,
    *options: str,
) -> Iterator[Running]:
    """Run workers from when they own all partitions; those that still run afterwards are killed."""
    output = folder / f"workers-{time.monotonic_ns()}.json"
    program = Path(sys.executable).parent / "palate"
    command = [program, "stream", "run", "--repo", repository, "--workers", str(workers), "--quiet"]
    with output.open("wb") as out, output.with_suffix(".err").open("wb") as err:
        process = subprocess.Popen([*command, *options], stdout=out, stderr=err)
    found = Running(process, client, project, partitions, output)
    try:
        found.wait_until_ready(workers)
        yield found
    finally:
        found.kill()


def _cpu(process: psutil.Process) -> float:
    used = process.cpu_times()
    return float(used.user + used.system)


def _peak(process: psutil.Process) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None
    return int(found.group(1)) * 1024
