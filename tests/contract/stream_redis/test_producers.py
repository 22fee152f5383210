"""How events come in, and which servers, URLs and partition numbers are refused."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from datetime import datetime, timezone

import pytest
import redis

from encoder.errors import StoreRefused, StreamConflict, TransientError
from materialize.stream.connect import connect, expand_url, fix_partitions, is_transient
from materialize.stream.keys import GROUP, events_key
from materialize.stream.writer import EventWriter
from tests.contract.stream_redis.project import PARTITIONS, Stream, drain, payloads
from tests.e2e.redis_faults import Line
from tests.servers import Server, redis_server

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


def test_the_group_reads_a_stream_that_was_written_before_it_was_there(stream: Stream) -> None:
    appended = stream.append(5)
    source = stream.source()
    assert payloads(drain(source)) == sorted(appended)
    names = {group["name"] for group in stream.client.xinfo_groups(events_key(stream.project, 0))}
    assert names == {GROUP.encode()}


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
