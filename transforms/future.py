"""What users do next: what training predicts beside the reconstruction.

Columns of training rows only. No view that is served, and no row that is encoded, holds them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
"""Counts of a span, in array order."""

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_POOLED, _HISTOGRAM = "future_pooled", "future_histogram"


def future_schema(layout: RawLayout, spans: Sequence[int], modality_version: str) -> FeatureSchema:
    """Return the blocks of what comes next.

    Parameters
    ----------
    layout : RawLayout
        Of the raw features; each of its modalities gives a pooled block and a histogram a span.
    spans : sequence of int
        Lengths in days.
    modality_version : str
        Of the item vectors that the future is pooled from.
    """
    pooled, histogram = f"{FUTURE}__{_POOLED}", f"{FUTURE}__{_HISTOGRAM}"
    blocks: list[Block] = []
    at = clusters_at = 0
    for days in spans:
        for m in layout.modalities:
            blocks.append(Block(f"{m.name}_next_{days}d", "pooled", pooled, at, m.dim))
            at += m.dim
        for m in layout.modalities:
            name = f"{m.name}_interests_next_{days}d"
            blocks.append(Block(name, "histogram", histogram, clusters_at, m.clusters))
            clusters_at += m.clusters
        counts = f"{FUTURE}__{_counts_of(days)}"
        blocks.append(Block(f"counts_next_{days}d", "counts", counts, 0, len(COUNTS)))
    return FeatureSchema(
        blocks=tuple(blocks),
        as_of_columns=(),
        event_count=ColumnElement(f"{FUTURE}__{_counts_of(spans[0])}", 0),
        onboarding_count=None,
        modality_columns=(),
        modality_version=modality_version,
    )


def future_tables(
    moments: pa.Table,
    data: UserDays | None,
    encoders: ModalityEncoders,
    *,
    spans: Sequence[int],
    end: int,
    rows_per_table: int = 16_384,
) -> Iterator[pa.Table]:
    """Yield what users do in spans of calendar days (UTC) that a moment knows nothing of.

    Parameters
    ----------
    moments : pyarrow.Table
        user_id, and ``first`` (int64): the first of the days, since 1970-01-01. A raw row knows
        all of the day of its newest event, so it is the next one; a row of profile and picks alone
        knows nothing of its own day.
    data : UserDays or None
        Active days of these users, all from the earliest ``first`` on; None: they have none.
    encoders : ModalityEncoders
    spans : sequence of int
        Lengths in days; all spans of a moment begin at its ``first``.
    end : int
        Day (since 1970-01-01) from which on nothing is seen.
    rows_per_table : int
        Bounds the memory of the wide arrays.

    Yields
    ------
    pyarrow.Table
        The moments' columns but ``first``, in their order, then: pooled vectors
        [span][modality][dim] and histograms [span][modality][cluster] of the days before ``end``,
        zeros where no event is covered; and counts of each span, null where it reaches to ``end``
        or beyond: how much will happen is unknown then, whereas counts of 0 say that the user did
        not come back.
    """
    first = moments.column("first").to_numpy()
    bounds = [(np.zeros(len(first), np.int64),) * 2 for _ in spans]
    sums = np.zeros((1, sum(m.dim + m.n_clusters + 1 for m in encoders.modalities)), np.float32)
    events = np.zeros(1, np.int64)
    if data is not None and len(first):
        users = moments.column(USER_KEY).combine_chunks()
        bounds = [_active_days(users, first, np.minimum(first + d, end), data) for d in spans]
        sums = daily_sums(data, encoders.index_of(data.items.dictionary), encoders)
        events = np.concatenate([[0], np.cumsum(np.add.reduceat(data.events, data.start[:-1]))])
    for begin in range(0, len(first), rows_per_table):
        rows = slice(begin, begin + rows_per_table)
        parts = [_pooled(start[rows], stop[rows], sums, encoders) for start, stop in bounds]
        table = moments.slice(begin, rows_per_table).drop_columns(["first"])
        for name, values in ((_POOLED, [p for p, _ in parts]), (_HISTOGRAM, [h for _, h in parts])):
            table = table.append_column(name, list_array(np.concatenate(values, axis=1)))
        for days, (start, stop) in zip(spans, bounds, strict=True):
            counts = [events[stop[rows]] - events[start[rows]], stop[rows] - start[rows]]
            column = list_array(np.stack(counts, axis=1).astype(np.float32))
            whole = pa.array(first[rows] + days <= end)
            table = table.append_column(_counts_of(days), pc.if_else(whole, column, None))
        yield table


def _counts_of(days: int) -> str:
    return f"future_counts_{days}d"


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


def _active_days(users: pa.Array, first: Ints, after: Ints, data: UserDays) -> tuple[Ints, Ints]:
    """Return the positions [start, stop) of each row's active days in [first, after)."""
    begins = np.flatnonzero(np.diff(data.user, prepend=-1))
    owner = pc.index_in(users, value_set=data.users.take(pa.array(begins)))
    row = np.flatnonzero(owner.is_valid().to_numpy(zero_copy_only=False))
    # One ascending number for user and day; users lie further apart than any row reaches.
    low = int(min(data.day.min(), first.min()))
    span = int(max(data.day.max(), after.max(), first.max())) - low + 1
    key = data.user * span + (data.day - low)
    begin = owner.drop_null().to_numpy().astype(np.int64) * span - low
    start, stop = np.zeros(len(first), np.int64), np.zeros(len(first), np.int64)
    start[row] = np.searchsorted(key, begin + first[row])
    # A row of the last day before the end has nothing left to see: [first, after) is empty then.
    stop[row] = np.searchsorted(key, begin + np.maximum(first, after)[row])
    return start, stop
