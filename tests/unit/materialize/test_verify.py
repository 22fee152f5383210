"""Every way in which a store can hold something else is found and said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encoder.errors import VerificationFailed
from materialize.embedding_rows import embedding_schema, encode_rows
from materialize.ledger import Space
from materialize.verify import (
    check_embeddings,
    row_count,
    verify_count,
    verify_file,
    verify_online,
)
from tests.repositories import INSTANT, TinyRepository, raw_rows, write_online
from transforms.names import stored_view

VIEW = stored_view(1)


def _rows(tiny: TinyRepository, space: Space, users: list[int]) -> pa.Table:
    (batch,) = raw_rows(users, seed=users[0]).combine_chunks().to_batches()
    return pa.Table.from_batches([encode_rows(batch, space, tiny.settings.artifacts_url)])


def _published(folder: Path, table: pa.Table) -> Path:
    folder.mkdir(exist_ok=True)
    half = table.num_rows // 2
    pq.write_table(table[:half], folder / "part-0.parquet")
    pq.write_table(table[half:], folder / "part-1.parquet")
    return folder


def _changed(table: pa.Table, column: str, values: list[Any]) -> pa.Table:
    index = table.column_names.index(column)
    field = table.schema.field(column)
    return table.set_column(index, field, pa.array(values, field.type))


def _push(tiny: TinyRepository, table: pa.Table) -> None:
    write_online(tiny.store, VIEW, table.combine_chunks().to_batches())


def _older(table: pa.Table, by: int) -> pa.Table:
    moments = [m - by for m in table.column("as_of").to_pylist()]
    table = _changed(table, "as_of", moments)
    times = pa.array(moments).cast(INSTANT).to_pylist()
    return _changed(table, "event_timestamp", times)


# --- offline


def _check(table: pa.Table, space: Space) -> None:
    (batch,) = table.combine_chunks().to_batches()
    check_embeddings(batch, (space.number, space.encoder_version), "Partition 7")


def test_a_sound_run_is_counted(tiny: TinyRepository, space: Space, tmp_path: Path) -> None:
    table = _rows(tiny, space, [1, 2, 3, 4])
    _check(table, space)
    folder = _published(tmp_path / "run", table)
    assert row_count(folder) == 4
    verify_count(str(folder), 4, 4)


def test_a_run_without_rows_is_sound(tiny: TinyRepository, space: Space, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert row_count(tmp_path / "run") == 0
    assert verify_online(tiny.store, VIEW, tmp_path / "run") == 0


@pytest.mark.parametrize("expected", [3, 5, 0])
def test_another_number_of_rows_is_found(
    tiny: TinyRepository, space: Space, tmp_path: Path, expected: int
) -> None:
    folder = _published(tmp_path / "run", _rows(tiny, space, [1, 2, 3, 4]))
    with pytest.raises(VerificationFailed, match=f"holds 4 rows, {expected} are expected"):
        verify_count(str(folder), row_count(folder), expected)


def test_a_file_that_answers_another_element_is_found(
    tiny: TinyRepository, space: Space, tmp_path: Path
) -> None:
    table, path = _rows(tiny, space, [1, 2, 3, 4]), tmp_path / "part.parquet"
    pq.write_table(table, path)
    verify_file(path, table)
    vectors = table.column("embedding").to_pylist()
    vectors[3][5] += 0.5
    with pytest.raises(VerificationFailed, match="answers other rows than the 4 that were written"):
        verify_file(path, _changed(table, "embedding", vectors))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_found(
    tiny: TinyRepository, space: Space, value: float
) -> None:
    table = _rows(tiny, space, [1, 2, 3, 4])
    vectors = table.column("embedding").to_pylist()
    vectors[3][5] = value
    message = r"Partition 7 holds 1 embedding\(s\) that are NaN, infinite or zero"
    with pytest.raises(VerificationFailed, match=message):
        _check(_changed(table, "embedding", vectors), space)


def test_a_zero_vector_is_found(tiny: TinyRepository, space: Space) -> None:
    table = _rows(tiny, space, [1, 2, 3, 4])
    vectors = table.column("embedding").to_pylist()
    vectors[0] = vectors[1] = [0.0] * len(vectors[0])
    with pytest.raises(VerificationFailed, match=r"Partition 7 holds 2 embedding\(s\)"):
        _check(_changed(table, "embedding", vectors), space)


@pytest.mark.parametrize(
    ("column", "value", "found"),
    [
        ("space", 2, r"holds spaces \[1, 2\] and encoders"),
        ("space", None, r"holds spaces \[1, None\]"),
        ("encoder_version", "f" * 12, "'ffffffffffff'"),
        ("encoder_version", None, "None"),
    ],
)
def test_a_row_of_another_space_is_found(
    tiny: TinyRepository, space: Space, column: str, value: Any, found: str
) -> None:
    table = _rows(tiny, space, [1, 2, 3, 4])
    values = [*table.column(column).to_pylist()[:3], value]
    with pytest.raises(VerificationFailed, match=found) as caught:
        _check(_changed(table, column, values), space)
    assert f"only space 1 ({space.encoder_version}) is expected" in str(caught.value)


def test_a_null_embedding_is_found(tiny: TinyRepository, space: Space) -> None:
    table = _rows(tiny, space, [1, 2, 3, 4])
    vectors = [*table.column("embedding").to_pylist()[:3], None]
    with pytest.raises(VerificationFailed, match=r"1 null\(s\) were found"):
        _check(_changed(table, "embedding", vectors), space)


# --- online


def test_what_was_pushed_passes(tiny: TinyRepository, space: Space, tmp_path: Path) -> None:
    table = _rows(tiny, space, list(range(1000, 1010)))
    _push(tiny, table)
    assert verify_online(tiny.store, VIEW, _published(tmp_path / "run", table)) == 10


def test_a_large_run_is_sampled_from_end_to_end(
    tiny: TinyRepository, space: Space, tmp_path: Path
) -> None:
    """The first and the last row are in the sample: each of them alone makes it fail."""
    table = _rows(tiny, space, list(range(2000, 2600)))
    folder = _published(tmp_path / "run", table)
    _push(tiny, table)
    assert 150 <= verify_online(tiny.store, VIEW, folder) <= 250
    for row in (0, 599):
        _push(tiny, _older(table.slice(row, 1), by=1))
        with pytest.raises(VerificationFailed, match=f"User {2000 + row} was written to {VIEW}"):
            verify_online(tiny.store, VIEW, folder)
        _push(tiny, table.slice(row, 1))
    assert verify_online(tiny.store, VIEW, folder) > 0


def test_a_missing_online_row_is_found(tiny: TinyRepository, space: Space, tmp_path: Path) -> None:
    table = _rows(tiny, space, [3001, 3002])
    _push(tiny, table.slice(0, 1))
    message = f"User 3002 was written to {VIEW} with as_of .* the online store answers None"
    with pytest.raises(VerificationFailed, match=message):
        verify_online(tiny.store, VIEW, _published(tmp_path / "run", table))


def test_an_older_online_row_is_found(tiny: TinyRepository, space: Space, tmp_path: Path) -> None:
    table = _rows(tiny, space, [3101, 3102])
    _push(tiny, _older(table, by=60_000_000))
    with pytest.raises(VerificationFailed, match="User 3101 was written to"):
        verify_online(tiny.store, VIEW, _published(tmp_path / "run", table))


def test_another_vector_at_the_same_time_is_found(
    tiny: TinyRepository, space: Space, tmp_path: Path
) -> None:
    table = _rows(tiny, space, [3201, 3202])
    vectors = table.column("embedding").to_pylist()
    vectors[1][0] += 1e-6
    _push(tiny, _changed(table, "embedding", vectors))
    with pytest.raises(VerificationFailed, match="User 3202: the online store answers another"):
        verify_online(tiny.store, VIEW, _published(tmp_path / "run", table))


def test_a_newer_online_row_passes(tiny: TinyRepository, space: Space, tmp_path: Path) -> None:
    """A stream may have written it since; its vector is another one, and rightly so."""
    table = _rows(tiny, space, [3301, 3302])
    vectors = [[1.0] * len(v) for v in table.column("embedding").to_pylist()]
    _push(tiny, _older(_changed(table, "embedding", vectors), by=-1))
    assert verify_online(tiny.store, VIEW, _published(tmp_path / "run", table)) == 2


def test_a_file_without_rows_among_others_is_passed_over(
    tiny: TinyRepository, space: Space, tmp_path: Path
) -> None:
    table = _rows(tiny, space, [3401, 3402])
    folder = _published(tmp_path / "run", table)
    _push(tiny, table)
    pq.write_table(embedding_schema(pa.int64()).empty_table(), folder / "part-2.parquet")
    assert row_count(folder) == 2
    assert verify_online(tiny.store, VIEW, folder) == 2
