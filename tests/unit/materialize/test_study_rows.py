"""Training rows of studies: whole users, narrowed to what a variant reads, and their drift."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encoder.modality import ModalityEncoders
from encoder.rows import RowSource
from encoder.schema import FeatureSchema
from encoder.training_config import TrainingConfig
from materialize.study.drift import drift_since
from materialize.study.rows import StudyRows, narrow_rows
from materialize.study.variant import Variant
from materialize.training_rows import future_note, future_of
from tests.encoders import LAYOUT, SCHEMA, tiny_artifact
from tests.repositories import TinyRepository, raw_rows
from tests.strategies import VERSION
from transforms.future import future_schema
from transforms.layout import ACTIVITY, Modality, RawLayout, column
from transforms.names import USER_KEY

TWO = RawLayout(
    (Modality("collaborative", 4, 3), Modality("content", 2, 2)), (7, 30), onboarding=True
)
WIDE = TWO.schema(VERSION)
DAY_US = 86_400_000_000
THIRD = datetime(1970, 1, 3, tzinfo=timezone.utc)


def _written(path: Path, table: pa.Table, future: FeatureSchema | None = None) -> Path:
    if future is not None:
        for name, width in future.array_columns.items():
            values = [[float(k)] * width for k in range(table.num_rows)]
            table = table.append_column(name, pa.array(values, pa.list_(pa.float32())))
    pq.write_table(table.replace_schema_metadata(future_note(future)), path)
    return path


def test_narrowed_lists_are_the_beginning_of_the_whole_ones(tmp_path: Path) -> None:
    table = raw_rows(range(20), {ACTIVITY: [k != 3 for k in range(20)]}, schema=WIDE)
    # The last block of the pooled vectors is content's of 30 days.
    schema = Variant("x", "x", drop=("content_30d",)).schema(WIDE)
    rows = narrow_rows(_written(tmp_path / "rows", table), schema, None, tmp_path / "narrow")
    pooled = column(ACTIVITY, "pooled")
    whole, narrow = (t.column(pooled).to_pylist() for t in (table, pq.read_table(rows)))
    assert narrow == [None if v is None else v[:10] for v in whole]
    assert narrow[3] is None
    (batch,) = RowSource(rows, schema).batches()
    assert batch.columns[pooled].values.shape == (20, 10)


def test_what_a_variant_does_not_predict_is_not_in_its_rows(tmp_path: Path) -> None:
    future = future_schema(TWO, (7,), VERSION)
    rows = _written(tmp_path / "rows", raw_rows(range(5), schema=WIDE), future)
    variant = Variant("x", "x", drop=("content_7d",), modality="content")
    left = variant.predicted(future_of(rows))
    narrow = narrow_rows(rows, variant.schema(WIDE), left, tmp_path / "narrow")
    found = future_of(narrow)
    assert found is not None
    assert [b.name for b in found.blocks] == [
        "collaborative_next_7d", "collaborative_interests_next_7d", "counts_next_7d",
    ]  # fmt: skip
    lists = pq.read_table(narrow).column("user_future__future_pooled").to_pylist()
    assert lists[3] == [3.0] * 4  # collaborative's four numbers, without content's two


def test_narrowed_rows_that_are_there_are_kept(tmp_path: Path) -> None:
    target = tmp_path / "narrow"
    target.write_text("of an earlier call")
    assert narrow_rows(tmp_path / "rows", WIDE, None, target).read_text() == "of an earlier call"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> TinyRepository:
    """40 users with five rows each, on the last five days before the cut-off."""
    repository = TinyRepository.make(tmp_path_factory.mktemp("study"))
    users = [user for user in range(40) for _ in range(5)]
    table = raw_rows(users)
    newest = round(datetime(2025, 12, 31, tzinfo=timezone.utc).timestamp() * 1e6)
    times = pa.array([newest - (k % 5) * DAY_US for k in range(len(users))], pa.int64())
    for name in SCHEMA.as_of_columns:
        table = table.set_column(table.column_names.index(name), name, times)
    repository.write_raw(table, offline=True)
    return repository


def _rows(repository: TinyRepository, folder: Path, max_rows: int) -> StudyRows:
    config = TrainingConfig(prediction_weight=0.0)
    modalities = cast("ModalityEncoders", None)  # read only where anything is predicted
    return StudyRows(
        repository.store, repository.settings, SCHEMA, modalities, config, folder, max_rows
    )


def _users(path: Path) -> list[int]:
    return list(pq.read_table(path).column(USER_KEY).to_pylist())


def test_a_sample_is_of_whole_users_and_always_the_same(
    repository: TinyRepository, tmp_path: Path
) -> None:
    everybody = _users(_rows(repository, tmp_path / "all", 1_000).file(progress=False))
    assert len(everybody) == 200
    one, two = (
        _users(_rows(repository, tmp_path / name, 100).file(progress=False)) for name in "ab"
    )
    assert one == two
    assert 5 <= len(one) < 200
    assert all(one.count(user) == 5 for user in set(one))


def test_aged_rows_end_so_many_days_earlier(repository: TinyRepository, tmp_path: Path) -> None:
    rows = _rows(repository, tmp_path, 1_000)
    # Rows are of 27 to 31 December, the cut-off is 1 January, 00:00.
    assert len(_users(rows.file(3, progress=False))) == 40 * 2  # before the 29th
    assert rows.end(3) == datetime(2025, 12, 29, tzinfo=timezone.utc)


def _drifting(path: Path, *, same: bool) -> Path:
    """Write 60 users' rows of two days; ``same``: both hold the same values."""
    first = raw_rows(range(60), seed=1)
    second = first if same else raw_rows(range(60), seed=2)
    table = pa.concat_tables([first, second])
    day = np.repeat([1, 2], 60)
    for name in SCHEMA.as_of_columns:
        column_of = pa.array(day * DAY_US)
        table = table.set_column(table.column_names.index(name), name, column_of)
    pq.write_table(table.take(np.lexsort([day, np.tile(np.arange(60), 2)])), path)
    return path


def test_users_who_do_not_change_do_not_drift(tmp_path: Path) -> None:
    rows, since = _drifting(tmp_path / "rows", same=True), THIRD
    found = drift_since(tiny_artifact(0, LAYOUT), rows, since, n_resamples=20)
    assert found is not None
    assert found["users"] == 60
    assert found["unchanged"] == 0  # there is a newer row, with the same values
    assert found["cosine"]["value"] == pytest.approx(1.0)
    assert found["two_sample_auc"]["value"] == pytest.approx(0.5)


def test_users_who_change_are_told_apart(tmp_path: Path) -> None:
    rows, since = (
        _drifting(tmp_path / "rows", same=False),
        datetime(1970, 1, 3, tzinfo=timezone.utc),
    )
    found = drift_since(tiny_artifact(0, LAYOUT), rows, since, n_resamples=20)
    assert found is not None
    assert found["cosine"]["value"] < 0.99
    # A moment at which the newest row is there already: nobody has a newer one.
    later = drift_since(
        tiny_artifact(0, LAYOUT), rows, datetime(1970, 1, 4, tzinfo=timezone.utc), n_resamples=20
    )
    assert later is not None
    assert later["unchanged"] == 1


def test_nothing_is_said_of_a_time_before_all_rows(tmp_path: Path) -> None:
    rows = _drifting(tmp_path / "rows", same=True)
    artifact = tiny_artifact(0, LAYOUT)
    assert drift_since(artifact, rows, datetime(1970, 1, 2, tzinfo=timezone.utc)) is None
