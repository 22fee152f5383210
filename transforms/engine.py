"""DuckDB connections with a bound on their memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
import pyarrow as pa

__all__ = ["DAY_US", "arrow_table", "bounded_connection", "quoted"]

DAY_US = 86_400_000_000
"""Microseconds of a calendar day (UTC)."""


@contextmanager
def bounded_connection(memory_limit_mb: int, spill: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield an in-memory connection that spills to disk beyond ``memory_limit_mb``.

    Parameters
    ----------
    memory_limit_mb : int
        Of DuckDB's buffers, in mebibytes.
    spill : Path
        Existing folder under which a temporary one is made; removed at the end.
    """
    with TemporaryDirectory(prefix="spill-", dir=spill) as folder, duckdb.connect() as connection:
        connection.execute(f"SET memory_limit = '{memory_limit_mb}MiB'")
        connection.execute(f"SET temp_directory = {quoted(folder)}")
        connection.execute("SET TimeZone = 'UTC'")
        # Nothing here relies on the order of unordered results, and keeping it costs memory.
        connection.execute("SET preserve_insertion_order = false")
        connection.execute("SET enable_progress_bar = false")
        yield connection


def arrow_table(connection: duckdb.DuckDBPyConnection, query: str) -> pa.Table:
    """Return a query's whole result."""
    return connection.execute(query).to_arrow_table()


def quoted(value: str | Path) -> str:
    """Return a SQL string literal."""
    return "'" + str(value).replace("'", "''") + "'"
