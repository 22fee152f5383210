"""Appending events to the stream, for producers: needs redis-py and neither Feast nor numpy."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

import redis as redis_py

from materialize.stream.connect import connect, fix_partitions
from materialize.stream.keys import PAYLOAD, events_key, partition_of

if TYPE_CHECKING:
    from transforms.stream.events import StreamEvent

__all__ = ["EventWriter", "placed"]

_PER_CALL = 500
"""Events of one pipeline."""


class EventWriter:
    """Appends events to the partitions of a project's stream.

    Parameters
    ----------
    redis : str or redis.Redis
        URL of the event stream's Redis, or a client of it.
    project : str
        Feast project.
    partitions : int or None
        Fixed in Redis at first use; None: as fixed there.
    context : sequence of str
        Names of the data set's ``events.context``, in order: those of a `StreamEvent`'s context.

    Raises
    ------
    StreamConflict
        Redis has another number of partitions, or none was given and none is fixed.
    StoreRefused, TransientError
        Redis refuses, or does not answer.

    Notes
    -----
    State: a client, which ``close`` closes when a URL was given. Safe for threads.

    Examples
    --------
    >>> writer = EventWriter("redis://localhost", "shop")  # doctest: +SKIP
    >>> event = {"type": "consume", "user_id": 42, "item_id": "a", "timestamp": 1700000000000000}
    >>> writer.append([event])  # doctest: +SKIP
    1
    """

    def __init__(
        self,
        redis: str | redis_py.Redis,
        project: str,
        partitions: int | None = None,
        *,
        context: Sequence[str] = (),
    ) -> None:
        self._context = tuple(context)
        self._owns = isinstance(redis, str)
        self._client = connect(redis) if isinstance(redis, str) else redis
        self.partitions = fix_partitions(self._client, project, partitions)
        self._keys = [events_key(project, p) for p in range(self.partitions)]

    def append(self, events: Iterable[StreamEvent | Mapping[str, Any] | bytes]) -> int:
        """Append events and return their number.

        A call that fails may have appended a part. Append all of them again: duplicates change
        nothing.

        Parameters
        ----------
        events : iterable of StreamEvent, mapping or bytes
            A mapping is written as JSON, a ``datetime`` in it as ISO 8601; bytes as they are. What
            is no event goes along, and is set aside as a dead letter with the reason.
        """
        made = iter(events)
        appended = 0
        while part := list(islice(made, _PER_CALL)):
            with self._client.pipeline(transaction=False) as pipe:
                for event in part:
                    partition, payload = placed(event, self.partitions, self._context)
                    pipe.xadd(self._keys[partition], {PAYLOAD: payload})
                pipe.execute()
            appended += len(part)
        return appended

    def close(self) -> None:
        """Close the client, when this writer opened it."""
        if self._owns:
            self._client.close()


def placed(
    event: StreamEvent | Mapping[str, Any] | bytes, partitions: int, context: Sequence[str] = ()
) -> tuple[int, bytes]:
    """Return the partition of an event and how it is appended."""
    if isinstance(event, bytes):
        return _partition_of_bytes(event, partitions), event
    if isinstance(event, Mapping):
        return _partition(event.get("user_id"), b"", partitions), _as_json(event)
    from transforms.stream.events import event_payload

    return partition_of(event.user_id, partitions), event_payload(event, tuple(context))


def _partition_of_bytes(payload: bytes, partitions: int) -> int:
    try:
        content = json.loads(payload)
    except ValueError:  # UnicodeDecodeError and JSONDecodeError
        content = None
    user = content.get("user_id") if isinstance(content, dict) else None
    return _partition(user, payload, partitions)


def _partition(user: Any, payload: bytes, partitions: int) -> int:
    if isinstance(user, int | str) and not isinstance(user, bool):
        return partition_of(user, partitions)
    return zlib.crc32(payload) % partitions  # a dead letter to be: anywhere will do


def _as_json(event: Mapping[str, Any]) -> bytes:
    return json.dumps(dict(event), default=_iso, ensure_ascii=False, separators=(",", ":")).encode()


def _iso(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} {value!r} in an event is no JSON")
