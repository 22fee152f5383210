"""Streamed rows on their way into the offline store: few files, and none before its time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from materialize.source import applied_view

if TYPE_CHECKING:
    from feast import FeatureStore

__all__ = ["OfflineRows"]


class OfflineRows:
    """Holds rows until they are many or old, then appends one file a view.

    ``flush`` may run in another thread than the rest, which goes on meanwhile; not two at a time.

    Parameters
    ----------
    store : FeatureStore
    flush_seconds : float
        Age of the oldest row at which a flush is due.
    flush_rows : int
        Number of rows, of all views together, at which a flush is due.
    """

    def __init__(self, store: FeatureStore, *, flush_seconds: float, flush_rows: int) -> None:
        from feast.infra.offline_stores.offline_utils import get_offline_store_from_config

        self._store = store
        self._offline: Any = get_offline_store_from_config(store.config.offline_store)
        self._flush_seconds, self._flush_rows = flush_seconds, flush_rows
        self._held: dict[str, list[pa.Table]] = {}
        self._leaving: dict[str, list[pa.Table]] = {}
        self._rows = 0
        self._oldest = 0.0

    def __len__(self) -> int:
        """Return the number of rows that are held, without those that `set_off` took."""
        return self._rows

    def add(self, view: str, table: pa.Table, now: float) -> None:
        """Hold rows of a view; ``now`` is the time of a monotonic clock, in seconds."""
        if not len(table):
            return
        if not self._rows:
            self._oldest = now
        self._held.setdefault(view, []).append(table)
        self._rows += len(table)

    def due(self, now: float) -> bool:
        """Return whether a flush is due."""
        if not self._rows:
            return False
        return self._rows >= self._flush_rows or now - self._oldest >= self._flush_seconds

    def set_off(self) -> None:
        """Take what is held for the next `flush`; what is added from now on waits."""
        for view, tables in self._held.items():
            self._leaving.setdefault(view, []).extend(tables)
        self._held, self._rows = {}, 0

    def flush(self) -> int:
        """Append what was set off, return the number of rows; what cannot be appended stays.

        A view that was appended before another one failed is not appended again.

        Raises
        ------
        DataFault
            A view is not applied any more, or its source cannot be appended to.
        OSError
            The disk does not take it.
        """
        rows = 0
        for view in list(self._leaving):
            table = pa.concat_tables(self._leaving[view])
            self._offline.offline_write_batch(
                self._store.config, applied_view(self._store, view), table, None
            )
            del self._leaving[view]
            rows += len(table)
        return rows
