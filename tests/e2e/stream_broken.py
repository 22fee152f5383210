"""Parts of a worker that are wrong on purpose: the harness has to notice them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace

from materialize.stream.apply import Applier, ApplyReport
from materialize.stream.redis_source import RedisSource
from materialize.stream.source import Delivery

__all__ = ["HastySource", "SummingApplier"]

_NUMBERS = itertools.count(1)


class HastySource(RedisSource):
    """Acknowledges what it hands out at once, before it has any effect."""

    def poll(self, max_events: int, wait_ms: int) -> list[Delivery]:
        found = super().poll(max_events, wait_ms)
        self.ack(found)
        return found


class SummingApplier(Applier):
    """Adds every delivery up, instead of knowing an event again: no two are at one time."""

    def apply(self, deliveries: Sequence[Delivery]) -> ApplyReport:
        return super().apply([replace(one, payload=_apart(one.payload)) for one in deliveries])


def _apart(payload: bytes) -> bytes:
    try:
        event = json.loads(payload)
    except ValueError:
        return payload
    if isinstance(event.get("timestamp"), int):
        event["timestamp"] += next(_NUMBERS)
    return json.dumps(event).encode()
