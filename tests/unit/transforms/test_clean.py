"""The clean tables tell what they are from what lies on disk."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encoder.errors import DataFault
from transforms.clean import CLEAN_TABLES, CleanTables


def written(root: Path, **changes: pa.Table) -> CleanTables:
    """Write one small file a table, and a report."""
    tables = {
        "events": pa.table({"user_id": ["a", "b"], "item_id": [1, 2]}),
        "users": pa.table({"user_id": ["a", "b"]}),
        "items": pa.table({"item_id": [1, 2]}),
    } | changes
    for name, table in tables.items():
        folder = root / "clean" / name
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / "part-0.parquet")
    (root / "clean" / "validation.json").write_text("{}")
    return CleanTables(root)


def test_globs_name_the_files_of_each_table(tmp_path: Path) -> None:
    clean = written(tmp_path)
    assert clean.events == str(tmp_path / "clean" / "events" / "*.parquet")
    assert clean.users == str(tmp_path / "clean" / "users" / "*.parquet")
    assert clean.items == str(tmp_path / "clean" / "items" / "*.parquet")
    assert [p.name for p in clean.files("events")] == ["part-0.parquet"]


@pytest.mark.parametrize("missing", [*CLEAN_TABLES, "validation.json"])
def test_incomplete_tables_do_not_exist_and_say_what_to_run(tmp_path: Path, missing: str) -> None:
    clean = written(tmp_path)
    assert clean.exists()
    clean.require()
    gone = clean.folder / missing
    (gone / "part-0.parquet" if gone.is_dir() else gone).unlink()
    assert not clean.exists()
    for call in (clean.require, clean.fingerprint, clean.user_type, clean.item_type):
        with pytest.raises(DataFault, match=r"no validated events.*`palate data validate` first"):
            call()


def test_id_types_follow_the_files(tmp_path: Path) -> None:
    clean = written(tmp_path)
    assert (clean.user_type(), clean.item_type()) == ("string", "int64")


def test_fingerprint_is_equal_for_equal_files_wherever_they_lie(tmp_path: Path) -> None:
    one = written(tmp_path / "one").fingerprint()
    assert one == written(tmp_path / "other").fingerprint()
    assert len(one) == 12
    assert set(one) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    "events",
    [
        pa.table({"user_id": ["a"], "item_id": [1]}),
        pa.table({"user_id": ["a", "b"], "item_id": [1, 3]}),  # same size and number of rows
    ],
    ids=["fewer rows", "another value"],
)
def test_fingerprint_changes_with_the_data(tmp_path: Path, events: pa.Table) -> None:
    before = written(tmp_path).fingerprint()
    assert written(tmp_path, events=events).fingerprint() != before


def test_fingerprint_changes_with_a_further_file(tmp_path: Path) -> None:
    clean = written(tmp_path)
    before = clean.fingerprint()
    file = clean.files("users")[0]
    (file.parent / "part-1.parquet").write_bytes(file.read_bytes())
    assert clean.fingerprint() != before
