"""How many users a view of embeddings has online, and how many another one would leave out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from encoder.errors import DataFault
from materialize.ledger import Ledger
from materialize.published import published_files
from materialize.source import applied_view, read_files
from transforms.engine import bounded_connection
from transforms.names import USER_KEY

if TYPE_CHECKING:
    import duckdb
    from feast import FeatureStore

__all__ = ["Coverage", "compare_coverage"]

_MEMORY_MB = 1024
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class Coverage:
    """Who is in two views.

    Attributes
    ----------
    before, after, both : int
        Users of the one view, of the other, and of both.
    newest_before, newest_after : datetime or None
        Largest ``as_of`` of each view (UTC); None: it has no row.
    """

    before: int
    after: int
    both: int
    newest_before: datetime | None
    newest_after: datetime | None

    @property
    def lost(self) -> int:
        """Users of the one view whom the other does not have."""
        return self.before - self.both


def compare_coverage(
    store: FeatureStore, ledger: Ledger, before: str | None, after: str
) -> Coverage:
    """Count the users of two views of embeddings.

    A view covers a user when a row of the user was published by a run that wrote online and is
    committed, or was pushed. Runs over history write offline only: a user whom nothing else wrote
    is not covered. Counted are the views' Parquet files, which hold what went online.

    Parameters
    ----------
    store : FeatureStore
        With both views applied.
    ledger : Ledger
    before : str or None
        None: nobody.
    after : str

    Raises
    ------
    DataFault
        A view is not applied, or reads from something else than Parquet files.
    """
    with bounded_connection(_MEMORY_MB) as connection:
        found: dict[str, tuple[int, datetime | None]] = {}
        for table, view in (("before", before), ("after", after)):
            files = [] if view is None else _files(store, ledger, view)
            found[table] = _count(connection, table, files) if files else (0, None)
        both = 0
        if found["before"][0] and found["after"][0]:
            ((both,),) = connection.sql(
                f"SELECT count(*) FROM before SEMI JOIN after USING ({USER_KEY})"
            ).fetchall()
    (n_before, newest_before), (n_after, newest_after) = found["before"], found["after"]
    return Coverage(n_before, n_after, both, newest_before, newest_after)


def _files(store: FeatureStore, ledger: Ledger, view: str) -> list[Path]:
    from feast import FileSource

    source = applied_view(store, view).batch_source
    if not isinstance(source, FileSource):
        raise DataFault(
            f"View {view!r} reads from {type(source).__name__}; its users are counted in Parquet "
            "files, so a FileSource is expected."
        )
    return published_files(ledger, view, Path(source.path), online_only=True)


def _count(
    connection: duckdb.DuckDBPyConnection, table: str, files: list[Path]
) -> tuple[int, datetime | None]:
    """Make a table of the users in some files; return their number and their newest ``as_of``."""
    connection.execute(
        f"CREATE TABLE {table} AS SELECT {USER_KEY}, max(as_of) AS as_of "
        f"FROM {read_files(files)} GROUP BY ALL"
    )
    ((users, newest),) = connection.sql(f"SELECT count(*), max(as_of) FROM {table}").fetchall()
    return users, None if newest is None else _EPOCH + timedelta(microseconds=newest)
