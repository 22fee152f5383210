"""redis-py connections that send many commands at once and keep to a deadline.

redis-py's own pipeline has one timeout for each wait of a socket, set when the connection is made,
and builds a Python object for each command. Connecting, authentication, TLS and pooling are
redis-py's here; only what lies between a request and its answers is not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from functools import lru_cache
from typing import Any

from redis.exceptions import InvalidResponse

from materialize.reader.budget import Budget

__all__ = ["asynchronous", "deadline", "synchronous"]

_now = threading.local()


class deadline:
    """Let connections that this thread makes meanwhile keep to a budget."""

    def __init__(self, budget: Budget, where: str) -> None:
        self._limit = (budget, where)

    def __enter__(self) -> None:
        _now.limit = self._limit

    def __exit__(self, *_: object) -> None:
        del _now.limit


def _left() -> float | None:
    limit = getattr(_now, "limit", None)
    if limit is None:
        return None
    budget, where = limit
    left: float | None = budget.left(where)
    return left


def _collect(connection: Any, count: int) -> Generator[None, None, list[Any]]:
    """Return so many answers; yields whenever more bytes are to be read first.

    Raises
    ------
    InvalidResponse
        The server sent more than was asked for: whose answers these are is not known any more.
    """
    parser = connection._parser
    gets, nothing = parser._reader.gets, _not_enough()
    answers: list[Any] = []
    while len(answers) < count:
        answer = gets()
        if answer is nothing:
            yield
        else:
            answers.append(answer)
    if parser._reader.has_data():
        raise InvalidResponse("more answers than questions")
    return answers


@lru_cache(maxsize=1)
def _not_enough() -> object:
    from redis._parsers.hiredis import NOT_ENOUGH_DATA

    return NOT_ENOUGH_DATA


class _Synchronous:
    """What a redis-py connection gains."""

    def _connect(self: Any) -> Any:
        self._socket_connect_timeout = self._socket_timeout = _left()
        return super()._connect()  # type: ignore[misc]

    def read_response(self: Any, *arguments: Any, **options: Any) -> Any:
        """Read one answer of the handshake, within the deadline as a whole."""
        if self._sock is not None:
            self._sock.settimeout(_left())
        return super().read_response(*arguments, **options)  # type: ignore[misc]

    def exchange(self: Any, packed: bytes, count: int, left: Callable[[], float | None]) -> Any:
        """Send commands and return their answers; on any error the connection is closed.

        A connection with answers still to come would hand them to the next caller.
        """
        try:
            self._sock.settimeout(left())
            self._sock.sendall(packed)
            answers = _collect(self, count)
            while True:
                try:
                    next(answers)
                except StopIteration as done:
                    return done.value
                self._parser.read_from_socket(timeout=left())
        except BaseException:
            self.disconnect()
            raise


class _Asynchronous:
    """What a connection of redis-py's asyncio half gains."""

    async def exchange(self: Any, packed: bytes, count: int) -> Any:
        """Send commands and return their answers; on any error the connection is closed."""
        try:
            self._writer.write(packed)
            await self._writer.drain()
            answers = _collect(self, count)
            while True:
                try:
                    next(answers)
                except StopIteration as done:
                    return done.value
                await self._parser.read_from_socket()
        except BaseException:
            await self.disconnect(nowait=True)
            raise


@lru_cache
def synchronous(kind: type[Any]) -> type[Any]:
    """Return a connection class with ``exchange``, made of one of redis-py's."""
    return type(f"Timed{kind.__name__}", (_Synchronous, kind), {})


@lru_cache
def asynchronous(kind: type[Any]) -> type[Any]:
    """Return a connection class with an awaitable ``exchange``."""
    return type(f"Timed{kind.__name__}", (_Asynchronous, kind), {})
