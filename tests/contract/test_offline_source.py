"""The offline contract: stock Feast's DuckDB store and ours against a row-by-row reference."""

from __future__ import annotations

import fcntl
import itertools
import multiprocessing
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoder.errors import DataFault, TransientError
from materialize.compaction import compact
from materialize.stores import pit
from materialize.stores.append import Manifest, append_rows, live_files, locked, reading

if TYPE_CHECKING:
    from feast import FeatureStore, FeatureView

START = datetime(2024, 1, 1, tzinfo=timezone.utc)
HOUR = timedelta(hours=1)
INSTANT = pa.timestamp("us", "UTC")
OURS = "materialize.stores.parquet.PalateParquetOfflineStore"


@dataclass(frozen=True)
class OfflineProfile:
    """An offline store and its declared differences: expected values, each with its reason."""

    name: str
    type: str
    settings: str = ""
    created_filter_default: bool = True
    """Stock takes the created time into account on request only; ours always, so that a back-fill
    cannot leak into a training set by an argument that somebody forgot."""
    takes_sql: bool = True
    """Stock reads the entity rows' schema from a DataFrame and fails on a query."""
    appends: bool = True
    """Stock reads the whole file, puts the new rows in front, and writes it again in place."""
    recomputed: bool = field(default=True)
    """Ours knows views whose batch files a job recomputes from dated events."""


STOCK = OfflineProfile(
    "stock", "duckdb", "", created_filter_default=False, takes_sql=False, appends=False,
    recomputed=False,
)  # fmt: skip
PALATE = OfflineProfile("palate", OURS, "  recomputed_views: [recomputed]\n  threads: 1\n")


@dataclass(frozen=True)
class Repository:
    profile: OfflineProfile
    store: FeatureStore
    root: Path

    def view(self, name: str, **options: Any) -> FeatureView:
        """Apply a view over the folder ``name``; options are FeatureView's and FileSource's."""
        from feast import Entity, FeatureView, Field, FileSource, ValueType
        from feast.data_format import ParquetFormat
        from feast.types import Float64

        user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
        (self.root / name).mkdir(exist_ok=True)
        view = FeatureView(
            name=name,
            entities=[user] if options.pop("keyed", True) else [],
            ttl=options.pop("ttl", timedelta(0)),
            schema=[Field(name=f, dtype=Float64) for f in options.pop("fields", ("value",))],
            source=FileSource(
                name=f"{name}_source",
                path=options.pop("path", str(self.root / name)),
                file_format=ParquetFormat(),
                timestamp_field=options.pop("timestamp", "event_timestamp"),
                created_timestamp_column="created_timestamp",
                field_mapping=options.pop("mapping", None),
            ),
        )
        assert not options
        self.store.apply([user, view])
        return view

    def write(self, view: str, rows: list[tuple[int, int, int, float]], name: str = "a") -> Path:
        """Write (user, event hour, created hour, value) as one file of the view's folder."""
        path = self.root / view / f"{name}.parquet"
        pq.write_table(table_of(rows), path)
        return path

    def ask(self, entities: pd.DataFrame | str, *features: str, **options: Any) -> pd.DataFrame:
        return self.store.get_historical_features(
            entities, features=list(features), **options
        ).to_df()


def hours(values: list[int]) -> pa.Array:
    return pa.array([START + k * HOUR for k in values], INSTANT)


def table_of(rows: list[tuple[int, int, int, float]]) -> pa.Table:
    return pa.table(
        {
            "user_id": pa.array([r[0] for r in rows], pa.int64()),
            "value": pa.array([r[3] for r in rows], pa.float64()),
            "event_timestamp": hours([r[1] for r in rows]),
            "created_timestamp": hours([r[2] for r in rows]),
        }
    )


def entity_rows(rows: list[tuple[int, int]]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "user_id": np.array([r[0] for r in rows], np.int64),
            "event_timestamp": pd.DatetimeIndex([START + r[1] * HOUR for r in rows]),
            "position": np.arange(len(rows)),
        }
    )


def values(frame: pd.DataFrame, column: str = "value") -> list[float | None]:
    """The column in the order of the entity rows, a missing value as None."""
    return [None if pd.isna(v) else v for v in frame.sort_values("position")[column]]


_numbers = itertools.count()


@pytest.fixture(params=[STOCK, PALATE], ids=lambda p: p.name, scope="module")
def profile(request: pytest.FixtureRequest) -> OfflineProfile:
    return request.param


