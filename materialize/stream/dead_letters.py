"""Events that could not be applied: look at them, put them back, or drop them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from materialize.stream.keys import PAYLOAD, dead_key, events_key

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["DeadLetter", "DeadLetters"]

_PER_CALL = 500

# KEYS: dead, events. ARGV: id, field. The letter moves in one step: it is never in both, or lost.
_REPLAY = """
local found = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1]
if not found then return 0 end
local fields = found[2]
for i = 1, #fields, 2 do
  if fields[i] == ARGV[2] then redis.call('XADD', KEYS[2], '*', ARGV[2], fields[i + 1]) end
end
return redis.call('XDEL', KEYS[1], ARGV[1])
"""


@dataclass(frozen=True)
class DeadLetter:
    """One event that was set aside.

    Attributes
    ----------
    id : str
        ``partition:entry``, as the commands take it.
    reason : str
        A code of docs/guides/stream.md.
    detail : str
        What was given, what was expected, what to do.
    payload : bytes
        The event as it was appended.
    appended_ms, rejected_ms : int
        Milliseconds since 1970.
    """

    id: str
    reason: str
    detail: str
    payload: bytes
    appended_ms: int
    rejected_ms: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; bytes that are no text are escaped."""
        return {
            "id": self.id,
            "reason": self.reason,
            "detail": self.detail,
            "payload": self.payload.decode(errors="backslashreplace"),
            "appended_ms": self.appended_ms,
            "rejected_ms": self.rejected_ms,
        }


class DeadLetters:
    """The dead letters of a project's event stream.

    Parameters
    ----------
    client : redis.Redis
    project : str
    partitions : int
    append : callable, optional
        Appends a payload to a partition, where the events are not in this Redis; default: they are.
    """

    def __init__(
        self,
        client: Redis,
        project: str,
        partitions: int,
        append: Callable[[int, bytes], None] | None = None,
    ) -> None:
        self._client, self._append = client, append
        self._project, self._partitions = project, partitions
        self._replay = client.register_script(_REPLAY)

    def find(
        self, reasons: Collection[str] = (), ids: Collection[str] = ()
    ) -> Iterator[DeadLetter]:
        """Yield letters by partition, oldest first.

        Parameters
        ----------
        reasons : collection of str
            Only of these reasons; empty: of any.
        ids : collection of str
            Only these; empty: all.

        Raises
        ------
        ValueError
            An id is not ``partition:entry``.
        """
        places = [self._place(one) for one in ids]
        letters = self._named(places) if ids else self._all()
        for letter in letters:
            if not reasons or letter.reason in reasons:
                yield letter

    def counts(self) -> dict[str, int]:
        """Return the number of letters by reason, most frequent first."""
        return dict(Counter(letter.reason for letter in self._all()).most_common())

    def replay(self, letters: Collection[DeadLetter]) -> int:
        """Append letters to the stream again and return how many were still there.

        Each moves in one step; where the events are elsewhere, it is appended first and then
        deleted here. An event that was applied meanwhile is a duplicate and changes nothing.
        """
        if self._append is not None:
            for letter in letters:
                self._append(self._place(letter.id)[0], letter.payload)
            return self.drop(letters)
        moved = 0
        for letter in letters:
            partition, entry = self._place(letter.id)
            keys = [dead_key(self._project, partition), events_key(self._project, partition)]
            moved += int(self._replay(keys=keys, args=[entry, PAYLOAD]))
        return moved

    def drop(self, letters: Collection[DeadLetter]) -> int:
        """Delete letters for good and return how many were still there."""
        with self._client.pipeline(transaction=False) as pipe:
            for letter in letters:
                partition, entry = self._place(letter.id)
                pipe.xdel(dead_key(self._project, partition), entry)
            return sum(pipe.execute())

    def _all(self) -> Iterator[DeadLetter]:
        for partition in range(self._partitions):
            key, after = dead_key(self._project, partition), "-"
            while True:
                part: Any = self._client.xrange(key, min=after, count=_PER_CALL)
                for entry, fields in part:
                    yield _letter(partition, entry, fields)
                if len(part) < _PER_CALL:
                    break
                after = "(" + part[-1][0].decode()

    def _named(self, places: list[tuple[int, str]]) -> Iterator[DeadLetter]:
        for partition, entry in places:
            found: Any = self._client.xrange(dead_key(self._project, partition), entry, entry)
            for name, fields in found:
                yield _letter(partition, name, fields)

    def _place(self, letter: str) -> tuple[int, str]:
        partition, _, entry = letter.partition(":")
        milliseconds, _, sequence = entry.partition("-")
        if not (partition.isdecimal() and milliseconds.isdecimal() and sequence.isdecimal()):
            raise ValueError(
                f"{letter!r} given, expected partition:entry such as 3:1700000000000-0. "
                "`palate stream dead list` prints the ids."
            )
        if int(partition) >= self._partitions:
            raise ValueError(
                f"{letter!r} names partition {partition}; there are {self._partitions}, from 0 on."
            )
        return int(partition), entry


def _letter(partition: int, entry: bytes, fields: dict[bytes, bytes]) -> DeadLetter:
    appended = fields[b"id"].partition(b"-")[0]
    return DeadLetter(
        id=f"{partition}:{entry.decode()}",
        reason=fields[b"reason"].decode(),
        detail=fields[b"detail"].decode(),
        payload=fields[PAYLOAD],
        appended_ms=int(appended),
        rejected_ms=int(entry.partition(b"-")[0]),
    )
