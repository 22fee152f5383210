"""Every online store, stock Feast's and ours, under one contract with declared differences."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
import yaml
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import get_online_store_from_config
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import python_values_to_proto_values
from feast.types import (
    Array,
    Bool,
    Bytes,
    FeastType,
    Float32,
    Float64,
    Int32,
    Int64,
    String,
    UnixTimestamp,
)
from feast.utils import _convert_arrow_to_proto
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from materialize.stores.base import WriteCounts
from materialize.stores.values import entity_keys, packed_header, value_bytes
from tests.servers import Server
from tests.servers import redis_server as start_redis
from tests.stores import PROFILES, StoreProfile

INSTANT = pa.timestamp("us", "UTC")
NOON = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)
MICROSECOND = timedelta(microseconds=1)

EVERY: dict[str, tuple[FeastType, pa.DataType, list[Any]]] = {
    "floats": (Array(Float32), pa.list_(pa.float32()), [[0.1, -0.0, 1e-45], None, [np.inf]]),
    "wide": (Array(Float32), pa.list_(pa.float32()), [[0.5] * 120, [1.5] * 120, [2.5] * 120]),
    "doubles": (Array(Float64), pa.list_(pa.float64()), [[0.1, 2.0], [3.0], None]),
    "texts": (Array(String), pa.list_(pa.string()), [["a", "", "ü"], None, ["x" * 300]]),
    "integers": (Array(Int64), pa.list_(pa.int64()), [[1, -1], [2**62], None]),
    "truths": (Array(Bool), pa.list_(pa.bool_()), [[True, False], None, [True]]),
    "int64": (Int64, pa.int64(), [0, -1, 2**63 - 1]),
    "int32": (Int32, pa.int32(), [-(2**31), 2**31 - 1, 0]),
    "text": (String, pa.string(), ["", "ü" * 200, "plain"]),
    "blob": (Bytes, pa.binary(), [b"", b"\x00\xff", b"b" * 200]),
    "double": (Float64, pa.float64(), [0.0, -1.5, 1e300]),
    "single": (Float32, pa.float32(), [0.0, 0.1, -3.5]),
    "truth": (Bool, pa.bool_(), [True, False, True]),
    "moment": (UnixTimestamp, INSTANT, [NOON, NOON + HOUR, NOON - 20 * 365 * 24 * HOUR]),
}
"""By feature: Feast's type, Arrow's type, three rows."""

PAIR = {"amount": Int64, "twin": Int64}
VIEWS: dict[str, tuple[dict[str, FeastType], timedelta]] = {
    "pair": (PAIR, timedelta(0)),
    "other": (PAIR, timedelta(0)),
    "brief": (PAIR, timedelta(days=1)),
    "every": ({name: kind for name, (kind, _, _) in EVERY.items()}, timedelta(0)),
}
_users = itertools.count(1)
_opened: list[Any] = []
"""Online stores, which Feast never closes."""

Row = tuple[int, int, datetime, datetime | None]
"""User, amount (and twin), event time, created time."""


@dataclass(frozen=True)
class Sink:
    """An applied repository on one online store."""

    profile: StoreProfile
    store: FeatureStore

    def fresh(self) -> Any:
        """Return the online store as a process of its own would open it."""
        online = get_online_store_from_config(self.store.config.online_store)
        _opened.append(online)
        return online

    def view(self, name: str) -> FeatureView:
        return self.store.get_feature_view(name)

    def write(self, rows: list[Row], view: str = "pair", online: Any = None) -> None:
        """Write by Feast's protobuf interface."""
        (online or self.fresh()).online_write_batch(
            self.store.config, self.view(view), _protobuf(rows), None
        )

    def write_arrow(self, rows: list[Row], view: str = "pair", online: Any = None) -> WriteCounts:
        counts: WriteCounts = (online or self.fresh()).write_arrow(
            self.store.config, self.view(view), _arrow(rows)
        )
        return counts

    def read(self, user: int, view: str = "pair") -> Any:
        ((moment, values),) = self.fresh().online_read(
            self.store.config, self.view(view), [_key(user)], list(PAIR)
        )
        return moment, values

    def amount(self, user: int, view: str = "pair") -> int:
        _, values = self.read(user, view)
        assert values["amount"] == values["twin"]
        return int(values["amount"].int64_val)

    def served(self, user: int, view: str = "pair") -> tuple[Any, str]:
        """Return value and status from get_online_features."""
        answer = self.store.get_online_features(
            features=[f"{view}:amount"], entity_rows=[{"user_id": user}]
        )
        at = list(answer.proto.metadata.feature_names.val).index("amount")
        status = answer.proto.results[at].statuses[0]
        return answer.to_dict()["amount"][0], FieldStatus.Name(status)


