"""Freshest wins: stored or encoded on demand, by the newest raw feature, with one encoder."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import redis

from encoder.artifact import EncoderArtifact
from encoder.errors import CorruptValue, MalformedInput
from encoder.store import ArtifactStore
from materialize.client import NOT_FOUND, EmbeddingClient, FreshBatch
from materialize.consumers import add_consumer, move_consumer
from materialize.embedding_rows import encode_rows
from materialize.ledger import Space
from tests.encoders import tiny_artifact
from tests.repositories import VIEWS, as_batch, raw_rows, write_online
from tests.sinks import close, marked
from tests.spaces import Spaces, close_registry, vectors
from tests.stores import PROFILES
from transforms.layout import ACTIVITY, column
from transforms.names import stored_view
from transforms.runtime import encode

WHO = {"who": "test", "why": "a test"}
USERS = list(range(12))
HOUR_US = 3_600_000_000

# Feast's own stores leave their connections open.
pytestmark = pytest.mark.filterwarnings(
    "ignore:<psycopg.Connection .*was deleted while still open:ResourceWarning"
)


@dataclass(frozen=True)
class World:
    """A repository with raw features, a real encoder, and a consumer of its space."""

    spaces: Spaces
    space: Space
    client: EmbeddingClient

    @property
    def url(self) -> str:
        return self.spaces.settings.artifacts_url

    def raw(self, users: Sequence[int], hours: int = 0, seed: int = 0, **more: Any) -> pa.Table:
        """Write raw features of an hour, and return them."""
        table = raw_rows(users, seed=seed, **more)
        for name in table.column_names:
            if name.endswith("as_of"):
                moments = [
                    1_767_268_800_000_000 + hours * HOUR_US if value is not None else None
                    for value in table[name].to_pylist()
                ]
                at = table.column_names.index(name)
                table = table.set_column(at, name, pa.array(moments, pa.int64()))
        self.spaces.tiny.write_raw(table)
        return table

    def store(self, table: pa.Table) -> None:
        """Write stored rows of raw features, as the batch job does."""
        batch = table.combine_chunks().to_batches()[0]
        rows = encode_rows(batch, self.space, self.url)
        write_online(self.spaces.context.store, stored_view(self.space.number), [rows])

    def expected(self, table: pa.Table) -> Any:
        return encode(as_batch(table), self.space.encoder_version, self.url)


@lru_cache(maxsize=1)
def _artifact() -> EncoderArtifact:
    """Made once: it takes seconds."""
    return tiny_artifact()


def _world(request: pytest.FixtureRequest, path: Path, profile: str, **facts: Any) -> World:
    store = PROFILES[profile]
    server = request.getfixturevalue(store.server) if store.server else None
    spaces = Spaces.make(path / "repo", online=store.settings(server, str(path / "repo")))
    tiny = replace(spaces.tiny, store=spaces.context.store)
    spaces = replace(spaces, tiny=tiny)
    ArtifactStore(spaces.settings.artifacts_url).save(_artifact())
    version = _artifact().encoder_version
    space = spaces.ledger.register(
        version, f"{spaces.settings.artifacts_url}/{version}", {"embedding_dim": 8, **facts}
    )
    spaces.ledger.begin_run("r", stored_view(1), "r", {}, space=1)
    spaces.ledger.commit_run("r", {"rows": 0})
    tiny.apply_space(1, version, vectors=facts.get("vectors", "float32"))
    add_consumer(spaces.context.store, spaces.ledger, "home", 1, **WHO)
    client = EmbeddingClient(
        spaces.context.store,
        spaces.settings.ledger_url,
        "home",
        artifacts_url=spaces.settings.artifacts_url,
        timeout_seconds=60.0,
    )
    return World(spaces, space, client)


def _end(world: World) -> None:
    world.client.close()
    close_registry(world.spaces.context.store)
    close(world.spaces.context.store._get_provider().online_store)


@pytest.fixture(params=[marked("palate-redis"), "palate-sqlite"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    world = _world(request, tmp_path, request.param)
    yield world
    _end(world)


def _read(world: World, how: str, users: Sequence[int], **options: Any) -> FreshBatch:
    if how == "sync":
        return world.client.read_fresh(users, **options)

    async def read() -> FreshBatch:
        try:
            return await world.client.read_fresh_async(users, **options)
        finally:
            await world.client.close_async()

    return asyncio.run(read())


@pytest.mark.parametrize("how", ["sync", "async"])
def test_newer_raw_features_are_encoded_and_the_rest_is_stored(world: World, how: str) -> None:
    world.store(world.raw(USERS))
    newer = world.raw([3, 5], hours=2, seed=7)
    batch = _read(world, how, USERS)
    assert batch.source.tolist() == ["on_demand" if user in (3, 5) else "stored" for user in USERS]
    expected = world.expected(newer)
    assert np.array_equal(batch.embedding[[3, 5]], expected.embedding)
    assert batch.as_of[[3, 5]].tolist() == expected.as_of.tolist()
    assert batch.n_events[[3, 5]].tolist() == expected.n_events.tolist()
    stored = world.client.read(USERS)
    rest = [user for user in USERS if user not in (3, 5)]
    assert np.array_equal(batch.embedding[rest], stored.embedding[rest])
    assert (stored.as_of[3], batch.as_of[3] - stored.as_of[3]) == (stored.as_of[0], 2 * HOUR_US)
    assert batch.found.all()
    users = world.client.metrics.users
    assert (users["on_demand"], users["stored"]) == (2, 10 + len(USERS))


@pytest.mark.parametrize(
    ("lag", "source"), [(0.0, "on_demand"), (7199.9, "on_demand"), (7200.0, "stored")]
)
def test_a_row_may_be_older_than_the_raw_features_by_the_lag(
    world: World, lag: float, source: str
) -> None:
    world.store(world.raw([1]))
    world.raw([1], hours=2, seed=1)
    assert world.client.read_fresh([1], max_lag_seconds=lag).source.tolist() == [source]


def test_both_ways_agree_exactly_on_the_same_raw_features(world: World) -> None:
    """The skew between a row that the batch job stored and one encoded on demand is 0.0."""
    table = world.raw(USERS)
    on_demand = world.client.read_fresh(USERS)
    assert set(on_demand.source) == {"on_demand"}
    world.store(table)
    stored = world.client.read_fresh(USERS)
    assert set(stored.source) == {"stored"}
    assert float(np.abs(stored.embedding - on_demand.embedding).max()) == 0.0
    for name in ("as_of", "status", "n_events"):
        assert np.array_equal(getattr(stored, name), getattr(on_demand, name))


@pytest.mark.server
@pytest.mark.parametrize("form", ["float16", "int8"])
def test_both_ways_agree_in_a_compact_space(
    request: pytest.FixtureRequest, tmp_path: Path, form: str
) -> None:
    world = _world(request, tmp_path, "palate-redis", vectors=form)
    table = world.raw(USERS)
    on_demand = world.client.read_fresh(USERS)
    world.store(table)
    stored = world.client.read_fresh(USERS)
    assert np.array_equal(stored.embedding, on_demand.embedding)
    assert (set(on_demand.source), set(stored.source)) == ({"on_demand"}, {"stored"})
    _end(world)


def test_a_user_whom_nobody_knows_gets_the_cold_start_embedding(world: World) -> None:
    world.store(world.raw([1]))
    batch = world.client.read_fresh([1, 77])
    assert batch.status.tolist()[1] == "cold"
    assert batch.source.tolist() == ["stored", "on_demand"]
    assert (batch.as_of[1], batch.n_events[1]) == (0, 0)
    nobody = raw_rows([77], present={view: [False] for view in VIEWS})
    assert np.array_equal(batch.embedding[1:], world.expected(nobody).embedding)
    assert world.client.read([1, 77]).status.tolist()[1] == NOT_FOUND


def test_users_with_some_raw_views_are_encoded_with_those(world: World) -> None:
    table = world.raw([1, 2], present={ACTIVITY: [True, False]})
    batch = world.client.read_fresh([1, 2])
    assert np.array_equal(batch.embedding, world.expected(table).embedding)
    assert batch.status.tolist() == world.expected(table).status.tolist()


def test_raw_features_of_other_modality_encoders_leave_the_stored_row(world: World) -> None:
    world.store(world.raw([1, 2]))
    table = world.raw([1, 2, 9], hours=1, seed=3)
    name = column(ACTIVITY, "modality")
    at = table.column_names.index(name)
    other = table.set_column(at, name, pa.array(["f" * 12, table[name][1].as_py(), "f" * 12]))
    for moved in (column(ACTIVITY, "as_of"),):
        at = other.column_names.index(moved)
        later = pa.array([value + HOUR_US for value in other[moved].to_pylist()], pa.int64())
        other = other.set_column(at, moved, later)
    world.spaces.tiny.write_raw(other)
    batch = world.client.read_fresh([1, 2, 9])
    assert batch.source.tolist() == ["stored", "on_demand", ""]
    assert batch.status[2] == NOT_FOUND
    assert np.isnan(batch.embedding[2]).all()
    assert world.client.metrics.users["other_modality"] == 2
    alone = world.client.read_fresh([9])
    assert (alone.status.tolist(), alone.embedding.shape) == ([NOT_FOUND], (1, 8))


def test_through_a_bridge_nobody_is_encoded(world: World) -> None:
    world.store(world.raw([1]))
    two = world.spaces.add_space([1])
    bridge = world.spaces.add_bridge(two, world.spaces.ledger.space(1), [1])
    move_consumer(
        world.spaces.context.store, world.spaces.ledger, "home", 1, bridge_from=2, **WHO, force=True
    )
    world.raw([1], hours=5, seed=2)
    batch = world.client.read_fresh([1, 77])
    assert batch.source.tolist() == ["stored", ""]
    assert np.array_equal(batch.embedding[:1], vectors(bridge.version, [1]))
    assert batch.status[1] == NOT_FOUND


@pytest.mark.server
def test_damaged_raw_features_are_named_or_leave_the_stored_row(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    from feast.infra.online_stores.helpers import _mmh3

    from materialize.stores.values import entity_keys

    world = _world(request, tmp_path, "palate-redis")
    world.store(world.raw([1, 2]))
    world.raw([1, 2, 3], hours=1, seed=4)
    store = world.spaces.context.store
    keys = entity_keys([("user_id", "INT64", pa.array([1, 3]))], 3, store.project.encode())
    with redis.Redis.from_url(f"redis://{store.config.online_store.connection_string}") as server:
        for key in keys:
            server.hset(key, _mmh3("user_activity:activity_pooled"), b"\xff\xff")
    with pytest.raises(CorruptValue, match="user_activity:activity_pooled of user 1"):
        world.client.read_fresh([1, 2, 3])
    batch = world.client.read_fresh([1, 2, 3], per_row_errors=True)
    assert batch.source.tolist() == ["stored", "on_demand", ""]
    assert batch.status.tolist()[2] == "CORRUPT"
    assert sorted(batch.faults) == [0, 2]
    assert np.isnan(batch.embedding[2]).all()
    assert world.client.metrics.users["not_encodable"] == 2
    _end(world)


def test_raw_features_that_do_not_fit_are_named_or_leave_the_stored_row(world: World) -> None:
    world.store(world.raw([1, 2]))
    table = world.raw([1, 2], hours=1, seed=4)
    name = column(ACTIVITY, "counts")
    wrong = [[-5.0] * len(table[name][0].as_py()), table[name][1].as_py()]
    at = table.column_names.index(name)
    table = table.set_column(at, name, pa.array(wrong, pa.list_(pa.float32())))
    moved = column(ACTIVITY, "as_of")
    at = table.column_names.index(moved)
    later = pa.array([value + HOUR_US for value in table[moved].to_pylist()], pa.int64())
    world.spaces.tiny.write_raw(table.set_column(at, moved, later))
    with pytest.raises(MalformedInput, match="1"):
        world.client.read_fresh([1, 2])
    batch = world.client.read_fresh([1, 2], per_row_errors=True)
    assert batch.source.tolist() == ["stored", "on_demand"]
    assert list(batch.faults) == [0]
    assert batch.found.all()


def test_reading_nobody_loads_the_encoder_and_answers_nobody(world: World) -> None:
    batch = world.client.read_fresh([])
    assert batch.embedding.shape == (0, 8)
    assert batch.source.tolist() == []


def test_a_client_without_artifacts_and_a_negative_lag_are_refused(world: World) -> None:
    with pytest.raises(ValueError, match="max_lag_seconds"):
        world.client.read_fresh([1], max_lag_seconds=-1.0)
    other = EmbeddingClient(world.spaces.context.store, world.spaces.settings.ledger_url, "home")
    with pytest.raises(ValueError, match="artifacts_url"):
        other.read_fresh([1])
    other.close()
