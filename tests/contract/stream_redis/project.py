"""One project's event stream on a Redis, and what its sources hand out."""

from __future__ import annotations

import uuid
from typing import Any

from materialize.stream.connect import connect
from materialize.stream.redis_source import RedisSource
from materialize.stream.source import Delivery
from materialize.stream.status import read_lag
from materialize.stream.writer import EventWriter

__all__ = ["LEASE", "PARTITIONS", "Stream", "drain", "is_done", "payloads"]

PARTITIONS = 4
LEASE = 1.0


class Stream:
    """One project's stream on a server."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.project = f"s{uuid.uuid4().hex[:8]}"
        self.client = connect(url)
        self.writer = EventWriter(self.client, self.project, PARTITIONS)
        self._sources: list[RedisSource] = []

    def source(self, name: str = "", **changes: Any) -> RedisSource:
        settings = {"lease_seconds": 60.0} | changes
        worker = name or uuid.uuid4().hex
        made = RedisSource(connect(self.url), self.project, PARTITIONS, worker, **settings)
        self._sources.append(made)
        return made

    def append(self, count: int, start: int = 0) -> list[bytes]:
        payloads = [b'{"user_id":%d}' % n for n in range(start, start + count)]
        self.writer.append(payloads)
        return payloads

    def close(self) -> None:
        for source in self._sources:
            source.close()
        self.client.close()


def drain(source: RedisSource) -> list[Delivery]:
    found: list[Delivery] = []
    while part := source.poll(100, 0):
        found += part
    return found


def payloads(deliveries: list[Delivery]) -> list[bytes]:
    return sorted(one.payload for one in deliveries)


def is_done(stream: Stream) -> bool:
    lag = read_lag(stream.client, stream.project, PARTITIONS)
    return lag.undelivered == 0 and lag.unacknowledged == 0