def _key(user: int) -> EntityKey:
    return EntityKey(join_keys=["user_id"], entity_values=[Value(int64_val=user)])


def _protobuf(rows: list[Row]) -> list[Any]:
    return [
        (_key(user), {name: Value(int64_val=amount) for name in PAIR}, event, created)
        for user, amount, event, created in rows
    ]


def _arrow(rows: list[Row]) -> pa.RecordBatch:
    user, amount, event, created = map(list, zip(*rows, strict=True))
    return pa.RecordBatch.from_pydict(
        {
            "user_id": pa.array(user, pa.int64()),
            **{name: pa.array(amount, pa.int64()) for name in PAIR},
            "event_timestamp": pa.array(event, INSTANT),
            "created_timestamp": pa.array(created, INSTANT),
        }
    )


def _open(folder: Path, online: dict[str, Any], project: str, registry: Path) -> FeatureStore:
    """Apply the views to a store; stores of one project share their rows."""
    folder.mkdir(parents=True)
    content = {
        **{"project": project, "provider": "local", "registry": str(registry)},
        **{"online_store": online, "offline_store": {"type": "duckdb"}},
        "entity_key_serialization_version": 3,
    }
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    store = FeatureStore(repo_path=str(folder))
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
    source = folder / "source.parquet"
    pq.write_table(pa.Table.from_batches([_arrow([(0, 0, NOON, NOON)])]), source)
    views = [
        FeatureView(
            name=name,
            entities=[user],
            schema=[
                Field(name="user_id", dtype=Int64),
                *(Field(name=feature, dtype=kind) for feature, kind in fields.items()),
            ],
            ttl=ttl,
            source=FileSource(
                name=f"{name}_source",
                path=str(source),
                timestamp_field="event_timestamp",
                created_timestamp_column="created_timestamp",
            ),
        )
        for name, (fields, ttl) in VIEWS.items()
    ]
    store.apply([user, *views])
    return store


def _close(online: Any) -> None:
    for name in ("_conn", "_writer", "_client"):
        if getattr(online, name, None) is not None:
            getattr(online, name).close()


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while _opened:
        _close(_opened.pop())


@pytest.fixture(scope="module")
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
            family = root / profile.family
            online = profile.settings(server, str(root))
            store = _open(root / name, online, f"sink_{profile.family}", family.with_suffix(".db"))
            opened[name] = Sink(profile, store)
        return opened[name]

    yield sink
    for one in opened.values():
        _close(one.store._get_provider().online_store)


_SERVERS = {p.name: p.server for p in PROFILES.values()}
_ATOMIC = [name for name, profile in PROFILES.items() if profile.atomic]


def _marked(name: str, *more: str) -> Any:
    # The server is started by name, which conftest's marking by fixture does not see.
    return pytest.param(
        *((name, *more) if more else (name,)),
        marks=[pytest.mark.server] if _SERVERS[name] else [],
        id="-".join((name, *more)),
    )


@pytest.fixture(params=[_marked(name) for name in PROFILES])
def sink(request: pytest.FixtureRequest, sinks: Callable[[str], Sink]) -> Sink:
    return sinks(request.param)


@pytest.fixture(params=[_marked(name) for name in _ATOMIC])
def atomic(request: pytest.FixtureRequest, sinks: Callable[[str], Sink]) -> Sink:
    return sinks(request.param)


