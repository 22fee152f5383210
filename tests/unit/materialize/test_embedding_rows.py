"""Raw rows become rows of a stored view."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encoder.errors import VerificationFailed
from encoder.store import ArtifactStore
from materialize.embedding_rows import (
    embedding_matrix,
    embedding_schema,
    encode_rows,
    ensure_readable,
)
from materialize.stores.compact import round_trip
from tests.encoders import tiny_artifact
from tests.repositories import INSTANT, as_batch, raw_rows, space_of
from transforms.layout import ACTIVITY
from transforms.runtime import encode


@pytest.mark.parametrize("users", [[1, 2, 3], ["a", "b", "c"]])
def test_rows_hold_what_encode_gives(tmp_path: Path, users: list[object]) -> None:
    artifact = tiny_artifact()
    ArtifactStore(str(tmp_path)).save(artifact)
    raw = raw_rows(users, {ACTIVITY: [True, False, True]})
    (batch,) = raw.combine_chunks().to_batches()
    rows = encode_rows(batch, space_of(7, artifact.encoder_version), str(tmp_path))
    expected = encode(as_batch(raw), artifact.encoder_version, str(tmp_path))
    assert rows.schema == embedding_schema(raw.schema.field("user_id").type)
    assert rows.column("user_id").to_pylist() == users
    assert np.array_equal(embedding_matrix(rows.column("embedding")), expected.embedding)
    for name in ("as_of", "status", "n_events"):
        assert rows.column(name).to_pylist() == getattr(expected, name).tolist()
    assert rows.column("event_timestamp").cast(pa.int64()).to_pylist() == expected.as_of.tolist()
    assert rows.column("space").to_pylist() == [7] * 3
    assert rows.column("encoder_version").to_pylist() == [artifact.encoder_version] * 3
    assert rows.column("created_timestamp").null_count == 0


@pytest.mark.parametrize("form", ["float16", "int8"])
def test_rows_of_a_compact_space_hold_what_is_read_back(tmp_path: Path, form: str) -> None:
    artifact = tiny_artifact()
    ArtifactStore(str(tmp_path)).save(artifact)
    raw = raw_rows([1, 2, 3])
    (batch,) = raw.combine_chunks().to_batches()
    space = space_of(7, artifact.encoder_version, vectors=form)
    rows = embedding_matrix(encode_rows(batch, space, str(tmp_path)).column("embedding"))
    exact = encode(as_batch(raw), artifact.encoder_version, str(tmp_path)).embedding
    assert np.array_equal(rows, round_trip(exact, form))
    assert not np.array_equal(rows, exact)


def test_no_row_gives_no_row(tmp_path: Path) -> None:
    artifact = tiny_artifact()
    ArtifactStore(str(tmp_path)).save(artifact)
    (batch,) = raw_rows([1]).combine_chunks().to_batches()
    space = space_of(1, artifact.encoder_version)
    assert encode_rows(batch.slice(0, 0), space, str(tmp_path)).num_rows == 0


def test_a_slice_of_a_list_column_is_its_own_rows() -> None:
    column = pa.array([[float(k), 0.0] for k in range(5)], pa.list_(pa.float32()))
    assert embedding_matrix(column.slice(2, 2)).tolist() == [[2.0, 0.0], [3.0, 0.0]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1.0], [1.0, 2.0]], r"widths \[1, 2\] with 0 null"),
        ([[1.0], None], r"with 1 null\(s\) were found; one width and no null are expected"),
    ],
)
def test_ragged_or_null_embeddings_are_refused(
    rows: list[list[float] | None], message: str
) -> None:
    with pytest.raises(VerificationFailed, match=message):
        embedding_matrix(pa.array(rows, pa.list_(pa.float32())))


def test_a_folder_without_rows_is_readable_and_stays_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "offline" / "view"
    ensure_readable(folder, pa.string())
    assert [p.name for p in folder.iterdir()] == ["empty.parquet"]
    table = pq.read_table(folder)
    assert table.num_rows == 0
    assert table.schema.field("user_id").type == pa.string()
    assert table.schema.field("event_timestamp").type == INSTANT
    before = (folder / "empty.parquet").stat().st_mtime_ns
    ensure_readable(folder, pa.string())
    assert (folder / "empty.parquet").stat().st_mtime_ns == before