def make_repository(profile: OfflineProfile, root: Path) -> Repository:
    from feast import FeatureStore

    root.mkdir(parents=True, exist_ok=True)
    (root / "feature_store.yaml").write_text(
        "project: offline\nprovider: local\nregistry: registry.db\n"
        "online_store: {type: sqlite, path: online.db}\n"
        f"offline_store:\n  type: {profile.type}\n{profile.settings}"
        "entity_key_serialization_version: 3\n"
    )
    return Repository(profile, FeatureStore(repo_path=str(root)), root)


@pytest.fixture(scope="module")
def repository(profile: OfflineProfile, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """A repository a module shares; each test uses views of its own names."""
    return make_repository(profile, tmp_path_factory.mktemp(profile.name) / "repo")


@pytest.fixture(scope="module")
def palate(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return make_repository(PALATE, tmp_path_factory.mktemp("only-palate") / "repo")


def reference(
    history: list[tuple[int, int, int, float]],
    asked: list[tuple[int, int]],
    ttl: int,
    created: bool,
) -> list[set[float] | None]:
    """Row by row: the values that may stand in each entity row (ties in both times are open)."""
    answers: list[set[float] | None] = []
    for user, moment in asked:
        seen = [
            (event, made, value)
            for owner, event, made, value in history
            if owner == user
            and event <= moment
            and (not ttl or moment - event <= ttl)
            and (not created or made <= moment)
        ]
        best = max((row[:2] for row in seen), default=None)
        answers.append(None if best is None else {v for e, m, v in seen if (e, m) == best})
    return answers


_histories = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 8), st.integers(0, 10)), min_size=1, max_size=14
)
_asked = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), min_size=1, max_size=8)


@given(
    history=_histories,
    asked=_asked,
    ttl=st.sampled_from([0, 2]),
    strict=st.booleans(),
    paired=st.sampled_from([0, 16]),
)
def test_each_entity_row_gets_what_a_row_by_row_search_finds(
    repository: Repository,
    history: list[tuple[int, int, int]],
    asked: list[tuple[int, int]],
    ttl: int,
    strict: bool,
    paired: int,
) -> None:
    """Values, kept rows, duplicates, ttl, ties and the created filter, for any small history.

    ``paired`` chooses between our two ways of looking further back, by the number of rows.
    """
    name = f"any_{ttl}"
    if not (repository.root / name).exists():
        repository.view(name, ttl=ttl * HOUR)
    rows = [(*row, float(k)) for k, row in enumerate(history)]
    half = len(rows) // 2
    repository.write(name, rows[: half or 1], "a")
    repository.write(name, rows[half or 1 :], "b")
    with mock.patch.object(pit, "_PAIRED", paired):
        frame = repository.ask(
            entity_rows(asked), f"{name}:value", filter_by_created_timestamp=strict
        )
    created = strict or repository.profile.created_filter_default
    found = values(frame)
    assert len(found) == len(asked), "no entity row is lost, none comes twice"
    for one, allowed in zip(found, reference(rows, asked, ttl, created), strict=True):
        assert (one is None) if allowed is None else (one in allowed)


