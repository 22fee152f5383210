"""An open-loop producer: every event is appended when it is due, whatever became of the others.

The commands are packed before the clock runs, so that the producer takes next to nothing of the
cores that it shares with the workers. Times are those of the machine's monotonic clock, the same
in all processes.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from redis.connection import Connection

from materialize.stream.keys import PAYLOAD, events_key, partition_of
from transforms.stream.events import CONSUME, StreamEvent, event_payload

if TYPE_CHECKING:
    from benchmarks._stream_data import Replay

__all__ = ["commands", "payloads", "produce", "schedule", "write_load"]

Floats = npt.NDArray[np.float64]

_TICK_SECONDS = 0.001
"""Events that are due within it go in one write."""
_READ_BYTES = 1 << 20
_SILENCE_SECONDS = 60.0


def payloads(replay: Replay) -> list[bytes]:
    """Return each event as a producer writes it."""
    columns = (replay.user, replay.timestamp_us, replay.item, replay.weight)
    context = [tuple(one or ()) for one in replay.context.to_pylist()]
    return [
        event_payload(StreamEvent(CONSUME, *fields), replay.names)
        for fields in zip(*(column.tolist() for column in columns), context, strict=True)
    ]


def commands(replay: Replay, project: str, partitions: int) -> list[bytes]:
    """Return one XADD an event, as Redis reads it from the wire."""
    pack = Connection().pack_command
    keys = [events_key(project, p) for p in range(partitions)]
    return [
        b"".join(pack("XADD", keys[partition_of(user, partitions)], "*", PAYLOAD, payload))
        for user, payload in zip(replay.user.tolist(), payloads(replay), strict=True)
    ]


def schedule(n: int, rate: float) -> Floats:
    """Return when each of ``n`` events is due, seconds after the start: ``rate`` a second."""
    return np.arange(n, dtype=np.float64) / rate


def write_load(path: Path, wire: Sequence[bytes], due: Floats) -> None:
    """Leave commands, and when they are due, for a process that will `produce` them."""
    ends = np.cumsum([len(one) for one in wire], dtype=np.int64)
    np.savez(path, wire=np.frombuffer(b"".join(wire), np.uint8), ends=ends, due=due)


def produce(begin: Callable[[], float], path: str, host: str, port: int) -> dict[str, Any]:
    """Append all events, each when it is due, or as soon after as can be.

    Parameters
    ----------
    begin : callable
        Called when all is ready; returns the start, by ``time.monotonic()``.
    path : str
        Of `write_load`.
    host, port : str, int
        Of the stream's Redis.

    Returns
    -------
    dict
        ``events`` that Redis has acknowledged, ``ended`` (same clock, after the last answer),
        ``late_ms``: how much after they were due events were written, p50, p99 and max, and
        ``cpu_seconds`` of this process.

    Raises
    ------
    RuntimeError
        Redis refused an event.
    """
    with np.load(path) as held:
        wire, ends, due = held["wire"].tobytes(), held["ends"], held["due"]
    late = np.empty(len(due))
    with socket.create_connection((host, port), timeout=_SILENCE_SECONDS) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        answers = _Answers(connection)
        start, cpu, sent = begin(), time.process_time(), 0
        while sent < len(due):
            now = time.monotonic() - start
            end = int(np.searchsorted(due, now, side="right"))
            if end == sent:
                time.sleep(max(_TICK_SECONDS, due[sent] - now))
                continue
            connection.sendall(wire[int(ends[sent - 1]) if sent else 0 : int(ends[end - 1])])
            late[sent:end] = time.monotonic() - start - due[sent:end]
            sent = end
            # One write at a time: Redis never holds more than one unanswered.
            answers.wait_for(sent)
        ended = time.monotonic()
    return {
        "events": answers.count,
        "ended": ended,
        "late_ms": [float(v) * 1e3 for v in (*np.percentile(late, [50, 99]), late.max())],
        "cpu_seconds": time.process_time() - cpu,
    }


class _Answers:
    """Counts the answers to XADD: an id as a bulk string, two lines each."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lines, self._tail = 0, b"\r\n"

    @property
    def count(self) -> int:
        """Answers so far."""
        return self._lines // 2

    def wait_for(self, n: int) -> None:
        """Read until ``n`` events have been answered."""
        while self.count < n:
            part = self._connection.recv(_READ_BYTES)
            if not part:
                raise RuntimeError("Redis closed the producer's connection.")
            text = self._tail + part
            if b"\r\n-" in text:  # ids hold a hyphen too, but never at the beginning of a line
                raise RuntimeError(f"Redis refused an event: {text[-200:]!r}")
            self._lines += text.count(b"\r\n") - self._tail.count(b"\r\n")
            self._tail = text[-2:]