@pytest.fixture(params=["protobuf", "arrow"])
def write(request: pytest.FixtureRequest, sink: Sink) -> Callable[..., Any]:
    """Each way of writing; stock Feast has one, so its second run repeats the first."""
    return sink.write_arrow if request.param == "arrow" and sink.profile.atomic else sink.write


def test_rewrite_at_an_equal_event_time(sink: Sink, write: Callable[..., Any]) -> None:
    user = next(_users)
    write([(user, 1, NOON, NOON)])
    write([(user, 2, NOON, NOON + HOUR)])
    assert sink.amount(user) == {"first": 1, "second": 2}[sink.profile.rewrite_at_equal_event_time]


def test_equal_event_time_created_earlier(sink: Sink, write: Callable[..., Any]) -> None:
    user = next(_users)
    write([(user, 1, NOON, NOON + HOUR)])
    write([(user, 2, NOON, NOON)])
    expected = sink.profile.older_created_at_equal_event_time
    assert sink.amount(user) == {"first": 1, "second": 2}[expected]


def test_older_event_after_a_newer_one(sink: Sink, write: Callable[..., Any]) -> None:
    user = next(_users)
    write([(user, 1, NOON + HOUR, NOON)])
    write([(user, 2, NOON, NOON + HOUR)])
    assert sink.amount(user) == {"first": 1, "second": 2}[sink.profile.older_event]
    write([(user, 3, NOON + 2 * HOUR, None)])
    assert sink.amount(user) == 3


def test_entity_that_was_never_written(sink: Sink) -> None:
    user = next(_users)
    moment, values = sink.read(user)
    found = "nothing" if values is None else f"{moment.year} and unset values"
    assert found == sink.profile.never_written
    if values is None:
        assert moment is None
    else:
        assert list(values.values()) == [Value()] * 2
    assert sink.served(user) == (None, sink.profile.never_written_status)


def test_row_past_the_ttl(sink: Sink, write: Callable[..., Any]) -> None:
    expired, fresh, unknown = next(_users), next(_users), next(_users)
    now = datetime.now(timezone.utc)
    write([(expired, 1, now - 25 * HOUR, now), (fresh, 2, now - 23 * HOUR, now)], "brief")
    assert sink.served(expired, "brief") == (1, sink.profile.expired_status)
    assert sink.served(fresh, "brief") == (2, "PRESENT")
    assert sink.served(unknown, "brief")[0] is None
    write([(expired, 3, now - 25 * HOUR, now)], "pair")
    assert sink.served(expired, "pair") == (3, "PRESENT")


def test_expiry_is_told_per_view_and_user_in_one_request(atomic: Sink) -> None:
    expired, fresh, unknown = next(_users), next(_users), next(_users)
    now = datetime.now(timezone.utc)
    rows: list[Row] = [(expired, 1, now - 25 * HOUR, now), (fresh, 2, now, now)]
    for view in ("brief", "pair"):
        atomic.write_arrow(rows, view)
    answer = atomic.store.get_online_features(
        features=["brief:amount", "brief:twin", "pair:amount"],
        entity_rows=[{"user_id": user} for user in (unknown, expired, fresh, expired)],
        full_feature_names=True,
    ).proto
    statuses = {
        name: [FieldStatus.Name(status) for status in vector.statuses]
        for name, vector in zip(answer.metadata.feature_names.val, answer.results, strict=True)
    }
    late = ["NOT_FOUND", "OUTSIDE_MAX_AGE", "PRESENT", "OUTSIDE_MAX_AGE"]
    assert statuses["brief__amount"] == statuses["brief__twin"] == late
    assert statuses["pair__amount"] == ["NOT_FOUND", "PRESENT", "PRESENT", "PRESENT"]


def test_event_time_is_read_back(sink: Sink, write: Callable[..., Any]) -> None:
    user = next(_users)
    event = NOON + 123_457 * MICROSECOND
    write([(user, 1, event, NOON)])
    moment, _ = sink.read(user)
    unit = sink.profile.event_time_unit_us * MICROSECOND
    expected = event - (event - NOON) % unit
    zones = {"UTC": timezone.utc, "session": moment.tzinfo}
    assert moment == expected.replace(tzinfo=zones[sink.profile.event_time_zone])


