"""Offline stores under contract: how each is filled and asked, and where they differ, as data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
from psycopg import sql

from tests.servers import Server

if TYPE_CHECKING:
    from feast import FeatureStore, FeatureView
    from feast.data_source import DataSource

__all__ = [
    "HOUR",
    "PALATE",
    "POSTGRES",
    "START",
    "STOCK",
    "OfflineProfile",
    "PostgresRepository",
    "Repository",
    "entity_rows",
    "insert_rows",
    "make_repository",
    "postgres_schema",
    "table_of",
    "values",
]

START = datetime(2024, 1, 1, tzinfo=timezone.utc)
HOUR = timedelta(hours=1)
INSTANT = pa.timestamp("us", "UTC")
Rows = Sequence[tuple[int, int, int, float]]
"""(user, event hour, created hour, value), hours from ``START`` on."""


@dataclass(frozen=True)
class OfflineProfile:
    """An offline store and its declared differences: expected values, each with its reason."""

    name: str
    type: str
    settings: str = ""
    created_filter_default: bool = False
    """Stock takes the created time into account on request only; ours always, so that a back-fill
    cannot leak into a training set by an argument that somebody forgot."""
    sql_entity_rows: str = "yes"
    """``AttributeError``: stock DuckDB reads the rows' schema from a DataFrame alone. ``warns``:
    stock PostgreSQL hands pandas a connection that pandas is not tested with."""
    keeps_order: bool = False
    """Only ours promises the entity rows in their order."""
    ties_multiply: bool = False
    """Stock PostgreSQL joins every row of the newest event and created time: two equal ones make
    two rows of one entity row."""
    server: str | None = None
    """Fixture of the server that it needs."""


STOCK = OfflineProfile("stock", "duckdb", sql_entity_rows="AttributeError")
PALATE = OfflineProfile(
    "palate",
    "materialize.stores.parquet.PalateParquetOfflineStore",
    "  recomputed_views: [recomputed]\n  threads: 1\n",
    created_filter_default=True,
    keeps_order=True,
)
POSTGRES = OfflineProfile(
    "stock-postgres",
    "postgres",
    sql_entity_rows="warns",
    ties_multiply=True,
    server="postgres_server",
)


@dataclass(frozen=True)
class Repository:
    """An applied feature repository whose views read folders of Parquet."""

    profile: OfflineProfile
    store: FeatureStore
    root: Path
    declared: set[str] = field(default_factory=set)
    """Names of the views."""

    def view(self, name: str, **options: Any) -> FeatureView:
        """Apply a view of its own rows; options are FeatureView's and the source's."""
        from feast import Entity, FeatureView, Field, ValueType
        from feast.types import Float64

        user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
        view = FeatureView(
            name=name,
            entities=[user] if options.pop("keyed", True) else [],
            ttl=options.pop("ttl", timedelta(0)),
            schema=[Field(name="value", dtype=Float64)],
            source=self.source(name, **options),
        )
        self.store.apply([user, view])
        self.declared.add(name)
        return view

    def source(
        self, name: str, path: str | None = None, mapping: dict[str, str] | None = None
    ) -> DataSource:
        """Return the source of a view's rows, there and empty."""
        from feast import FileSource
        from feast.data_format import ParquetFormat

        (self.root / name).mkdir(exist_ok=True)
        return FileSource(
            name=f"{name}_source",
            path=path or str(self.root / name),
            file_format=ParquetFormat(),
            timestamp_field="event_timestamp",
            created_timestamp_column="created_timestamp",
            field_mapping=mapping,
        )

    def write(self, view: str, rows: Rows, part: str = "a") -> None:
        """Make ``rows`` one part of a view's rows, in the place of an earlier one of that name."""
        self.write_table(view, table_of(rows), part)

    def write_table(self, view: str, table: pa.Table, part: str = "a") -> None:
        """Do the same with columns of any names."""
        path = self.root / view / f"{part}.parquet"
        pq.write_table(table, path)

    def ask(self, entities: pd.DataFrame | str, *features: str, **options: Any) -> pd.DataFrame:
        """Return what ``get_historical_features`` answers."""
        return self.store.get_historical_features(
            entities, features=list(features), **options
        ).to_df()


