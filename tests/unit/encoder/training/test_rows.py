"""Training rows: every one is read once, users never change sides, faulty files are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from encoder.errors import DataFault
from encoder.rows import InputMatrix, RowSource, cache_inputs, held_out
from tests.strategies import random_batch, to_table
from tests.unit.encoder.training.tiny import SCHEMA, fit


def test_parts_split_the_users_and_lose_no_row(rows: RowSource) -> None:
    users = {p: [u for b in rows.batches(p) for u in b.users] for p in ("all", "training", "validation")}  # fmt: skip  # noqa: E501
    assert users["all"] == [f"user-{k}" for k in range(600)]
    assert sorted(users["training"] + users["validation"]) == sorted(users["all"])
    assert not set(users["training"]) & set(users["validation"])
    assert rows.count() == 600


def test_the_held_out_share_is_met_and_a_user_never_changes_sides() -> None:
    users = [f"u{k}" for k in range(20_000)]
    kept = held_out(users, 0.1)
    assert kept.mean() == pytest.approx(0.1, abs=0.01)
    assert np.array_equal(held_out(users[::-1], 0.1)[::-1], kept)
    assert (held_out(users, 0.2) >= kept).all()


def test_the_fingerprint_follows_the_content(rows: RowSource) -> None:
    before = rows.fingerprint()
    assert rows.fingerprint() == before
    pq.write_table(to_table(random_batch(SCHEMA, 250, seed=1)), rows.path / "0.parquet")
    assert rows.fingerprint() != before


def test_missing_files_and_columns_are_named(rows: RowSource, tmp_path: Path) -> None:
    with pytest.raises(DataFault, match="No Parquet file with training rows under"):
        RowSource(tmp_path / "nothing", SCHEMA).files()
    table = pq.read_table(rows.path / "1.parquet").drop_columns([SCHEMA.blocks[0].column])
    pq.write_table(table, rows.path / "1.parquet")
    with pytest.raises(DataFault, match=f"1.parquet lacks the column.s. {SCHEMA.blocks[0].column}"):
        list(rows.batches())


def test_shuffling_yields_every_row_once_in_an_order_of_the_seed(tmp_path: Path) -> None:
    values = np.arange(5000 * 2, dtype=np.float32).reshape(5000, 2)
    values.tofile(tmp_path / "m.f32")
    matrix = InputMatrix(tmp_path / "m.f32", 5000, 2)
    first = list(matrix.shuffled(100, 2048, (0, 0)))
    assert len(first) == matrix.n_batches(100, 2048)
    order = np.concatenate(first)[:, 0]
    assert not np.array_equal(order, values[:, 0])
    assert np.array_equal(np.sort(order), values[:, 0])
    assert np.array_equal(np.concatenate(list(matrix.shuffled(100, 2048, (0, 0))))[:, 0], order)
    assert not np.array_equal(np.concatenate(list(matrix.shuffled(100, 2048, (0, 1))))[:, 0], order)
    for skipped in (1, 21, len(first)):
        rest = list(matrix.shuffled(100, 2048, (0, 0), skipped))
        assert len(rest) == len(first) - skipped
        assert all(np.array_equal(a, b) for a, b in zip(rest, first[skipped:], strict=True))


def test_cached_inputs_are_the_preprocessed_rows(rows: RowSource, tmp_path: Path) -> None:
    p = fit(rows)
    cached = cache_inputs(rows, p, tmp_path / "cache", progress=False)
    expected = np.concatenate([p.transform(b) for b in rows.batches("training")])
    assert np.array_equal(np.concatenate(list(cached.training.in_order(100))), expected)
    assert cached.training.n_rows + cached.validation.n_rows == 600


def test_a_part_without_rows_is_refused(rows: RowSource, tmp_path: Path) -> None:
    with pytest.raises(DataFault, match="No user falls into the validation part of 600 rows"):
        cache_inputs(rows, fit(rows), tmp_path / "cache", 1e-9, progress=False)
