"""Events as JSON has them, and what the tests of sources do with one."""

from __future__ import annotations

import uuid
from typing import Any

from materialize.stream.connect import connect, fix_partitions
from materialize.stream.nats_link import NatsLink
from materialize.stream.nats_source import NatsSource
from materialize.stream.source import Delivery, EventSource
from tests.servers import Server

__all__ = ["PARTITIONS", "T0", "drain", "event", "nats_source"]

PARTITIONS = 3
T0 = 1_700_000_000_000_000


def event(user: int, at: int) -> dict[str, Any]:
    return {"type": "consume", "user_id": user, "item_id": f"i{at}", "timestamp": T0 + at}


def nats_source(
    server: Server, redis_server: Server, project: str, lease_seconds: float = 60, **more: Any
) -> NatsSource:
    client, link = connect(redis_server.url), NatsLink(server.url, project)
    fix_partitions(client, project, PARTITIONS)
    worker = uuid.uuid4().hex
    return NatsSource(
        link, client, project, PARTITIONS, worker, lease_seconds=lease_seconds, **more
    )


def drain(source: EventSource, most: int = 4) -> list[Delivery]:
    found: list[Delivery] = []
    while part := source.poll(most, 0):
        found += part
    return found