def test_two_views_of_one_user_do_not_disturb_each_other(
    sink: Sink, write: Callable[..., Any]
) -> None:
    user = next(_users)
    write([(user, 1, NOON + HOUR, NOON)], "pair")
    write([(user, 2, NOON, NOON)], "other")
    assert (sink.amount(user, "pair"), sink.amount(user, "other")) == (1, 2)
    assert sink.served(user, "brief")[0] is None


def test_stale_rows_are_counted(atomic: Sink) -> None:
    first, second = next(_users), next(_users)
    progress: list[int] = []
    assert atomic.write_arrow([(first, 1, NOON, NOON)]) == WriteCounts(1, 0)
    counts = atomic.fresh().write_arrow(
        atomic.store.config,
        atomic.view("pair"),
        _arrow([(first, 2, NOON - HOUR, NOON), (second, 3, NOON, NOON)]),
        progress.append,
    )
    assert counts == WriteCounts(written=1, stale=1)
    assert sum(progress) == 2
    assert (atomic.amount(first), atomic.amount(second)) == (1, 3)
    # Repeating a write changes nothing, and is no fault.
    assert atomic.write_arrow([(second, 3, NOON, NOON)]) == WriteCounts(1, 0)


def test_newest_of_one_users_rows_in_a_batch_wins(atomic: Sink) -> None:
    user = next(_users)
    rows: list[Row] = [
        (user, 1, NOON, NOON),
        (user, 2, NOON + HOUR, NOON + SECOND),
        (user, 3, NOON + HOUR, NOON),
        (user, 4, NOON - HOUR, NOON + HOUR),
    ]
    atomic.write_arrow(rows)
    assert atomic.amount(user) == 2
    other = next(_users)
    atomic.write([(other, *row[1:]) for row in rows])
    assert atomic.amount(other) == 2


def test_a_table_of_several_chunks_is_written_whole(atomic: Sink) -> None:
    users = [next(_users) for _ in range(5)]
    parts = [_arrow([(user, user, NOON, NOON)]) for user in users]
    counts = atomic.fresh().write_arrow(
        atomic.store.config, atomic.view("pair"), pa.Table.from_batches([*parts, parts[0][:0]])
    )
    assert counts == WriteCounts(5, 0)
    assert [atomic.amount(user) for user in users] == users


def test_an_asynchronous_push_obeys_the_same_rule(atomic: Sink) -> None:
    user = next(_users)
    atomic.write_arrow([(user, 1, NOON, NOON)])
    online = atomic.fresh()
    for amount, event in ((2, NOON - HOUR), (3, NOON + HOUR)):
        rows = _protobuf([(user, amount, event, None)])
        asyncio.run(
            online.online_write_batch_async(atomic.store.config, atomic.view("pair"), rows, None)
        )
        assert atomic.amount(user) == {2: 1, 3: 3}[amount]


def test_a_null_join_key_or_event_time_is_refused(atomic: Sink) -> None:
    rows = _arrow([(1, 1, NOON, NOON)])
    for column in ("user_id", "event_timestamp"):
        at = rows.schema.get_field_index(column)
        broken = rows.set_column(at, column, pa.nulls(1, rows.schema.field(at).type))
        with pytest.raises(ValueError, match="null"):
            atomic.fresh().write_arrow(atomic.store.config, atomic.view("pair"), broken)


_TIMES = st.one_of(
    st.sampled_from([NOON, NOON + MICROSECOND, NOON + SECOND - MICROSECOND, NOON + SECOND]),
    st.datetimes(datetime(1901, 1, 1), datetime(2200, 1, 1)).map(
        lambda moment: moment.replace(tzinfo=timezone.utc)
    ),
)


