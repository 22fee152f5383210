"""What only our offline store does: appending pushes, the created filter by file, clear errors."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encoder.errors import DataFault
from materialize.stores.append import append_rows, live_files
from tests.forks import FORKS, preload
from tests.offline import PALATE, Repository, entity_rows, make_repository, table_of, values

preload(__name__)


@pytest.fixture(scope="module")
def palate(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return make_repository(PALATE, tmp_path_factory.mktemp("only-palate") / "repo")


def test_nanoseconds_in_the_files_are_read(palate: Repository) -> None:
    """DuckDB 2.0 cannot cast a nanosecond time with a zone; such a file stands beside another."""
    palate.view("nanos")
    table = table_of([(1, 1, 1, 1.0)])
    for name in ("event_timestamp", "created_timestamp"):
        at = table.column_names.index(name)
        table = table.set_column(at, name, table[name].cast(pa.timestamp("ns", "UTC")))
    palate.write_table("nanos", table, "b")
    palate.write("nanos", [(2, 2, 2, 2.0)], "a")
    assert values(palate.ask(entity_rows([(1, 1), (2, 2), (2, 1)]), "nanos:value")) == [
        1.0,
        2.0,
        None,
    ]


def test_a_view_without_entities_has_one_history(palate: Repository) -> None:
    palate.view("global", keyed=False)
    pq.write_table(
        table_of([(1, 1, 1, 1.0), (1, 3, 3, 3.0)]).drop_columns("user_id"),
        palate.root / "global" / "a.parquet",
    )
    assert values(palate.ask(entity_rows([(1, 0), (2, 2), (3, 4)]), "global:value")) == [
        None,
        1.0,
        3.0,
    ]


def test_missing_folder_and_empty_folder_are_named(palate: Repository) -> None:
    palate.view("empty")
    with pytest.raises(DataFault, match="holds no Parquet file"):
        palate.ask(entity_rows([(1, 1)]), "empty:value")
    palate.view("absent", path=str(palate.root / "nowhere"))
    with pytest.raises(DataFault, match="does not exist"):
        palate.ask(entity_rows([(1, 1)]), "absent:value")


def test_a_feature_named_as_an_entity_column_is_refused(palate: Repository) -> None:
    palate.view("clash")
    palate.write("clash", [(1, 1, 1, 1.0)])
    with pytest.raises(ValueError, match="full_feature_names"):
        palate.ask(entity_rows([(1, 1)]).assign(value=1.0), "clash:value")


def test_recomputed_rows_count_from_their_event_time_and_pushed_ones_from_their_created_time(
    palate: Repository,
) -> None:
    """A back-fill of today fills training sets of the past; a late push does not leak into them."""
    palate.view("recomputed")
    palate.write("recomputed", [(1, 1, 100, 1.0), (1, 3, 100, 3.0)], "backfill")
    palate.store.write_to_offline_store("recomputed", table_of([(1, 2, 50, 2.0)]).to_pandas())
    asked = entity_rows([(1, 1), (1, 2), (1, 3), (1, 60)])
    assert values(palate.ask(asked, "recomputed:value")) == [1.0, 1.0, 3.0, 3.0]
    strict = palate.ask(asked, "recomputed:value", filter_by_created_timestamp=True)
    assert values(strict) == [None, None, None, 2.0]


def push(root: str, view: str, process: int, count: int) -> None:
    for k in range(count):
        append_rows(Path(root) / view, table_of([(process, k, k, float(k))]))


def test_concurrent_pushes_lose_nothing(palate: Repository) -> None:
    (palate.root / "pushed").mkdir()
    processes = [
        FORKS.Process(target=push, args=(str(palate.root), "pushed", p, 20)) for p in range(8)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    files = live_files(palate.root / "pushed")
    assert len(files) == 160
    rows = {(r["user_id"], r["value"]) for f in files for r in pq.read_table(f).to_pylist()}
    assert rows == {(p, float(k)) for p in range(8) for k in range(20)}
    assert not list((palate.root / "pushed").glob(".*.tmp"))


def test_a_push_changes_no_file_and_keeps_the_stored_types(palate: Repository) -> None:
    palate.view("kept")
    palate.write("kept", [(1, 1, 1, 1.0)])
    before = palate.root / "kept" / "a.parquet"
    stamp = before.stat().st_mtime_ns
    frame = table_of([(2, 2, 2, 2.0)]).to_pandas()
    palate.store.write_to_offline_store("kept", frame)  # pandas gives microseconds or nanoseconds
    files = live_files(palate.root / "kept")
    assert len(files) == 2
    assert before.stat().st_mtime_ns == stamp
    assert len({pq.read_schema(f).remove_metadata() for f in files}) == 1


def test_wrong_columns_and_single_files_are_refused(palate: Repository) -> None:
    view = palate.view("refused")
    offline = palate.store._get_provider().offline_store
    palate.write("refused", [(1, 1, 1, 1.0)])
    with pytest.raises(ValueError, match="lack the columns \\['value'\\]"):
        offline.offline_write_batch(
            palate.store.config, view, table_of([(1, 1, 1, 1.0)]).drop_columns("value"), None
        )
    single = palate.view("single", path=str(palate.root / "refused" / "a.parquet"))
    with pytest.raises(DataFault, match="single Parquet file"):
        offline.offline_write_batch(palate.store.config, single, table_of([(1, 1, 1, 1.0)]), None)


def test_pulls_come_in_one_chunk_or_in_small_batches(palate: Repository) -> None:
    """Feast's own materialisation reads the first chunk of a column alone."""
    palate.view("chunks")
    for part in range(3):
        palate.write("chunks", [(u, 1, 1, 1.0) for u in range(part, 6000, 3)], f"{part}")
    store = palate.store
    job = store._get_provider().offline_store.pull_all_from_table_or_query(
        store.config,
        store.get_feature_view("chunks").batch_source,
        *(["user_id"], ["value"], "event_timestamp", "created_timestamp"),
    )
    assert job.to_arrow().column("value").num_chunks == 1
    batches = list(job.to_record_batches(500))
    assert sum(batch.num_rows for batch in batches) == 6000
    assert max(batch.num_rows for batch in batches) <= 2048, "DuckDB's vector"
