"""Writers and readers of one store at the same time."""

from __future__ import annotations

import itertools
import threading

import numpy as np

from tests.sinks import (
    MICROSECOND,
    NOON,
    PAIR,
    SECOND,
    USERS,
    Row,
    Sink,
    key_of,
)


def test_of_eight_racing_writers_the_newest_event_stays(atomic: Sink) -> None:
    """Each reader sees whole rows all the while: both features of a row are of one write."""
    users = [next(USERS) for _ in range(40)]
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
        online, keys = atomic.fresh(), [key_of(user) for user in users]
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
    users = [next(USERS) for _ in range(8)]
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
