"""What only Redis has: scripts, expiring keys, clusters; and settings that stores refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from materialize.stores.base import WriteCounts
from materialize.stores.removal import remove_online
from tests.servers import Server
from tests.sinks import (
    HOUR,
    NOON,
    SECOND,
    USERS,
    Row,
    Sink,
    open_store,
)
from tests.stores import PROFILES


def test_a_forgotten_script_is_loaded_again(
    sinks: Callable[[str], Sink], redis_server: Server
) -> None:
    ours, online = sinks("palate-redis"), sinks("palate-redis").fresh()
    users = [next(USERS) for _ in range(3000)]
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
    store = open_store(tmp_path / "r", {**online, "key_ttl_seconds": 500}, "ttl", tmp_path / "r.db")
    sink = Sink(PROFILES["palate-redis"], store)
    sink.write_arrow([(1, 1, NOON, NOON)])
    with redis.Redis.from_url(redis_server.url) as client:
        (key,) = client.keys("*ttl")
        assert 490 < client.ttl(key) <= 500


def test_on_a_cluster_keys_are_grouped_by_slot(tmp_path: Path, cluster: Server) -> None:
    online = PROFILES["palate-redis"].settings(cluster, str(tmp_path))
    settings = {**online, "redis_type": "redis_cluster"}
    store = open_store(tmp_path / "c", settings, "clustered", tmp_path / "c.db")
    sink = Sink(PROFILES["palate-redis"], store)
    users = range(300)
    assert sink.write_arrow([(user, user, NOON, NOON) for user in users]) == WriteCounts(300, 0)
    assert sink.write_arrow([(user, 0, NOON - HOUR, NOON) for user in users]) == WriteCounts(0, 300)
    assert [sink.amount(user) for user in users] == list(users)


def test_on_a_cluster_a_view_is_removed_and_the_others_stay(
    tmp_path: Path, cluster: Server
) -> None:
    online = PROFILES["palate-redis"].settings(cluster, str(tmp_path))
    settings = {**online, "redis_type": "redis_cluster"}
    store = open_store(tmp_path / "d", settings, "cleared", tmp_path / "d.db")
    sink = Sink(PROFILES["palate-redis"], store)
    users = range(1_500)
    for view in ("pair", "other"):
        sink.write_arrow([(user, user, NOON, NOON) for user in users], view)
    view = sink.view("pair")
    share = remove_online(sink.fresh(), store.config, view, view.join_keys)
    assert share.rows == 1_500
    assert share.size_bytes is not None
    assert share.size_bytes > 1_500 * 40, "three fields with names of 4 to 8 bytes"
    assert sink.read(7) == (None, None)
    assert [sink.amount(user, "other") for user in (0, 7, 1_499)] == [0, 7, 1_499]
