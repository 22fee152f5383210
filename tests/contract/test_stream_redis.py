"""The event stream on Redis: who reads which partition, what is kept, and what is refused."""

from __future__ import annotations

import json
import signal
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import redis

from encoder.errors import StoreRefused, StreamConflict, TransientError
from materialize.stream.connect import connect, expand_url, fix_partitions, is_transient
from materialize.stream.dead_letters import DeadLetters
from materialize.stream.keys import GROUP, config_key, dead_key, events_key
from materialize.stream.redis_source import RedisSource
from materialize.stream.restarts import Restarts
from materialize.stream.source import Delivery
from materialize.stream.status import read_lag
from materialize.stream.writer import EventWriter
from tests.e2e.redis_faults import Line, RedisProcess, wait_until
from tests.servers import Server, redis_server
from tests.stream_workers import NotingWorker

PARTITIONS = 4
LEASE = 1.0


class Stream:
    """One project's stream on a server."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.project = f"s{uuid.uuid4().hex[:8]}"
        self.client = connect(url)
        self.writer = EventWriter(self.client, self.project, PARTITIONS)
        self._sources: list[RedisSource] = []

    def source(self, name: str = "", **changes: Any) -> RedisSource:
        settings = {"lease_seconds": 60.0} | changes
        worker = name or uuid.uuid4().hex
        made = RedisSource(connect(self.url), self.project, PARTITIONS, worker, **settings)
        self._sources.append(made)
        return made

    def append(self, count: int, start: int = 0) -> list[bytes]:
        payloads = [b'{"user_id":%d}' % n for n in range(start, start + count)]
        self.writer.append(payloads)
        return payloads

    def close(self) -> None:
        for source in self._sources:
            source.close()
        self.client.close()


@pytest.fixture
def stream(redis_server: Server) -> Iterator[Stream]:
    made = Stream(redis_server.url)
    yield made
    made.close()


def drain(source: RedisSource) -> list[Delivery]:
    found: list[Delivery] = []
    while part := source.poll(100, 0):
        found += part
    return found


def payloads(deliveries: list[Delivery]) -> list[bytes]:
    return sorted(one.payload for one in deliveries)


# Shares.


def test_a_worker_that_joins_takes_over_its_share(stream: Stream) -> None:
    first, second = stream.source("a"), stream.source("b")
    first.renew()
    assert first.owned == {0, 1, 2, 3}
    second.renew()
    assert second.owned == set()
    first.renew()
    second.renew()
    assert (len(first.owned), len(second.owned)) == (2, 2)
    assert first.owned.isdisjoint(second.owned)


def test_shares_differ_by_one_at_most_and_more_workers_than_partitions_wait(stream: Stream) -> None:
    sources = [stream.source() for _ in range(6)]
    for _ in range(3):
        for source in sources:
            source.renew()
    owned = [len(source.owned) for source in sources]
    assert sorted(owned) == [0, 0, 1, 1, 1, 1]
    idle = sources[owned.index(0)]
    assert idle.poll(1, 20) == []
    sources[owned.index(1)].close()
    for source in (one for one, count in zip(sources, owned, strict=True) if count == 0):
        source.renew()
    assert len(set().union(*(source.owned for source in sources))) == PARTITIONS


def test_a_partition_is_let_go_only_when_what_came_from_it_is_acknowledged(stream: Stream) -> None:
    stream.append(40)
    first, second = stream.source("a"), stream.source("b")
    held = drain(first)
    assert not first.waited_for
    second.renew()
    first.renew()
    assert first.waited_for
    second.renew()
    assert second.owned == set()
    stream.append(40, start=100)
    fresh = drain(first)
    assert {one.partition for one in fresh} == {0, 1}  # the others are being let go
    first.ack([*held, *fresh])
    assert not first.waited_for
    second.renew()
    rest = drain(second)
    assert {one.partition for one in rest} == {2, 3}
    assert not any(one.redelivered for one in rest)
    assert len(rest) + len(fresh) == 40


def test_a_worker_that_ends_leaves_its_partitions_and_events_at_once(stream: Stream) -> None:
    appended = stream.append(20)
    first = stream.source()
    assert payloads(drain(first)) == sorted(appended)
    first.close()
    second = stream.source()
    again = drain(second)
    assert payloads(again) == sorted(appended)
    assert all(one.redelivered for one in again)


def test_a_full_partition_does_not_starve_the_others(stream: Stream) -> None:
    key = events_key(stream.project, 0)
    for n in range(100):
        stream.client.xadd(key, {"event": b"%d" % n})
    for partition in (1, 2, 3):
        stream.client.xadd(events_key(stream.project, partition), {"event": b"rare"})
    source = stream.source()
    found = source.poll(20, 0)
    assert {one.partition for one in found} == {0, 1, 2, 3}
    assert len(found) == 20


# Death, sleep and return, in processes.


@pytest.fixture
def workers(stream: Stream, tmp_path: Path) -> Iterator[Callable[..., NotingWorker]]:
    made: list[NotingWorker] = []

    def start(name: str, **changes: Any) -> NotingWorker:
        arguments = {"lease_seconds": LEASE} | changes
        made.append(
            NotingWorker(stream.url, stream.project, PARTITIONS, name, tmp_path, **arguments)
        )
        return made[-1]

    yield start
    for worker in made:
        worker.end()


def owners(stream: Stream) -> set[str | None]:
    return {one.owner for one in read_lag(stream.client, stream.project, PARTITIONS).partitions}


def is_done(stream: Stream) -> bool:
    lag = read_lag(stream.client, stream.project, PARTITIONS)
    return lag.undelivered == 0 and lag.unacknowledged == 0


def test_a_killed_worker_loses_its_partitions_and_nothing_is_lost(
    stream: Stream, workers: Callable[..., NotingWorker]
) -> None:
    first, second = workers("a"), workers("b")
    wait_until(lambda: owners(stream) == {"a", "b"})
    appended = stream.append(2_000)
    wait_until(lambda: len(first.handled()) > 50)
    first.process.kill()
    appended += stream.append(500, start=5_000)
    wait_until(lambda: is_done(stream))
    assert owners(stream) == {"b"}
    handled = [*first.handled(), *second.handled()]
    assert set(handled) == set(appended)
    # What the dead one had noted and not acknowledged came again: one poll at most.
    assert len(handled) - len(set(handled)) <= 5


def test_a_worker_that_slept_through_its_lease_is_handed_nothing_more_of_it(
    stream: Stream, workers: Callable[..., NotingWorker]
) -> None:
    first = workers("a", acknowledge=False)
    wait_until(lambda: owners(stream) == {"a"})
    appended = stream.append(30)
    wait_until(lambda: read_lag(stream.client, stream.project, PARTITIONS).undelivered == 0)
    first.process.send_signal(signal.SIGSTOP)
    second = workers("b")
    wait_until(lambda: owners(stream) == {"b"})
    wait_until(lambda: is_done(stream))
    assert set(second.handled()) == set(appended)
    first.process.send_signal(signal.SIGCONT)
    # It comes back as one of two: what it holds from now on it was given anew.
    wait_until(lambda: owners(stream) == {"a", "b"})
    assert first.process.poll() is None


def test_reading_after_the_lease_is_gone_hands_out_nothing_and_late_acks_are_harmless(
    stream: Stream,
) -> None:
    stream.append(10)
    zombie = stream.source("zombie")
    held = drain(zombie)
    for partition in range(PARTITIONS):
        stream.client.set(f"palate:{{{stream.project}:{partition}}}:lease", "other")
    appended = stream.append(10, start=50)
    assert zombie.poll(100, 0) == []
    lag = read_lag(stream.client, stream.project, PARTITIONS)
    assert (lag.undelivered, lag.unacknowledged) == (10, 10)
    zombie.ack(held)  # their effect is there, so another need not apply them
    zombie.reject(held[0], "late", "")
    assert read_lag(stream.client, stream.project, PARTITIONS).unacknowledged == 0
    assert stream.client.xlen(dead_key(stream.project, held[0].partition)) == 0
    for partition in range(PARTITIONS):
        stream.client.delete(f"palate:{{{stream.project}:{partition}}}:lease")
    zombie.renew()
    assert payloads(drain(zombie)) == sorted(appended)


# Lost answers, lost connections, lost data.


def test_an_answer_that_was_lost_on_the_way_is_handed_out_with_the_next(stream: Stream) -> None:
    port = stream.client.connection_pool.connection_kwargs["port"]
    line = Line(port)
    try:
        source = RedisSource(
            connect(f"redis://127.0.0.1:{line.port}?socket_timeout=0.3"),
            *(stream.project, PARTITIONS, "by a line"),
            lease_seconds=60.0,
        )
        first = stream.append(8)
        held = drain(source)
        lost = stream.append(8, start=20)
        line.hold()
        # The commands wait on the line, and arrive when it flows again: after the client gave up.
        with pytest.raises(redis.TimeoutError):
            source.poll(100, 0)
        line.release()
        wait_until(lambda: read_lag(stream.client, stream.project, PARTITIONS).unacknowledged == 16)
        found = drain(source)
        assert payloads(found) == sorted(lost)
        assert payloads(held) == sorted(first)
        source.ack([*held, *found])
        assert is_done(stream)
        source.close()
    finally:
        line.close()


def test_a_restarted_redis_goes_on_where_it_was(tmp_path: Path) -> None:
    process = RedisProcess(tmp_path)
    try:
        process_url = process.server.url
        stream = Stream(process_url)
        stream.client.config_set("appendfsync", "always")
        source = stream.source(lease_seconds=LEASE)
        appended = stream.append(12)
        held = source.poll(5, 0)
        source.ack(held[:2])
        restarted = Restarts([stream.client])
        assert not restarted()
        process.kill()
        with pytest.raises(redis.ConnectionError) as caught:
            source.poll(5, 0)
        assert is_transient(caught.value)
        process.start()
        found: list[Delivery] = []
        wait_until(lambda: bool(found.extend(source.poll(100, 50)) or len(found) >= 7))
        assert payloads([*held, *found]) == sorted(appended)
        assert restarted()
        assert not restarted()
        source.ack([*held, *found])
        assert is_done(stream)
        stream.close()
    finally:
        process.kill()


def test_a_redis_that_lost_the_stream_is_noticed(stream: Stream) -> None:
    source = stream.source()
    source.renew()
    stream.client.delete(config_key(stream.project))
    with pytest.raises(StreamConflict, match=r"no longer knows the event stream .* lost its data"):
        source.renew()


def test_events_deleted_before_they_were_acknowledged_are_counted(stream: Stream) -> None:
    stream.append(6)
    first = stream.source()
    held = drain(first)
    first.close()
    for one in held[:2]:
        stream.client.xdel(events_key(stream.project, one.partition), one.id)
    second = stream.source()
    assert len(drain(second)) == 4
    assert second.gone == 2
    assert second.lag().unacknowledged == 4


# What is kept, and for how long.


def test_only_acknowledged_events_are_trimmed(stream: Stream) -> None:
    key = events_key(stream.project, 0)
    for n in range(1, 11):
        stream.client.xadd(key, {"event": b"e"}, id=f"{n}-0")
    source = stream.source(retention_hours=1)
    found = source.poll(6, 0)
    source.ack([one for one in found if one.id != b"4-0"])
    assert source.trim() == 3
    assert [entry for entry, _ in stream.client.xrange(key, count=1)] == [b"4-0"]
    source.ack(found)
    source.trim()
    assert len(stream.client.xrange(key, "(6-0")) == 4
    found = drain(source)
    assert [one.id for one in found] == [b"7-0", b"8-0", b"9-0", b"10-0"]
    source.ack(found)
    source.trim()
    assert stream.client.xlen(key) == 1  # the last one that was handed out


def test_recent_events_and_those_of_other_groups_stay(stream: Stream) -> None:
    key = events_key(stream.project, 0)
    stream.client.xadd(key, {"event": b"e"}, id="1-0")
    stream.client.xadd(key, {"event": b"e"}, id="2-0")
    stream.client.xgroup_create(key, "others", id="0")
    stream.append(30)
    source = stream.source(retention_hours=1)
    source.ack(drain(source))
    assert source.trim() == 0
    stream.client.xgroup_destroy(key, "others")
    assert source.trim() == 2


def test_lag_is_right_after_entries_were_deleted_in_the_middle(stream: Stream) -> None:
    key = events_key(stream.project, 0)
    for n in range(1, 11):
        stream.client.xadd(key, {"event": b"e"}, id=f"{n}-0")
    source = stream.source()
    source.poll(4, 0)
    stream.client.xdel(key, "7-0")
    (group,) = stream.client.xinfo_groups(key)
    assert group["lag"] is None
    assert source.lag().undelivered == 5


def test_lag_of_a_stream_that_nobody_has_read_yet(stream: Stream) -> None:
    stream.append(9)
    lag = read_lag(stream.client, stream.project, PARTITIONS)
    assert (lag.undelivered, lag.unacknowledged) == (9, 0)
    assert {one.owner for one in lag.partitions} == {None}
    assert 0 <= lag.oldest_age_ms < 60_000


# Dead letters.


def letters(stream: Stream) -> DeadLetters:
    return DeadLetters(stream.client, stream.project, PARTITIONS)


def test_dead_letters_are_found_counted_replayed_and_dropped(stream: Stream) -> None:
    appended = stream.append(6)
    source = stream.source()
    found = drain(source)
    for n, one in enumerate(found):
        source.reject(one, "unknown_item" if n % 2 else "not_json", f"detail {n}")
    dead = letters(stream)
    assert dead.counts() == {"unknown_item": 3, "not_json": 3}
    chosen = list(dead.find(reasons=["unknown_item"]))
    assert {one.reason for one in chosen} == {"unknown_item"}
    assert all(one.rejected_ms >= one.appended_ms > 0 for one in chosen)
    assert [one.id for one in dead.find(ids=[chosen[0].id])] == [chosen[0].id]
    assert dead.replay(chosen) == 3
    assert dead.replay(chosen) == 0
    again = drain(source)
    assert payloads(again) == sorted(one.payload for one in chosen)
    assert set(payloads(again)) < set(appended)
    assert dead.drop(list(dead.find())) == 3
    assert dead.counts() == {}


def test_letters_of_more_than_one_page_are_all_found(stream: Stream) -> None:
    key = dead_key(stream.project, 1)
    fields = {"event": b"\xff", "reason": b"not_json", "detail": b"d", "id": b"5-0"}
    with stream.client.pipeline(transaction=False) as pipe:
        for _ in range(1_201):
            pipe.xadd(key, fields)
        pipe.execute()
    found = list(letters(stream).find())
    assert len({one.id for one in found}) == 1_201
    assert found[0].to_dict()["payload"] == "\\xff"


@pytest.mark.parametrize("given", ["7", "x:1-0", "1:5", "9:1-0"])
def test_an_id_that_is_none_is_refused(stream: Stream, given: str) -> None:
    with pytest.raises(ValueError, match=r"given, expected partition:entry|there are 4"):
        list(letters(stream).find(ids=[given]))


# Producers.


def test_a_users_events_go_to_the_partition_of_the_documented_rule(stream: Stream) -> None:
    users: list[int | str] = [0, 42, -7, "42", "Zoë", "日本"]
    stream.writer.append({"user_id": user} for user in users)
    for user in users:
        key = events_key(stream.project, zlib.crc32(str(user).encode()) % PARTITIONS)
        stored = [json.loads(fields[b"event"]) for _, fields in stream.client.xrange(key)]
        assert {"user_id": user} in stored


def test_mappings_with_datetimes_and_bytes_that_are_no_event_are_appended(stream: Stream) -> None:
    moment = datetime(2026, 1, 2, 3, tzinfo=timezone.utc)
    broken = [b"\xff", b"[1]", b'{"user_id": null}', b'{"user_id": true}']
    assert stream.writer.append([{"user_id": 1, "timestamp": moment}, *broken]) == 5
    found = {one.payload for one in drain(stream.source())}
    assert found == {b'{"user_id":1,"timestamp":"2026-01-02T03:00:00+00:00"}', *broken}


def test_an_entry_without_the_field_is_handed_out_as_what_it_is(stream: Stream) -> None:
    stream.client.xadd(events_key(stream.project, 0), {"evnt": "x", "b": "y"})
    (found,) = drain(stream.source())
    assert found.payload == b'no field "event": evnt x b y'


def test_a_writer_without_a_number_takes_the_one_that_is_fixed(stream: Stream) -> None:
    writer = EventWriter(stream.url, stream.project)
    assert writer.partitions == PARTITIONS
    writer.close()
    with pytest.raises(StreamConflict, match="has never been used"):
        EventWriter(stream.client, "nobody")


# Refusals.


def test_another_number_of_partitions_is_refused(stream: Stream) -> None:
    with pytest.raises(
        StreamConflict, match=r"8 partitions given, .* has 4: .* Set stream.partitions to 4"
    ):
        fix_partitions(stream.client, stream.project, 8)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Redis of a cluster that refuses the default user."""
    folder = tmp_path_factory.mktemp("guarded")
    with redis_server(folder, "--cluster-enabled", "yes") as server:
        with redis.Redis(port=server.port) as client:
            client.execute_command("ACL", "SETUSER", "palate", "on", ">right", "~*", "+@all")
            client.config_set("requirepass", "other")
        yield server