def test_entity_rows_come_back_in_their_order(repository: Repository) -> None:
    repository.view("ordered")
    rng = np.random.default_rng(1)
    n = 5000
    users, at = rng.integers(0, 300, n), rng.integers(0, 50, n)
    repository.write(
        "ordered", [(u, h, h, u * 100.0 + h) for u in range(300) for h in range(0, 50, 7)]
    )
    asked = entity_rows(list(zip(users.tolist(), at.tolist(), strict=True)))
    frame = repository.ask(asked, "ordered:value")
    assert values(frame) == [u * 100.0 + h // 7 * 7 for u, h in zip(users, at, strict=True)]
    if repository.profile is PALATE:  # stock promises no order, and keeps none at this size
        assert frame["position"].tolist() == list(range(n))


def test_several_views_aliases_and_full_names_meet_in_one_row(repository: Repository) -> None:
    view = repository.view("aliased")
    repository.view("other")
    repository.write("aliased", [(1, 1, 1, 10.0), (2, 1, 1, 20.0)])
    repository.write("other", [(1, 2, 2, 30.0)])
    from feast import FeatureService

    friend = view.with_name("friend").with_join_key_map({"user_id": "friend_id"})
    service = FeatureService(
        name="both", features=[friend, repository.store.get_feature_view("other")]
    )
    repository.store.apply([service])
    asked = entity_rows([(1, 5), (2, 5), (1, 1)]).assign(friend_id=[2, 1, 7])
    frame = repository.store.get_historical_features(
        asked, features=service, full_feature_names=True
    ).to_df()
    assert values(frame, "friend__value") == [20.0, 10.0, None]
    assert values(frame, "other__value") == [30.0, None, None]


def test_source_columns_are_found_under_their_mapped_names(repository: Repository) -> None:
    repository.view("mapped", mapping={"raw": "value"})
    table = table_of([(1, 1, 1, 5.0)])
    names = ["raw" if name == "value" else name for name in table.column_names]
    pq.write_table(table.rename_columns(names), repository.root / "mapped" / "a.parquet")
    assert values(repository.ask(entity_rows([(1, 2)]), "mapped:value")) == [5.0]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Kathmandu"])
def test_entity_times_of_any_unit_and_zone(
    repository: Repository, unit: str, zone: str | None
) -> None:
    if not (repository.root / "units").exists():
        repository.view("units")
        repository.write("units", [(1, 1, 1, 1.0), (1, 3, 3, 3.0)])
    asked = entity_rows([(1, 0), (1, 1), (1, 2), (1, 3)])
    times = pd.DatetimeIndex(asked["event_timestamp"])
    asked["event_timestamp"] = (
        times.tz_convert(zone) if zone else times.tz_localize(None)
    ).as_unit(unit)
    assert values(repository.ask(asked, "units:value")) == [None, 1.0, 1.0, 3.0]


def test_rows_of_every_chunk_are_pulled(repository: Repository) -> None:
    """Both ends of the range are inclusive; the first chunk is not the whole."""
    repository.view("pulled")
    for part in range(3):
        repository.write(
            "pulled",
            [(u, h, h, float(h)) for u in range(part, 3000, 3) for h in (1, 2, 3)],
            f"{part}",
        )
    store = repository.store
    source = store.get_feature_view("pulled").batch_source
    offline = store._get_provider().offline_store
    common: dict[str, Any] = {
        "config": store.config, "data_source": source, "join_key_columns": ["user_id"],
        "feature_name_columns": ["value"], "timestamp_field": "event_timestamp",
        "created_timestamp_column": "created_timestamp",
        "start_date": START + 1 * HOUR, "end_date": START + 2 * HOUR,
    }  # fmt: skip
    everything = offline.pull_all_from_table_or_query(**common).to_arrow()
    assert everything.num_rows == 6000
    newest = offline.pull_latest_from_table_or_query(**common).to_arrow()
    assert sorted(newest["user_id"].to_pylist()) == list(range(3000))
    assert set(newest["value"].to_pylist()) == {2.0}
    if repository.profile is PALATE:  # Feast's materialisation reads the first chunk alone
        assert newest.column("value").num_chunks == everything.column("value").num_chunks == 1
        batches = list(offline.pull_all_from_table_or_query(**common).to_record_batches(500))
        assert sum(batch.num_rows for batch in batches) == 6000
        assert max(batch.num_rows for batch in batches) <= 2048  # DuckDB's vector


def test_a_query_stands_for_entity_rows(repository: Repository) -> None:
    repository.view("queried")
    repository.write("queried", [(1, 1, 1, 1.0)])
    query = (
        "SELECT 1::BIGINT AS user_id, TIMESTAMP '2024-01-01 05:00' AS event_timestamp, "
        "0 AS position"
    )
    if repository.profile.takes_sql:
        assert values(repository.ask(query, "queried:value")) == [1.0]
    else:
        with pytest.raises(AttributeError):
            repository.ask(query, "queried:value")


# What only ours does.


def test_nanoseconds_in_the_files_are_read(palate: Repository) -> None:
    """DuckDB 2.0 cannot cast a nanosecond time with a zone; such a file stands beside another."""
    palate.view("nanos")
    table = table_of([(1, 1, 1, 1.0)])
    for name in ("event_timestamp", "created_timestamp"):
        at = table.column_names.index(name)
        table = table.set_column(at, name, table[name].cast(pa.timestamp("ns", "UTC")))
    pq.write_table(table, palate.root / "nanos" / "b.parquet")
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
    context = multiprocessing.get_context("spawn")
    (palate.root / "pushed").mkdir()
    processes = [
        context.Process(target=push, args=(str(palate.root), "pushed", p, 20)) for p in range(8)
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
    before = palate.write("kept", [(1, 1, 1, 1.0)])
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


def small_files(folder: Path, count: int = 5) -> list[tuple[int, float]]:
    folder.mkdir()
    rows = [(k, float(k)) for k in range(count)] + [(0, 0.0)]  # an equal row twice
    for user, value in rows:
        append_rows(folder, table_of([(user, 1, 1, value)]))
    return sorted(rows)


def stored(files: list[Path]) -> list[tuple[int, float]]:
    return sorted((r["user_id"], r["value"]) for f in files for r in pq.read_table(f).to_pylist())


def test_compaction_keeps_every_row_and_leaves_batch_files_alone(tmp_path: Path) -> None:
    rows = small_files(tmp_path / "v")
    pq.write_table(table_of([(9, 1, 1, 9.0)]), tmp_path / "v" / "part.parquet")
    report = compact(tmp_path / "v")
    assert (report.merged, report.rows, report.pending) == (6, 6, False)
    assert len(live_files(tmp_path / "v")) == 2
    assert stored(live_files(tmp_path / "v")) == sorted([*rows, (9, 9.0)])
    assert compact(tmp_path / "v").merged == 0


def test_a_reader_keeps_its_files_and_a_new_one_sees_each_row_once(tmp_path: Path) -> None:
    rows = small_files(tmp_path / "v")
    with reading(tmp_path / "v") as files:
        report = compact(tmp_path / "v", wait_seconds=0.1)
        assert report.pending
        assert stored(files) == rows, "the files of a running reader stay"
        with reading(tmp_path / "v") as later:
            assert len(later) == 1
            assert stored(later) == rows
    assert not compact(tmp_path / "v").pending
    assert Manifest.read(tmp_path / "v") is None
    assert stored(live_files(tmp_path / "v")) == rows
    assert len(list((tmp_path / "v").glob("*.parquet"))) == 1


@pytest.mark.parametrize("step", ["_merge", "_commit", "_finish"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_compaction_killed_at_any_step_loses_nothing(
    tmp_path: Path, step: str, when: str
) -> None:
    rows = small_files(tmp_path / "v")
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=compact_and_die, args=(str(tmp_path / "v"), step, when))
    process.start()
    process.join(120)
    assert process.exitcode == -9
    with reading(tmp_path / "v") as files:
        assert stored(files) == rows
    append_rows(tmp_path / "v", table_of([(7, 1, 1, 7.0)]))
    compact(tmp_path / "v")
    assert stored(live_files(tmp_path / "v")) == sorted([*rows, (7, 7.0)])
    assert not list((tmp_path / "v").glob(".push-*"))


def compact_and_die(folder: str, step: str, when: str) -> None:
    import os
    import signal

    from materialize import compaction

    real = getattr(compaction, step)

    def dying(*args: Any, **kwargs: Any) -> Any:
        if when == "after":
            real(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(compaction, step, dying)
    compact(folder)


def test_two_compactions_do_not_run_at_once(tmp_path: Path) -> None:
    small_files(tmp_path / "v")
    (tmp_path / "v" / ".compaction.lock").touch()
    with (
        locked(tmp_path / "v" / ".compaction.lock", fcntl.LOCK_EX),
        pytest.raises(TransientError, match="Another compaction"),
    ):
        compact(tmp_path / "v")


def test_readers_beside_pushes_and_compactions_see_every_earlier_row_once(tmp_path: Path) -> None:
    folder = tmp_path / "v"
    rows = small_files(folder)
    done = threading.Event()

    def work() -> None:
        for k in range(30):
            append_rows(folder, table_of([(100 + k, 1, 1, 0.0)]))
            compact(folder, wait_seconds=10)
        done.set()

    worker = threading.Thread(target=work)
    worker.start()
    seen, deadline = 0, time.monotonic() + 100
    while not done.is_set() and time.monotonic() < deadline:
        with reading(folder) as files:
            found = stored(files)
        assert [row for row in found if row[0] < 100] == rows
        pushed = [row for row in found if row[0] >= 100]
        assert len(set(pushed)) == len(pushed) >= seen
        seen = len(pushed)
    worker.join(100)
    assert done.is_set()
    assert len(stored(live_files(folder))) == len(rows) + 30
