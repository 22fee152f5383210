"""What users do next: what training predicts beside the reconstruction.

Columns of training rows only. No view that is served, and no row that is encoded, holds them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from encoder.modality import ModalityEncoders
from encoder.schema import Block, ColumnElement, FeatureSchema
from transforms.buckets import UserDays
from transforms.layout import RawLayout
from transforms.names import USER_KEY
from transforms.windows import daily_sums, list_array, mean_of, runs_of_days

__all__ = ["COUNTS", "FUTURE", "future_schema", "future_tables"]

FUTURE = "user_future"
"""Name of the columns' view."""

COUNTS = ("events", "active_days")
"""Counts of the days after, in array order."""

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_POOLED, _HISTOGRAM, _COUNTS = (f"future_{name}" for name in ("pooled", "histogram", "counts"))


def future_schema(layout: RawLayout, days: int, modality_version: str) -> FeatureSchema:
    """Return the blocks that the next ``days`` days give.

    Parameters
    ----------
    layout : RawLayout
        Of the raw features; each of its modalities gives a pooled block and a histogram.
    days : int
    modality_version : str
        Of the item vectors that the future is pooled from.
    """
    pooled, histogram, counts = (f"{FUTURE}__{name}" for name in (_POOLED, _HISTOGRAM, _COUNTS))
    blocks: list[Block] = []
    offset = 0
    for m in layout.modalities:
        blocks.append(Block(f"{m.name}_next_{days}d", "pooled", pooled, offset, m.dim))
        offset += m.dim
    offset = 0
    for m in layout.modalities:
        name = f"{m.name}_interests_next_{days}d"
        blocks.append(Block(name, "histogram", histogram, offset, m.clusters))
        offset += m.clusters
    blocks.append(Block(f"counts_next_{days}d", "counts", counts, 0, len(COUNTS)))
    return FeatureSchema(
        blocks=tuple(blocks),
        as_of_columns=(),
        event_count=ColumnElement(counts, 0),
        onboarding_count=None,
        modality_columns=(),
        modality_version=modality_version,
    )


def future_tables(
    moments: pa.Table,
    data: UserDays | None,
    encoders: ModalityEncoders,
    *,
    days: int,
    end: int,
    rows_per_table: int = 16_384,
) -> Iterator[pa.Table]:
    """Yield what users do in ``days`` calendar days (UTC) that a moment knows nothing of.

    Parameters
    ----------
    moments : pyarrow.Table
        user_id, and ``first`` (int64): the first of the days, since 1970-01-01. A raw row knows
        all of the day of its newest event, so it is the next one; a row of profile and picks alone
        knows nothing of its own day.
    data : UserDays or None
        Active days of these users, all from the earliest ``first`` on; None: they have none.
    encoders : ModalityEncoders
    days : int
    end : int
        Day (since 1970-01-01) from which on nothing may be seen.
    rows_per_table : int
        Bounds the memory of the wide arrays.

    Yields
    ------
    pyarrow.Table
        The moments' columns but ``first``, in their order, then: pooled vectors [modality][dim] and
        histograms [modality][cluster], zeros where no event is covered; and counts. All null where
        the days do not all lie before ``end``: what happens then is unknown, whereas counts of 0
        say that the user did not come back.
    """
    first = moments.column("first").to_numpy()
    known = first + days <= end
    start = stop = np.zeros(len(first), np.int64)
    sums = np.zeros((1, sum(m.dim + m.n_clusters + 1 for m in encoders.modalities)), np.float32)
    events = np.zeros(1, np.int64)
    if data is not None and len(first):
        start, stop = _spans(moments.column(USER_KEY).combine_chunks(), first, data, days)
        stop = np.where(known, stop, start)
        sums = daily_sums(data, encoders.index_of(data.items.dictionary), encoders)
        events = np.concatenate([[0], np.cumsum(np.add.reduceat(data.events, data.start[:-1]))])
    for begin in range(0, len(first), rows_per_table):
        rows = slice(begin, begin + rows_per_table)
        pooled, histogram = _pooled(start[rows], stop[rows], sums, encoders)
        counts = [events[stop[rows]] - events[start[rows]], stop[rows] - start[rows]]
        table = moments.slice(begin, rows_per_table).drop_columns(["first"])
        for name, values in (
            (_POOLED, pooled),
            (_HISTOGRAM, histogram),
            (_COUNTS, np.stack(counts, axis=1).astype(np.float32)),
        ):
            column = pc.if_else(pa.array(known[rows]), list_array(values), None)
            table = table.append_column(name, column)
        yield table


def _pooled(
    start: Ints, stop: Ints, sums: Floats, encoders: ModalityEncoders
) -> tuple[Floats, Floats]:
    """Return mean vectors and histograms of the days [start, stop) of each row."""
    total = runs_of_days(start, stop - 1, len(sums), np.float32) @ sums
    pooled: list[Floats] = []
    histogram: list[Floats] = []
    column = 0
    for m in encoders.modalities:
        clusters, covered = column + m.dim, column + m.dim + m.n_clusters
        pooled.append(mean_of(total[:, column:clusters], total[:, covered]))
        histogram.append(mean_of(total[:, clusters:covered], total[:, covered]))
        column = covered + 1
    return np.concatenate(pooled, axis=1), np.concatenate(histogram, axis=1)


def _spans(users: pa.Array, first: Ints, data: UserDays, days: int) -> tuple[Ints, Ints]:
    """Return the positions [start, stop) of each row's active days in reach; equal: none."""
    begins = np.flatnonzero(np.diff(data.user, prepend=-1))
    owner = pc.index_in(users, value_set=data.users.take(pa.array(begins)))
    row = np.flatnonzero(owner.is_valid().to_numpy(zero_copy_only=False))
    # One ascending number for user and day; users lie further apart than any row reaches.
    low = int(min(data.day.min(), first.min()))
    span = int(max(data.day.max(), first.max())) - low + days + 1
    key = data.user * span + (data.day - low)
    begin = owner.drop_null().to_numpy().astype(np.int64) * span + (first[row] - low)
    start, stop = np.zeros(len(first), np.int64), np.zeros(len(first), np.int64)
    start[row], stop[row] = np.searchsorted(key, begin), np.searchsorted(key, begin + days)
    return start, stop
