"""The one question that a serving process asks its ledger all the time, as cheaply as it goes."""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from materialize.ledger import Pin
from materialize.ledger.connection import WAIT_SECONDS, make_engine
from materialize.ledger.consumers import pin_of, pin_query

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

__all__ = ["PinQuery", "Silent", "is_outage"]


class Silent(Exception):
    """The database did not answer in the given time; the connection is closed."""


class PinQuery:
    """Asks for the pin of one consumer over kept connections; safe for threads and forks.

    The statement is compiled once and goes to the driver as it is: SQLAlchemy's own way, with its
    transaction, took twice the time of the query.

    Parameters
    ----------
    url : str
        SQLAlchemy URL of a ledger of this release's revision.
    consumer : str

    Notes
    -----
    State: SQLAlchemy's pool of connections, each in autocommit.
    """

    def __init__(self, url: str, consumer: str) -> None:
        self._consumer = consumer
        self._engine = make_engine(url, pooled=True)
        self._sqlite = self._engine.dialect.name == "sqlite"
        if not self._sqlite:
            event.listen(self._engine, "connect", _set_autocommit)
        if self._engine.dialect.driver == "psycopg":
            event.listen(self._engine, "do_connect", _connect_bounded)
        self._sql, self._parameters = pin_query(self._engine.dialect, consumer)

    @property
    def has_idle(self) -> bool:
        """Whether a connection is at hand, so that asking need not make one."""
        pool: Any = self._engine.pool
        return bool(pool.checkedin())

    def ask(self, seconds: float | None = None) -> Pin | None:
        """Return the pin; None: there is no such consumer.

        Parameters
        ----------
        seconds : float, optional
            How long an answer may take, on a connection that is at hand.

        Raises
        ------
        Silent
            It took longer.
        Exception
            What the driver raises; see `is_outage`.
        """
        connection = self._engine.raw_connection()
        driver: Any = connection.driver_connection
        try:
            cursor = connection.cursor()
            if self._sqlite:
                wait = min(math.inf if seconds is None else seconds, WAIT_SECONDS)
                cursor.execute(f"PRAGMA busy_timeout = {max(1, int(wait * 1000))}")
            else:
                driver.answers_until = None if seconds is None else time.monotonic() + seconds
            cursor.execute(self._sql, self._parameters)
            found = cursor.fetchone()
            cursor.close()
        except BaseException:
            connection.invalidate()
            raise
        finally:
            connection.close()
        return None if found is None else pin_of(self._consumer, found)

    def is_outage(self, exc: Exception) -> bool:
        """Return whether an error says that the database does not answer.

        Anything else that a driver says (a wrong query, a table that is not there) is a fault.
        """
        return is_outage(exc, self._engine)

    def close(self) -> None:
        """Close the connections; a later question opens new ones."""
        self._engine.dispose()


def is_outage(exc: Exception, engine: Engine | None = None) -> bool:
    """Return whether an error of SQLAlchemy, or of an engine's driver, is an outage."""
    if isinstance(exc, Silent | PoolTimeout | InterfaceError | OperationalError):
        return True
    if isinstance(exc, DBAPIError):
        return bool(exc.connection_invalidated)
    driver: Any = None if engine is None else engine.dialect.loaded_dbapi
    return driver is not None and isinstance(exc, driver.InterfaceError | driver.OperationalError)


def _set_autocommit(connection: Any, _record: object) -> None:
    # A single SELECT needs no transaction around it, which would be two round trips more.
    connection.autocommit = True


def _connect_bounded(_dialect: object, _record: object, given: Any, named: Any) -> Any:
    from psycopg import Connection

    class Bounded(Connection[Any]):
        """A connection whose answers may be waited for until a moment.

        libpq has no limit for that: a server that is stopped, or a host that hangs, keeps its
        connections open and says nothing.
        """

        answers_until: float | None = None

        # psycopg 3.3 added an argument to this method.
        def wait(  # type: ignore[override]
            self, gen: Any, interval: float = 0.1, **options: Any
        ) -> Any:
            until = self.answers_until
            if until is None:
                return super().wait(gen, interval, **options)
            left = max(0.001, until - time.monotonic())
            return super().wait(_until(gen, until), min(interval, left), **options)

    return Bounded.connect(*given, **named)


def _until(gen: Generator[Any, Any, Any], until: float) -> Generator[Any, Any, Any]:
    """Pass on what psycopg waits for, and stop after a moment."""
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() >= until:
                gen.close()
                raise Silent
            wanted = gen.send(ready)
    except StopIteration as done:
        return done.value
