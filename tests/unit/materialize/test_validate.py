"""What validation writes for sound data, when it writes, and what stays in place meanwhile."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoder.errors import TransientError
from materialize.validate import ValidationReport, validate
from tests.unit.materialize.raw_tables import DAY, NOW, T0, UTC, Raw, changed, events, snapshot
from transforms.clean import CLEAN_TABLES
from transforms.dataset import load_dataset

ROOT = Path(__file__).parents[3]


@pytest.fixture
def raw(tmp_path: Path) -> Raw:
    return Raw(tmp_path / "raw")


def test_clean_tables_hold_the_agreed_columns(raw: Raw) -> None:
    report = raw.validate()
    assert report.faults == ()
    stamp = pa.timestamp("us", "UTC")
    texts, floats = pa.list_(pa.string()), pa.list_(pa.float32())
    expected: dict[str, dict[str, pa.DataType]] = {
        "events": {
            "user_id": pa.int64(), "item_id": pa.int64(), "ts": stamp, "weight": pa.float32(),
            "session": pa.int64(), "service": pa.string(), "context": texts,
        },
        "users": {
            "user_id": pa.int64(), "signed_up_at": stamp, "categories": texts, "numbers": floats,
            "onboarding": pa.list_(pa.int64()),
        },
        "items": {"item_id": pa.int64(), "text": pa.string(), "tags": texts, "vec_audio": floats},
    }  # fmt: skip
    for table in CLEAN_TABLES:
        schema = pq.read_schema(raw.clean.files(table)[0])
        assert dict(zip(schema.names, map(of_elements, schema.types), strict=True)) == {
            name: of_elements(type_) for name, type_ in expected[table].items()
        }


def of_elements(type_: pa.DataType) -> Any:
    """Return a list type without its element's name, which writers choose freely."""
    return ("list", type_.value_type) if pa.types.is_list(type_) else type_


def test_clean_rows_say_what_the_raw_rows_said(raw: Raw) -> None:
    raw.validate()
    assert raw.rows("events")[1] == {
        "user_id": 1, "item_id": 11, "ts": T0 + DAY, "weight": 2.0, "session": None,
        "service": None, "context": [""],
    }  # fmt: skip
    people = raw.rows("users")
    assert [p["user_id"] for p in people] == [1, 2, 3, 4]
    assert [p["categories"] for p in people] == [["IT"], [""], ["BR"], ["SE"]]
    assert people[0]["numbers"] == [30.0]
    assert np.isnan(people[1]["numbers"]).all()
    assert [p["onboarding"] for p in people] == [[10, 11], [], [], [12, 10]]
    assert [p["signed_up_at"] for p in people] == [T0 - DAY] * 4
    things = raw.rows("items")
    assert [t["text"] for t in things] == ["A b", "", "C", "D"]
    assert [t["tags"] for t in things] == [["x", "y"], [], [], ["y"]]
    assert [t["vec_audio"] for t in things] == [[1.0, 2.0], None, [3.0, 4.0], [5.0, 6.0]]


def test_users_and_items_come_from_events_where_no_table_is_given(raw: Raw) -> None:
    raw.drop("users")
    raw.drop("items")
    report = raw.validate()
    assert {n: (c.kept, c.added) for n, c in report.tables.items()} == {
        "events": (6, 0), "users": (0, 3), "items": (0, 3),
    }  # fmt: skip
    assert raw.rows("items") == [{"item_id": k, "text": "", "tags": []} for k in (10, 11, 12)]
    assert [(p["user_id"], p["signed_up_at"]) for p in raw.rows("users")] == [
        (1, T0),
        (2, T0 + 2 * DAY),
        (3, T0 + 4 * DAY),
    ]


def test_picked_items_are_known_where_no_items_table_is_given(raw: Raw) -> None:
    raw.drop("items")
    raw.users["picks"] = pa.array([[55], None, [], []])
    assert raw.validate().faults == ()
    assert [row["item_id"] for row in raw.rows("items")] == [10, 11, 12, 55]


def test_missing_sign_up_is_the_first_event_or_the_start_of_the_data(raw: Raw) -> None:
    raw.users["joined"] = changed(raw.users["joined"], {1: None, 3: None})
    raw.validate()
    joined = [row["signed_up_at"] for row in raw.rows("users")]
    assert joined == [T0 - DAY, T0 + 2 * DAY, T0 - DAY, T0]


