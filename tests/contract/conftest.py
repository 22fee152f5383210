"""The online stores as fixtures: all of them, and those that compare and set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.sinks import ATOMIC, OPENED, Sink, close, marked, open_store
from tests.stores import PROFILES


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while OPENED:
        close(OPENED.pop())


@pytest.fixture(scope="session")
def sinks(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Sink]]:
    """Return a function: name of a profile -> its sink; a family's two sinks share their rows."""
    root = tmp_path_factory.mktemp("sinks")
    opened: dict[str, Sink] = {}

    def sink(name: str) -> Sink:
        profile = PROFILES[name]
        if name not in opened:
            server = request.getfixturevalue(profile.server) if profile.server else None
            online = profile.settings(server, str(root))
            registry = root / f"{profile.family}.db"
            store = open_store(root / name, online, f"sink_{profile.family}", registry)
            opened[name] = Sink(profile, store)
        return opened[name]

    yield sink
    for one in opened.values():
        close(one.store._get_provider().online_store)


@pytest.fixture(params=[marked(name) for name in PROFILES])
def sink(request: pytest.FixtureRequest, sinks: Callable[[str], Sink]) -> Sink:
    return sinks(request.param)


@pytest.fixture(params=[marked(name) for name in ATOMIC])
def atomic(request: pytest.FixtureRequest, sinks: Callable[[str], Sink]) -> Sink:
    return sinks(request.param)


@pytest.fixture(params=["protobuf", "arrow"])
def write(request: pytest.FixtureRequest, sink: Sink) -> Callable[..., Any]:
    """Each way of writing; stock Feast has one, so its second run repeats the first."""
    return sink.write_arrow if request.param == "arrow" and sink.profile.atomic else sink.write
