"""What every source of events keeps to: at least once, in order, and set aside with a reason."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis

from encoder.errors import DataFault, StreamConflict
from materialize.stream.connect import connect
from materialize.stream.dead_letters import DeadLetters
from materialize.stream.file_source import FileSource
from materialize.stream.nats_link import NatsLink
from materialize.stream.nats_writer import NatsWriter
from materialize.stream.redis_source import RedisSource
from materialize.stream.source import Delivery, EventSource
from materialize.stream.writer import EventWriter
from tests.contract.stream_sources import PARTITIONS, T0, drain, event, nats_source
from tests.servers import Server


@dataclass
class Place:
    """Where events lie, and how a worker opens them."""

    append: Callable[[Sequence[dict[str, Any]]], None]
    open: Callable[[], EventSource]
    dead: Callable[[], list[tuple[str, str, dict[str, Any]]]]
    """(reason, detail, event) of each dead letter."""
    opened: list[EventSource] = field(default_factory=list)

    def source(self) -> EventSource:
        made = self.open()
        self.opened.append(made)
        return made


def _redis_place(server: Server) -> Place:
    project = f"s{uuid.uuid4().hex[:8]}"
    writer = EventWriter(connect(server.url), project, PARTITIONS)

    return Place(
        append=lambda events: (writer.append(events), None)[1],
        open=lambda: RedisSource(
            connect(server.url), project, PARTITIONS, uuid.uuid4().hex, lease_seconds=60
        ),
        dead=lambda: _dead_in_redis(server, project),
    )


def _nats_place(server: Server, redis_server: Server) -> Place:
    project = f"s{uuid.uuid4().hex[:8]}"

    def append(events: Sequence[dict[str, Any]]) -> None:
        with closing(NatsLink(server.url, project)) as link:
            NatsWriter(link, PARTITIONS).append(events)

    return Place(
        append=append,
        open=lambda: nats_source(server, redis_server, project),
        dead=lambda: _dead_in_redis(redis_server, project),
    )


def _dead_in_redis(server: Server, project: str) -> list[tuple[str, str, dict[str, Any]]]:
    with closing(connect(server.url)) as client:
        letters = DeadLetters(client, project, PARTITIONS).find()
        return [(one.reason, one.detail, json.loads(one.payload)) for one in letters]


def _dead_in_file(path: Path) -> list[tuple[str, str, dict[str, Any]]]:
    file = path.with_name(path.name + ".dead.jsonl")
    letters = [json.loads(line) for line in file.read_text().splitlines()]
    return [(one["reason"], one["detail"], json.loads(one["payload"])) for one in letters]


def _lines_place(path: Path) -> Place:
    def append(events: Sequence[dict[str, Any]]) -> None:
        path.write_text("".join(json.dumps(one) + "\n" for one in events))

    return Place(append, lambda: FileSource(path), lambda: _dead_in_file(path))


def _parquet_place(path: Path) -> Place:
    def append(events: Sequence[dict[str, Any]]) -> None:
        table = pa.table(
            {
                "user_id": [one["user_id"] for one in events],
                "item_id": [one["item_id"] for one in events],
                "ts": pa.array([one["timestamp"] for one in events]).cast(
                    pa.timestamp("us", "UTC")
                ),
            }
        )
        pq.write_table(table, path, row_group_size=7)

    return Place(append, lambda: FileSource(path), lambda: _dead_in_file(path))


@pytest.fixture(params=["redis", "nats", "lines", "parquet"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "redis":
        made = _redis_place(request.getfixturevalue("redis_server"))
    elif request.param == "nats":
        servers = (request.getfixturevalue(name) for name in ("nats_server", "redis_server"))
        made = _nats_place(*servers)
    elif request.param == "lines":
        made = _lines_place(tmp_path / "events.jsonl")
    else:
        made = _parquet_place(tmp_path / "events.parquet")
    yield made
    for source in made.opened:
        with suppress(redis.RedisError):
            source.close()


def as_events(deliveries: Sequence[Delivery]) -> list[tuple[int, str, int]]:
    made = [json.loads(delivery.payload) for delivery in deliveries]
    return [(one["user_id"], one["item_id"], one["timestamp"]) for one in made]


def told(events: Sequence[dict[str, Any]]) -> list[tuple[int, str, int]]:
    return [(one["user_id"], one["item_id"], one["timestamp"]) for one in events]


def test_every_event_is_handed_out_once_in_the_order_of_its_user(place: Place) -> None:
    events = [event(n % 5, n) for n in range(40)]
    place.append(events)
    found = drain(place.source())
    assert sorted(as_events(found)) == sorted(told(events))
    assert len({(one.partition, one.id) for one in found}) == 40
    for user in range(5):
        own = [one for one in as_events(found) if one[0] == user]
        assert own == [one for one in told(events) if one[0] == user]
    assert not any(one.redelivered for one in found)
    now = datetime.now(timezone.utc).timestamp() * 1000
    assert all(abs(one.appended_ms - now) < 60_000 for one in found)


def test_no_more_events_come_than_were_asked_for(place: Place) -> None:
    place.append([event(n, n) for n in range(30)])
    source = place.source()
    assert [len(source.poll(most, 0)) for most in (1, 2, 7)] == [1, 2, 7]


def test_what_was_not_acknowledged_is_handed_out_again_and_says_so(place: Place) -> None:
    events = [event(n, n) for n in range(12)]
    place.append(events)
    first = place.source()
    found = drain(first)
    first.ack(found[:5])
    first.close()
    again = drain(place.source())
    assert sorted(as_events(again)) == sorted(as_events(found[5:]))
    assert all(one.redelivered for one in again)


def test_what_comes_behind_the_redelivered_is_new(place: Place) -> None:
    place.append([event(n, n) for n in range(20)])
    first = place.source()
    held = first.poll(6, 0)
    first.close()
    second = place.source()
    found = drain(second)
    assert len(found) == 20
    ids = {(one.partition, one.id) for one in held}
    assert {(one.partition, one.id) for one in found if one.redelivered} == ids


def test_what_is_not_acknowledged_is_handed_out_again_when_asked_for(place: Place) -> None:
    place.append([event(n, n) for n in range(20)])
    source = place.source()
    found = source.poll(8, 0)
    source.ack(found[:3])
    source.again(keep=found[6:])
    later = drain(source)
    ids = {(one.partition, one.id) for one in later if one.redelivered}
    assert ids == {(one.partition, one.id) for one in found[3:6]}
    assert len(later) == len({(one.partition, one.id) for one in later}) == 3 + 12
    source.ack([*found[6:], *later])
    lag = source.lag()
    assert (lag.undelivered, lag.unacknowledged) == (0, 0)


def test_acknowledging_twice_changes_nothing(place: Place) -> None:
    place.append([event(n, n) for n in range(6)])
    source = place.source()
    found = drain(source)
    source.ack(found)
    source.ack(found)
    assert source.lag().unacknowledged == 0
    source.close()
    assert drain(place.source()) == []


def test_an_order_of_acknowledgements_that_has_holes_loses_nothing(place: Place) -> None:
    place.append([event(n, n) for n in range(9)])
    first = place.source()
    found = drain(first)
    first.ack(found[::2])
    assert first.lag().unacknowledged >= 4
    first.close()
    again = as_events(drain(place.source()))
    assert set(as_events(found[1::2])) <= set(again)


def test_a_rejected_event_is_a_dead_letter_once_and_is_not_handed_out_again(place: Place) -> None:
    place.append([event(7, n) for n in range(3)])
    first = place.source()
    found = drain(first)
    for _ in range(2):
        first.reject(found[1], "unknown_item", "item 'i1' given")
    first.ack([found[0], found[2]])
    first.close()
    second = place.source()
    assert drain(second) == []
    second.close()
    ((reason, detail, payload),) = place.dead()
    assert (reason, detail, payload["item_id"]) == ("unknown_item", "item 'i1' given", "i1")


def test_lag_says_what_is_left(place: Place) -> None:
    place.append([event(n, n) for n in range(10)])
    source = place.source()
    held = source.poll(4, 0)
    lag = source.lag()
    assert lag.unacknowledged == 4
    assert lag.undelivered > 0
    found = drain(source)
    assert source.lag().undelivered == 0
    source.ack([*held, *found])
    assert (source.lag().unacknowledged, source.lag().oldest_age_ms) == (0, 0)


def test_a_poll_without_events_returns_nothing_in_time(place: Place) -> None:
    place.append([event(1, 1)])
    source = place.source()
    source.ack(drain(source))
    began = source.now_ms()
    assert source.poll(10, 80) == []
    assert 60 <= source.now_ms() - began < 5_000
    source.renew()
    assert not source.waited_for


# What files alone have.


def test_a_file_has_one_reader(tmp_path: Path) -> None:
    place = _lines_place(tmp_path / "events.jsonl")
    place.append([event(1, 1)])
    first = place.source()
    with pytest.raises(StreamConflict, match="Another process reads"):
        place.open()
    first.close()
    place.source().close()


def test_a_position_of_another_file_is_refused(tmp_path: Path) -> None:
    place = _lines_place(tmp_path / "events.jsonl")
    place.append([event(1, 1)])
    first = place.open()
    first.ack(drain(first))
    first.close()
    place.append([event(1, 1), event(1, 2)])
    with pytest.raises(
        StreamConflict, match=r"is not of .* as it is now \(\d+ bytes\)\. Delete it"
    ):
        place.open()
    (tmp_path / "events.jsonl.position").unlink()
    second = place.open()
    assert len(drain(second)) == 2
    second.close()


def test_empty_lines_and_a_last_line_without_an_end_are_read(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'\n{"a": 1}\n\n  \n{"a": 2}')
    source = FileSource(path)
    assert [one.payload for one in drain(source)] == [b'{"a": 1}', b'{"a": 2}']
    source.close()


def test_a_dead_letter_cut_off_by_a_kill_is_written_anew(tmp_path: Path) -> None:
    place = _lines_place(tmp_path / "events.jsonl")
    place.append([event(1, 1), event(1, 2)])
    first = place.open()
    found = drain(first)
    first.reject(found[0], "a", "b")
    first.close()
    dead = tmp_path / "events.jsonl.dead.jsonl"
    dead.write_bytes(dead.read_bytes()[:-9])
    (tmp_path / "events.jsonl.position").unlink()  # it, too, is not there yet
    second = place.open()
    second.reject(drain(second)[0], "a", "b")
    second.close()
    assert [reason for reason, _, _ in place.dead()] == ["a"]


def test_parquet_without_the_columns_of_clean_events_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    pq.write_table(pa.table({"user_id": [1], "when": [2]}), path)
    with pytest.raises(DataFault, match=r"has no column 'item_id', 'ts'\. Expected clean events"):
        FileSource(path)


def test_parquet_keeps_weight_and_circumstances(tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    table = pa.table(
        {
            **{"user_id": ["u", "u"], "item_id": [5, 6]},
            "weight": pa.array([0.5, 0.5], pa.float32()),
            "ts": pa.array([T0, T0]).cast(pa.timestamp("us", "UTC")),
            "context": [["BR", None], None],
            "service": ["music", None],
        }
    )
    pq.write_table(table, path)
    source = FileSource(path, ["country", "device"])
    made, other = (json.loads(one.payload) for one in drain(source))
    source.close()
    assert (made["service"], other.get("service")) == ("music", None)
    assert (made["user_id"], made["item_id"], made["weight"]) == ("u", 5, 0.5)
    assert made["context"]["country"] == "BR"
    assert not made["context"].get("device")
