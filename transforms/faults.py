"""Rows that cannot be encoded: which of a batch they are, and how many a process has met."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from encoder.errors import MalformedInput, SpaceMismatch

if TYPE_CHECKING:
    from encoder.columns import Column, RawBatch

__all__ = ["RowError", "blank_rows", "count_faults", "row_error_counts", "rows_at_fault"]

_log = logging.getLogger(__name__)

RowError: TypeAlias = MalformedInput | SpaceMismatch

_counts: Counter[str] = Counter()
_lock = threading.Lock()


def blank_rows(batch: RawBatch, rows: Iterable[int]) -> RawBatch:
    """Return a batch in which some rows are null in every column, as those of unknown users."""
    at = np.fromiter(rows, np.int64)
    columns: dict[str, Column] = {}
    for name, column in batch.columns.items():
        values, valid = column.values.copy(), column.valid.copy()
        values[at] = "" if values.dtype == object else 0
        valid[at] = False
        kind: type[Any] = type(column)
        columns[name] = kind(values, valid)
    return replace(batch, columns=columns)


def rows_at_fault(batch: RawBatch, check: Callable[[RawBatch], Any]) -> dict[int, RowError]:
    """Return the rows for which ``check`` raises, each with the error it raises for that row alone.

    Parameters
    ----------
    batch : RawBatch
        Not modified.
    check : callable
        Judges each row by itself, and accepts null rows.

    Raises
    ------
    MalformedInput
        The fault is not a row's: a column is missing, or of another width as a whole.

    Notes
    -----
    Halves the batch until a half has no fault or is one row. The other rows are blanked and not
    cut out, so that an error names the row of the batch that it is about.
    """
    found: dict[int, RowError] = {}
    every = np.arange(batch.n_rows)

    def search(rows: npt.NDArray[np.int64]) -> None:
        try:
            check(blank_rows(batch, np.setdiff1d(every, rows, assume_unique=True).tolist()))
        except (MalformedInput, SpaceMismatch) as exc:
            if isinstance(exc, MalformedInput) and exc.row is None:
                raise
            if len(rows) == 1:
                found[int(rows[0])] = exc
                return
            middle = len(rows) // 2
            search(rows[:middle])
            search(rows[middle:])

    search(every)
    return found


def count_faults(errors: Mapping[int, RowError], encoder_version: str) -> None:
    """Count rows that were answered without an embedding, and log one line for all of them."""
    if not errors:
        return
    with _lock:
        _counts.update(type(error).__name__ for error in errors.values())
    first = errors[min(errors)]
    _log.warning(
        "encoder %s: %s row(s) answered without an embedding, the first: %s",
        *(encoder_version, len(errors), first),
    )


def row_error_counts() -> dict[str, int]:
    """Return how many rows this process has answered without an embedding, by type of error."""
    with _lock:
        return dict(_counts)
