"""Consumers of a project's JetStream stream: whose they are, and how far they came."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nats.js.api import ConsumerInfo, SequenceInfo

    from materialize.stream.nats_link import NatsLink

__all__ = ["PartitionConsumer", "consumer_name", "consumers_of", "forget"]


@dataclass(frozen=True)
class PartitionConsumer:
    """What JetStream knows of one owner's reading of a partition.

    Attributes
    ----------
    name : str
    acknowledged : int
        Sequence number up to which everything is acknowledged; 0: nothing.
    delivered : int
        Highest sequence number that was handed out; 0: none.
    undelivered, unacknowledged : int
        Numbers of events.
    """

    name: str
    acknowledged: int
    delivered: int
    undelivered: int
    unacknowledged: int


def consumer_name(partition: int, token: str) -> str:
    """Return the name of an owner's consumer of a partition.

    Examples
    --------
    >>> consumer_name(3, "c0ffee")
    'partition-3-c0ffee'
    """
    return f"partition-{partition}-{token}"


async def consumers_of(link: NatsLink) -> dict[int, list[PartitionConsumer]]:
    """Return the stream's consumers by partition, oldest first; others' are left out."""
    infos: list[ConsumerInfo] = []
    while part := await link.jetstream.consumers_info(link.stream, len(infos)):
        infos += part
    found: dict[int, list[PartitionConsumer]] = {}
    for one in sorted(infos, key=lambda info: str(info.created)):
        kind, _, rest = (one.name or "").partition("-")
        partition = rest.partition("-")[0]
        if kind == "partition" and partition.isdecimal():
            found.setdefault(int(partition), []).append(_told(one))
    return found


async def forget(link: NatsLink, consumer: str) -> None:
    """Delete a consumer; one that is gone already is no fault."""
    from nats.js.errors import NotFoundError

    with suppress(NotFoundError):
        await link.jetstream.delete_consumer(link.stream, consumer)


def _told(info: ConsumerInfo) -> PartitionConsumer:
    # One that was handed nothing yet has no floor of its own: everything before it is settled.
    begins_behind = (info.config.opt_start_seq or 1) - 1
    return PartitionConsumer(
        name=info.name or "",
        acknowledged=max(begins_behind, _number(info.ack_floor)),
        delivered=max(begins_behind, _number(info.delivered)),
        undelivered=info.num_pending or 0,
        unacknowledged=info.num_ack_pending or 0,
    )


def _number(sequence: SequenceInfo | None) -> int:
    return 0 if sequence is None else sequence.stream_seq
