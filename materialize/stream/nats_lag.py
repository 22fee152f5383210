"""How far a stream on NATS is, by partition."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from materialize.stream.keys import lease_key
from materialize.stream.nats_consumers import consumers_of
from materialize.stream.nats_link import NatsLink, event_subject
from materialize.stream.source import Lag, PartitionLag

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["nats_payloads", "read_nats_lag"]


def read_nats_lag(link: NatsLink, client: Redis, partitions: int) -> Lag:
    """Return what is left to do in each partition; ages are by this machine's clock.

    Parameters
    ----------
    link : NatsLink
    client : redis.Redis
        Where the leases lie.
    partitions : int
    """
    owners: Any = client.mget([lease_key(link.project, p) for p in range(partitions)])
    left = link.run(_left(link, partitions))
    return Lag(
        tuple(
            PartitionLag(p, undelivered, unacknowledged, age, owner.decode() if owner else None)
            for p, ((undelivered, unacknowledged, age), owner) in enumerate(
                zip(left, owners, strict=True)
            )
        )
    )


async def _left(link: NatsLink, partitions: int) -> list[tuple[int, int, int]]:
    """Return for each partition: undelivered, unacknowledged, age of the oldest (ms)."""
    from nats.js.errors import NotFoundError

    subject = event_subject(link.project, "*")
    info = await link.jetstream.stream_info(link.stream, subjects_filter=subject)
    lying = info.state.subjects or {}
    consumers = await consumers_of(link)

    async def one(partition: int) -> tuple[int, int, int]:
        own = event_subject(link.project, partition)
        undelivered, unacknowledged, floor = lying.get(own, 0), 0, 0
        if partition in consumers:
            newest = consumers[partition][-1]
            undelivered, unacknowledged = newest.undelivered, newest.unacknowledged
            floor = newest.acknowledged
        if not undelivered and not unacknowledged:
            return 0, 0, 0
        try:
            oldest = await link.jetstream.get_msg(link.stream, floor + 1, own, next=True)
        except NotFoundError:  # acknowledged and purged since the consumers were asked
            return undelivered, unacknowledged, 0
        began = time.time() if oldest.time is None else oldest.time.timestamp()
        return undelivered, unacknowledged, max(0, round((time.time() - began) * 1000))

    return list(await asyncio.gather(*(one(p) for p in range(partitions))))


def nats_payloads(link: NatsLink) -> Iterator[bytes]:
    """Yield the events that the stream holds at this moment, oldest first.

    What no longer than the retention was acknowledged is among them.
    """
    from nats.js.errors import NotFoundError

    subject = event_subject(link.project, "*")
    last = link.run(_last(link))
    number = 1
    while number <= last:
        try:
            found = link.run(link.jetstream.get_msg(link.stream, number, subject, next=True))
        except NotFoundError:
            return
        number = (found.seq or last) + 1
        yield found.data or b""


async def _last(link: NatsLink) -> int:
    info = await link.jetstream.stream_info(link.stream)
    return int(info.state.last_seq)
