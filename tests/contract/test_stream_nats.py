"""What the stream on NATS does beyond the contract of sources: owners, retention, refusals."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from encoder.errors import EmbeddingError, TransientError
from materialize.stream.connect import connect
from materialize.stream.dead_letters import DeadLetters
from materialize.stream.keys import lease_key, workers_key
from materialize.stream.nats_consumers import forget
from materialize.stream.nats_lag import nats_payloads
from materialize.stream.nats_link import NatsLink, event_subject
from materialize.stream.nats_source import NatsSource
from materialize.stream.nats_writer import NatsWriter
from materialize.stream.source import Delivery
from tests import servers
from tests.contract.stream_sources import PARTITIONS, drain, event, nats_source
from tests.e2e.redis_faults import wait_until
from tests.servers import Server


class Stream:
    """A project's stream, and the sources that a test opened."""

    def __init__(self, nats: Server, redis: Server) -> None:
        self.nats, self.redis = nats, redis
        self.project = f"n{uuid.uuid4().hex[:8]}"
        self.link = NatsLink(nats.url, self.project)
        self.writer = NatsWriter(self.link, PARTITIONS)
        self.opened: list[NatsSource] = []

    def source(self, lease_seconds: float = 60, **more: float) -> NatsSource:
        made = nats_source(self.nats, self.redis, self.project, lease_seconds, **more)
        self.opened.append(made)
        return made

    def held(self) -> list[bytes]:
        return list(nats_payloads(self.link))


@pytest.fixture
def stream(nats_server: Server, redis_server: Server) -> Iterator[Stream]:
    made = Stream(nats_server, redis_server)
    yield made
    for source in made.opened:
        with suppress(EmbeddingError, RuntimeError):
            source.close()
    made.link.close()


def numbers(deliveries: list[Delivery]) -> set[tuple[int, bytes]]:
    return {(one.partition, one.id) for one in deliveries}


def test_a_worker_that_sleeps_through_its_lease_is_handed_nothing_more(stream: Stream) -> None:
    stream.writer.append([event(n, n) for n in range(12)])
    sleeper = stream.source()
    held = sleeper.poll(5, 0)
    with closing(connect(stream.redis.url)) as client:  # as if its time had passed
        leases = [lease_key(stream.project, p) for p in range(PARTITIONS)]
        client.delete(workers_key(stream.project), *leases)
    heir = stream.source()
    found = drain(heir)
    assert numbers([one for one in found if one.redelivered]) == numbers(held)
    assert len(found) == len(numbers(found)) == 12
    stream.writer.append([event(n, 100 + n) for n in range(6)])
    assert sleeper.poll(20, 0) == []
    sleeper.ack(held)  # too late, and no harm
    heir.ack(found)
    later: list[Delivery] = []
    wait_until(lambda: len(later.extend(heir.poll(9, 0) + sleeper.poll(9, 0)) or later) == 6)
    assert len(numbers(later)) == 6


def test_two_workers_share_the_partitions_and_every_event_comes_once(stream: Stream) -> None:
    workers = [stream.source(lease_seconds=2), stream.source(lease_seconds=2)]

    def shared() -> bool:
        for worker in workers:
            worker.poll(1, 0)
        return sorted(len(worker.owned) for worker in workers) == [1, 2]

    wait_until(shared)
    stream.writer.append([event(n, n) for n in range(40)])
    found = [one for _ in range(30) for worker in workers for one in worker.poll(7, 0)]
    assert len(found) == len(numbers(found)) == 40


def test_owners_that_were_handed_nothing_do_not_lose_the_place(stream: Stream) -> None:
    stream.writer.append([event(n, n) for n in range(9)])
    first = stream.source()
    first.ack(drain(first))
    first.close()
    for _ in range(2):
        heir = stream.source()
        assert drain(heir) == []
        heir.close()


def test_an_event_wakes_a_worker_that_waits(stream: Stream) -> None:
    source = stream.source()
    assert source.poll(1, 0) == []
    began = time.monotonic()
    stream.link.run(_publish_soon(stream))
    assert len(source.poll(1, 20_000)) == 1
    assert time.monotonic() - began < 15


async def _publish_soon(stream: Stream) -> None:
    loop = asyncio.get_running_loop()
    payload = json.dumps(event(1, 1)).encode()
    subject = event_subject(stream.project, 1)
    loop.call_later(0.3, lambda: loop.create_task(stream.link.jetstream.publish(subject, payload)))


