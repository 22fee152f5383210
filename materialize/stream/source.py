"""Where events come from: a small protocol, so that other brokers can follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Delivery", "EventSource", "Lag", "PartitionLag"]


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event as a source hands it out."""

    partition: int
    id: bytes
    """Within the partition; later events have larger positions."""
    payload: bytes
    """The event as JSON, unchecked."""
    redelivered: bool
    """It may have been handed out before, to this worker or to one that died."""
    appended_ms: int
    """When it was appended, by the source's clock: milliseconds since 1970."""


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """What is left to do in one partition."""

    partition: int
    undelivered: int
    unacknowledged: int
    """Handed out, and their effect is not yet online and offline."""
    oldest_age_ms: int
    """Age of the oldest event of both kinds; 0 when there is none."""
    owner: str | None
    """Worker that reads the partition; None: nobody does at this moment."""


@dataclass(frozen=True, slots=True)
class Lag:
    """What is left to do in all partitions, whoever owns them."""

    partitions: tuple[PartitionLag, ...]

    @property
    def undelivered(self) -> int:
        """Number of events that nobody was handed."""
        return sum(one.undelivered for one in self.partitions)

    @property
    def unacknowledged(self) -> int:
        """Number of events that were handed out and not acknowledged."""
        return sum(one.unacknowledged for one in self.partitions)

    @property
    def oldest_age_ms(self) -> int:
        """Age of the oldest of them; 0 when nothing is left."""
        return max((one.oldest_age_ms for one in self.partitions), default=0)


class EventSource(Protocol):
    """Hands out events at least once, in the order of each partition; not safe for threads.

    What was handed out and not acknowledged is handed out again, as ``redelivered``, to whoever
    takes over. Calls raise redis-py's errors or `TransientError` where another try may succeed, and
    lose nothing by it.
    """

    def poll(self, max_events: int, wait_ms: int) -> list[Delivery]:
        """Return up to ``max_events`` events; waits up to ``wait_ms`` for the first one only."""
        ...

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Say that the effect of these is online and offline; safe to repeat."""
        ...

    def reject(self, delivery: Delivery, reason: str, detail: str) -> None:
        """Set an event aside as a dead letter and acknowledge it, in one step; safe to repeat."""
        ...

    def again(self, keep: Sequence[Delivery]) -> None:
        """Hand out again, as redelivered, what is not acknowledged, but for ``keep``."""
        ...

    def renew(self) -> None:
        """Say that this worker is alive; called between steps that may take long."""
        ...

    @property
    def waited_for(self) -> bool:
        """Whether another worker waits for partitions whose events are not yet acknowledged."""
        ...

    @property
    def owned(self) -> frozenset[int]:
        """Partitions that this worker reads."""
        ...

    @property
    def gone(self) -> int:
        """Number of events that were handed out, and deleted before they were acknowledged."""
        ...

    def now_ms(self) -> float:
        """Return the time by the clock that stamps ``appended_ms``."""
        ...

    def lag(self) -> Lag:
        """Return what is left to do."""
        ...

    def close(self) -> None:
        """Give back what this worker owns; what it did not acknowledge is handed out again."""
        ...
