"""A connection to a NATS server with JetStream, for code that is not asynchronous."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine
from concurrent.futures import TimeoutError as NoAnswer
from typing import TYPE_CHECKING, Any, TypeVar

from encoder.errors import StoreRefused, StreamConflict, TransientError
from materialize.stream.connect import masked

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.js import JetStreamContext

__all__ = ["NatsLink", "event_subject", "stream_name"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_SILENCE_SECONDS = 5.0
"""How long the server may be silent before a call fails."""

_REFUSALS = (
    "authorization violation",
    "authorization failed",
    "authentication revoked",
    "authentication expired",
    "permissions violation",
)
"""What a server says that trying again does not change; not its "authentication timeout"."""


def stream_name(project: str) -> str:
    """Return the name of a project's JetStream stream."""
    return f"palate_{project}"


def event_subject(project: str, partition: int | str) -> str:
    """Return the subject of a partition's events; ``*`` for all of them.

    Examples
    --------
    >>> event_subject("shop", 3)
    'palate.shop.events.3'
    """
    return f"palate.{project}.events.{partition}"


class NatsLink:
    """A connection whose event loop runs in a thread of its own.

    It connects again by itself, with the calls of that time failing. A server that refuses it then,
    or ends it for good, refuses the next call.

    Parameters
    ----------
    url : str
        ``nats://user:password@host:4222`` or ``tls://``; several with commas between.
    project : str
        Its stream is made when it is not there: on disk, without a limit of age or size, because
        `NatsSource.trim` alone knows what was acknowledged. One that is there stays as it is.

    Raises
    ------
    StreamConflict
        The package is missing, the URL is malformed, or JetStream is not enabled.
    StoreRefused
        Wrong user, password or permissions, or the server ended the connection for good.
    TransientError
        The server does not answer.

    Notes
    -----
    State: the connection and its thread, until ``close``. Not safe for threads.
    """

    def __init__(self, url: str, project: str) -> None:
        try:
            import nats
        except ImportError as exc:
            raise StreamConflict(
                "Events from NATS need the package nats-py: pip install 'palate[nats]'."
            ) from exc
        self.project, self.stream = project, stream_name(project)
        self._shown = ",".join(masked(one) for one in url.split(","))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="nats", daemon=True)
        self._thread.start()
        self._connection: Client | None = None
        self._jetstream: JetStreamContext | None = None
        self._last, self._refusal = "", ""
        try:
            self._connection = self.run(
                nats.connect(
                    url.split(","),
                    connect_timeout=int(_SILENCE_SECONDS),
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=0.2,
                    error_cb=self._note,
                ),
                _SILENCE_SECONDS,
            )
            self.run(self._ensure_stream())
        except BaseException:
            self.close()
            raise

    @property
    def connection(self) -> Client:
        """The connection, to be used inside ``run`` only."""
        assert self._connection is not None  # noqa: S101 - made before anybody can ask
        return self._connection

    @property
    def jetstream(self) -> JetStreamContext:
        """JetStream of the connection, to be used inside ``run`` only."""
        if self._jetstream is None:
            self._jetstream = self.connection.jetstream(timeout=_SILENCE_SECONDS)
        return self._jetstream

    def run(self, coroutine: Coroutine[Any, Any, T], seconds: float = 2 * _SILENCE_SECONDS) -> T:
        """Return what a coroutine returns on the connection's loop.

        Raises
        ------
        StoreRefused, TransientError
            As the class.
        nats.js.errors.NotFoundError
            As it comes: the caller knows what is not there.
        """
        from nats.errors import Error
        from nats.js.errors import NotFoundError

        if self._connection is not None and self._connection.is_connected:
            self._refusal = ""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(seconds)
        except NotFoundError:
            raise
        except (Error, OSError, NoAnswer, asyncio.TimeoutError) as exc:
            future.cancel()
            raise self._failure(exc) from exc

    def close(self) -> None:
        """Close the connection and end its thread; safe to repeat."""
        if self._loop.is_closed():
            return
        if self._connection is not None:
            from nats.errors import Error

            closing = asyncio.run_coroutine_threadsafe(self._connection.close(), self._loop)
            try:
                closing.result(_SILENCE_SECONDS)
            except (Error, OSError, NoAnswer):
                logger.warning("NATS %s was not told that the connection ends", self._shown)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._cancel_rest())
        self._loop.close()

    async def _ensure_stream(self) -> None:
        from nats.js.api import RetentionPolicy, StorageType, StreamConfig
        from nats.js.errors import NotFoundError, ServiceUnavailableError

        try:
            try:
                await self.jetstream.stream_info(self.stream)
            except NotFoundError:
                await self.jetstream.add_stream(
                    StreamConfig(
                        name=self.stream,
                        subjects=[event_subject(self.project, "*")],
                        retention=RetentionPolicy.LIMITS,
                        storage=StorageType.FILE,
                        duplicate_window=120.0,
                    )
                )
        except ServiceUnavailableError as exc:
            raise StreamConflict(
                f"NATS {self._shown} runs without JetStream, which keeps the events. Start it with "
                "`nats-server --jetstream --store_dir DIR`."
            ) from exc

    async def _cancel_rest(self) -> None:
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _note(self, error: Exception) -> None:
        # While a connection is refused the client only says so here, and tries again for ever. A
        # refusal is kept apart: the server may reset the connection before its answer is read, and
        # a call that is not permitted is never answered.
        self._last = str(error) or type(error).__name__
        if _refuses(self._last):
            self._refusal = self._last
        logger.warning("NATS %s: %s", self._shown, self._last)

    def _failure(self, error: BaseException) -> StoreRefused | TransientError:
        told = self._refusal or str(error) or self._last or type(error).__name__
        if self._connection is not None and self._connection.is_closed:
            told = f"{self._connection.last_error or told} (the server ended the connection)"
        elif not _refuses(told):
            return TransientError(
                f"NATS {self._shown} does not answer: {told}. Start it, or correct stream.nats in "
                "palate.yaml."
            )
        return StoreRefused(
            f"NATS {self._shown} refuses: {told}. Check user, password and permissions in "
            "stream.nats of palate.yaml."
        )


def _refuses(told: str) -> bool:
    return any(refusal in told.lower() for refusal in _REFUSALS)
