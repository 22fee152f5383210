"""Fields straight from Redis: one round trip of HMGETs, and no Feast in between."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import tenacity
from redis import ConnectionPool, Redis
from redis import asyncio as redis_asyncio
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeout
from redis.retry import Retry

from materialize.reader.budget import Budget, retry_options
from materialize.reader.fields import Found, Users, Wanted
from materialize.reader.redis_layout import (
    TRANSIENT,
    RedisLayout,
    as_columns,
    refusal,
    require_answers,
)
from materialize.reader.redis_wire import asynchronous, deadline, synchronous

if sys.version_info >= (3, 11):
    from asyncio import timeout as async_timeout
else:
    from async_timeout import timeout as async_timeout  # redis-py needs it there, too

if TYPE_CHECKING:
    from feast import RepoConfig

__all__ = ["RedisFields"]

_KEYS_PER_TRIP = 1_000
"""Bounds what Redis and this process hold of one call's answers."""


class RedisFields:
    """Reads fields from one Redis server; safe for threads, event loops and forks.

    Parameters
    ----------
    config : RepoConfig
        Of a repository whose online store is Feast's Redis store, or a subclass of it.
    connections : int
        How many may be open at once, for threads together and for each event loop. A call that
        finds all of them taken waits, within its time.

    Notes
    -----
    State: pooled connections. A connection on which a call was given up is closed.
    """

    def __init__(self, config: RepoConfig, connections: int) -> None:
        from feast.infra.online_stores.redis import RedisOnlineStore

        nodes, options = RedisOnlineStore._parse_connection_string(
            config.online_store.connection_string
        )
        # RESP 3 could push messages between answers. Tries are counted here, not in each layer.
        self._options = {**options, **nodes[0], "protocol": 2, "retry": Retry(NoBackoff(), 0)}
        self._layout = RedisLayout(config)
        self._size = connections
        self._where = f"Redis at {nodes[0]['host']}:{nodes[0]['port']}"
        self._lock = threading.Lock()
        self._pid = -1
        self._pool: ConnectionPool | None = None
        self._turns = threading.BoundedSemaphore(connections)
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, Any] = WeakKeyDictionary()

    def read(self, wanted: Sequence[Wanted], users: Users, budget: Budget) -> Found:
        """Return the wanted fields; see `FieldReader`."""
        keys = self._layout.keys(wanted, users)
        return self._joined(
            wanted,
            [
                self._tried(partial(self._ask, packed, n, budget), budget)
                for packed, n in self._trips(wanted, keys)
            ],
        )

    async def read_async(self, wanted: Sequence[Wanted], users: Users, budget: Budget) -> Found:
        """Return what `read` does, over connections of the running event loop."""
        keys = self._layout.keys(wanted, users)
        parts: list[Sequence[Any]] = []
        try:
            async with async_timeout(budget.left(self._where)):
                for packed, n in self._trips(wanted, keys):
                    try:
                        parts.append(await self._ask_async(packed, n))
                    except TRANSIENT:
                        again = tenacity.AsyncRetrying(
                            **retry_options(budget, self._where, TRANSIENT)
                        )
                        parts.append(await again(self._ask_async, packed, n))
        except asyncio.TimeoutError:
            raise budget.over(self._where) from None
        return self._joined(wanted, parts)

    def close(self) -> None:
        """Close the connections of the threads; a later read opens new ones."""
        with self._lock:
            if self._pool is not None and self._pid == os.getpid():
                self._pool.disconnect()
            self._pool = None

    async def close_async(self) -> None:
        """Close the connections of the running event loop; a later read opens new ones."""
        kept = self._loops.pop(asyncio.get_running_loop(), None)
        if kept is not None:
            pool, _ = kept
            await pool.disconnect()

    def _trips(
        self, wanted: Sequence[Wanted], keys: Sequence[bytes]
    ) -> Iterator[tuple[bytes, int]]:
        for start in range(0, len(keys), _KEYS_PER_TRIP):
            part = keys[start : start + _KEYS_PER_TRIP]
            yield self._layout.commands(wanted, part), len(part)

    def _joined(self, wanted: Sequence[Wanted], parts: Sequence[Sequence[Any]]) -> Found:
        answers = parts[0] if len(parts) == 1 else [answer for part in parts for answer in part]
        return as_columns(answers, sum(len(one.fields) for one in wanted))

    def _tried(self, attempt: Callable[[], Sequence[Any]], budget: Budget) -> Sequence[Any]:
        try:
            return attempt()
        except TRANSIENT:
            # Most reads never come here: tenacity costs more than they do.
            again = tenacity.Retrying(**retry_options(budget, self._where, TRANSIENT))
            answers: Sequence[Any] = again(attempt)
            return answers

    def _ask(self, packed: bytes, n: int, budget: Budget) -> Sequence[Any]:
        pool, turns = self._opened()
        busy = f"One of the {self._size} connections to {self._where}"
        if not turns.acquire(timeout=budget.left(busy)):
            raise budget.over(busy)
        try:
            with deadline(budget, self._where):
                connection: Any = pool.get_connection()
            try:
                answers = connection.exchange(packed, n, lambda: budget.left(self._where))
            finally:
                pool.release(connection)
        except RedisTimeout:
            budget.left(self._where)  # raises TimedOut when it was the deadline
            raise
        except RedisError as exc:
            raise refusal(exc, self._where) from exc.__cause__
        finally:
            turns.release()
        return require_answers(answers, self._where)

    async def _ask_async(self, packed: bytes, n: int) -> Sequence[Any]:
        pool, turns = self._opened_async()
        async with turns:
            try:
                connection = await pool.get_connection()
                try:
                    answers = await connection.exchange(packed, n)
                finally:
                    await pool.release(connection)
            except RedisError as exc:
                raise refusal(exc, self._where) from exc.__cause__
        return require_answers(answers, self._where)

    def _opened(self) -> tuple[ConnectionPool, threading.BoundedSemaphore]:
        with self._lock:
            if self._pool is None or self._pid != os.getpid():
                # A forked child must not share sockets, nor wait for turns of the parent's threads.
                self._pool = _pool_of(Redis, ConnectionPool, synchronous, self._options)
                self._turns = threading.BoundedSemaphore(self._size)
                self._pid = os.getpid()
            return self._pool, self._turns

    def _opened_async(self) -> tuple[Any, asyncio.Semaphore]:
        loop = asyncio.get_running_loop()
        with self._lock:
            if loop not in self._loops:
                kinds = (redis_asyncio.Redis, redis_asyncio.ConnectionPool, asynchronous)
                pool = _pool_of(*kinds, self._options)
                self._loops[loop] = (pool, asyncio.Semaphore(self._size))
            pool, turns = self._loops[loop]
            return pool, turns


def _pool_of(client: Any, pool: Any, timed: Any, options: dict[str, Any]) -> Any:
    """Return a pool of the connections that redis-py would make for these options."""
    made = client(**options).connection_pool
    return pool(connection_class=timed(made.connection_class), **made.connection_kwargs)
