"""One view out of the online store, whichever store that is: what it takes, and its deletion."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from materialize.stores.redis_removal import Progress, redis_share, remove_from_redis
from materialize.stores.shares import OnlineShare

if TYPE_CHECKING:
    from feast import FeatureView, RepoConfig

__all__ = ["is_scanned", "key_count", "online_share", "remove_online"]

_NOTHING = OnlineShare(0, 0)
_UNKNOWN = OnlineShare(None, None)

_SQLITE_EXISTS = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = ?"
# Pages of the table and of its indices.
_SQLITE_PAGES = """
SELECT sum(pgsize) FROM dbstat
WHERE aggregate = TRUE AND name IN (SELECT name FROM sqlite_schema WHERE tbl_name = ?)
"""


def is_scanned(online: Any) -> bool:
    """Return whether a view's rows are found by a look at every key: counting costs as much."""
    return _family(online) == "redis"


def key_count(online: Any, config: RepoConfig) -> int | None:
    """Return how many keys a scan looks at, at most; None where there is no scan."""
    return int(online._get_client(config.online_store).dbsize()) if is_scanned(online) else None


def online_share(
    online: Any,
    config: RepoConfig,
    view: FeatureView,
    join_keys: Sequence[str],
    *,
    keys_per_second: float | None = None,
    progress: Progress | None = None,
) -> OnlineShare:
    """Return what a view takes of an online store; reads only.

    Parameters
    ----------
    online : feast.infra.online_stores.online_store.OnlineStore
    config : RepoConfig
    view : FeatureView
        Applied or not: its name and its features count.
    join_keys : sequence of str
        The view's; a view that is not applied does not know them.
    keys_per_second, progress
        See `materialize.stores.redis_removal`; other stores need neither.
    """
    family = _family(online)
    if family == "redis":
        return redis_share(
            *_in_redis(online, config, view, join_keys),
            keys_per_second=keys_per_second,
            progress=progress,
        )
    if family == "sqlite":
        return _sqlite_share(online, config, view)
    if family == "postgres":
        return _postgres_share(online, config, view)
    return _UNKNOWN


def remove_online(
    online: Any,
    config: RepoConfig,
    view: FeatureView,
    join_keys: Sequence[str],
    *,
    keys_per_second: float | None = None,
    progress: Progress | None = None,
    removed: Callable[[OnlineShare], object] | None = None,
) -> OnlineShare:
    """Delete a view's values and nothing else; safe to kill and to repeat.

    Parameters
    ----------
    online, config, view, join_keys, keys_per_second, progress
        As of `online_share`.
    removed : callable, optional
        Called with what each step removed: batches on Redis, the whole elsewhere.

    Returns
    -------
    OnlineShare
        On SQL, where Feast keeps a table a view and drops it: the rows of the table, and the bytes
        that the database can use again (SQLite's file keeps its size).
    """
    if _family(online) == "redis":
        return remove_from_redis(
            *_in_redis(online, config, view, join_keys),
            keys_per_second=keys_per_second,
            progress=progress,
            removed=removed,
        )
    share = online_share(online, config, view, join_keys)
    online.update(config, [view], [], [], [], partial=False)
    if removed is not None:
        removed(share)
    return share


def _family(online: Any) -> str:
    """Return which of Feast's stores this one is or extends, without importing all of them."""
    names = {base.__name__ for base in type(online).__mro__}
    known = {
        "RedisOnlineStore": "redis",
        "SqliteOnlineStore": "sqlite",
        "PostgreSQLOnlineStore": "postgres",
    }
    return next((family for name, family in known.items() if name in names), "other")


def _in_redis(
    online: Any, config: RepoConfig, view: FeatureView, join_keys: Sequence[str]
) -> tuple[Any, str, list[str], Sequence[str], str]:
    from feast.infra.online_stores.helpers import compute_versioned_name

    name = compute_versioned_name(view, config.registry.enable_online_feature_view_versioning)
    client = online._get_client(config.online_store)
    return client, name, [f.name for f in view.features], join_keys, config.project


def _table(config: RepoConfig, view: FeatureView) -> str:
    from feast.infra.online_stores.helpers import compute_table_id

    versioning = config.registry.enable_online_feature_view_versioning
    return str(compute_table_id(config.project, view, versioning))


def _sqlite_share(online: Any, config: RepoConfig, view: FeatureView) -> OnlineShare:
    table = _table(config, view)
    online._get_conn(config)  # creates the folder
    with closing(sqlite3.connect(online._get_db_path(config))) as connection:
        (exists,) = connection.execute(_SQLITE_EXISTS, [table]).fetchone()
        if not exists:
            return _NOTHING
        quoted = '"' + table.replace('"', '""') + '"'
        (rows,) = connection.execute(
            f"SELECT count(*) FROM {quoted} WHERE feature_name = ?",  # noqa: S608 - quoted
            [view.features[0].name],
        ).fetchone()
        try:
            (size,) = connection.execute(_SQLITE_PAGES, [table]).fetchone()
        except sqlite3.OperationalError as exc:
            if "dbstat" not in str(exc):
                raise
            size = None  # this SQLite was built without it
    return OnlineShare(rows, size)


def _postgres_share(online: Any, config: RepoConfig, view: FeatureView) -> OnlineShare:
    from psycopg import sql

    table = sql.Identifier(_table(config, view))
    with online._get_conn(config, autocommit=True) as connection:
        relation = table.as_string(connection)
        size = connection.execute(
            "SELECT pg_total_relation_size(to_regclass(%s))", [relation]
        ).fetchone()[0]
        if size is None:
            return _NOTHING
        rows = connection.execute(
            sql.SQL("SELECT count(*) FROM {} WHERE feature_name = %s").format(table),
            [view.features[0].name],
        ).fetchone()[0]
    return OnlineShare(rows, size)
