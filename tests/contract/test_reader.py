"""What the client's reader adds: damaged values, event loops, kept rows, limits, its own Redis."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from feast.infra.online_stores.helpers import get_online_store_from_config
from feast.protos.feast.types.Value_pb2 import FloatList, Value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from encoder.errors import CorruptValue, StoreRefused, TimedOut, TransientError
from materialize.client import CORRUPT, NOT_FOUND, EmbeddingClient
from materialize.consumers import add_consumer, move_consumer
from materialize.online_rows import FeastFields, entity_keys
from materialize.reader.redis import RedisFields
from materialize.reader.redis_managed import ManagedRedisFields
from tests.servers import Server, free_port
from tests.servers import redis_server as start_redis
from tests.sinks import close, marked
from tests.spaces import DIM, Spaces, close_registry, vectors
from tests.stores import PROFILES

WHO = {"who": "test", "why": "a test"}
USERS = list(range(20))
Made = Callable[..., tuple[Spaces, EmbeddingClient]]

# Feast's own stores leave their connections open.
pytestmark = pytest.mark.filterwarnings(
    "ignore:<psycopg.Connection .*was deleted while still open:ResourceWarning"
)


@pytest.fixture
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Made]:
    """Return a function: profile's name, settings, client's options -> spaces and a client."""
    made: list[tuple[Spaces, EmbeddingClient]] = []

    def one(
        profile: str = "palate-redis",
        more: dict[str, Any] | None = None,
        user_type: str = "INT64",
        users: list[Any] = USERS,
        server: Server | None = None,
        **options: Any,
    ) -> tuple[Spaces, EmbeddingClient]:
        store = PROFILES[profile]
        if server is None and store.server:
            server = request.getfixturevalue(store.server)
        path = tmp_path / f"repo{len(made)}"
        online = {**store.settings(server, str(path)), **(more or {})}
        spaces = Spaces.make(path, online=online, user_type=user_type)
        for _ in range(2):
            spaces.add_space(users)
        add_consumer(spaces.context.store, spaces.ledger, "home", 1, **WHO)
        url = spaces.settings.ledger_url
        client = EmbeddingClient(spaces.context.store, url, "home", **options)
        made.append((spaces, client))
        return made[-1]

    yield one
    for spaces, client in made:
        client.close()
        close_registry(spaces.context.store)
        close(spaces.context.store._get_provider().online_store)


def _of(spaces: Spaces, users: list[Any] = USERS, space: int = 1) -> Any:
    return vectors(spaces.ledger.space(space).encoder_version, users)


def _field(spaces: Spaces, name: str) -> bytes:
    from feast.infra.online_stores.helpers import _mmh3

    hashed: bytes = _mmh3(f"user_embedding_s1:{name}")
    return hashed


def _key(spaces: Spaces, user: int) -> bytes:
    import pyarrow as pa

    from materialize.stores.values import entity_keys

    suffix = spaces.context.store.project.encode()
    (key,) = entity_keys([("user_id", "INT64", pa.array([user]))], 3, suffix)
    return key


@pytest.mark.parametrize(
    ("profile", "kind"),
    [
        pytest.param("stock-redis", RedisFields, marks=pytest.mark.server),
        pytest.param("palate-redis", RedisFields, marks=pytest.mark.server),
        ("stock-sqlite", FeastFields),
        ("palate-sqlite", FeastFields),
    ],
)
def test_the_reader_is_chosen_by_the_stores_type(make: Made, profile: str, kind: type) -> None:
    _, client = make(profile)
    assert type(client._reader) is kind


@pytest.mark.parametrize("profile", [marked(name) for name in PROFILES])
def test_an_event_loop_reads_what_a_thread_reads(make: Made, profile: str) -> None:
    """Also several reads at once, in two event loops one after the other."""
    spaces, client = make(profile)
    asked = [*range(5), 1_000, 3]

    async def several() -> list[Any]:
        answers = await asyncio.gather(*(client.read_async(asked) for _ in range(8)))
        await client.close_async()
        return answers

    expected = client.read(asked)
    for _ in range(2):
        for batch in asyncio.run(several()):
            assert np.array_equal(batch.embedding, expected.embedding, equal_nan=True)
            for name in ("as_of", "status", "n_events"):
                assert np.array_equal(getattr(batch, name), getattr(expected, name))
            assert batch.pin == expected.pin
    move_consumer(spaces.context.store, spaces.ledger, "home", 2, **WHO)
    assert asyncio.run(several())[0].space == 2


def _elsewhere(spaces: Spaces, **online: Any) -> Any:
    """Return the repository's settings with another online store."""
    config = spaces.context.store.config.model_copy(deep=True)
    config.online_config = {**config.online_config, **online}
    config._online_store = None
    return config


