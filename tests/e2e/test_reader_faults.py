"""Redis is killed, stopped, cut off and held up in the middle of reads, by threads and by an event
loop: each call ends in its time, with right vectors or a typed error, and reading recovers by
itself."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from encoder.errors import TransientError
from materialize.client import EmbeddingClient
from materialize.consumers import add_consumer
from materialize.reader.redis import RedisFields
from tests.e2e.redis_faults import Line, RedisProcess, wait_until
from tests.servers import Server, ServerMissing
from tests.sinks import close
from tests.spaces import Spaces, close_registry, vectors
from tests.stores import PROFILES

WHO = {"who": "test", "why": "a test"}
USERS = list(range(200))
BUDGET, MARGIN = 0.4, 1.0
"""Seconds: what each call is given, and by how much it may be late on a busy machine."""
RECOVERED = 10.0
"""Seconds from the end of a fault to the next right answer of every reader, at most."""
THREADS, TASKS = 3, 3

pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    try:
        process = RedisProcess(tmp_path_factory.mktemp("redis"))
    except ServerMissing as exc:
        if os.environ.get("REQUIRE_SERVERS") == "1":
            pytest.fail(f"REQUIRE_SERVERS=1, but {exc}")
        pytest.skip(str(exc))
    yield process
    process.kill()


@pytest.fixture(scope="module")
def spaces(process: RedisProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spaces]:
    path = tmp_path_factory.mktemp("faults") / "repo"
    online = PROFILES["palate-redis"].settings(process.server, str(path))
    spaces = Spaces.make(path, online=online)
    spaces.add_space(USERS)
    add_consumer(spaces.context.store, spaces.ledger, "home", 1, **WHO)
    yield spaces
    close_registry(spaces.context.store)
    close(spaces.context.store._get_provider().online_store)


@pytest.fixture
def line(process: RedisProcess) -> Iterator[Line]:
    line = Line(process.port)
    yield line
    line.close()


class Readers:
    """Threads and an event loop that read over and over, and judge each answer."""

    def __init__(self, spaces: Spaces, port: int) -> None:
        config = spaces.context.store.config.model_copy(deep=True)
        config.online_config = {
            **config.online_config,
            "connection_string": f"127.0.0.1:{port}",
        }
        config._online_store = None
        self._client = EmbeddingClient(
            spaces.context.store,
            spaces.settings.ledger_url,
            "home",
            pin_seconds=3_600.0,
            timeout_seconds=BUDGET,
            connections=4,
            reader=RedisFields(config, 4),
        )
        # The first read of a process looks at ledger and registry, whose time is not Redis'.
        self._client.read(USERS[:1], timeout_seconds=60.0)
        self._expected = vectors(spaces.ledger.space(1).encoder_version, USERS)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.ended: list[tuple[int, float, float, str]] = []
        """Reader, when it ended, seconds, and how."""
        self._threads = [threading.Thread(target=self._loop, args=(k,)) for k in range(THREADS)]
        self._threads.append(threading.Thread(target=lambda: asyncio.run(self._tasks())))
        for thread in self._threads:
            thread.start()

    def count(self, outcome: str, since: float = 0.0) -> list[int]:
        """Return the calls of each reader with an outcome."""
        with self._lock:
            ended = list(self.ended)
        counted = Counter(k for k, at, _, how in ended if how == outcome and at > since)
        return [counted[k] for k in range(THREADS + TASKS)]

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        self._client.close()

    def _loop(self, number: int) -> None:
        draw = random.Random(number)  # noqa: S311 - no secret
        while not self._stop.is_set():
            users = draw.sample(USERS, 20)
            began = time.monotonic()
            try:
                how = self._judge(self._client.read(users), users)
            except Exception as exc:  # noqa: BLE001 - the test wants to hear of all of them
                how = _named(exc)
            self._ended(number, began, how)

    async def _tasks(self) -> None:
        await asyncio.gather(*(self._task(THREADS + k) for k in range(TASKS)))
        await self._client.close_async()

    async def _task(self, number: int) -> None:
        draw = random.Random(number)  # noqa: S311 - no secret
        while not self._stop.is_set():
            users = draw.sample(USERS, 20)
            began = time.monotonic()
            try:
                how = self._judge(await self._client.read_async(users), users)
            except Exception as exc:  # noqa: BLE001 - the test wants to hear of all of them
                how = _named(exc)
            self._ended(number, began, how)
            await asyncio.sleep(0)

    def _judge(self, batch: Any, users: list[int]) -> str:
        right = np.array_equal(batch.embedding, self._expected[users])
        return "right" if right and batch.found.all() else "wrong"

    def _ended(self, number: int, began: float, how: str) -> None:
        ended = time.monotonic()
        with self._lock:
            self.ended.append((number, ended, ended - began, how))
        if how != "right":
            time.sleep(0.002)  # a refused connection is refused again at once


def _named(exc: Exception) -> str:
    return "typed" if isinstance(exc, TransientError) else f"untyped: {exc!r}"


@contextmanager
def _under_readers(spaces: Spaces, port: int, name: str) -> Iterator[Callable[[], None]]:
    """Let readers read before, during and after the body; it calls what it is given at the end of
    the fault. Then judge all calls."""
    readers = Readers(spaces, port)
    healed: list[float] = []
    try:
        wait_until(lambda: min(readers.count("right")) >= 5)
        yield lambda: healed.append(time.monotonic())
        (moment,) = healed
        wait_until(lambda: min(readers.count("right", moment)) >= 5)
    finally:
        readers.stop()
    outcomes = Counter(how for _, _, _, how in readers.ended)
    slowest = max(seconds for _, _, seconds, _ in readers.ended)
    first = [
        min(at for k, at, _, how in readers.ended if k == reader and how == "right" and at > moment)
        for reader in range(THREADS + TASKS)
    ]
    recovered = max(first) - moment
    print(
        f"{name}: {dict(outcomes)}, slowest call {slowest:.2f} s of {BUDGET} s, "
        f"all read again after {recovered:.3f} s"
    )
    assert set(outcomes) == {"right", "typed"}, outcomes
    assert slowest <= BUDGET + MARGIN
    assert recovered <= RECOVERED


def test_a_killed_server_that_comes_back(spaces: Spaces, process: RedisProcess) -> None:
    with _under_readers(spaces, process.port, "killed") as healed:
        for _ in range(2):
            process.kill()
            time.sleep(0.5)
            process.start()
        healed()


def test_a_stopped_server_that_goes_on(spaces: Spaces, process: RedisProcess) -> None:
    with _under_readers(spaces, process.port, "stopped") as healed:
        try:
            process.stop()
            time.sleep(3 * BUDGET)
        finally:
            process.go_on()
        healed()


def test_a_line_that_is_cut_in_the_middle(spaces: Spaces, line: Line) -> None:
    with _under_readers(spaces, line.port, "cut") as healed:
        for _ in range(5):
            line.cut()
            time.sleep(0.3)
            line.mend()
            time.sleep(0.05)
        healed()


def test_a_line_that_is_held_and_then_brings_late_answers(spaces: Spaces, line: Line) -> None:
    """A late answer to a call that was given up must not become the answer to the next."""
    with _under_readers(spaces, line.port, "held") as healed:
        for _ in range(3):
            line.hold()
            time.sleep(1.5 * BUDGET)
            line.release()
            time.sleep(0.05)
        healed()


def test_an_untouched_line_is_a_plain_way(spaces: Spaces, line: Line) -> None:
    readers = Readers(spaces, line.port)
    wait_until(lambda: min(readers.count("right")) >= 20)
    readers.stop()
    outcomes = {how for _, _, _, how in readers.ended}
    assert outcomes <= {"right", "typed"}, "a busy machine may be too slow, never wrong"


def test_a_ledger_that_says_nothing_is_waited_for_a_part_of_the_time(
    process: RedisProcess, postgres_server: Server, tmp_path: Path
) -> None:
    """The last known pin serves then; a ledger that speaks again is asked again."""
    name = f"ledger_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_server.url, autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}"')
        url = f"{postgres_server.url.rsplit('/', 1)[0]}/{name}"
        path = tmp_path / "repo"
        online = PROFILES["palate-redis"].settings(process.server, str(path))
        spaces = Spaces.make(path, online=online, ledger=url)
        spaces.add_space(USERS)
        add_consumer(spaces.context.store, spaces.ledger, "home", 1, **WHO)
        client = EmbeddingClient(spaces.context.store, url, "home", timeout_seconds=60.0)
        client.read(USERS)
        query = "SELECT pid FROM pg_stat_activity WHERE datname = %s"
        expected = vectors(spaces.ledger.space(1).encoder_version, USERS)
        stopped = [pid for (pid,) in admin.execute(query, [name]).fetchall()]
        assert stopped
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            for read in (client.read, lambda users, **k: asyncio.run(_async(client, users, **k))):
                began = time.monotonic()
                batch = read(USERS, timeout_seconds=1.0)
                assert time.monotonic() - began <= 1.0 + MARGIN
                assert np.array_equal(batch.embedding, expected)
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
        spaces.add_space(USERS)
        spaces.ledger.move_consumer("home", 2, expected_revision=1, **WHO)
        wait_until(lambda: client.read(USERS).space == 2)
        client.close()
    close(spaces.context.store._get_provider().online_store)


async def _async(client: EmbeddingClient, users: Any, **options: Any) -> Any:
    try:
        return await client.read_async(users, **options)
    finally:
        await client.close_async()
