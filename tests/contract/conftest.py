"""Fixtures: the online stores, all and those that compare and set; a ledger on each database."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from materialize.ledger import Ledger
from tests.contract.ledger_steps import make_ready
from tests.servers import Server, redis_cluster
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


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, redis_server: Server) -> Iterator[Server]:
    """A Redis cluster of one node that owns every slot; skipped where there is no Redis."""
    with redis_cluster(tmp_path_factory.mktemp("cluster")) as server:
        yield server


@pytest.fixture
def postgres_database(postgres_server: Server) -> str:
    """URL of an empty PostgreSQL database of its own."""
    name = f"ledger_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return f"{postgres_server.url.rsplit('/', 1)[0]}/{name}"


@pytest.fixture
def postgres_schema(postgres_server: Server) -> str:
    """URL of an empty schema of its own in a database that tests share: made at once."""
    name = f"ledger_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        connection.execute(f'CREATE SCHEMA "{name}"')
    return f"{postgres_server.url}?options=-csearch_path%3D{name}"


@pytest.fixture(params=["sqlite", "postgres"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database, or a schema of one, for a ledger of its own."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'new folder' / 'ledger.db'}"
    return str(request.getfixturevalue("postgres_schema"))


@pytest.fixture
def ledger(ledger_url: str) -> Ledger:
    return Ledger(ledger_url)


@pytest.fixture
def three(ledger: Ledger) -> Ledger:
    """Three ready spaces, one consumer on the first, which is the default."""
    make_ready(ledger, 3)
    ledger.promote(1, who="carol", why="the first", expected=None)
    ledger.add_consumer("home", 1, who="carol", why="launch")
    return ledger
