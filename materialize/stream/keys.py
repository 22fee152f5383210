"""Names of the event stream's keys in Redis, and which partition a user's events go to."""

from __future__ import annotations

import zlib

__all__ = [
    "GROUP",
    "PAYLOAD",
    "config_key",
    "dead_key",
    "events_key",
    "lease_key",
    "marker_key",
    "partition_of",
    "workers_key",
]

GROUP = "palate"
"""Consumer group of the workers, the same in every partition."""
PAYLOAD = b"event"
"""Field of a stream entry that holds the event."""


def events_key(project: str, partition: int) -> str:
    """Return the key of a partition's stream of events.

    The braces keep a partition's keys in one hash slot, so that one call may touch all of them.

    Examples
    --------
    >>> events_key("shop", 3)
    'palate:{shop:3}:events'
    """
    return f"palate:{{{project}:{partition}}}:events"


def dead_key(project: str, partition: int) -> str:
    """Return the key of a partition's stream of dead letters."""
    return f"palate:{{{project}:{partition}}}:dead"


def lease_key(project: str, partition: int) -> str:
    """Return the key that names the worker which owns a partition, while it lives."""
    return f"palate:{{{project}:{partition}}}:lease"


def workers_key(project: str) -> str:
    """Return the key of the live workers: a sorted set, by when they count as dead."""
    return f"palate:{project}:workers"


def config_key(project: str) -> str:
    """Return the key of what is fixed when the stream is first used: the partition count."""
    return f"palate:{project}:stream"


def marker_key(project: str) -> str:
    """Return the key, in the *online* Redis, of the mark that states are there."""
    return f"palate:{project}:stream-state"


def partition_of(user_id: int | str, partitions: int) -> int:
    """Return the partition of a user: CRC-32 (as in zip) of the id as text, modulo.

    Every producer must follow it: a user's events in one partition are applied by one worker.

    Examples
    --------
    >>> partition_of(42, 16), partition_of("42", 16)
    (8, 8)
    """
    return zlib.crc32(str(user_id).encode()) % partitions