@pytest.mark.parametrize(
    ("values", "time"),
    [
        (pa.timestamp("us", "America/Sao_Paulo"), {}),
        (pa.timestamp("ns", "UTC"), {}),
        (pa.timestamp("ms", "UTC"), {}),
        (pa.timestamp("us"), {"timezone": "Asia/Tokyo"}),
        (pa.timestamp("ns"), {"timezone": "Asia/Tokyo"}),
        (pa.timestamp("s"), {"timezone": "Europe/Rome"}),
        ("s", {"unit": "s"}),
        ("ms", {"unit": "ms"}),
        ("us", {"unit": "us"}),
    ],
    ids=str,
)
def test_timestamps_become_utc(raw: Raw, values: Any, time: dict[str, str]) -> None:
    moments = [T0 + k * DAY for k in range(6)]
    if isinstance(values, str):
        scale = {"s": 1, "ms": 1_000, "us": 1_000_000}[values]
        raw.events["at"] = pa.array([int(m.timestamp()) * scale for m in moments])
    elif values.tz is None:
        zone = ZoneInfo(time["timezone"])
        local = [m.astimezone(zone).replace(tzinfo=None) for m in moments]
        raw.events["at"] = pa.array(local, values)
    else:
        raw.events["at"] = pa.array(moments, values)
    raw.says["events"]["timestamp"] = {"column": "at", **time}
    raw.validate()
    assert [row["ts"] for row in raw.rows("events")] == moments


def test_dates_begin_at_midnight_of_the_named_zone(raw: Raw) -> None:
    raw.users["joined"] = pa.array([T0.date()] * 4)
    raw.says["users"]["signed_up_at"] = {"column": "joined", "timezone": "Asia/Tokyo"}
    raw.validate()
    assert raw.rows("users")[0]["signed_up_at"] == datetime(2024, 2, 29, 15, tzinfo=UTC)


def test_integer_time_in_the_wrong_unit_is_in_the_future_and_does_not_overflow(raw: Raw) -> None:
    seconds = int(T0.timestamp())
    raw.says["events"]["timestamp"] = {"column": "at", "unit": "s"}
    raw.drop("users")
    raw.events["at"] = pa.array([seconds] + [seconds * 1000] * 4 + [2**62])
    (fault,) = raw.validate().faults
    assert (fault.code, fault.count) == ("timestamp_in_future", 5)
    assert "check the unit" in fault.expected


def test_string_ids_sessions_and_services_are_kept(raw: Raw) -> None:
    raw.drop("users")
    raw.drop("items")
    raw.events["user"] = pa.array(["b", "a", "", "a", "ü", "b"]).dictionary_encode()
    raw.events["visit"] = pa.array(["v1", "v1", None, "v2", "v2", "v3"])
    raw.events["shop"] = pa.array([1, None, 2, 2, 2, 2], pa.int8())
    raw.says["events"] |= {"session": "visit", "service": "shop"}
    report = raw.validate()
    assert [(f.code, f.count) for f in report.faults] == [("null_id", 1)]
    rows = raw.rows("events")
    assert [r["user_id"] for r in rows] == ["b", "a", "a", "ü", "b"]
    assert [r["session"] for r in rows] == ["v1", "v1", "v2", "v2", "v3"]
    assert [r["service"] for r in rows] == ["1", None, "2", "2", "2"]
    assert raw.clean.user_type() == "string"
    assert raw.clean.item_type() == "int64"


def test_tags_may_be_lists_or_single_values(raw: Raw) -> None:
    raw.says["items"]["tags"] = "genres"
    raw.items["genres"] = pa.array([["a", " a ", "", None, "b"], None, [], ["c|d"]])
    raw.validate()
    assert [r["tags"] for r in raw.rows("items")] == [["a", "b"], [], [], ["c|d"]]
    raw.items["genres"] = pa.array([7, None, 8, 7], pa.int16())
    raw.validate()
    assert [r["tags"] for r in raw.rows("items")] == [["7"], [], ["8"], ["7"]]


def test_decimal_ids_of_a_warehouse_are_integers(raw: Raw) -> None:
    raw.events["user"] = raw.events["user"].cast(pa.decimal128(38, 0))
    assert raw.validate().faults == ()
    assert raw.clean.user_type() == "int64"


@pytest.mark.parametrize("path", ["parts", "parts/**/*.parquet", "parts/day=*/x.parquet"])
def test_a_path_is_a_file_a_folder_or_a_glob(raw: Raw, path: str) -> None:
    whole = pa.table(events())
    for day, part in ((1, whole[:2]), (2, whole[2:])):
        folder = raw.root / "parts" / f"day={day}"
        folder.mkdir(parents=True)
        pq.write_table(part, folder / "x.parquet")
    hidden = raw.root / "parts" / "_temporary"
    hidden.mkdir()
    if path == "parts":
        (hidden / "half.parquet").write_bytes(b"unfinished")
    raw.says["events"]["path"] = str(raw.root / path)
    assert raw.validate().tables["events"].kept == 6
    assert [r["ts"] for r in raw.rows("events")] == [T0 + k * DAY for k in range(6)]


