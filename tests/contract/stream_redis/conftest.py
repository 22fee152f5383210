"""Fixture: a project's event stream on the shared Redis."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.stream_redis.project import Stream
from tests.servers import Server


@pytest.fixture
def stream(redis_server: Server) -> Iterator[Stream]:
    made = Stream(redis_server.url)
    yield made
    made.close()
