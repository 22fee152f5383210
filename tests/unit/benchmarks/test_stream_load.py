"""The producer is early for nothing and loses nothing; figures of the stream are right by hand."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import redis

from benchmarks._stream_accuracy import Picture, staleness
from benchmarks._stream_data import Replay
from benchmarks._stream_load import commands, produce, schedule, write_load
from benchmarks._stream_probe import newest_of_their_user
from benchmarks._stream_process import together
from benchmarks._stream_runs import growth
from materialize.stream.keys import events_key, partition_of
from tests.servers import redis_server

THIS = "tests.unit.benchmarks.test_stream_load"


def _replay(users: list[int], times: list[int]) -> Replay:
    n = len(users)
    context = pa.array([[str(k)] for k in range(n)], pa.list_(pa.string()))
    return Replay(np.array(users), np.arange(n), np.array(times), np.ones(n), context, ("device",))


def wait_and_tell(begin: object, what: str) -> dict[str, object]:
    """Return when this process began; called in a fresh process."""
    assert callable(begin)
    start = begin()
    return {"start": start, "began": time.monotonic(), "what": what}


def fail_at_once(begin: object) -> None:
    """Raise before it is ready; called in a fresh process."""
    raise ValueError("on purpose")


@pytest.mark.server
def test_every_event_is_appended_and_none_before_it_is_due(tmp_path: Path) -> None:
    replay, due = _replay([1, 2, 1, 3] * 50, list(range(200))), schedule(200, 400.0)
    with redis_server(tmp_path) as server, redis.Redis(port=server.port) as client:
        write_load(tmp_path / "load.npz", commands(replay, "shop", 4), due)
        now, clock = time.time(), time.monotonic()
        told = produce(lambda: clock, str(tmp_path / "load.npz"), server.host, server.port)
        found = [client.xrange(events_key("shop", p)) for p in range(4)]
    assert told["events"] == sum(map(len, found)) == 200
    for partition, entries in enumerate(found):
        ours = [k for k, u in enumerate(replay.user.tolist()) if partition_of(u, 4) == partition]
        assert len(entries) == len(ours)
        for row, (name, fields) in zip(ours, entries, strict=True):
            assert b'"device":"%d"' % row in fields[b"event"]
            # Two clocks, both of this machine: Redis' is cut to milliseconds.
            assert int(name.split(b"-")[0]) >= (now + due[row]) * 1e3 - 5
    assert 0 <= told["late_ms"][0] <= told["late_ms"][2]
    assert told["ended"] - clock >= due[-1]


@pytest.mark.server
def test_refused_event_is_an_error(tmp_path: Path) -> None:
    replay = _replay([1, 1], [0, 1])
    with redis_server(tmp_path) as server, redis.Redis(port=server.port) as client:
        client.set(events_key("shop", 0), "no stream")
        write_load(tmp_path / "load.npz", commands(replay, "shop", 1), schedule(2, 1e6))
        with pytest.raises(RuntimeError, match="WRONGTYPE"):
            produce(time.monotonic, str(tmp_path / "load.npz"), server.host, server.port)


def test_events_are_due_evenly() -> None:
    assert schedule(5, 4.0).tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_only_events_newer_than_all_before_of_their_user_can_be_told_apart() -> None:
    users, times = [1, 2, 1, 1, 2, 1], [10, 10, 10, 11, 12, 11]
    found = newest_of_their_user(_replay(users, times))
    assert found.tolist() == [True, True, False, True, True, False]


def test_first_event_of_each_user_in_the_order_of_all() -> None:
    first = _replay([3, 1, 3, 2, 1], [1, 2, 3, 4, 5]).first_of_each_user()
    assert first.user.tolist() == [3, 1, 2]
    assert first.context.to_pylist() == [["0"], ["1"], ["3"]]


def test_growth_is_the_slope_of_the_second_half() -> None:
    steady = [(0.0, 0), (1.0, 400), (2.0, 80), (3.0, 80), (4.0, 80)]
    assert growth(steady) == 0.0
    assert growth([(0.0, 0), (1.0, 0), (2.0, 20), (3.0, 40)]) == 20.0


def test_staleness_is_the_age_of_the_oldest_unseen_event_that_was_due() -> None:
    replay = _replay([1, 2, 1, 2, 3, 1], [10, 11, 12, 13, 14, 15])
    due = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 9.0])
    # Readers see user 1 as of 10 and user 2 whole; of user 3 nothing. The last event is not due.
    seen = Picture(
        np.array([1, 2, 3]), np.zeros((3, 2), np.float32), np.array([10, 13, -1]), 100.0 + 5.0
    )
    assert staleness(seen, replay, due, 100.0).tolist() == [3.0, 0.0, 1.0]


def test_processes_begin_at_the_same_moment_when_all_are_ready() -> None:
    with together() as calls:
        calls.add("a", f"{THIS}:wait_and_tell", "x")
        calls.add("b", f"{THIS}:wait_and_tell", "y")
        start = calls.start()
        told = calls.results()
    assert {one["start"] for one in told.values()} == {start}
    assert all(one["began"] >= start for one in told.values())
    assert (told["a"]["what"], told["b"]["what"]) == ("x", "y")


def test_process_that_fails_before_it_is_ready_says_why() -> None:
    with together() as calls:
        calls.add("a", f"{THIS}:fail_at_once")
        with pytest.raises(RuntimeError, match="on purpose"):
            calls.start()
