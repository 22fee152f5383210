"""Who reads which partition: shares, workers that end or are killed, leases that ran out."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from materialize.stream.keys import dead_key, events_key
from materialize.stream.status import read_lag
from tests.contract.stream_redis.project import LEASE, PARTITIONS, Stream, drain, is_done, payloads
from tests.e2e.redis_faults import wait_until
from tests.stream_workers import NotingWorker

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