@pytest.mark.server
@pytest.mark.parametrize("other", ["stock-redis", "palate-redis"])
@pytest.mark.parametrize("writer", ["stock-redis", "palate-redis"])
def test_feast_and_we_read_each_others_rows(make: Made, writer: str, other: str) -> None:
    spaces, client = make(writer)
    assert np.array_equal(client.read(USERS).embedding, _of(spaces))
    config = _elsewhere(spaces, type=PROFILES[other].type)
    online = get_online_store_from_config(config.online_store)
    view = spaces.context.store.get_feature_view("user_embedding_s1")
    keys = entity_keys(USERS, text=False)
    answer = online.online_read(config, view, keys, ["embedding"])
    read = [row["embedding"].float_list_val.val for _, row in answer]
    assert np.array_equal(np.array(read, np.float32), _of(spaces))
    close(online)


@pytest.mark.server
@pytest.mark.parametrize("user_type", ["INT64", "STRING"])
def test_big_requests_are_cut_into_trips(make: Made, user_type: str) -> None:
    many = list(range(2_500)) if user_type == "INT64" else [f"ü{k}" * (k % 5) for k in range(2_500)]
    spaces, client = make(user_type=user_type, users=many)
    assert np.array_equal(client.read(many).embedding, _of(spaces, many))
    assert np.array_equal(client.read(np.array(many)).embedding, _of(spaces, many))
    batch = asyncio.run(_async(client, many))
    assert np.array_equal(batch.embedding, _of(spaces, many))


async def _async(client: EmbeddingClient, users: Any, **options: Any) -> Any:
    try:
        return await client.read_async(users, **options)
    finally:
        await client.close_async()


def _vector(numbers: list[float]) -> bytes:
    return bytes(Value(float_list_val=FloatList(val=numbers)).SerializeToString())


DAMAGE = {
    "truncated": _vector([1.0] * DIM)[:-3],
    "of another width": _vector([1.0] * (DIM - 1)),
    "with NaN": _vector([1.0] * (DIM - 1) + [float("nan")]),
    "a text": Value(string_val="x").SerializeToString(),
    "no protobuf": b"\xff" * 40,
}


@pytest.mark.server
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_vector_is_named_and_never_handed_out(make: Made, damage: str) -> None:
    spaces, client = make()
    with redis.Redis.from_url(f"redis://{_address(spaces)}") as server:
        server.hset(_key(spaces, 4), _field(spaces, "embedding"), DAMAGE[damage])
    for read in (client.read, lambda users, **k: asyncio.run(_async(client, users, **k))):
        with pytest.raises(CorruptValue, match=r"user_embedding_s1:embedding of user 4 is") as exc:
            read(USERS)
        assert (exc.value.user, exc.value.field, exc.value.row) == ("4", "embedding", 4)
        batch = read(USERS, per_row_errors=True)
        assert batch.status[4] == CORRUPT
        assert np.isnan(batch.embedding[4]).all()
        assert (batch.as_of[4], batch.n_events[4]) == (-1, -1)
        assert isinstance(batch.faults[4], CorruptValue)
        others = [user for user in USERS if user != 4]
        assert batch.found.tolist() == [user != 4 for user in USERS]
        assert np.array_equal(batch.embedding[others], _of(spaces, others))
    assert client.metrics.users["corrupt"] == 2


@pytest.mark.server
@pytest.mark.parametrize("field", ["as_of", "n_events", "status"])
def test_a_row_without_one_of_its_features_is_damaged(make: Made, field: str) -> None:
    spaces, client = make()
    with redis.Redis.from_url(f"redis://{_address(spaces)}") as server:
        server.hdel(_key(spaces, 4), _field(spaces, field))
    with pytest.raises(CorruptValue, match=f"{field} of user 4 is missing"):
        client.read(USERS)


