"""What is stored beside each embedding: age, number of events and status of a row."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from encoder.columns import RawBatch, ScalarColumn
from encoder.raw_values import RawReader, column_of
from encoder.schema import ColumnElement, FeatureSchema

__all__ = ["RowSummary", "summarise"]

_MOST = 2.0**62
"""Counts are told as int64; a float32 near 2**63 would not fit."""


class RowSummary(NamedTuple):
    """What is stored beside each embedding.

    Attributes
    ----------
    as_of : int64 (n_rows,)
        Microseconds since the epoch (UTC) of the newest raw feature; 0 when the row has none.
    n_events : int64 (n_rows,)
        Events in the longest window.
    status : object (n_rows,) of str
        ``warm``: has events. ``onboarded``: no events, but onboarding picks. ``cold``: neither.
    """

    as_of: npt.NDArray[np.int64]
    n_events: npt.NDArray[np.int64]
    status: npt.NDArray[np.object_]


def summarise(batch: RawBatch, schema: FeatureSchema, reader: RawReader) -> RowSummary:
    """Return age, number of events and status of each row.

    Raises
    ------
    MalformedInput
        A column is missing or of another width.
    """
    n = batch.n_rows
    as_of = np.zeros(n, np.int64)
    for name in schema.as_of_columns:
        column = column_of(batch, name, ScalarColumn)
        times = np.where(column.valid, column.values, 0).astype(np.int64)
        np.maximum(as_of, times, out=as_of)
    n_events = _count(batch, schema.event_count, reader)
    status = np.full(n, "cold", object)
    if schema.onboarding_count is not None:
        status[_count(batch, schema.onboarding_count, reader) > 0] = "onboarded"
    status[n_events > 0] = "warm"
    return RowSummary(as_of, n_events, status)


def _count(batch: RawBatch, where: ColumnElement, reader: RawReader) -> npt.NDArray[np.int64]:
    """Return one element of an array column as int64 (n_rows,), 0 where the row has none."""
    values, valid = reader.element(batch, where)
    return np.minimum(np.where(valid, values, 0), _MOST).astype(np.int64)
