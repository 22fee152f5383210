"""What the stream keeps: lost answers and data, what is trimmed, the lag, and dead letters."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import redis

from encoder.errors import StreamConflict
from materialize.stream.connect import connect, is_transient
from materialize.stream.dead_letters import DeadLetters
from materialize.stream.keys import config_key, dead_key, events_key
from materialize.stream.redis_source import RedisSource
from materialize.stream.restarts import Restarts
from materialize.stream.source import Delivery
from materialize.stream.status import read_lag
from tests.contract.stream_redis.project import LEASE, PARTITIONS, Stream, drain, is_done, payloads
from tests.e2e.redis_faults import Line, RedisProcess, wait_until

# Lost answers, lost connections, lost data.


def test_an_answer_that_was_lost_on_the_way_is_handed_out_with_the_next(stream: Stream) -> None:
    port = stream.client.connection_pool.connection_kwargs["port"]
    line = Line(port)
    try:
        source = RedisSource(
            connect(f"redis://127.0.0.1:{line.port}?socket_timeout=1"),
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


def test_freshness_is_measured_by_the_clock_of_redis(stream: Stream) -> None:
    stream.append(1)
    source = stream.source()
    before = time.monotonic()
    (found,) = drain(source)
    seconds, micros = stream.client.time()
    assert abs(source.now_ms() - (seconds * 1000 + micros / 1000)) < 100
    assert 0 <= source.now_ms() + 1 - found.appended_ms < (time.monotonic() - before) * 1000 + 1000


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
