from __future__ import annotations

import tempfile
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.transforms.event_tables import (
    DAY,
    DAY_0,
    ENCODERS,
    EVENTS,
    LAYOUT,
    WINDOWS,
    Event,
    buckets_of,
    write_events,
)
from transforms.buckets import DayBuckets
from transforms.windows import Emission, activity_tables, onboarding_pooled

WIDTHS = {"pooled": 15, "histogram": 21, "counts": 14}
SNAPSHOTS = st.sets(st.integers(1, 28), min_size=1, max_size=8).map(sorted)


def rows_of(buckets: DayBuckets, emission: Emission, rows_per_table: int = 5) -> dict:
    """Return {(user, as_of): row} of all partitions; a repeated key fails."""
    rows: dict[tuple[str, int], dict] = {}
    for partition in range(buckets.partitions):
        data = buckets.load(partition, emission.first_day(max(WINDOWS)))
        if data is None:
            continue
        for table in activity_tables(data, ENCODERS, LAYOUT, emission, rows_per_table):
            for row in table.to_pylist():
                key = (row["user_id"], row["activity_as_of"])
                assert key not in rows
                assert row["event_timestamp"].timestamp() * 1e6 == pytest.approx(key[1], abs=1)
                rows[key] = row
    return rows


def build(events: list[Event], snapshots: list[int], **options: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        buckets = buckets_of(write_events(Path(folder), events), Path(folder), **options)
        return rows_of(buckets, Emission(np.array(snapshots) + DAY_0))


def reference(events: list[Event], snapshots: list[int]) -> dict:
    """Say the same with loops over users, snapshots, windows, modalities and events."""
    rows = {}
    for user in {e[0] for e in events}:
        for k, snapshot in enumerate(snapshots):
            before = [e for e in events if e[0] == user and e[1] < snapshot]
            since = snapshots[k - 1] if k else -1
            if not any(e[1] >= since for e in before):
                continue
            newest = max((e[1], e[2], e[5]) for e in before)
            last = newest[0]
            pooled: list[np.ndarray] = []
            histogram: list[np.ndarray] = []
            counts: list[float] = []
            for days in WINDOWS:
                inside = [e for e in before if last - days < e[1] <= last]
                for m in ENCODERS.modalities:
                    covered = [e for e in inside if m.cluster_of[e[3]] >= 0]
                    total = sum(e[4] for e in covered)
                    vector, share = np.zeros(m.dim), np.zeros(m.n_clusters)
                    for e in covered:
                        vector += e[4] / total * m.vectors[e[3]].astype(float)
                        share[m.cluster_of[e[3]]] += e[4] / total
                    pooled.append(vector)
                    histogram.append(share)
                active = sorted({e[1] for e in inside})
                counts += [len(inside), sum(e[4] for e in inside), len(active)]
                counts += [len({e[3] for e in inside})]
            counts += [last - active[-2] if len(active) > 1 else 0, last - active[0]]
            as_of = (DAY_0 + last) * DAY + newest[1]
            rows[f"user {user}", as_of] = {
                "pooled": np.concatenate(pooled),
                "histogram": np.concatenate(histogram),
                "counts": counts,
                "context": [newest[2], "linux"],
            }
    return rows


def assert_same(rows: dict, expected: dict) -> None:
    assert rows.keys() == expected.keys()
    for key, row in rows.items():
        for name, width in WIDTHS.items():
            value = row[f"activity_{name}"]
            assert len(value) == width
            np.testing.assert_allclose(value, expected[key][name], rtol=1e-5, atol=1e-6)
        assert row["activity_context"] == expected[key]["context"]
        assert row["activity_modality"] == ENCODERS.version


@given(events=EVENTS, snapshots=SNAPSHOTS)
def test_rows_equal_a_plain_loop_over_events(events, snapshots):
    """For any events and snapshots, every number of every row is what loops over events give."""
    assert_same(build(events, snapshots), reference(events, snapshots))


@settings(max_examples=25)
@given(events=EVENTS, snapshots=SNAPSHOTS, pick=st.integers(0, 10**6))
def test_deleting_the_future_changes_no_row(events, snapshots, pick):
    """Any row is bit-equal when every event after its as_of is deleted."""
    rows = build(events, snapshots)
    if not rows:
        return
    key = sorted(rows)[pick % len(rows)]
    past = [e for e in events if (e[1] + DAY_0) * DAY + e[2] <= key[1]]
    assert build(past, snapshots)[key] == rows[key]


@settings(max_examples=15)
@given(events=EVENTS, snapshots=SNAPSHOTS)
def test_the_number_of_partitions_changes_no_row(events, snapshots):
    """One partition or many: bit-equal rows."""
    assert build(events, snapshots) == build(events, snapshots, bytes_per_day=2**28)


@settings(max_examples=15)
@given(events=EVENTS, first=st.integers(1, 26))
def test_days_added_later_give_the_rows_of_one_build(events, first):
    """Building up to a day and adding the rest later gives the rows of one build of all days."""
    snapshots = list(range(1, 29))
    early = [e for e in events if e[1] < first]
    if not early:
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        clean = write_events(root, early)
        buckets = buckets_of(clean, root)
        days = np.array(snapshots) + DAY_0
        rows = rows_of(buckets, Emission(days[:first]))
        write_events(root, events)
        buckets = buckets_of(clean, root)
        later = rows_of(buckets, Emission(days, first=first))
        assert not rows.keys() & later.keys()
        assert rows | later == build(events, snapshots)


@settings(max_examples=15)
@given(events=EVENTS, late=EVENTS)
def test_late_events_replace_the_rows_they_touch(events, late):
    """Rows made anew after late events, over the earlier ones, equal one build of all events."""
    snapshots = list(range(1, 29))
    emission = Emission(np.array(snapshots) + DAY_0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        clean = write_events(root, events)
        buckets = DayBuckets(root / "buckets", clean, memory_limit_mb=256, bytes_per_day=100)
        before = buckets.update()
        rows = rows_of(buckets, emission)
        write_events(root, late, "1")
        stale = buckets.update().stale_in(before.prints)
        again = Emission(emission.snapshots, len(snapshots), tuple(sorted(stale)))
        rows |= rows_of(buckets, again)
    whole = build([*events, *late], snapshots)
    # An earlier row stays under its own as_of when later events of that day moved the newest one.
    assert {key: rows[key] for key in whole} == whole


def test_a_repeated_update_builds_nothing(tmp_path):
    events = [(0, 3, 5, 1, 1.0, "br"), (1, 4, 5, 2, 1.0, "pt")]
    clean = write_events(tmp_path, events)
    buckets_of(clean, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "buckets").rglob("*")}
    buckets_of(clean, tmp_path)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "buckets").rglob("*")} == before


