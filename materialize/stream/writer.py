"""Appending events to the stream, for producers: needs redis-py and neither Feast nor numpy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redis import Redis

    from transforms.stream.events import StreamEvent

__all__ = ["EventWriter"]


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

    Raises
    ------
    StreamConflict
        Redis has another number of partitions, or none was given and none is fixed.
    """

    def __init__(self, redis: str | Redis, project: str, partitions: int | None = None) -> None:
        raise NotImplementedError

    def append(self, events: Iterable[StreamEvent | Mapping[str, Any] | bytes]) -> int:
        """Append events and return their number; what is not JSON goes along, to be set aside."""
        raise NotImplementedError