def test_a_wrong_password_is_refused_and_not_shown(guarded: Server) -> None:
    with pytest.raises(StoreRefused, match="refuses") as caught:
        connect(f"redis://palate:s3cret@127.0.0.1:{guarded.port}")
    assert "s3cret" not in str(caught.value)
    assert "palate:***@" in str(caught.value)
    assert not is_transient(caught.value)


def test_a_cluster_is_refused_as_event_stream(guarded: Server) -> None:
    with pytest.raises(StreamConflict, match="needs a single server"):
        connect(f"redis://palate:right@127.0.0.1:{guarded.port}")


def test_a_server_that_does_not_answer_is_worth_another_try(redis_server: Server) -> None:
    line = Line(redis_server.port)
    line.close()
    with pytest.raises(TransientError, match=r"does not answer.* correct stream.url"):
        connect(f"redis://127.0.0.1:{line.port}")


def test_a_malformed_url_is_refused() -> None:
    with pytest.raises(StreamConflict, match="no URL of a Redis"):
        connect("127.0.0.1:6379")


def test_a_url_takes_its_password_from_the_environment() -> None:
    assert expand_url("redis://:${SECRET}@h", {"SECRET": "x"}) == "redis://:x@h"
    with pytest.raises(StreamConflict, match="'SECRET', which is not set"):
        expand_url("redis://:${SECRET}@h", {})


def test_freshness_is_measured_by_the_clock_of_redis(stream: Stream) -> None:
    stream.append(1)
    source = stream.source()
    before = time.monotonic()
    (found,) = drain(source)
    seconds, micros = stream.client.time()
    assert abs(source.now_ms() - (seconds * 1000 + micros / 1000)) < 100
    assert 0 <= source.now_ms() + 1 - found.appended_ms < (time.monotonic() - before) * 1000 + 1000


def test_the_group_reads_a_stream_that_was_written_before_it_was_there(stream: Stream) -> None:
    appended = stream.append(5)
    source = stream.source()
    assert payloads(drain(source)) == sorted(appended)
    names = {group["name"] for group in stream.client.xinfo_groups(events_key(stream.project, 0))}
    assert names == {GROUP.encode()}
