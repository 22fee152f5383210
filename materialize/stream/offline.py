"""Streamed rows on their way into the offline store: few files, and none before its time."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa
    from feast import FeatureStore

__all__ = ["OfflineRows"]


class OfflineRows:
    """Holds rows until they are many or old, then appends one file a view; not safe for threads.

    Parameters
    ----------
    store : FeatureStore
    flush_seconds : float
        Age of the oldest row at which a flush is due.
    flush_rows : int
        Number of rows, of all views together, at which a flush is due.
    """

    def __init__(self, store: FeatureStore, *, flush_seconds: float, flush_rows: int) -> None:
        raise NotImplementedError

    def __len__(self) -> int:
        """Return the number of rows that are held."""
        raise NotImplementedError

    def add(self, view: str, table: pa.Table, now: float) -> None:
        """Hold rows of a view; ``now`` is the time of a monotonic clock, in seconds."""
        raise NotImplementedError

    def due(self, now: float) -> bool:
        """Return whether a flush is due."""
        raise NotImplementedError

    def flush(self) -> int:
        """Append what is held, return the number of rows; when it fails, all of it stays held."""
        raise NotImplementedError