@given(st.lists(st.tuples(_TIMES, st.one_of(st.none(), _TIMES)), min_size=2, max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_the_last_of_the_newest_rows_stays(atomic: Sink, times: list[Any]) -> None:
    """In any order, before 1970 too: the newest event, then the newest created, then the last."""
    user = next(_users)
    online = atomic.fresh()
    for amount, (event, created) in enumerate(times):
        atomic.write_arrow([(user, amount, event, created)], online=online)
    oldest = datetime.min.replace(tzinfo=timezone.utc)
    ranked = [(event, created or oldest, k) for k, (event, created) in enumerate(times)]
    assert atomic.amount(user) == max(ranked)[2]


@pytest.mark.parametrize(
    ("writer", "reader"),
    [
        _marked(f"{one}-{family}", f"{two}-{family}")
        for family in ("sqlite", "postgres", "redis")
        for one, two in (("stock", "palate"), ("palate", "stock"))
    ],
)
def test_stock_feast_reads_what_we_write_and_the_reverse(
    sinks: Callable[[str], Sink], writer: str, reader: str
) -> None:
    """Every value type, bit-equal, with its event time; the stored bytes are protobuf's own."""
    source, target = sinks(writer), sinks(reader)
    users = [next(_users) for _ in range(3)]
    rows = pa.RecordBatch.from_pydict(
        {
            "user_id": pa.array(users, pa.int64()),
            **{name: pa.array(values, kind) for name, (_, kind, values) in EVERY.items()},
            "event_timestamp": pa.array([NOON] * 3, INSTANT),
            "created_timestamp": pa.array([NOON] * 3, INSTANT),
        }
    )
    view = source.view("every")
    messages = _convert_arrow_to_proto(rows, view, {"user_id": ValueType.INT64})
    if source.profile.atomic:
        source.fresh().write_arrow(source.store.config, view, rows)
    else:
        source.fresh().online_write_batch(source.store.config, view, messages, None)
    answers = {
        sink.profile.name: sink.fresh().online_read(
            sink.store.config, sink.view("every"), [_key(user) for user in users], list(EVERY)
        )
        for sink in (source, target)
    }
    assert answers[writer] == answers[reader]
    for (_, expected, _, _), (_, found) in zip(messages, answers[reader], strict=True):
        assert {name: value.SerializeToString() for name, value in found.items()} == {
            name: value.SerializeToString() for name, value in expected.items()
        }


@pytest.mark.parametrize("family", [_marked(name) for name in _ATOMIC])
def test_rows_of_stock_feast_are_compared_too(sinks: Callable[[str], Sink], family: str) -> None:
    """A row that an unmodified Feast wrote is replaced by newer ones and only by them."""
    ours = sinks(family)
    stock = sinks(f"stock-{ours.profile.family}")
    user = next(_users)
    ours.write_arrow([(user, 1, NOON, NOON)])
    # Days apart: stock Feast's event time may be off by the session's time zone.
    stock.write([(user, 2, NOON + 48 * HOUR, NOON)])
    assert ours.write_arrow([(user, 3, NOON + 24 * HOUR, NOON + 99 * HOUR)]) == WriteCounts(0, 1)
    assert (ours.amount(user), stock.amount(user)) == (2, 2)
    assert ours.write_arrow([(user, 4, NOON + 72 * HOUR, NOON)]) == WriteCounts(1, 0)
    assert (ours.amount(user), stock.amount(user)) == (4, 4)


def test_of_eight_racing_writers_the_newest_event_stays(atomic: Sink) -> None:
    """Each reader sees whole rows all the while: both features of a row are of one write."""
    users = [next(_users) for _ in range(40)]
    halves: list[int] = []
    done = threading.Event()

    def write_many(seed: int) -> None:
        rng, online = np.random.default_rng(seed), atomic.fresh()
        for _ in range(6):
            offsets = rng.integers(10**9, size=len(users)).tolist()
            rows = [
                (user, offset, NOON + offset * MICROSECOND, NOON)
                for user, offset in zip(users, offsets, strict=True)
            ]
            rows = [rows[k] for k in rng.permutation(len(rows))]
            written[seed].extend(rows)
            atomic.write_arrow(rows, online=online)

    def read_many() -> None:
        online, keys = atomic.fresh(), [_key(user) for user in users]
        while not done.is_set():
            found = online.online_read(atomic.store.config, atomic.view("pair"), keys, list(PAIR))
            halves.extend(1 for _, values in found if values and values["amount"] != values["twin"])

    written: dict[int, list[Row]] = {seed: [] for seed in range(8)}
    writers = [threading.Thread(target=write_many, args=(seed,)) for seed in written]
    reader = threading.Thread(target=read_many)
    reader.start()
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    newest = dict.fromkeys(users, 0)
    for user, offset, _, _ in itertools.chain.from_iterable(written.values()):
        newest[user] = max(newest[user], offset)
    assert {user: atomic.amount(user) for user in users} == newest
    assert halves == []


def test_one_store_object_serves_eight_threads(atomic: Sink) -> None:
    users = [next(_users) for _ in range(8)]
    online = atomic.fresh()
    threads = [
        threading.Thread(
            target=lambda user=user: [
                atomic.write_arrow([(user, k, NOON + k * SECOND, NOON)], online=online)
                for k in range(10)
            ]
        )
        for user in users
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [atomic.amount(user) for user in users] == [9] * 8


def test_a_forgotten_script_is_loaded_again(
    sinks: Callable[[str], Sink], redis_server: Server
) -> None:
    ours, online = sinks("palate-redis"), sinks("palate-redis").fresh()
    users = [next(_users) for _ in range(3000)]
    with redis.Redis.from_url(redis_server.url) as client:
        for k in range(3):
            rows: list[Row] = [(user, k, NOON + k * SECOND, NOON) for user in users]
            assert ours.write_arrow(rows, online=online) == WriteCounts(3000, 0)
            client.script_flush()
    assert {ours.amount(user) for user in (users[0], users[-1])} == {2}


def test_skip_dedup_and_vector_search_are_refused(redis_server: Server) -> None:
    from materialize.stores.redis import PalateRedisOnlineStoreConfig
    from materialize.stores.sqlite import PalateSqliteOnlineStoreConfig

    with pytest.raises(ValueError, match="skip_dedup"):
        PalateRedisOnlineStoreConfig(skip_dedup=True)
    with pytest.raises(ValueError, match="Use Feast's own store"):
        PalateSqliteOnlineStoreConfig(vector_enabled=True)


def test_key_ttl_expires_only_what_was_written(tmp_path: Path, redis_server: Server) -> None:
    online = PROFILES["palate-redis"].settings(redis_server, str(tmp_path))
    store = _open(tmp_path / "r", {**online, "key_ttl_seconds": 500}, "ttl", tmp_path / "r.db")
    sink = Sink(PROFILES["palate-redis"], store)
    sink.write_arrow([(1, 1, NOON, NOON)])
    with redis.Redis.from_url(redis_server.url) as client:
        (key,) = client.keys("*ttl")
        assert 490 < client.ttl(key) <= 500


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, redis_server: Server) -> Iterator[Server]:
    """A cluster of one node that owns every slot: keys of two slots in one call are an error."""
    folder = tmp_path_factory.mktemp("cluster")
    with start_redis(folder, "--cluster-enabled", "yes", "--dir", str(folder)) as server:
        with closing(redis.Redis.from_url(server.url)) as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            deadline = threading.Event()
            for _ in range(200):
                if b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO"):
                    break
                deadline.wait(0.05)
        yield server


def test_on_a_cluster_keys_are_grouped_by_slot(tmp_path: Path, cluster: Server) -> None:
    online = PROFILES["palate-redis"].settings(cluster, str(tmp_path))
    settings = {**online, "redis_type": "redis_cluster"}
    store = _open(tmp_path / "c", settings, "clustered", tmp_path / "c.db")
    sink = Sink(PROFILES["palate-redis"], store)
    users = range(300)
    assert sink.write_arrow([(user, user, NOON, NOON) for user in users]) == WriteCounts(300, 0)
    assert sink.write_arrow([(user, 0, NOON - HOUR, NOON) for user in users]) == WriteCounts(0, 300)
    assert [sink.amount(user) for user in users] == list(users)


@pytest.mark.parametrize("suffix", [b"", b"project"])
@given(st.data())
def test_entity_keys_are_feasts(suffix: bytes, data: st.DataObject) -> None:
    """Any join key name, any int64 or text, version 3 and multi-key rows."""
    names = data.draw(st.lists(st.text(min_size=1), min_size=1, max_size=2, unique=True))
    kinds = data.draw(st.lists(st.sampled_from(["INT64", "STRING", "INT32"]), min_size=2))
    n = data.draw(st.integers(0, 4))
    columns = []
    for name, kind in zip(names, kinds, strict=False):
        bits = 63 if kind == "INT64" else 31
        item = st.text() if kind == "STRING" else st.integers(-(2**bits), 2**bits - 1)
        values = data.draw(st.lists(item, min_size=n, max_size=n))
        arrow = {"INT64": pa.int64(), "STRING": pa.string(), "INT32": pa.int32()}[kind]
        columns.append((name, kind, pa.array(values, arrow)))
    expected = [
        serialize_entity_key(
            EntityKey(
                join_keys=names,
                entity_values=[
                    Value(**{f"{kind.lower()}_val": column[row].as_py()})
                    for _, kind, column in columns
                ],
            )
        )
        + suffix
        for row in range(n)
    ]
    assert entity_keys(columns, 3, suffix) == expected


_ITEMS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "INT64": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "INT32": (pa.int32(), st.integers(-(2**31), 2**31 - 1)),
    "STRING": (pa.string(), st.text()),
    "BYTES": (pa.binary(), st.binary()),
    "BOOL": (pa.bool_(), st.booleans()),
    "DOUBLE": (pa.float64(), st.floats(allow_nan=False)),
    "FLOAT": (pa.float32(), st.floats(width=32, allow_nan=False)),
    "STRING_LIST": (pa.list_(pa.string()), st.lists(st.text(), min_size=1)),
    "INT64_LIST": (pa.list_(pa.int64()), st.lists(st.integers(-5, 2**40), min_size=1)),
    "DOUBLE_LIST": (pa.list_(pa.float64()), st.lists(st.floats(allow_nan=False), min_size=1)),
}


@pytest.mark.parametrize("kind", _ITEMS)
@given(st.data())
def test_values_are_what_protobuf_writes(kind: str, data: st.DataObject) -> None:
    """Any column and any slice of it, nulls included."""
    arrow, item = _ITEMS[kind]
    values = data.draw(st.lists(st.one_of(st.none(), item), max_size=6))
    start = data.draw(st.integers(0, len(values)))
    column = pa.array(values, arrow).slice(start)
    name = f"{kind.lower()}_val"
    expected = []
    for value in values[start:]:
        message = Value()
        if value is not None and kind.endswith("_LIST"):
            getattr(message, name).val.extend(value)
        elif value is not None:
            setattr(message, name, value)
        expected.append(message.SerializeToString())
    assert value_bytes(column, kind) == expected


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(0, 130))))
def test_float_lists_are_what_feast_writes(values: np.ndarray) -> None:
    column = pa.array([*values.tolist(), None], pa.list_(pa.float32()))
    found = [Value.FromString(row) for row in value_bytes(column, "FLOAT_LIST")]
    for row, message in zip(values, found, strict=False):
        assert np.array(message.float_list_val.val, np.float32).tobytes() == row.tobytes()
        assert message.WhichOneof("val") == "float_list_val"
    assert found[-1] == Value()
    if values.shape[1] and not np.isnan(values).any():
        expected = python_values_to_proto_values(values.tolist(), ValueType.FLOAT_LIST)
        assert found[:-1] == expected


@pytest.mark.parametrize("width", [0, 1, 31, 32, 4095, 70_000])
def test_the_header_of_packed_numbers_is_protobufs(width: int) -> None:
    message = Value()
    message.double_list_val.SetInParent()
    message.double_list_val.val.extend([1.0] * width)
    content = np.ones(width, "<f8").tobytes()
    assert packed_header(b"\x7a", 8 * width) + content == message.SerializeToString()
