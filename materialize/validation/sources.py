"""The user's Parquet tables as DuckDB sees them, and how each column type is read."""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import duckdb

from transforms.clean import IdType
from transforms.dataset import TimeColumn

__all__ = [
    "POSITION",
    "Kind",
    "SourceTable",
    "accepts",
    "category_sql",
    "id_sql",
    "id_type",
    "ids_sql",
    "is_integer_time",
    "is_naive_time",
    "literal",
    "matching_files",
    "open_table",
    "quoted",
    "tags_sql",
    "time_sql",
]

POSITION = "palate row position"
"""Name of the column that identifies a source row: file number * 2**40 + row in the file."""

Kind = Literal["id", "key", "time", "number", "category", "tags", "ids", "vector"]

_INTEGER = re.compile(r"U?(TINYINT|SMALLINT|INTEGER|BIGINT|HUGEINT)|DECIMAL\(\d+,0\)")
_REAL = re.compile(r"FLOAT|DOUBLE|DECIMAL\(.*\)|BOOLEAN")
_STRING = re.compile(r"VARCHAR|UUID|ENUM\(.*\)")
_LIST = re.compile(r"(.*)\[\d*\]")
_ALL_NULL = '"NULL"'  # how DuckDB names the type of a Parquet column that never has a value
_UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1}
_YEAR_10000_S = 253_402_300_800


@dataclass(frozen=True)
class SourceTable:
    """A table of the user: its files and its columns.

    Attributes
    ----------
    files : tuple of str
    columns : mapping of str to str
        Column name to DuckDB type, in the table's order.
    rows : int
    """

    files: tuple[str, ...]
    columns: Mapping[str, str]
    rows: int

    @property
    def sql(self) -> str:
        """The table in a FROM clause; columns that some files lack are null there."""
        return _read_parquet(self.files)

    @property
    def position(self) -> str:
        """Expression that numbers the rows: equal on every pass over unchanged files."""
        return f"(file_index::BIGINT * {2**40} + file_row_number) AS {quoted(POSITION)}"

    def place(self, position: int) -> str:
        """Return where a row stands, for a message (rows count from 0)."""
        return f"{Path(self.files[position >> 40]).name} row {position & (2**40 - 1)}"


def matching_files(path: str) -> tuple[str, ...]:
    """Return the Parquet files that a file path, folder or glob stands for, ordered by name.

    Hidden files and names that start with an underscore (job markers) are left out of folders.
    """
    if Path(path).is_dir():
        root = Path(path)
        return tuple(
            str(p)
            for p in sorted(root.rglob("*.parquet"))
            if not any(part[0] in "._" for part in p.relative_to(root).parts)
        )
    if Path(path).is_file():
        return (path,)
    return tuple(sorted(p for p in glob.glob(path, recursive=True) if Path(p).is_file()))


def open_table(con: duckdb.DuckDBPyConnection, files: tuple[str, ...]) -> SourceTable:
    """Read the schema and row count of some Parquet files.

    Raises
    ------
    duckdb.Error
        A file is no Parquet, or the files' schemas contradict each other.
    """
    sql = _read_parquet(files)
    described = con.execute(f"DESCRIBE SELECT * FROM {sql}").fetchall()
    counted = con.execute(f"SELECT count(*) FROM {sql}").fetchone()
    return SourceTable(files, {row[0]: row[1] for row in described}, counted[0] if counted else 0)


