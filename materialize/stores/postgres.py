"""PostgreSQL as online store: Arrow to a staging table by COPY, then one compare-and-set."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
from feast import FeatureView, RepoConfig
from feast.infra.online_stores.helpers import compute_table_id
from feast.infra.online_stores.postgres_online_store.postgres import (
    PostgreSQLOnlineStore,
    PostgreSQLOnlineStoreConfig,
)
from feast.infra.utils.postgres.connection_utils import _get_conn as connect
from feast.infra.utils.postgres.connection_utils import _get_connection_pool as open_pool
from feast.infra.utils.postgres.postgres_config import ConnectionType
from psycopg import Connection, sql

from materialize.stores.base import AtomicOnlineStore, WithoutVectorSearch
from materialize.stores.rows import EncodedRows

__all__ = ["PalatePostgresOnlineStore", "PalatePostgresOnlineStoreConfig"]

_TO_2000_US = 946_684_800_000_000
"""PostgreSQL counts binary timestamps from 2000."""
_NULL = b"\xff\xff\xff\xff"
# Format "binary" of COPY: signature, flags, length of the header's extension; -1 ends the rows.
_COPY_HEAD = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
_COPY_END = b"\xff\xff"
_USERS_PER_PIECE = 1_000
"""Users whose rows are handed to the connection at once."""
_COLUMNS = ("entity_key", "feature_name", "value", "value_text", "event_ts", "created_ts")

_STAGING = """
CREATE TEMP TABLE IF NOT EXISTS palate_staging (
    entity_key BYTEA, feature_name TEXT, value BYTEA, value_text TEXT,
    event_ts TIMESTAMPTZ, created_ts TIMESTAMPTZ
) ON COMMIT DELETE ROWS
"""
# A write of 20,000 vectors is 12 MB; PostgreSQL's default of 4 MB would sort it on disk.
_SORT_MEMORY = "SET LOCAL work_mem = '64MB'"
# Sorted, so that two writers of the same users wait for each other instead of deadlocking. The rows
# arrive in that order, which makes this sort cheap; the order of a table's rows is no promise.
_MERGE = """
INSERT INTO {table} AS t ({columns})
SELECT {columns} FROM palate_staging ORDER BY entity_key, feature_name
ON CONFLICT (entity_key, feature_name) DO UPDATE SET
    value = excluded.value, value_text = excluded.value_text,
    event_ts = excluded.event_ts, created_ts = excluded.created_ts
WHERE excluded.event_ts > t.event_ts
    OR (excluded.event_ts = t.event_ts
        AND (t.created_ts IS NULL OR excluded.created_ts >= t.created_ts))
"""


class PalatePostgresOnlineStoreConfig(WithoutVectorSearch, PostgreSQLOnlineStoreConfig):
    """Feast's PostgreSQL settings, without vector search."""

    type: str = "materialize.stores.postgres.PalatePostgresOnlineStore"  # type: ignore[assignment]
    """Online store type selector."""


class PalatePostgresOnlineStore(AtomicOnlineStore, PostgreSQLOnlineStore):
    """Feast's PostgreSQL layout; one write is one transaction, seen whole or not at all.

    State: with one connection, the default, one thread at a time uses it; ``conn_type: pool``
    gives each thread its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.RLock()

    @contextmanager
    def _get_conn(self, config: RepoConfig, autocommit: bool = False) -> Iterator[Connection[Any]]:
        """Yield a connection; Feast's own refuses other types than ``postgres``.

        After an error the transaction is rolled back and a pool gets its connection back, which
        Feast's own omits.
        """
        settings = config.online_store
        if settings.conn_type == ConnectionType.pool:
            if not self._conn_pool:
                self._conn_pool = open_pool(settings)
                self._conn_pool.open()
            with self._conn_pool.connection() as connection:
                connection.set_autocommit(autocommit)
                yield connection
            return
        with self._lock:
            if not self._conn or self._conn.closed:
                self._conn = connect(settings)
                # Feast makes stores on the way and closes none of them.
                weakref.finalize(self, self._conn.close)
            self._conn.set_autocommit(autocommit)
            try:
                yield self._conn
            except BaseException:
                if not self._conn.closed:
                    self._conn.rollback()
                raise

    def _write_encoded(self, config: RepoConfig, view: FeatureView, rows: EncodedRows) -> int:
        table = compute_table_id(
            config.project, view, config.registry.enable_online_feature_view_versioning
        )
        rows = rows.newest_of_each_key().sorted_by_key()
        columns = sql.SQL(", ").join(sql.Identifier(name) for name in _COLUMNS)
        merge = sql.SQL(_MERGE).format(table=sql.Identifier(table), columns=columns)
        with self._get_conn(config) as connection, connection.cursor() as cursor:
            cursor.execute(_STAGING)
            cursor.execute(_SORT_MEMORY)
            with cursor.copy("COPY palate_staging FROM STDIN (FORMAT BINARY)") as copy:
                copy.write(_COPY_HEAD)
                for some in _copy_rows(rows):
                    copy.write(some)
                copy.write(_COPY_END)
            changed = cursor.execute(merge).rowcount
            connection.commit()
        return changed // len(rows.names)


def _copy_rows(rows: EncodedRows) -> Iterator[bytes]:
    """Yield the binary rows, in the order of keys and features."""
    keys = [_framed(key) for key in rows.keys]
    event = _framed_times(rows.event_us)
    created = _framed_times(rows.created_us)
    if not rows.has_created.all():
        present = rows.has_created.tolist()
        created = [time if there else _NULL for time, there in zip(created, present, strict=True)]
    features = sorted(zip(rows.names, rows.values, rows.texts, strict=True), key=itemgetter(0))
    for start in range(0, len(rows), _USERS_PER_PIECE):
        part = slice(start, start + _USERS_PER_PIECE)
        framed = [
            _feature_rows(name, keys[part], values[part], texts[part], event[part], created[part])
            for name, values, texts in features
        ]
        yield b"".join(chain.from_iterable(zip(*framed, strict=True)))


def _feature_rows(
    name: str,
    keys: list[bytes],
    values: list[bytes],
    texts: list[str | None],
    event: list[bytes],
    created: list[bytes],
) -> list[bytes]:
    label = _framed(name.encode("utf-8"))
    return [
        # Six columns, then each with its length in front.
        b"\x00\x06"
        + key
        + label
        + len(value).to_bytes(4, "big")
        + value
        + (_NULL if text is None else _framed(text.encode("utf-8")))
        + when
        + made
        for key, value, text, when, made in zip(keys, values, texts, event, created, strict=True)
    ]


def _framed(content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + content


def _framed_times(moments_us: npt.NDArray[np.int64]) -> list[bytes]:
    framed = np.zeros((len(moments_us), 12), np.uint8)
    framed[:, 3] = 8
    framed[:, 4:] = (moments_us - _TO_2000_US).astype(">i8").view(np.uint8).reshape(-1, 8)
    items: list[bytes] = framed.view("V12").ravel().tolist()
    return items