awkward = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8).filter(
    # The rejected table's own column has a test of its own.
    lambda name: name.lower() != "reason"
)


@given(names=st.lists(awkward, min_size=4, max_size=4, unique_by=str.casefold))
def test_any_column_names_can_be_mapped(
    names: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    raw = Raw(tmp_path_factory.mktemp("names"))
    raw.drop("users")
    raw.drop("items")
    user, item, at, device = names
    own = events()
    raw.events = {
        user: changed(own["user"], {3: None}), item: own["item"], at: own["at"],
        device: own["device"],
    }  # fmt: skip
    raw.says["events"] = {"user": user, "item": item, "timestamp": at, "context": [device]}
    report = raw.validate()
    assert [(f.code, f.column, f.count) for f in report.faults] == [("null_id", user, 1)]
    assert [r["context"] for r in raw.rows("events")] == [["tv"], [""], ["car"], ["tv"], ["tv"]]
    (rejected,) = raw.rows("events", "rejected")
    assert (rejected[user], rejected["reason"]) == (None, "null_id")


def test_a_column_called_reason_keeps_its_values_under_another_name(raw: Raw) -> None:
    raw.events["Reason"] = pa.array(list("abcdef"))
    raw.events["user"] = changed(raw.events["user"], {2: None})
    raw.validate()
    (row,) = raw.rows("events", "rejected")
    assert (row["reason_given"], row["reason"]) == ("c", "null_id")


def test_equal_input_gives_equal_files_also_with_rejected_rows(tmp_path: Path) -> None:
    prints = set()
    for k in range(2):
        raw = Raw(tmp_path / str(k))
        raw.drop("users")
        raw.drop("items")
        n = 400_000  # several row groups, so that the threads can overtake each other
        rng = np.random.default_rng(0)
        stamps = (T0.timestamp() + np.arange(n)).astype(np.int64)
        raw.events = {
            "user": pa.array(rng.integers(0, 5000, n)), "item": pa.array(rng.integers(0, 900, n)),
            "at": pa.array(stamps), "weight": pa.array(np.where(rng.random(n) < 0.01, 0.0, 1.0)),
            "device": pa.nulls(n),
        }  # fmt: skip
        raw.says["events"]["timestamp"] = {"column": "at", "unit": "s"}
        report = raw.validate(threads=2, memory_limit_mb=256)
        assert 3500 < report.tables["events"].rejected < 4500
        prints.add(raw.clean.fingerprint())
    assert len(prints) == 1


def test_unchanged_input_is_not_validated_again(raw: Raw) -> None:
    first = raw.validate()
    before, times = snapshot(raw.out), mtimes(raw.out / "clean")
    again = raw.validate(write=False, now=NOW + DAY)
    assert (first.unchanged, again.unchanged) == (False, True)
    assert again == first
    assert (snapshot(raw.out), mtimes(raw.out / "clean")) == (before, times)


def mtimes(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_what_does_not_concern_the_tables_does_not_validate_again(raw: Raw) -> None:
    raw.validate()
    windows = raw.dataset(windows=(1, 2))
    assert validate(windows, raw.out, now=NOW, progress=False).unchanged


@pytest.mark.parametrize("how", ["force", "file", "yaml", "clean tables lost"])
def test_a_change_or_force_validates_again(raw: Raw, how: str) -> None:
    raw.validate()
    if how == "file":
        raw.events["item"] = changed(raw.events["item"], {0: 12})
        raw.write()
    elif how == "yaml":
        raw.says["events"].pop("weight")
    elif how == "clean tables lost":
        raw.clean.files("users")[0].unlink()
    report = raw.validate(write=False, force=how == "force")
    assert not report.unchanged
    assert raw.clean.exists()
    assert raw.rows("events")[0]["item_id"] == (12 if how == "file" else 10)
    assert raw.rows("events")[1]["weight"] == (1.0 if how == "yaml" else 2.0)


def test_rows_rejected_for_the_future_are_looked_at_again_later(raw: Raw) -> None:
    assert raw.validate(now=T0 + 3.5 * DAY).tables["events"].kept == 4
    assert raw.validate(write=False, now=T0 + 3.5 * DAY).unchanged
    later = raw.validate(write=False, now=T0 + 4.5 * DAY)
    assert later.tables["events"].kept == 5
    # And an earlier clock sees fewer events than the tables in place hold.
    assert raw.validate(write=False, now=T0 + 0.5 * DAY).tables["events"].kept == 1


def test_dry_run_reports_and_writes_nothing(raw: Raw) -> None:
    raw.events["user"] = changed(raw.events["user"], {0: None})
    report = raw.validate(dry_run=True)
    assert (report.tables["events"].rejected, len(report.faults)) == (1, 1)
    assert not raw.out.exists()


def test_report_is_written_and_reads_back_equal(raw: Raw) -> None:
    raw.events["user"] = changed(raw.events["user"], {0: None})
    report = raw.validate()
    data = json.loads(raw.clean.report.read_text(encoding="utf-8"))
    assert ValidationReport.from_dict(data) == report
    assert report.first_event == T0 + DAY
    assert report.last_event == T0 + 5 * DAY
    assert data["tables"]["events"] == {"rows_in": 6, "kept": 5, "rejected": 1, "added": 0}
    lines = report.as_table()
    assert lines[1].split() == ["events", "6", "5", "1", "0"]
    assert "events from 2024-03-02 12:00 to 2024-03-06 12:00 UTC" in lines


def test_nothing_but_clean_and_rejected_is_left(raw: Raw) -> None:
    raw.validate()
    raw.validate(force=True)
    assert sorted(p.name for p in raw.out.iterdir()) == ["clean", "rejected"]


def test_rejected_rows_of_the_former_run_are_replaced(raw: Raw) -> None:
    whole = raw.events["user"]
    raw.events["user"] = changed(whole, {0: None})
    raw.validate()
    assert len(raw.rows("events", "rejected")) == 1
    raw.events["user"] = whole
    raw.validate()
    assert list((raw.out / "rejected").iterdir()) == []


@pytest.mark.parametrize("killed_at", ["writing", "between the renames", "after the renames"])
def test_a_killed_validation_is_completed_by_the_next(raw: Raw, killed_at: str) -> None:
    """The folders are as a kill at each point of publishing leaves them."""
    raw.validate()
    expected = raw.clean.fingerprint()
    (raw.out / "validate.tmp" / "clean" / "events").mkdir(parents=True)
    (raw.out / "validate.tmp" / "clean" / "events" / "part-0.parquet").write_bytes(b"half")
    if killed_at == "between the renames":
        (raw.out / "clean").rename(raw.out / "clean.old.tmp")
    elif killed_at == "after the renames":
        shutil.copytree(raw.out / "clean", raw.out / "clean.old.tmp")
    assert raw.validate(write=False).unchanged
    assert raw.clean.fingerprint() == expected
    assert sorted(p.name for p in raw.out.iterdir()) == ["clean", "rejected"]


def test_a_validation_killed_while_it_runs_leaves_the_former_tables(raw: Raw) -> None:
    raw.validate()
    expected = raw.clean.fingerprint()
    raw.events["item"] = changed(raw.events["item"], {0: 12})
    raw.write()
    program = f"""
import os, signal
from pathlib import Path
import materialize.validate as v
from tests.unit.materialize.raw_tables import NOW, Raw
def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)
v._publish = killed
Raw(Path({str(raw.root)!r})).validate(write=False)
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert (raw.out / "validate.tmp" / "clean").is_dir()
    assert raw.clean.fingerprint() == expected
    assert not raw.validate(write=False).unchanged
    assert raw.rows("events")[0]["item_id"] == 12
    assert sorted(p.name for p in raw.out.iterdir()) == ["clean", "rejected"]


def test_two_validations_of_one_folder_do_not_run_at_once(raw: Raw) -> None:
    raw.validate()
    before = snapshot(raw.out)
    handle = os.open(raw.out, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(TransientError, match="Another validation is writing to"):
            raw.validate(force=True)
    finally:
        os.close(handle)
    assert snapshot(raw.out) == before


def test_now_without_a_time_zone_is_refused(raw: Raw) -> None:
    with pytest.raises(ValueError, match="a time with a time zone is expected"):
        raw.validate(now=datetime(2024, 1, 1))


def test_progress_is_shown_on_stderr_only(raw: Raw, capfd: pytest.CaptureFixture[str]) -> None:
    raw.validate(progress=True)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "write events" in shown.err


@pytest.mark.parametrize(
    ("name", "events", "users", "items"),
    [
        ("ml100k", 100_000, 943, 1_682),
        ("ml1m", 1_000_209, 6_040, 3_883),
        pytest.param("globo_news", 2_988_181, 322_897, 364_047, marks=pytest.mark.slow),
    ],
)
def test_real_data_are_sound(
    palate_data: Callable[[str], Path],
    tmp_path: Path,
    name: str,
    events: int,
    users: int,
    items: int,
) -> None:
    where = {"PALATE_DATA": str(palate_data(name).parent)}
    dataset = load_dataset(ROOT / "feature_repo" / "datasets" / f"{name}.yaml", where)
    report = validate(dataset, tmp_path, progress=False)
    assert report.faults == ()
    written = {n: c.kept + c.added for n, c in report.tables.items()}
    assert written == {"events": events, "users": users, "items": items}
