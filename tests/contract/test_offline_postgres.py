"""Palate's views over PostgreSQL tables through Feast's own offline store, and its traps.

| situation | Feast 0.67's PostgreSQL store |
|---|---|
| push or ``write_to_offline_store`` | NotImplementedError: rows are inserted with SQL |
| a view over Parquet | AssertionError without a message |
| two rows of one event and created time | the entity row comes twice |
| created after the entity row's time | counts, unless ``filter_by_created_timestamp`` is asked |
| naive times in a query for entity rows | taken in the session's time zone |
| times in the answer | UTC without a zone |
| a column of float32 lists, or of int8, in the entity rows | refused |
| ``real[]`` | lists of float32; a null stays null |
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import psycopg.errors
import pyarrow as pa
import pytest
from psycopg import sql

from tests.encoders import LAYOUT
from tests.offline import (
    HOUR,
    POSTGRES,
    START,
    PostgresRepository,
    entity_rows,
    insert_rows,
    make_repository,
    postgres_schema,
    values,
)
from tests.servers import Server
from transforms.layout import ACTIVITY, field
from transforms.names import USER_KEY, stored_view

EMBEDDING = stored_view(1)
_TYPES = {
    "Array(Float32)": "real[]",
    "Array(String)": "text[]",
    "Int64": "bigint",
    "String": "text",
}


@pytest.fixture(scope="module")
def repository(
    postgres_server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PostgresRepository]:
    root = tmp_path_factory.mktemp("postgres") / "repo"
    with postgres_schema(postgres_server, "palate_views") as where:
        made = make_repository(POSTGRES, root, *where)
        assert isinstance(made, PostgresRepository)
        _apply(made)
        yield made


def _apply(repository: PostgresRepository) -> None:
    """Apply Palate's own declarations with tables in the place of their folders."""
    from feast import Entity, FeatureView, ValueType
    from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import (
        PostgreSQLSource,
    )

    from transforms.embedding_views import declare_stored_view
    from transforms.raw_views import declare_raw_views

    user = Entity(name="user", join_keys=[USER_KEY], value_type=ValueType.INT64)
    declared = [
        declare_stored_view(user, space=1, encoder_version="c0ffee12c0ff", folder=Path("/none")),
        next(v for v in declare_raw_views(user, LAYOUT, Path("/none")) if v.name == ACTIVITY),
    ]
    views = []
    for view in declared:
        columns = [(f.name, _TYPES[str(f.dtype)]) for f in view.features]
        with psycopg.connect(repository.url) as db:
            db.execute(
                sql.SQL(
                    "CREATE TABLE {} (user_id bigint, {}, event_timestamp timestamptz, "
                    "created_timestamp timestamptz)"
                ).format(
                    sql.Identifier(view.name),
                    sql.SQL(", ").join(
                        sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(kind))
                        for name, kind in columns
                    ),
                )
            )
        views.append(
            FeatureView(
                name=view.name,
                entities=[user],
                ttl=view.ttl,
                schema=view.features,
                tags=view.tags,
                source=PostgreSQLSource(
                    name=f"{view.name}_table",
                    table=view.name,
                    timestamp_field="event_timestamp",
                    created_timestamp_column="created_timestamp",
                ),
            )
        )
    repository.store.apply([user, *views])


def _fill(repository: PostgresRepository, view: str, hours: list[int], **columns: Any) -> None:
    """Put rows of user 1 in the place of a table's, created when their events happened."""
    moments = pa.array([START + k * HOUR for k in hours])
    times = {"event_timestamp": moments, "created_timestamp": moments}
    rows = pa.table({"user_id": [1] * len(hours), **(times | columns)})
    with psycopg.connect(repository.url) as db:
        db.execute(sql.SQL("TRUNCATE {}").format(sql.Identifier(view)))
        insert_rows(db, view, rows)


def _vectors(*rows: list[float] | None) -> pa.Array:
    return pa.array(rows, pa.list_(pa.float32()))


def test_embeddings_are_point_in_time_right_and_every_entity_row_stays(
    repository: PostgresRepository,
) -> None:
    rng = np.random.default_rng(3)
    wide = rng.standard_normal((3, 120)).astype(np.float32)
    vectors = pa.array(list(wide), pa.list_(pa.float32()))
    _fill(repository, EMBEDDING, [1, 3, 5], embedding=vectors, space=pa.array([1, 1, 1]))
    asked = [(1, 0), (1, 1), (1, 4), (1, 4), (1, 9), (2, 4)]
    job = repository.store.get_historical_features(
        entity_rows(asked), [f"{EMBEDDING}:embedding", f"{EMBEDDING}:space"]
    )
    table = job.to_arrow().sort_by("position")
    assert table["position"].to_pylist() == list(range(len(asked)))
    assert table.schema.field("embedding").type == pa.list_(pa.float32())
    found = table["embedding"].to_pylist()
    assert found[0] is None
    assert found[5] is None
    np.testing.assert_array_equal(
        np.array(found[1:5], np.float32), wide[[0, 1, 1, 2]], "bit for bit"
    )
    assert table["space"].to_pylist() == [None, 1, 1, 1, 1, None]


