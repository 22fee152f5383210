"""Appending events to a stream on NATS, for producers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from materialize.stream.nats_link import NatsLink, event_subject
from materialize.stream.writer import placed

if TYPE_CHECKING:
    from transforms.stream.events import StreamEvent

__all__ = ["NatsWriter"]

_PER_CALL = 500
"""Events that wait for their confirmations together."""


class NatsWriter:
    """Appends events to the partitions of a project's stream, as `EventWriter` does on Redis.

    Parameters
    ----------
    link : NatsLink
    partitions : int
        As the workers have it: ``stream.partitions``.
    context : sequence of str
        Names of the data set's ``events.context``, in order.
    """

    def __init__(self, link: NatsLink, partitions: int, *, context: Sequence[str] = ()) -> None:
        self._link, self._context = link, tuple(context)
        self.partitions = partitions

    def append(self, events: Iterable[StreamEvent | Mapping[str, Any] | bytes]) -> int:
        """Append events and return their number, once JetStream has confirmed that it keeps them.

        A call that fails may have appended a part. Append all of them again: duplicates change
        nothing.
        """
        made = iter(events)
        appended = 0
        while part := list(islice(made, _PER_CALL)):
            self._link.run(self._publish(part))
            appended += len(part)
        return appended

    def put(self, partition: int, payload: bytes) -> None:
        """Append one event as it is to a partition that is known."""
        subject = event_subject(self._link.project, partition)
        self._link.run(self._confirmed(subject, payload))

    async def _publish(self, events: Sequence[StreamEvent | Mapping[str, Any] | bytes]) -> None:
        jetstream = self._link.jetstream
        confirmations = []
        for event in events:
            partition, payload = placed(event, self.partitions, self._context)
            subject = event_subject(self._link.project, partition)
            # In order: a user's events are published one after the other.
            confirmations.append(await jetstream.publish_async(subject, payload))
        await asyncio.gather(*confirmations)

    async def _confirmed(self, subject: str, payload: bytes) -> None:
        await self._link.jetstream.publish(subject, payload)
