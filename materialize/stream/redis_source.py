"""Events from Redis Streams: a consumer group, one stream a partition, owned by leases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from materialize.stream.source import Delivery, Lag

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["RedisSource"]


class RedisSource:
    """An `EventSource` over the partitions that this worker owns.

    Parameters
    ----------
    client : redis.Redis
        Of the event stream's Redis, which this source alone uses.
    project : str
    partitions : int
        As fixed in Redis; fixed now at first use.
    worker : str
        Name of this worker, unlike any other's.
    lease_seconds : float
        After so long without a sign of life another worker takes over.
    retention_hours : float
        Acknowledged events older than this are trimmed.
    """

    def __init__(
        self,
        client: Redis,
        project: str,
        partitions: int,
        worker: str,
        *,
        lease_seconds: float = 10.0,
        retention_hours: float = 48.0,
    ) -> None:
        raise NotImplementedError

    def poll(self, max_events: int, wait_ms: int) -> list[Delivery]:
        """Return up to ``max_events`` events; waits up to ``wait_ms`` for the first one only."""
        raise NotImplementedError

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Say that the effect of these is online and offline; safe to repeat."""
        raise NotImplementedError

    def reject(self, delivery: Delivery, reason: str, detail: str) -> None:
        """Set an event aside as a dead letter and acknowledge it, in one step; safe to repeat."""
        raise NotImplementedError

    def renew(self) -> None:
        """Say that this worker is alive."""
        raise NotImplementedError

    @property
    def waited_for(self) -> bool:
        """Whether another worker waits for partitions whose events are not yet acknowledged."""
        raise NotImplementedError

    def now_ms(self) -> float:
        """Return the time by Redis' clock."""
        raise NotImplementedError

    def lag(self) -> Lag:
        """Return what is left to do."""
        raise NotImplementedError

    def close(self) -> None:
        """Release the leases."""
        raise NotImplementedError