@pytest.mark.server
def test_a_key_that_is_no_hash_is_a_fault_of_its_user(make: Made) -> None:
    spaces, client = make()
    with redis.Redis.from_url(f"redis://{_address(spaces)}") as server:
        server.delete(_key(spaces, 4))
        server.set(_key(spaces, 4), "x")
    with pytest.raises(CorruptValue, match="of user 4 is a Redis value that is no hash"):
        client.read(USERS)
    assert client.read([5]).found.all()
    assert client.read(USERS, per_row_errors=True).status[4] == CORRUPT


def _address(spaces: Spaces) -> str:
    return str(spaces.context.store.config.online_store.connection_string)


@pytest.mark.server
def test_any_bytes_in_any_field_are_reported_or_the_value_they_are(make: Made) -> None:
    """A row with a planted field is answered as a value of the type, or as CORRUPT; no other row
    changes, and nothing else is raised."""
    spaces, client = make()
    others = [user for user in USERS if user != 4]
    expected = _of(spaces, others)
    names = ["embedding", "as_of", "n_events", "status"]
    with redis.Redis.from_url(f"redis://{_address(spaces)}") as server:
        key = _key(spaces, 4)
        whole = server.hgetall(key)

        @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
        @given(st.sampled_from(names), st.binary(max_size=60), st.booleans())
        def plant(field: str, planted: bytes, behind: bool) -> None:
            kept = whole[_field(spaces, field)]
            server.hset(key, _field(spaces, field), kept[:5] + planted if behind else planted)
            batch = client.read(USERS, per_row_errors=True)
            assert np.array_equal(batch.embedding[others], expected)
            assert set(batch.faults) <= {4}
            if batch.found[4]:
                assert np.isfinite(batch.embedding[4]).all()
            else:
                assert batch.status[4] in {CORRUPT, NOT_FOUND}
                assert np.isnan(batch.embedding[4]).all()
            server.hset(key, mapping=whole)

        plant()


@pytest.mark.server
def test_rows_are_kept_for_a_while_and_never_beyond_a_move(make: Made) -> None:
    spaces, client = make(cache_seconds=3_600.0, cache_users=10)
    first = client.read([1, 2, 3])
    assert client.metrics.users["cached"] == 0
    with redis.Redis.from_url(f"redis://{_address(spaces)}") as server:
        server.delete(*(_key(spaces, user) for user in (1, 2, 3)))
    again = client.read([3, 4, 1, 1_000, 3])
    assert np.array_equal(again.embedding[:3], _of(spaces, [3, 4, 1]))
    assert again.found.tolist() == [True, True, True, False, True]
    assert (again.status[3], again.as_of[0]) == (NOT_FOUND, first.as_of[2])
    assert client.metrics.users["cached"] == 3
    move_consumer(spaces.context.store, spaces.ledger, "home", 2, **WHO, force=True)
    with redis.Redis.from_url(f"redis://{_address(spaces)}") as server:
        spaces.write(spaces.ledger.space(2), [1], turn=1)
        assert server.exists(_key(spaces, 1))
    batch = client.read([1])
    expected = vectors(spaces.ledger.space(2).encoder_version, [1], turn=1)
    assert np.array_equal(batch.embedding, expected)


def test_kept_rows_grow_old_and_are_bounded(make: Made) -> None:
    spaces, client = make("palate-sqlite", cache_seconds=0.05, cache_users=5)
    client.read([1])
    deadline = threading.Event()
    for _ in range(200):
        before = client.metrics.users["stored"]
        client.read([1])
        if client.metrics.users["stored"] == before + 1:
            break
        deadline.wait(0.01)
    else:
        pytest.fail("the row was kept for more than 2 s")
    client.read(USERS)
    assert len(client._core._cache._rows) <= 5  # type: ignore[union-attr]
    assert np.array_equal(client.read(USERS).embedding, _of(spaces))


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("timeout_seconds", 0.0),
        ("timeout_seconds", float("nan")),
        ("connections", 0),
        ("cache_seconds", -1.0),
        ("cache_users", 0),
    ],
)
def test_limits_that_are_none_are_refused(make: Made, name: str, given: float) -> None:
    options = {"cache_seconds": 1.0} if name == "cache_users" else {}
    with pytest.raises(ValueError, match=name):
        make("palate-sqlite", **{**options, name: given})


