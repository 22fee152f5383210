"""What comes next: against loops over the events, and never beyond the end."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.transforms.event_tables import (
    DAY_0,
    ENCODERS,
    EVENTS,
    LAYOUT,
    Event,
    buckets_of,
    write_events,
)
from transforms.future import COUNTS, FUTURE, future_schema, future_tables

SPANS = (2, 5)
MOMENTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 27)), min_size=1, max_size=12)


def _future(
    events: list[Event], moments: list[tuple[int, int]], end: int, rows_per_table: int = 3
) -> list[dict[str, Any]]:
    """Return the columns of each moment (user, first day), in the order given."""
    with tempfile.TemporaryDirectory() as folder:
        buckets = buckets_of(write_events(Path(folder), events), Path(folder))
        assert buckets.partitions == 1
        data = buckets.load(0, DAY_0 + min(first for _, first in moments))
        table = pa.table(
            {
                "user_id": pa.array([f"user {u}" for u, _ in moments]),
                "first": pa.array([DAY_0 + first for _, first in moments], pa.int64()),
            }
        )
        tables = future_tables(
            table, data, ENCODERS, spans=SPANS, end=DAY_0 + end, rows_per_table=rows_per_table
        )
        return [row for part in tables for row in part.to_pylist()]


def _expected(
    events: list[Event], user: int, first: int, end: int
) -> tuple[np.ndarray, np.ndarray, list[list[float] | None]]:
    pooled: list[np.ndarray] = []
    histogram: list[np.ndarray] = []
    counts: list[list[float] | None] = []
    for days in SPANS:
        inside = [e for e in events if e[0] == user and first <= e[1] < min(first + days, end)]
        for m in ENCODERS.modalities:
            covered = [e for e in inside if m.cluster_of[e[3]] >= 0]
            total = sum(e[4] for e in covered)
            vector, share = np.zeros(m.dim), np.zeros(m.n_clusters)
            for e in covered:
                vector += e[4] * m.vectors[e[3]] / total
                share[m.cluster_of[e[3]]] += e[4] / total
            pooled.append(vector)
            histogram.append(share)
        active = {e[1] for e in inside}
        counts.append([len(inside), len(active)] if first + days <= end else None)
    return np.concatenate(pooled), np.concatenate(histogram), counts


@given(EVENTS, MOMENTS, st.integers(0, 28))
@settings(max_examples=50)
def test_what_comes_next_is_what_loops_over_the_events_say(
    events: list[Event], moments: list[tuple[int, int]], end: int
) -> None:
    rows = _future(events, moments, end)
    for row, (user, first) in zip(rows, moments, strict=True):
        pooled, histogram, counts = _expected(events, user, first, end)
        assert row["user_id"] == f"user {user}"
        np.testing.assert_allclose(row["future_pooled"], pooled, atol=1e-5)
        np.testing.assert_allclose(row["future_histogram"], histogram, atol=1e-5)
        assert [row[f"future_counts_{days}d"] for days in SPANS] == counts


@given(EVENTS, MOMENTS, st.integers(0, 28))
@settings(max_examples=50)
def test_events_from_the_end_on_change_no_bit(
    events: list[Event], moments: list[tuple[int, int]], end: int
) -> None:
    """Deleting everything from the end on gives the same rows: nothing is seen too early."""
    before = [e for e in events if e[1] < end]
    if before:
        assert _future(before, moments, end) == _future(events, moments, end)


def test_a_user_who_does_not_come_back_has_counts_of_zero_and_no_content() -> None:
    events: list[Event] = [(0, 3, 0, 5, 1.0, ""), (1, 9, 0, 5, 1.0, "")]
    (row,) = _future(events, [(0, 4)], end=9)
    assert not any(row["future_pooled"])
    assert not any(row["future_histogram"])
    assert [row[f"future_counts_{days}d"] for days in SPANS] == [[0.0, 0.0]] * 2


def test_a_span_that_reaches_beyond_the_end_has_unknown_counts_and_what_is_seen_of_content() -> (
    None
):
    events: list[Event] = [(0, 4, 0, 5, 1.0, ""), (0, 8, 0, 6, 1.0, "")]
    (row,) = _future(events, [(0, 4)], end=8)
    assert row["future_counts_2d"] == [1.0, 1.0]
    assert row["future_counts_5d"] is None
    width = len(row["future_pooled"]) // 2
    assert any(row["future_pooled"])
    assert row["future_pooled"][width:] == row["future_pooled"][:width]


def test_users_without_any_event_have_zeros() -> None:
    table = pa.table({"user_id": pa.array(["nobody"]), "first": pa.array([5], pa.int64())})
    (part,) = future_tables(table, None, ENCODERS, spans=(3,), end=9)
    (row,) = part.to_pylist()
    assert row["future_counts_3d"] == [0.0, 0.0]
    assert not any(row["future_pooled"])


def test_the_schema_tiles_the_columns_that_are_made() -> None:
    events: list[Event] = [(0, 3, 0, 5, 1.0, "")]
    (row,) = _future(events, [(0, 1)], end=20)
    schema = future_schema(LAYOUT, SPANS, ENCODERS.version)
    made = {f"{FUTURE}__{name}": len(row[name]) for name in row if name.startswith("future_")}
    assert schema.array_columns == made
    assert schema.text_columns == {}
    assert [b.name for b in schema.blocks][:5] == [
        *("a_next_2d", "b_next_2d", "a_interests_next_2d", "b_interests_next_2d"),
        "counts_next_2d",
    ]
    assert len(COUNTS) == made[f"{FUTURE}__future_counts_5d"]
