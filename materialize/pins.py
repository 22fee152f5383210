"""What a consumer is to read at this moment, as the ledger says; for processes that serve."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

from sqlalchemy.engine import make_url

from encoder.errors import TimedOut, TransientError
from materialize.ledger import Ledger, Pin
from materialize.reader.pin_query import PinQuery, Silent, is_outage

__all__ = ["PinReader"]

_log = logging.getLogger(__name__)

_POSTGRES = {"connect_timeout": "2", "tcp_user_timeout": "2000"}
"""How long (s, ms) a ledger's server may be silent, unless the ledger's URL says otherwise."""
_RETRY_SECONDS = 1.0
"""While the ledger is out of reach it is asked again after so long, not by every read."""


@dataclass(frozen=True)
class _Known:
    """A pin and when (seconds, monotonic) the question was sent that it answers."""

    pin: Pin
    asked: float


class PinReader:
    """Asks the ledger for one consumer's pin; safe for threads.

    Parameters
    ----------
    ledger_url : str
    consumer : str
    pin_seconds : float
        How long a pin may be used without asking again; 0: every call asks.
    outage_seconds : float
        How long the last known pin goes on while the ledger cannot be reached.

    Notes
    -----
    State: pooled connections, and the last known pin.
    """

    def __init__(
        self, ledger_url: str, consumer: str, *, pin_seconds: float, outage_seconds: float
    ) -> None:
        for name, value in (("pin_seconds", pin_seconds), ("outage_seconds", outage_seconds)):
            if not value >= 0:
                raise ValueError(f"{name} {value!r} was given; 0 or more seconds are expected.")
        self._url, self._consumer = _with_timeout(ledger_url), consumer
        self._pin_seconds, self._outage_seconds = pin_seconds, outage_seconds
        self._lock = threading.Lock()
        self._ledger: Ledger | None = None
        self._query: PinQuery | None = None
        self._known: _Known | None = None
        self._failed = float("-inf")

    def held(self, *, ask: bool = False) -> Pin | None:
        """Return the pin if it is known without asking; None: call `ask`.

        It is when it is at most ``pin_seconds`` old, unless ``ask``; and for a moment after the
        ledger could not be reached.

        Raises
        ------
        TransientError
            The ledger cannot be reached, and the last known pin is too old or there is none.
        """
        known, now = self._known, time.monotonic()
        if not ask and known is not None and now - known.asked < self._pin_seconds:
            return known.pin
        if now - self._failed < _RETRY_SECONDS:
            return self._last_known(None)
        return None

    def silent(self, cause: TimedOut) -> Pin:
        """Return the last known pin when `ask` took too long; raises as `held` does."""
        self._failed = time.monotonic()
        return self._last_known(cause)

    def ask(self) -> Pin:
        """Return the pin as the ledger has it now, in one query that may take a while.

        Raises
        ------
        LedgerConflict
            There is no such consumer.
        TransientError
            As `held`.
        """
        asked = time.monotonic()
        try:
            ledger, query = self._opened()
            pin = self._asked_twice(query)
            if pin is None:
                pin = ledger.pin(self._consumer)  # says which consumers there are
        except Exception as exc:
            if not self._is_outage(exc):
                raise
            self._failed = time.monotonic()
            return self._last_known(exc)
        self._learned(pin, asked)
        return pin

    def ask_at_once(self, seconds: float | None) -> Pin | None:
        """Return what `ask` does, or None if it takes more than a query on a kept connection.

        Raises
        ------
        TimedOut
            The query took more than ``seconds``.
        """
        opened = self._query
        if opened is None or not opened.has_idle:
            return None
        asked = time.monotonic()
        try:
            pin = opened.ask(seconds)
        except Silent as exc:
            raise TimedOut(
                f"The ledger did not answer within {seconds:g} s.",
                waited_for="The ledger",
                seconds=seconds or 0.0,
            ) from exc
        except Exception as exc:
            if not self._is_outage(exc):
                raise
            opened.close()  # the other connections that are kept died with this one
            return None
        if pin is not None:
            self._learned(pin, asked)
        return pin

    def close(self) -> None:
        """Close the connections; the next question opens new ones."""
        with self._lock:
            if self._ledger is not None:
                self._ledger.close()
            if self._query is not None:
                self._query.close()

    def embedding_dim(self, pin: Pin) -> int | None:
        """Return the width of a pin's vectors; None: the ledger does not know it, or is away."""
        if time.monotonic() - self._failed < _RETRY_SECONDS:
            return None
        try:
            facts = self._opened()[0].space(pin.space).facts
        except Exception as exc:
            if not self._is_outage(exc):
                raise
            return None
        return facts.get("embedding_dim")

    def _asked_twice(self, query: PinQuery) -> Pin | None:
        try:
            return query.ask()
        except Exception as exc:
            # A kept connection may have died with its server, and then the others did, too.
            if not query.is_outage(exc):
                raise
            query.close()
            return query.ask()

    def _is_outage(self, exc: Exception) -> bool:
        return is_outage(exc) if self._query is None else self._query.is_outage(exc)

    def _learned(self, pin: Pin, asked: float) -> None:
        self._failed = float("-inf")
        with self._lock:
            # An answer that was asked for earlier may come later, from another thread.
            if self._known is None or self._known.asked <= asked:
                self._known = _Known(pin, asked)

    def _opened(self) -> tuple[Ledger, PinQuery]:
        with self._lock:
            if self._ledger is None:
                self._ledger = Ledger(self._url)  # looks at the database's revision
            if self._query is None:
                self._query = PinQuery(self._url, self._consumer)
            return self._ledger, self._query

    def _last_known(self, cause: Exception | None) -> Pin:
        known = self._known
        where = make_url(self._url).render_as_string(hide_password=True)
        if known is None:
            raise TransientError(
                f"The ledger at {where} cannot be reached, so nobody knows which space "
                f"{self._consumer!r} reads. Check its server and the URL."
            ) from cause
        age = time.monotonic() - known.asked
        if age > self._outage_seconds:
            raise TransientError(
                f"The ledger at {where} could not be reached for {age:.0f} s; the last known pin "
                f"of {self._consumer!r} (space {known.pin.space}) may serve for "
                f"{self._outage_seconds:g} s. Check its server."
            ) from cause
        if cause is not None:  # one line for each attempt, not for each read
            _log.warning(
                "ledger at %s cannot be reached (%s); %r goes on with space %s, known for %.0f s",
                *(where, type(cause).__name__, self._consumer, known.pin.space, age),
            )
        return known.pin


def _with_timeout(ledger_url: str) -> str:
    """Return the URL with a bound on waiting: a host that is gone answers nothing at all."""
    url = make_url(ledger_url)
    if url.get_backend_name() == "postgresql":
        url = url.update_query_dict({k: v for k, v in _POSTGRES.items() if k not in url.query})
    return url.render_as_string(hide_password=False)
