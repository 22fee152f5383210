"""The offline contract: stock Feast's DuckDB store and ours against a row-by-row reference."""

from __future__ import annotations

import fcntl
import itertools
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoder.errors import DataFault, TransientError
from materialize.compaction import compact
from materialize.stores.append import Manifest, append_rows, live_files, locked, reading

if TYPE_CHECKING:
    from feast import FeatureStore, FeatureView
    from feast.infra.offline_stores.offline_store import RetrievalJob

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


@given(history=_histories, asked=_asked, ttl=st.sampled_from([0, 2]), strict=st.booleans())
def test_each_entity_row_gets_what_a_row_by_row_search_finds(
    repository: Repository,
    history: list[tuple[int, int, int]],
    asked: list[tuple[int, int]],
    ttl: int,
    strict: bool,
) -> None:
    """Values, kept rows, duplicates, ttl, ties and the created filter, for any small history."""
    name = f"any_{ttl}"
    if not (repository.root / name).exists():
        repository.view(name, ttl=ttl * HOUR)
    rows = [(*row, float(k)) for k, row in enumerate(history)]
    half = len(rows) // 2
    repository.write(name, rows[: half or 1], "a")
    repository.write(name, rows[half or 1 :], "b")
    frame = repository.ask(entity_rows(asked), f"{name}:value", filter_by_created_timestamp=strict)
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
