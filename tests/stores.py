"""The online stores under contract: how each is configured, and where they differ, as data.

A difference is an expected value with its reason; the tests never ask for a name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

__all__ = ["PROFILES", "StoreProfile"]


@dataclass(frozen=True)
class StoreProfile:
    """One online store and what it answers."""

    name: str
    family: str
    """Stores of one family share a layout and read each other's rows."""
    type: str
    """``online_store.type`` of feature_store.yaml."""
    server: str | None
    """Fixture of the server that it needs."""
    atomic: bool = False
    """Takes Arrow, and compares and sets in one step."""

    rewrite_at_equal_event_time: str = "second"
    """Of two writes at one event time, the second created later: the one that is read."""
    older_created_at_equal_event_time: str = "second"
    """Likewise, the second created earlier."""
    older_event: str = "second"
    """Of two writes, the second with an older event time: the one that is read."""
    never_written: str = "nothing"
    """``online_read`` of an unknown entity: ``nothing`` is (None, None)."""
    never_written_status: str = "NOT_FOUND"
    expired_status: str = "PRESENT"
    """Of a row older than its view's ttl; its value is always handed out."""
    event_time_unit_us: int = 1
    """Resolution of the event time that is read back."""
    reads_async: bool = True
    """Feast gives the store asynchronous reads; else they raise NotImplementedError."""
    event_time_zone: str = "UTC"
    """``session``: the clock reading is UTC's, taken for the database session's time zone."""

    def settings(self, server: Any, folder: str) -> dict[str, Any]:
        """Return ``online_store`` of a feature_store.yaml."""
        return {"type": self.type, **_SETTINGS[self.family](server, folder)}


def _redis(server: Any, folder: str) -> dict[str, Any]:
    return {"connection_string": f"127.0.0.1:{server.port}"}


def _sqlite(server: Any, folder: str) -> dict[str, Any]:
    return {"path": f"{folder}/online.db"}


def _postgres(server: Any, folder: str) -> dict[str, Any]:
    return {
        **{"host": server.host, "port": server.port, "sslmode": "disable", "db_schema": "public"},
        **{"database": "palate", "user": "palate", "password": "palate"},
    }


_SETTINGS = {"redis": _redis, "sqlite": _sqlite, "postgres": _postgres}

_STOCK = (
    # SQL: an unconditional upsert, the last writer wins. SQLite's adapter cuts event times to
    # whole seconds.
    StoreProfile(
        "stock-sqlite", "sqlite", "sqlite", None, event_time_unit_us=1_000_000, reads_async=False
    ),
    # PostgreSQL: event times go in without a zone, into a column with one.
    StoreProfile(
        "stock-postgres", "postgres", "postgres", "postgres_server", event_time_zone="session"
    ),
    # Redis: reads event times, compares with <= in Python, writes; looks at no created time.
    StoreProfile(
        "stock-redis",
        "redis",
        "redis",
        "redis_server",
        rewrite_at_equal_event_time="first",
        older_created_at_equal_event_time="first",
        older_event="first",
        # An empty hash is parsed as a row of unset values at 1970.
        never_written="1970 and unset values",
        never_written_status="PRESENT",
    ),
)
_CLASSES = {
    "sqlite": "materialize.stores.sqlite.PalateSqliteOnlineStore",
    "postgres": "materialize.stores.postgres.PalatePostgresOnlineStore",
    "redis": "materialize.stores.redis.PalateRedisOnlineStore",
}
# One behaviour on every store; only SQLite's column for event times stays as coarse as Feast's.
_PALATE = tuple(
    replace(
        stock,
        name=f"palate-{stock.family}",
        type=_CLASSES[stock.family],
        atomic=True,
        rewrite_at_equal_event_time="second",
        older_created_at_equal_event_time="first",
        older_event="first",
        never_written="nothing",
        never_written_status="NOT_FOUND",
        expired_status="OUTSIDE_MAX_AGE",
        event_time_zone="UTC",
    )
    for stock in _STOCK
)
PROFILES = {profile.name: profile for profile in (*_STOCK, *_PALATE)}