@pytest.mark.server
def test_a_server_that_is_not_there_is_a_transient_error(make: Made, redis_server: Server) -> None:
    spaces, client = make(timeout_seconds=3.0)
    client.read(USERS)
    config = _elsewhere(spaces, connection_string=f"127.0.0.1:{free_port()}")
    client._reader = RedisFields(config, 2)
    for read in (client.read, lambda users: asyncio.run(_async(client, users))):
        with pytest.raises(TransientError, match=r"in 4 attempts: Error 111"):
            read(USERS)
    assert client.metrics.outcomes["transient"] == 2


@pytest.mark.server
def test_a_server_that_does_not_let_us_in_is_no_matter_of_trying_again(
    make: Made, tmp_path: Path
) -> None:
    (tmp_path / "guarded").mkdir()
    with start_redis(tmp_path / "guarded") as server:
        spaces, client = make(server=server)
        with redis.Redis.from_url(server.url) as admin:
            admin.config_set("requirepass", "x")
        right = f"127.0.0.1:{server.port},password=x"
        client._reader = RedisFields(_elsewhere(spaces, connection_string=right), 2)
        assert client.read(USERS).found.all()
        for words in ("", ",password=wrong"):
            where = f"127.0.0.1:{server.port}{words}"
            client._reader = RedisFields(_elsewhere(spaces, connection_string=where), 2)
            for read in (client.read, lambda users: asyncio.run(_async(client, users))):
                with pytest.raises(StoreRefused, match="Check user, password"):
                    read(USERS)


@pytest.mark.server
def test_reads_share_few_connections_and_wait_for_their_turn(
    make: Made, redis_server: Server
) -> None:
    spaces, client = make(connections=2)
    expected = _of(spaces)
    right: list[bool] = []

    def loop() -> None:
        right.extend(np.array_equal(client.read(USERS).embedding, expected) for _ in range(30))

    threads = [threading.Thread(target=loop) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert right == [True] * 240
    pool = client._reader._pool  # type: ignore[attr-defined]
    assert len(pool._available_connections) <= 2

    turns = client._reader._turns  # type: ignore[attr-defined]
    assert turns.acquire(timeout=1)
    assert turns.acquire(timeout=1)
    with pytest.raises(TimedOut, match=r"One of the 2 connections to Redis .* within the 0\.2 s"):
        client.read(USERS, timeout_seconds=0.2)
    turns.release()
    turns.release()
    assert client.read(USERS).found.all()


@pytest.mark.server
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_reads_over_connections_of_its_own(make: Made) -> None:
    spaces, client = make()
    expected = _of(spaces)
    assert np.array_equal(client.read(USERS).embedding, expected)

    def read() -> None:
        right = [np.array_equal(client.read(USERS).embedding, expected) for _ in range(20)]
        os._exit(0 if all(right) else 1)

    child = multiprocessing.get_context("fork").Process(target=read)
    child.start()
    for _ in range(20):
        assert np.array_equal(client.read(USERS).embedding, expected)
    child.join(60)
    assert child.exitcode == 0
    child.close()


@pytest.mark.server
def test_a_cluster_is_read_through_redis_pys_client(make: Made, tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    folder.mkdir()
    with start_redis(folder, "--cluster-enabled", "yes", "--dir", str(folder)) as server:
        with redis.Redis.from_url(server.url) as admin:
            admin.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            pause = threading.Event()
            for _ in range(200):
                if b"cluster_state:ok" in admin.execute_command("CLUSTER", "INFO"):
                    break
                pause.wait(0.05)
        spaces, client = make(server=server, more={"redis_type": "redis_cluster"})
        assert type(client._reader) is ManagedRedisFields
        for batch in (client.read(USERS), asyncio.run(_async(client, USERS))):
            assert np.array_equal(batch.embedding, _of(spaces))
        assert client.read([1, 1_000]).found.tolist() == [True, False]
        client.close()


def test_metrics_go_to_the_registry_of_the_process(make: Made) -> None:
    _, client = make("palate-sqlite")
    registry = CollectorRegistry()
    registry.register(client.metrics)
    client.read([1, 2, 1_000])
    with pytest.raises(TypeError):
        client.read(["x"])
    text = generate_latest(registry).decode()
    for line in (
        'palate_reader_users_total{answer="stored",consumer="home"} 2.0',
        'palate_reader_users_total{answer="not_found",consumer="home"} 1.0',
        'palate_reader_calls_total{consumer="home",outcome="ok"} 1.0',
        'palate_reader_calls_total{consumer="home",outcome="other"} 1.0',
        'palate_reader_seconds_count{consumer="home"} 2.0',
    ):
        assert line in text
