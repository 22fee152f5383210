"""Fixtures: a repository on Redis with two live spaces and a bridge, and what applies to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from materialize.stream.apply import Applier
from materialize.stream.atomic import UserHashes
from tests.contract.stream_apply.applying import online_settings
from tests.servers import Server
from tests.streams import TinyStream


@pytest.fixture(scope="module")
def stream(redis_server: Server, tmp_path_factory: pytest.TempPathFactory) -> TinyStream:
    """Space 1 is pinned, space 2 is the newest and stored as int8; 1 is served from 2, too."""
    root = tmp_path_factory.mktemp("stream")
    made = TinyStream.make(root / "repository", online_settings(redis_server, root))
    first = made.add_space()
    second = made.add_space(1, vectors="int8")
    made.pin(first)
    made.bridge(second, first)
    return made


@pytest.fixture(scope="module")
def applier(stream: TinyStream) -> Applier:
    return stream.applier()


@pytest.fixture(scope="module")
def hashes(stream: TinyStream) -> Iterator[UserHashes]:
    found = UserHashes(stream.context.store)
    yield found
    found.client.close()
