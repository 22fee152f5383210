"""Views that give the user's columns the names, types and meaning of the clean tables."""

from __future__ import annotations

import duckdb

from materialize.validation.sources import (
    POSITION,
    SourceTable,
    category_sql,
    id_sql,
    id_type,
    ids_sql,
    quoted,
    tags_sql,
    time_sql,
)
from transforms.clean import IdType
from transforms.dataset import Dataset, EventsTable, ItemsTable, UsersTable

__all__ = ["create_views", "raw_vector", "vector"]

_SQL_TYPE: dict[IdType, str] = {"int64": "BIGINT", "string": "VARCHAR"}


def create_views(
    con: duckdb.DuckDBPyConnection, dataset: Dataset, tables: dict[str, SourceTable]
) -> None:
    """Create the temporary views ``parsed_events``, ``parsed_users`` and ``parsed_items``.

    Each has the row position, the columns of the clean table, and for each brought vector also the
    values as they were. A table that is not in ``tables`` gets a view without rows.
    """
    user, item = _id_types(dataset, tables)
    selects = {
        "users": _no_users(user, item),
        "items": f"SELECT 0::BIGINT AS {quoted(POSITION)}, NULL::{_SQL_TYPE[item]} AS item_id, "
        "'' AS text, []::VARCHAR[] AS tags WHERE false",
    }
    if "events" in tables:
        selects["events"] = _events(dataset.events, tables["events"], user, item)
    if dataset.users is not None and "users" in tables:
        selects["users"] = _users(dataset.users, tables["users"], user, item)
    if dataset.items is not None and "items" in tables:
        selects["items"] = _items(dataset.items, tables["items"], item)
    for name, select in selects.items():
        con.execute(f"CREATE OR REPLACE TEMP VIEW parsed_{name} AS {select}")


def vector(name: str) -> str:
    """Return the clean column of a brought vector, as a SQL identifier."""
    return quoted(f"vec_{name}")


def raw_vector(name: str) -> str:
    """Return the parsed column with a vector's values as they were, as a SQL identifier."""
    return quoted(f"raw_vec_{name}")


def _id_types(dataset: Dataset, tables: dict[str, SourceTable]) -> tuple[IdType, IdType]:
    """Return the types of user and item ids: the first table that has a value decides."""
    users: list[str] = []
    items: list[str] = []
    if "events" in tables:
        users.append(tables["events"].columns[dataset.events.user])
        items.append(tables["events"].columns[dataset.events.item])
    if dataset.users is not None and "users" in tables:
        users.append(tables["users"].columns[dataset.users.user])
    if dataset.items is not None and "items" in tables:
        items.append(tables["items"].columns[dataset.items.item])
    return _first_known(users), _first_known(items)


def _first_known(types: list[str]) -> IdType:
    for type_ in types:
        known = id_type(type_)
        if known is not None:
            return known
    return "string"


def _events(config: EventsTable, table: SourceTable, user: IdType, item: IdType) -> str:
    weight = f"TRY_CAST({quoted(config.weight)} AS FLOAT)" if config.weight else "1::FLOAT"
    session = "NULL::BIGINT"
    if config.session is not None:
        # Unlike an id, a session may be absent; its type follows its own column.
        session = id_sql(quoted(config.session), id_type(table.columns[config.session]) or "int64")
    service = f"CAST({quoted(config.service)} AS VARCHAR)" if config.service else "NULL::VARCHAR"
    return (
        f"SELECT {table.position}, {id_sql(quoted(config.user), user)} AS user_id, "
        f"{id_sql(quoted(config.item), item)} AS item_id, "
        f"{time_sql(config.timestamp, table.columns[config.timestamp.column])} AS ts, "
        f"{weight} AS weight, {session} AS session, {service} AS service, "
        f"{_categories(config.context)} AS context FROM {table.sql}"
    )


def _users(config: UsersTable, table: SourceTable, user: IdType, item: IdType) -> str:
    signed_up_at = "NULL::TIMESTAMPTZ"
    if config.signed_up_at is not None:
        signed_up_at = time_sql(config.signed_up_at, table.columns[config.signed_up_at.column])
    numbers = ", ".join(_number(column) for column in config.numbers)
    onboarding = f"[]::{_SQL_TYPE[item]}[]"
    if config.onboarding is not None:
        onboarding = ids_sql(config.onboarding, item)
    return (
        f"SELECT {table.position}, {id_sql(quoted(config.user), user)} AS user_id, "
        f"{signed_up_at} AS signed_up_at, {_categories(config.categories)} AS categories, "
        f"[{numbers}]::FLOAT[] AS numbers, {onboarding} AS onboarding FROM {table.sql}"
    )


def _no_users(user: IdType, item: IdType) -> str:
    return (
        f"SELECT 0::BIGINT AS {quoted(POSITION)}, NULL::{_SQL_TYPE[user]} AS user_id, "
        "NULL::TIMESTAMPTZ AS signed_up_at, []::VARCHAR[] AS categories, []::FLOAT[] AS numbers, "
        f"[]::{_SQL_TYPE[item]}[] AS onboarding WHERE false"
    )


def _items(config: ItemsTable, table: SourceTable, item: IdType) -> str:
    words = ", ".join(f"NULLIF({category_sql(column)}, '')" for column in config.text)
    text = f"concat_ws(' ', {words})" if words else "''"
    tags = "[]::VARCHAR[]"
    if config.tags is not None:
        column = config.tags.column
        tags = tags_sql(column, table.columns[column], config.tags.separator)
    vectors = ""
    for name, column in config.vectors.items():
        raw = f"TRY_CAST({quoted(column)} AS FLOAT[])"
        unusable = f"list_filter({raw}, lambda x: x IS NULL OR NOT isfinite(x))"
        usable = f"CASE WHEN len({raw}) > 0 AND len({unusable}) = 0 THEN {raw} END"
        vectors += f", {quoted(column)} AS {raw_vector(name)}, {usable} AS {vector(name)}"
    return (
        f"SELECT {table.position}, {id_sql(quoted(config.item), item)} AS item_id, "
        f"{text} AS text, {tags} AS tags{vectors} FROM {table.sql}"
    )


def _categories(columns: tuple[str, ...]) -> str:
    return f"[{', '.join(category_sql(column) for column in columns)}]::VARCHAR[]"


def _number(column: str) -> str:
    number = f"TRY_CAST({quoted(column)} AS FLOAT)"
    return f"CASE WHEN isfinite({number}) THEN {number} ELSE 'NaN'::FLOAT END"
