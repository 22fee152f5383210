"""A view leaves the online store alone: its values go, every other view's stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from materialize.stores.redis_removal import redis_share, remove_from_redis
from materialize.stores.removal import online_share, remove_online
from materialize.stores.shares import OnlineShare
from tests.servers import Server
from tests.sinks import HOUR, NOON, PAIR, Sink, close, key_of, marked, open_store
from tests.stores import PROFILES

USERS = range(1, 701)
ROWS = [(user, user, NOON, NOON) for user in USERS]


@pytest.fixture(params=[marked(name) for name in PROFILES])
def sink(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Sink]:
    """A repository of its own with 700 users in two views: SQL drops whole tables."""
    profile = PROFILES[request.param]
    server = request.getfixturevalue(profile.server) if profile.server else None
    online = profile.settings(server, str(tmp_path))
    name = f"removal_{profile.name.replace('-', '_')}"
    sink = Sink(profile, open_store(tmp_path / "repo", online, name, tmp_path / "registry.db"))
    for view in ("pair", "other"):
        sink.write(ROWS, view)
    yield sink
    close(sink.store._get_provider().online_store)


def remove(sink: Sink, view: str = "pair") -> OnlineShare:
    online, config = sink.fresh(), sink.store.config
    return remove_online(online, config, sink.view(view), ["user_id"])


def share(sink: Sink, view: str = "pair") -> OnlineShare:
    return online_share(sink.fresh(), sink.store.config, sink.view(view), ["user_id"])


def amounts(sink: Sink, view: str) -> list[int]:
    found = sink.fresh().online_read(
        sink.store.config, sink.view(view), [key_of(user) for user in USERS], list(PAIR)
    )
    return [values["amount"].int64_val for _, values in found]


def test_a_view_is_measured_without_a_change(sink: Sink) -> None:
    before = share(sink)
    assert before.rows == len(USERS)
    assert before.size_bytes is not None
    assert before.size_bytes >= len(USERS) * 20
    assert share(sink) == before
    assert sink.amount(7) == 7


def test_a_view_is_removed_and_the_others_stay(sink: Sink) -> None:
    removed = remove(sink)
    assert removed.rows == len(USERS)
    assert removed.size_bytes is not None
    assert removed.size_bytes >= len(USERS) * 20
    assert amounts(sink, "other") == list(USERS)
    assert share(sink) == OnlineShare(0, 0)
    assert share(sink, "other").rows == len(USERS)


def test_removing_again_removes_nothing(sink: Sink) -> None:
    remove(sink)
    assert remove(sink) == OnlineShare(0, 0)


def test_a_view_that_is_not_applied_is_removed_by_its_name(sink: Sink) -> None:
    view = sink.view("pair")
    sink.store.delete_feature_view("pair")
    removed = remove_online(sink.fresh(), sink.store.config, view, ["user_id"])
    assert removed.rows == len(USERS)
    assert sink.amount(7, "other") == 7


def test_what_is_removed_is_told_as_it_goes(sink: Sink) -> None:
    told: list[OnlineShare] = []
    seen: list[int] = []
    view = sink.view("pair")
    removed = remove_online(
        *(sink.fresh(), sink.store.config, view, ["user_id"]),
        progress=seen.append,
        removed=told.append,
    )
    assert sum(one.rows or 0 for one in told) == removed.rows == len(USERS)
    if sink.profile.family == "redis":
        assert sum(seen) == len(USERS)


# --- Redis: one hash a user holds all views


@pytest.fixture
def two_projects(tmp_path: Path, redis_server: Server) -> Iterator[Callable[[str], Sink]]:
    opened: list[Sink] = []

    def made(project: str) -> Sink:
        online = PROFILES["palate-redis"].settings(redis_server, str(tmp_path))
        store = open_store(tmp_path / project, online, project, tmp_path / f"{project}.db")
        sink = Sink(PROFILES["palate-redis"], store)
        sink.write_arrow(ROWS)
        opened.append(sink)
        return sink

    yield made
    for one in opened:
        close(one.store._get_provider().online_store)


def test_a_project_whose_name_ends_in_this_ones_is_left_alone(
    two_projects: Callable[[str], Sink], redis_server: Server
) -> None:
    ours, theirs = two_projects("tail"), two_projects("longtail")
    assert share(ours).rows == len(USERS)
    assert remove(ours).rows == len(USERS)
    assert amounts(theirs, "pair") == list(USERS)


def test_a_hash_vanishes_with_its_last_view(
    two_projects: Callable[[str], Sink], redis_server: Server
) -> None:
    sink = two_projects("vanish")
    sink.write_arrow(ROWS[:10], "other")
    with redis.Redis.from_url(redis_server.url) as client:
        assert len(client.keys("*vanish")) == len(USERS)
        remove(sink)
        assert len(client.keys("*vanish")) == 10
        remove(sink, "other")
        assert client.keys("*vanish") == []


def test_feast_apply_removes_a_view_that_is_no_longer_declared(
    two_projects: Callable[[str], Sink],
) -> None:
    sink = two_projects("applied")
    sink.write_arrow(ROWS, "other")
    view = sink.view("pair")
    sink.store.apply([], objects_to_delete=[view], partial=False)
    assert [v.name for v in sink.store.list_feature_views() if v.name == "pair"] == []
    assert online_share(sink.fresh(), sink.store.config, view, ["user_id"]).rows == 0
    assert sink.amount(7, "other") == 7


def test_a_row_written_meanwhile_is_not_disturbed_in_other_views(
    two_projects: Callable[[str], Sink],
) -> None:
    sink = two_projects("meanwhile")

    def write(_removed: OnlineShare) -> None:
        sink.write_arrow([(user, user, NOON + HOUR, NOON) for user in USERS], "other")

    view = sink.view("pair")
    remove_online(sink.fresh(), sink.store.config, view, ["user_id"], removed=write)
    assert amounts(sink, "other") == list(USERS)


def test_a_scan_that_dies_begins_anew_and_counts_no_row_twice(
    two_projects: Callable[[str], Sink],
) -> None:
    sink = two_projects("dies")
    many = range(1, 3_501)
    for view in ("pair", "other"):
        sink.write_arrow([(user, user, NOON, NOON) for user in many], view)
    view, told = sink.view("pair"), list[OnlineShare]()

    def die(share: OnlineShare) -> None:
        told.append(share)
        raise InterruptedError

    where = (sink.fresh(), sink.store.config, view, ["user_id"])
    for _ in range(2):
        with pytest.raises(InterruptedError):
            remove_online(*where, removed=die)
    assert remove_online(*where, removed=told.append).rows == told[2].rows + sum(
        one.rows or 0 for one in told[3:]
    )
    assert sum(one.rows or 0 for one in told) == len(many)
    assert online_share(*where) == OnlineShare(0, 0)
    assert share(sink, "other").rows == len(many)


def test_keys_a_second_are_bounded(
    two_projects: Callable[[str], Sink], redis_server: Server
) -> None:
    import time

    two_projects("slow")
    fields = ("pair", list(PAIR), ["user_id"], "slow")
    with redis.Redis.from_url(redis_server.url) as client:
        began = time.monotonic()
        redis_share(client, *fields, keys_per_second=1_000)
        remove_from_redis(client, *fields, keys_per_second=1_000)
        assert time.monotonic() - began >= 2 * len(USERS) / 1_000


def test_a_key_that_only_looks_like_a_users_is_left_alone(redis_server: Server) -> None:
    from feast.infra.key_encoding_utils import serialize_entity_key_prefix

    prefix = serialize_entity_key_prefix(["user_id"])
    with redis.Redis.from_url(redis_server.url) as client:
        for tail in (b"", b"\x04\x00\x00\x00\x08\x00\x00\x00short", b"xx"):
            client.hset(prefix + tail + b"looks", "_ts:pair", b"x")
        share = remove_from_redis(client, "pair", list(PAIR), ["user_id"], "looks")
        assert share == OnlineShare(0, 0)
        assert len(client.keys("*looks")) == 3


def test_a_server_that_refuses_memory_usage_tells_rows_alone(
    two_projects: Callable[[str], Sink], redis_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    two_projects("refused")
    with redis.Redis.from_url(redis_server.url) as admin:
        admin.acl_setuser(
            "limited", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-memory|usage"]
        )
        port = redis_server.port
        with redis.Redis(port=port, username="limited", password="any") as client:  # noqa: S106
            share = remove_from_redis(client, "pair", list(PAIR), ["user_id"], "refused")
        admin.acl_deluser("limited")
    assert share == OnlineShare(len(USERS), None)
    assert "refuses MEMORY USAGE" in caplog.text
