"""Fixtures: training rows in two files, and one thread, so that equal runs give equal bits."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from encoder.rows import RowSource
from tests.strategies import random_batch, take, to_table
from tests.unit.encoder.training.tiny import SCHEMA


@pytest.fixture(autouse=True)
def _one_thread() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def rows(tmp_path: Path) -> RowSource:
    folder = tmp_path / "rows"
    folder.mkdir()
    batch = random_batch(SCHEMA, 600)
    for k, part in enumerate((slice(0, 250), slice(250, 600))):
        pq.write_table(to_table(take(batch, part)), folder / f"{k}.parquet")
    return RowSource(folder, SCHEMA, batch_rows=128)
