"""Rows that were read a moment ago, kept in the process."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from cachetools import TTLCache

from materialize.ledger import Pin
from materialize.reader.rows import Rows

__all__ = ["RowCache", "merge_rows"]

_Row: TypeAlias = tuple[npt.NDArray[np.float32], int, int, str]


class RowCache:
    """Keeps rows for some seconds; safe for threads.

    A row is found again under the view and encoder version that it was read for, so that a pin that
    moved never meets it. Only whole rows of the pinned space are kept; a missing user is not.

    Parameters
    ----------
    users : int
        How many rows are kept; the least recently used go first.
    seconds : float
        How old a row may be.

    Notes
    -----
    State: the rows. A user costs the vector and about 500 bytes.
    """

    def __init__(self, users: int, seconds: float) -> None:
        for name, value in (("cache_users", users), ("cache_seconds", seconds)):
            if not value > 0:
                raise ValueError(f"{name} {value!r} was given; a number above 0 is expected.")
        self._rows: TTLCache[tuple[str, str, Any], _Row] = TTLCache(users, seconds)
        self._lock = threading.Lock()

    def take(self, pin: Pin, users: Sequence[Any]) -> list[_Row | None]:
        """Return the rows of users, None where there is none."""
        view, version = pin.view, pin.encoder_version
        with self._lock:
            return [self._rows.get((view, version, user)) for user in users]

    def keep(self, pin: Pin, users: Sequence[Any], rows: Rows) -> None:
        """Keep the rows of users who were found, and checked against the pin."""
        view, version = pin.view, pin.encoder_version
        at = np.flatnonzero(rows.found).tolist()
        # Copies: a row would otherwise hold the memory of everybody it was read with.
        kept = [
            (rows.embedding[k].copy(), int(rows.as_of[k]), int(rows.n_events[k]), rows.status[k])
            for k in at
        ]
        with self._lock:
            for k, row in zip(at, kept, strict=True):
                self._rows[(view, version, users[k])] = row


def merge_rows(
    pin: Pin, kept: Sequence[_Row | None], missing: Sequence[int], fresh: Rows | None
) -> Rows:
    """Return kept rows, and those that were read where one was missing.

    Parameters
    ----------
    pin : Pin
        Of all of them.
    kept : sequence, n
        At least one is not None.
    missing : sequence of int, m
        Where ``kept`` is None.
    fresh : Rows of m users, or None where m is 0
    """
    n, at = len(kept), [k for k, row in enumerate(kept) if row is not None]
    rows = [row for row in kept if row is not None]
    width = len(rows[0][0])
    merged = Rows(
        np.zeros(n, np.bool_),
        np.full((n, width), np.nan, np.float32),
        np.full(n, -1, np.int64),
        np.full(n, -1, np.int64),
        np.full(n, "", object),
        np.full(n, pin.space, np.int64),
        np.full(n, pin.encoder_version, object),
        {} if fresh is None else {missing[k]: fault for k, fault in fresh.faults.items()},
    )
    merged.found[at] = True
    merged.embedding[at] = [row[0] for row in rows]
    merged.as_of[at] = [row[1] for row in rows]
    merged.n_events[at] = [row[2] for row in rows]
    merged.status[at] = [row[3] for row in rows]
    if fresh is not None:
        for name in ("found", "as_of", "n_events", "status"):
            getattr(merged, name)[missing] = getattr(fresh, name)
        if fresh.found.any():
            merged.embedding[missing] = fresh.embedding
    return merged