def quoted(name: str) -> str:
    """Return a column name as a SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return a text as a SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def _read_parquet(files: tuple[str, ...]) -> str:
    listed = ", ".join(literal(file) for file in files)
    return f"read_parquet([{listed}], union_by_name = true)"


def accepts(kind: Kind, type_: str) -> bool:
    """Return whether a column of a DuckDB type can be read as ``kind``."""
    if type_ == _ALL_NULL:
        return True
    element = _LIST.fullmatch(type_)
    if kind in ("ids", "vector", "tags") and element:
        inner: Kind = "number" if kind == "vector" else "id"
        return accepts(inner, element[1])
    whole = _INTEGER.fullmatch(type_) is not None
    string = _STRING.fullmatch(type_) is not None
    if kind in ("id", "key", "tags"):
        return whole or string
    if kind == "time":
        return (whole and "DECIMAL" not in type_) or type_ == "DATE" or "TIMESTAMP" in type_
    if kind == "number":
        return whole or _REAL.fullmatch(type_) is not None
    if kind == "category":
        scalar = _REAL.fullmatch(type_) or type_ == "DATE" or "TIMESTAMP" in type_
        return whole or string or scalar is not None
    return False


def is_integer_time(type_: str) -> bool:
    """Return whether a time column counts units from the epoch."""
    return _INTEGER.fullmatch(type_) is not None


def is_naive_time(type_: str) -> bool:
    """Return whether a time column has no time zone."""
    return type_ == "DATE" or (
        "TIMESTAMP" in type_ and "WITH TIME ZONE" not in type_ and "TIMESTAMPTZ" not in type_
    )


def id_type(type_: str) -> IdType | None:
    """Return what ids of a column (or of a list column's elements) become; None: all null."""
    element = _LIST.fullmatch(type_)
    if element:
        type_ = element[1]
    if type_ == _ALL_NULL:
        return None
    return "int64" if _INTEGER.fullmatch(type_) else "string"


def id_sql(expression: str, target: IdType) -> str:
    """Return an expression for an id; null where it is null, empty or beyond 64 bits."""
    if target == "int64":
        return f"TRY_CAST({expression} AS BIGINT)"
    return f"NULLIF(CAST({expression} AS VARCHAR), '')"


def ids_sql(column: str, target: IdType) -> str:
    """Return an expression for a list of ids: no nulls, each id once, in the given order."""
    sql_type = "BIGINT" if target == "int64" else "VARCHAR"
    typed = f"TRY_CAST({quoted(column)} AS {sql_type}[])"
    return (
        f"coalesce(list_filter({typed}, lambda x, i: "
        f"x IS NOT NULL AND list_position({typed}, x) = i), []::{sql_type}[])"
    )


def time_sql(time: TimeColumn, type_: str) -> str:
    """Return an expression of type TIMESTAMP WITH TIME ZONE for a time column.

    Integers beyond the year 10000 are held there: they are in the future, and do not overflow.
    """
    column = quoted(time.column)
    if type_ == _ALL_NULL:
        return f"CAST({column} AS TIMESTAMPTZ)"
    if is_integer_time(type_):
        multiplier = _UNITS[time.unit or "us"]
        bound = _YEAR_10000_S * 1_000_000 // multiplier
        held = f"CAST(least(greatest({column}, -{bound}), {bound}) AS BIGINT)"
        # least() and greatest() skip nulls, so a null would become the bound.
        instant = f"make_timestamp(CASE WHEN {column} IS NOT NULL THEN {held} END * {multiplier})"
        return f"({instant} AT TIME ZONE 'UTC')"
    if is_naive_time(type_):
        return f"(CAST({column} AS TIMESTAMP) AT TIME ZONE {literal(time.timezone or 'UTC')})"
    return f"CAST({column} AS TIMESTAMPTZ)"


def category_sql(column: str) -> str:
    """Return an expression for a category: a string, empty for null."""
    return f"coalesce(CAST({quoted(column)} AS VARCHAR), '')"


def tags_sql(column: str, type_: str, separator: str | None) -> str:
    """Return an expression for an item's tags: trimmed, none empty, each once."""
    if _LIST.fullmatch(type_):
        tags = f"CAST({quoted(column)} AS VARCHAR[])"
    elif separator is not None:
        tags = f"string_split(CAST({quoted(column)} AS VARCHAR), {literal(separator)})"
    else:
        tags = f"[CAST({quoted(column)} AS VARCHAR)]"
    trimmed = f"list_transform({tags}, lambda x: trim(x))"
    return (
        f"coalesce(list_filter({trimmed}, lambda x, i: "
        f"x <> '' AND list_position({trimmed}, x) = i), []::VARCHAR[])"
    )
