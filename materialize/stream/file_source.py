"""Events from a file, for backfills and tests: resumable, and to the same protocol."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path

from encoder.errors import StreamConflict
from materialize.stream.payloads import is_parquet, line_payloads, parquet_payloads
from materialize.stream.source import Delivery, Lag, PartitionLag

__all__ = ["FileSource"]

_FORMAT = 1


class FileSource:
    """An `EventSource` over the lines or rows of one file, as one partition.

    Beside the file lie ``NAME.position`` (how far it was handed out and acknowledged) and, when
    there are any, ``NAME.dead.jsonl`` (dead letters). Delete the position to begin anew.

    Parameters
    ----------
    path : Path
        JSON lines, one event a line, or Parquet of clean events. It must not change meanwhile.
    context : sequence of str
        Names of the data set's ``events.context``, for Parquet.

    Raises
    ------
    StreamConflict
        Another process reads the file, or the file is not the one that the position is of.
    DataFault
        Parquet without the columns of clean events.

    Notes
    -----
    State: the open file; what was handed out and is not acknowledged. ``id`` of a delivery is the
    position behind it: bytes of JSON lines, rows of Parquet.
    """

    def __init__(self, path: Path, context: Sequence[str] = ()) -> None:
        self._path = path
        self._position = path.with_name(path.name + ".position")
        self._dead = path.with_name(path.name + ".dead.jsonl")
        self._outstanding: dict[int, None] = {}  # positions in the order of the file
        self._done: set[int] = set()
        self._file = path.open("rb")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._size = path.stat().st_size
            self._acknowledged, self._delivered = self._load()
            self._handed_out = self._delivered
            self._context = context
            self._kept: set[int] = set()
            self._rest = self._payloads()
            self._next = next(self._rest, None)
            self._rejected = self._read_rejected()
        except BlockingIOError:
            self._file.close()
            raise StreamConflict(
                f"Another process reads {path}. Wait until it ends, or stop it."
            ) from None
        except BaseException:
            self._file.close()
            raise

    def poll(self, max_events: int, wait_ms: int) -> list[Delivery]:
        """Return up to ``max_events`` events; a file has nothing to wait for."""
        now = int(self.now_ms())
        made: list[Delivery] = []
        while self._next is not None and len(made) < max_events:
            at, payload = self._next
            self._outstanding[at] = None
            if at not in self._kept and at not in self._done:
                made.append(Delivery(0, b"%d" % at, payload, at <= self._delivered, now))
            self._next = next(self._rest, None)
        self._finish(())
        if made:
            # Before they are handed out, so that after a kill they are known as redelivered.
            self._handed_out = max(self._handed_out, int(made[-1].id))
            self._save()
        elif wait_ms and not self._outstanding:
            time.sleep(wait_ms / 1000)
        return made

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Say that the effect of these is online and offline; safe to repeat."""
        self._finish(int(delivery.id) for delivery in deliveries)

    def reject(self, delivery: Delivery, reason: str, detail: str) -> None:
        """Append an event to the dead letters, once, and acknowledge it."""
        at = int(delivery.id)
        if at not in self._rejected:
            letter = {
                "id": f"0:{at}",
                "reason": reason,
                "detail": detail,
                "payload": delivery.payload.decode(errors="backslashreplace"),
            }
            with self._dead.open("a", encoding="utf-8") as file:
                file.write(json.dumps(letter, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
            self._rejected.add(at)
        self._finish([at])

    def again(self, keep: Sequence[Delivery]) -> None:
        """Hand out again, as redelivered, what is not acknowledged, but for ``keep``."""
        self._kept = {int(delivery.id) for delivery in keep}
        self._outstanding = {}
        self._delivered = self._handed_out
        self._rest.close()
        self._rest = self._payloads()
        self._next = next(self._rest, None)

    def renew(self) -> None:
        """Nothing to do: the lock on the file lasts as long as the process."""

    @property
    def waited_for(self) -> bool:
        """Whether another worker waits: never, a file has one reader."""
        return False

    @property
    def owned(self) -> frozenset[int]:
        """The one partition."""
        return frozenset({0})

    @property
    def gone(self) -> int:
        """Number of events that were deleted before they were acknowledged: 0."""
        return 0

    def now_ms(self) -> float:
        """Return this machine's time."""
        return time.time() * 1000

    def lag(self) -> Lag:
        """Return what is left to do; undelivered events are not counted, only whether there are."""
        left = 0 if self._next is None else 1
        return Lag((PartitionLag(0, left, len(self._outstanding), 0, str(os.getpid())),))

    def close(self) -> None:
        """Close the file and let another process read it."""
        self._rest.close()
        self._file.close()

    def _payloads(self) -> Generator[tuple[int, bytes], None, None]:
        """Read what is not acknowledged."""
        if is_parquet(self._path):
            return parquet_payloads(self._path, self._context, self._acknowledged)
        return line_payloads(self._file, self._acknowledged)

    def _finish(self, positions: Iterable[int]) -> None:
        self._done.update(positions)
        behind = self._acknowledged
        for at in list(self._outstanding):
            if at not in self._done:
                break
            behind = at
            del self._outstanding[at]
            self._done.discard(at)
        if behind > self._acknowledged:
            self._acknowledged = behind
            self._save()

    def _load(self) -> tuple[int, int]:
        """Return how far the file was acknowledged, and how far it was handed out."""
        if not self._position.exists():
            return 0, 0
        try:
            stored = json.loads(self._position.read_text(encoding="utf-8"))
        except ValueError:  # cut off by a crash of the machine
            stored = {}
        if stored.get("format") != _FORMAT or stored["size"] != self._size:
            raise StreamConflict(
                f"{self._position} is not of {self._path} as it is now ({self._size} bytes). "
                f"Delete it to apply {self._path} from its beginning: what was applied before "
                "changes nothing."
            )
        return stored["acknowledged"], stored["delivered"]

    def _save(self) -> None:
        content = {
            "format": _FORMAT,
            "size": self._size,
            "acknowledged": self._acknowledged,
            "delivered": self._handed_out,
        }
        scratch = self._position.with_name(self._position.name + ".new")
        scratch.write_text(json.dumps(content), encoding="utf-8")
        scratch.replace(self._position)

    def _read_rejected(self) -> set[int]:
        """Return the positions of dead letters, so that a repeated one is not written twice."""
        if not self._dead.exists():
            return set()
        content = self._dead.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):  # a kill in the middle of a line
            os.truncate(self._dead, len(whole))
        return {int(json.loads(line)["id"].partition(":")[2]) for line in whole.splitlines()}