@dataclass(frozen=True)
class PostgresRepository(Repository):
    """The same over tables of PostgreSQL, one a view."""

    url: str = ""
    parts: dict[str, dict[str, pa.Table]] = field(default_factory=dict)

    def source(
        self, name: str, path: str | None = None, mapping: dict[str, str] | None = None
    ) -> DataSource:
        """Return the source of a view's rows, there and empty."""
        from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import (
            PostgreSQLSource,
        )

        value = {new: old for old, new in (mapping or {}).items()}.get("value", "value")
        with psycopg.connect(self.url) as db:
            db.execute(
                sql.SQL(
                    "CREATE TABLE {} (user_id bigint, {} double precision, "
                    "event_timestamp timestamptz, created_timestamp timestamptz)"
                ).format(sql.Identifier(name), sql.Identifier(value))
            )
        return PostgreSQLSource(
            name=f"{name}_source",
            table=name,
            timestamp_field="event_timestamp",
            created_timestamp_column="created_timestamp",
            field_mapping=mapping,
        )

    def write_table(self, view: str, table: pa.Table, part: str = "a") -> None:
        """Make ``table`` one part of a view's rows, in the place of an earlier one of that name."""
        parts = self.parts.setdefault(view, {})
        parts[part] = table
        with psycopg.connect(self.url) as db:
            db.execute(sql.SQL("TRUNCATE {}").format(sql.Identifier(view)))
            for one in parts.values():
                insert_rows(db, view, one)


def insert_rows(db: psycopg.Connection[Any], table: str, rows: pa.Table) -> None:
    """Append rows to a table by column name; lists become arrays."""
    columns = sql.SQL(", ").join(map(sql.Identifier, rows.column_names))
    copy = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table), columns)
    with db.cursor() as cursor, cursor.copy(copy) as out:
        for row in zip(*(rows.column(name).to_pylist() for name in rows.column_names), strict=True):
            out.write_row(row)


@contextmanager
def postgres_schema(server: Server, schema: str) -> Iterator[tuple[str, str]]:
    """Make a schema of that name; yield settings of ``offline_store`` for it, and its URL."""
    with psycopg.connect(server.url, autocommit=True) as db:
        db.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
    settings = (
        f"  host: {server.host}\n  port: {server.port}\n  database: palate\n  user: palate\n"
        f"  password: palate\n  sslmode: disable\n  db_schema: {schema}\n"
    )
    yield settings, f"{server.url}?options=-csearch_path%3D{schema}"
    with psycopg.connect(server.url, autocommit=True) as db:
        db.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))


def make_repository(
    profile: OfflineProfile, root: Path, settings: str = "", url: str = ""
) -> Repository:
    """Write a feature repository; ``settings`` and ``url`` are `postgres_schema`'s."""
    from feast import FeatureStore

    root.mkdir(parents=True, exist_ok=True)
    (root / "feature_store.yaml").write_text(
        "project: offline\nprovider: local\nregistry: registry.db\n"
        "online_store: {type: sqlite, path: online.db}\n"
        f"offline_store:\n  type: {profile.type}\n{profile.settings}{settings}"
        "entity_key_serialization_version: 3\n"
    )
    store = FeatureStore(repo_path=str(root))
    if url:
        return PostgresRepository(profile, store, root, url=url)
    return Repository(profile, store, root)


def table_of(rows: Rows) -> pa.Table:
    """Return rows as a table."""
    return pa.table(
        {
            "user_id": pa.array([r[0] for r in rows], pa.int64()),
            "value": pa.array([r[3] for r in rows], pa.float64()),
            "event_timestamp": _hours([r[1] for r in rows]),
            "created_timestamp": _hours([r[2] for r in rows]),
        }
    )


def _hours(offsets: Sequence[int]) -> pa.Array:
    return pa.array([START + k * HOUR for k in offsets], INSTANT)


def entity_rows(rows: Sequence[tuple[int, int]]) -> pd.DataFrame:
    """Return (user, hour) as entity rows, with their position."""
    return pd.DataFrame(
        {
            "user_id": np.array([r[0] for r in rows], np.int64),
            "event_timestamp": pd.DatetimeIndex([START + r[1] * HOUR for r in rows]),
            "position": np.arange(len(rows)),
        }
    )


def values(frame: pd.DataFrame, column: str = "value") -> list[float | None]:
    """Return the column in the order of the entity rows, a missing value as None."""
    return [None if pd.isna(v) else v for v in frame.sort_values("position")[column]]