def test_new_days_leave_earlier_buckets_alone_and_a_late_event_rebuilds_one_day(tmp_path):
    clean = write_events(tmp_path, [(0, 3, 5, 1, 1.0, "br"), (0, 4, 5, 1, 1.0, "br")])
    buckets = buckets_of(clean, tmp_path)
    write_events(tmp_path, [(0, 9, 5, 1, 1.0, "br"), (0, 4, 6, 1, 1.0, "br")], "1")
    buckets.update()
    folders = sorted(p.name for p in (tmp_path / "buckets").iterdir() if p.is_dir())
    assert folders == ["build-000001", "build-000002"]
    data = buckets.load(0, 0)
    assert data is not None
    assert (data.day - DAY_0).tolist() == [3, 4, 9]
    assert data.events.tolist() == [1, 2, 1]


def test_a_build_that_was_killed_is_swept_away(tmp_path):
    clean = write_events(tmp_path, [(0, 3, 5, 1, 1.0, "br")])
    left = tmp_path / "buckets" / "build-000001" / "entries"
    left.mkdir(parents=True)
    (left / "half.parquet").write_bytes(b"half")
    assert rows_of(buckets_of(clean, tmp_path), Emission(np.array([DAY_0 + 4])))
    assert not (left / "half.parquet").exists()


def test_memory_limit_decides_the_number_of_partitions(tmp_path):
    events = [(u % 5, u, 0, 1, 1.0, "") for u in range(25)]
    clean = write_events(tmp_path, events)
    buckets = DayBuckets(tmp_path / "b", clean, memory_limit_mb=256, bytes_per_day=2**24)
    buckets.update()
    # 25 active days of 16 MiB in partitions of 64 MiB: 6.25, rounded up to a power of two.
    assert buckets.partitions == 8


def test_onboarding_is_the_mean_of_known_picks_and_their_number():
    picks = pa.array([["item 2", "item 3"], ["item 1"], ["item 2", "stranger"]])
    pooled = onboarding_pooled(picks, ENCODERS)
    a, b = (m.vectors for m in ENCODERS.modalities)
    np.testing.assert_allclose(pooled[0, :3], (a[2] + a[3]) / 2, rtol=1e-6)
    np.testing.assert_allclose(pooled[0, 3:5], (b[2] + b[3]) / 2, rtol=1e-6)
    assert pooled[1].tolist() == [0, 0, 0, 0, 0, 1]
    np.testing.assert_allclose(pooled[2, :3], a[2], rtol=1e-6)
    assert pooled[:, 5].tolist() == [2, 1, 2]


def test_windows_are_utc_calendar_days_wherever_the_machine_is():
    # Last microsecond of day 0 and first of day 1: two days, whatever the local zone says.
    rows = build([(0, 0, DAY - 1, 2, 1.0, ""), (0, 1, 0, 3, 1.0, "")], [2])
    ((_, as_of), row) = next(iter(rows.items()))
    assert as_of == (DAY_0 + 1) * DAY
    assert row["event_timestamp"] == datetime.fromtimestamp(as_of / 1e6, tz=timezone.utc)
    assert row["activity_counts"][:4] == [2, 2, 2, 2]