def test_only_what_is_acknowledged_and_old_is_purged(stream: Stream) -> None:
    stream.writer.append([event(n, n) for n in range(9)])
    source = stream.source(retention_hours=1e-9)
    found = drain(source)
    last = {p: max(int(one.id) for one in found if one.partition == p) for p in source.owned}
    source.ack([one for one in found if int(one.id) != last[one.partition]])
    source.trim()
    assert len(stream.held()) == len(last)
    source.ack(found)
    source.trim()
    assert stream.held() == []
    stream.writer.append([event(1, 50)])
    source.trim()
    assert len(stream.held()) == 1


def test_acknowledged_events_stay_for_the_retention(stream: Stream) -> None:
    stream.writer.append([event(n, n) for n in range(9)])
    source = stream.source(retention_hours=48)
    source.ack(drain(source))
    source.trim()
    assert len(stream.held()) == 9


def test_events_that_somebody_deletes_end_no_worker(stream: Stream) -> None:
    stream.writer.append([event(n, n) for n in range(9)])
    source = stream.source()
    held = source.poll(3, 0)
    stream.link.run(stream.link.jetstream.purge_stream(stream.link.stream))
    assert source.lag().oldest_age_ms == 0
    source.ack(held)
    source.trim()
    stream.writer.append([event(1, 50)])
    assert len(drain(source)) == 1


def test_a_consumer_that_is_gone_already_is_forgotten_without_a_fault(stream: Stream) -> None:
    stream.link.run(forget(stream.link, "partition-0-nobody"))


def test_a_dead_letter_goes_back_to_its_partition(stream: Stream) -> None:
    stream.writer.append([event(7, 1)])
    source = stream.source()
    (one,) = drain(source)
    source.reject(one, "unknown_item", "item 'i1' given")
    with closing(connect(stream.redis.url)) as client:
        letters = DeadLetters(client, stream.project, PARTITIONS, stream.writer.put)
        (letter,) = letters.find()
        assert abs(letter.appended_ms - one.appended_ms) <= 1
        assert letters.replay([letter]) == 1
        assert letters.counts() == {}
    (again,) = drain(source)
    assert (again.partition, again.payload) == (one.partition, one.payload)


def test_a_dead_letter_that_was_not_acknowledged_in_time_stays_one(stream: Stream) -> None:
    stream.writer.append([event(7, 1)])
    first = stream.source(lease_seconds=0.5)
    (one,) = drain(first)
    second = stream.source(lease_seconds=0.5)
    found: list[Delivery] = []
    wait_until(lambda: len(found.extend(second.poll(5, 50)) or found) == 1)
    first.poll(1, 0)  # it learns that the partition is another's
    for source in (first, second, second):
        source.reject(one, "unknown_item", "item 'i1' given")
    with closing(connect(stream.redis.url)) as client:
        assert DeadLetters(client, stream.project, PARTITIONS).counts() == {"unknown_item": 1}


def test_an_event_that_is_not_acknowledged_in_time_comes_again_to_its_next_owner_only(
    stream: Stream,
) -> None:
    stream.writer.append([event(7, 1)])
    source = stream.source(ack_seconds=0.5)
    (one,) = drain(source)

    def handed_out_twice() -> bool:
        assert source.poll(5, 100) == []
        (consumer,) = [
            info
            for info in stream.link.run(stream.link.jetstream.consumers_info(stream.link.stream))
            if info.num_redelivered
        ] or [None]
        return consumer is not None

    wait_until(handed_out_twice)
    source.ack([one])
    assert source.lag().unacknowledged == 0


def test_a_server_that_is_away_is_transient_and_one_that_comes_back_goes_on(
    redis_server: Server, tmp_path: Path
) -> None:
    (folder := tmp_path / "n").mkdir()
    project = f"n{uuid.uuid4().hex[:8]}"
    with servers.nats_server(folder) as server:
        link = NatsLink(server.url, project)
        NatsWriter(link, PARTITIONS).append([event(n, n) for n in range(6)])
        source = nats_source(server, redis_server, project)
        held = source.poll(2, 0)
    with pytest.raises(TransientError, match="does not answer"):
        source.poll(5, 0)
    with servers.nats_server(folder, port=server.port):
        found: list[Delivery] = []

        def polled() -> bool:
            with suppress(TransientError):
                found.extend(source.poll(10, 50))
            return len(numbers([*held, *found])) == 6

        wait_until(polled)
        source.ack([*held, *found])
        wait_until(lambda: source.lag().unacknowledged == 0)
        source.close()
        link.close()