def test_raw_features_and_embeddings_meet_in_one_row(repository: PostgresRepository) -> None:
    pooled = field(ACTIVITY, "pooled")
    _fill(repository, ACTIVITY, [1, 4], **{pooled: _vectors([1.0, 2.0], [3.0, 4.0])})
    _fill(repository, EMBEDDING, [2], embedding=_vectors([0.5]))
    frame = repository.ask(
        entity_rows([(1, 1), (1, 3), (1, 5)]), f"{ACTIVITY}:{pooled}", f"{EMBEDDING}:embedding"
    )
    frame = frame.sort_values("position")
    assert [list(v) for v in frame[pooled]] == [[1.0, 2.0], [1.0, 2.0], [3.0, 4.0]]
    assert [None if v is None else list(v) for v in frame["embedding"]] == [None, [0.5], [0.5]]


def test_a_row_inserted_later_counts_from_then_on(repository: PostgresRepository) -> None:
    """What a push would do: Feast has none for this store."""
    _fill(repository, EMBEDDING, [1], as_of=pa.array([10]))
    ask = (entity_rows([(1, 9)]), f"{EMBEDDING}:as_of")
    assert values(repository.ask(*ask), "as_of") == [10]
    _fill(repository, EMBEDDING, [1, 2], as_of=pa.array([10, 20]))
    assert values(repository.ask(*ask), "as_of") == [20]


# Traps, pinned so that a Feast that changes one is noticed.


def test_pushes_are_not_implemented(repository: PostgresRepository) -> None:
    view = repository.store.get_feature_view(EMBEDDING)
    names = [
        name
        for name, _ in view.batch_source.get_table_column_names_and_types(repository.store.config)
    ]
    row = pa.table({name: pa.nulls(1) for name in names}).to_pandas()
    with pytest.raises(NotImplementedError):
        repository.store.write_to_offline_store(EMBEDDING, row)


def test_views_over_parquet_are_refused_without_a_word(
    repository: PostgresRepository, tmp_path: Path
) -> None:
    from feast import FeatureView, Field, FileSource
    from feast.types import Float64

    user = repository.store.get_entity("user")
    source = FileSource(
        name="parquet_source", path=str(tmp_path), timestamp_field="event_timestamp"
    )
    fields = [Field(name="value", dtype=Float64), Field(name=USER_KEY, dtype=_int64())]
    view = FeatureView(name="parquet", entities=[user], schema=fields, source=source)
    repository.store.apply(view)
    try:
        with pytest.raises(AssertionError) as caught:
            repository.ask(entity_rows([(1, 1)]), "parquet:value")
        assert not str(caught.value)
    finally:
        repository.store.delete_feature_view("parquet")


def _int64() -> Any:
    from feast.types import Int64

    return Int64


def test_a_row_held_twice_doubles_the_entity_row(repository: PostgresRepository) -> None:
    _fill(repository, EMBEDDING, [1, 1], as_of=pa.array([10, 11]))
    frame = repository.ask(entity_rows([(1, 2)]), f"{EMBEDDING}:as_of")
    assert frame["position"].tolist() == [0, 0]
    assert sorted(frame["as_of"]) == [10, 11]


def test_a_back_fill_leaks_unless_the_call_says_otherwise(repository: PostgresRepository) -> None:
    late = pa.array([START + HOUR, START + 50 * HOUR])
    _fill(repository, EMBEDDING, [1, 2], as_of=pa.array([10, 20]), created_timestamp=late)
    asked = entity_rows([(1, 3)])
    assert values(repository.ask(asked, f"{EMBEDDING}:as_of"), "as_of") == [20]
    strict = repository.ask(asked, f"{EMBEDDING}:as_of", filter_by_created_timestamp=True)
    assert values(strict, "as_of") == [10]


def test_naive_times_of_a_query_are_the_sessions_local_time(
    repository: PostgresRepository,
) -> None:
    _fill(repository, EMBEDDING, [1], as_of=pa.array([10]))
    with psycopg.connect(repository.url) as db:
        (behind,) = (
            db.execute("SELECT now()::timestamp - now() AT TIME ZONE 'UTC'").fetchone() or ()
        )
    for offset, expected in ((behind, [10.0]), (behind - HOUR, [None])):
        moment = (START + HOUR + offset).strftime("%Y-%m-%d %H:%M:%S")
        query = (
            f"SELECT 1::bigint AS user_id, TIMESTAMP '{moment}' AS event_timestamp, 0 AS position"
        )
        with pytest.warns(UserWarning, match="only supports SQLAlchemy"):
            assert values(repository.ask(query, f"{EMBEDDING}:as_of"), "as_of") == expected


def test_times_come_back_as_utc_without_a_zone(repository: PostgresRepository) -> None:
    # A user without rows: what other tests left must not make two of one.
    frame = repository.ask(entity_rows([(2, 1)]), f"{EMBEDDING}:as_of")
    assert frame["event_timestamp"].tolist() == [(START + HOUR).replace(tzinfo=None)]


@pytest.mark.parametrize(
    ("column", "error", "message"),
    [
        ([np.array([1.0], np.float32)], ValueError, "Unsupported type"),
        (np.array([1], np.int8), psycopg.errors.UndefinedObject, "tinyint"),
    ],
    ids=["float32 list", "int8"],
)
def test_entity_rows_with_such_a_column_are_refused(
    repository: PostgresRepository, column: Any, error: type[Exception], message: str
) -> None:
    asked = entity_rows([(1, 1)]).assign(extra=column)
    with pytest.raises(error, match=message):
        repository.ask(asked, f"{EMBEDDING}:as_of")
