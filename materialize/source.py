"""Raw features point-in-time: the rows that training and the batch job encode."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from encoder.errors import DataFault
from materialize.stores.append import live_files, reading
from transforms.engine import bounded_connection, quoted
from transforms.names import USER_KEY

if TYPE_CHECKING:
    from feast import FeatureStore, FeatureView

__all__ = [
    "RawSource",
    "RawView",
    "applied_view",
    "instant",
    "parquet_files",
    "read_files",
    "resolve_views",
]


@dataclass(frozen=True)
class RawView:
    """Where one raw feature view's rows lie.

    Attributes
    ----------
    name : str
    folder : Path
        Folder (or file) of Parquet files.
    fields : tuple of str
    timestamp, created : str
        Column names of event time and created time.
    key : str
        Join key.
    """

    name: str
    folder: Path
    fields: tuple[str, ...]
    timestamp: str
    created: str
    key: str = USER_KEY

    @property
    def table(self) -> str:
        """SQL that reads all rows, with times in microseconds and UTC as everything else has."""
        times = ", ".join(
            f'"{name}"::TIMESTAMPTZ AS "{name}"' for name in {self.timestamp, self.created}
        )
        return f"(SELECT * REPLACE ({times}) FROM {read_files(parquet_files(self.folder))})"


def resolve_views(store: FeatureStore, names: Sequence[str]) -> list[RawView]:
    """Look raw views up by name in the Feast registry.

    Raises
    ------
    DataFault
        A view is not applied, has no file source, or its folder holds no Parquet file.
    """
    from feast import FileSource

    views = []
    for name in names:
        view = applied_view(store, name)
        source = view.batch_source
        if not isinstance(source, FileSource):
            raise DataFault(
                f"View {name!r} reads from {type(source).__name__}; this release reads raw "
                "features from a FileSource with Parquet files."
            )
        folder = Path(source.path)
        if not parquet_files(folder):
            raise DataFault(f"{folder} holds no Parquet file. Run `palate features build` first.")
        views.append(
            RawView(
                name=name,
                folder=folder,
                fields=tuple(f.name for f in view.features),
                timestamp=source.timestamp_field,
                created=source.created_timestamp_column or source.timestamp_field,
                key=_join_key(view),
            )
        )
    return views


def _join_key(view: FeatureView) -> str:
    keys: list[str] = view.join_keys
    if len(keys) != 1:
        raise DataFault(f"View {view.name!r} has the join keys {keys}, one is expected.")
    return keys[0]


def applied_view(store: FeatureStore, name: str) -> FeatureView:
    """Return a feature view of the registry.

    Raises
    ------
    DataFault
        It is not applied.
    """
    from feast.errors import FeatureViewNotFoundException

    try:
        return store.get_feature_view(name)
    except FeatureViewNotFoundException:
        raise DataFault(
            f"The registry has no feature view {name!r}. Run `feast apply` in the repository."
        ) from None


def parquet_files(folder: Path) -> list[Path]:
    """Return the Parquet files of a view's folder, ordered by name; a file stands for itself."""
    return live_files(folder) if folder.exists() else []


def read_files(files: Sequence[Path]) -> str:
    """Return SQL that reads all rows of Parquet files."""
    return f"read_parquet([{', '.join(map(quoted, files))}], hive_partitioning = false)"


def instant(moment: datetime) -> str:
    """Return a SQL literal of a moment."""
    return f"TIMESTAMPTZ '{moment.isoformat()}'"


class RawSource:
    """Rows of several raw views, joined as of each user's own moments.

    Parameters
    ----------
    views : sequence of RawView
        All with the same join key.
    end : datetime
        Only rows with an event time before it exist for this source.
    start : datetime or None
        Only users with a new raw row: event time in ``[start, end)``. None: all users.
    created_since : datetime or None
        With ``start``: a raw row that was written since then is new, too, however old its event is
        (it came late).
    history : bool
        False: one row a user, as of the newest raw row before ``end``. True: one row for each
        distinct event time from the user's first new raw row on, each as of that moment.
    memory_limit_mb : int
        What DuckDB may hold; more is spilled to ``spill``.
    spill : Path
    threads : int or None
        Of DuckDB; None: one a core.

    Notes
    -----
    The point-in-time match runs on keys alone; the wide arrays are fetched once, for the rows that
    matched. Cheap to copy and to pickle: nothing is open between calls.
    """

    def __init__(
        self,
        views: Sequence[RawView],
        *,
        end: datetime,
        start: datetime | None = None,
        created_since: datetime | None = None,
        history: bool = False,
        memory_limit_mb: int,
        spill: Path,
        threads: int | None = None,
    ) -> None:
        self.views = list(views)
        (self.key,) = {view.key for view in self.views}
        self.start, self.end, self.history = start, end, history
        self.created_since = created_since
        self.memory_limit_mb, self.spill, self.threads = memory_limit_mb, spill, threads

    @property
    def key_type(self) -> pa.DataType:
        """Type of the join key, as the first view's files have it."""
        return pq.read_schema(parquet_files(self.views[0].folder)[0]).field(self.key).type

    @property
    def fingerprint(self) -> str:
        """12 hex digits that change when other rows would come.

        An ``end`` after the newest raw row counts as none: the job that runs every hour up to now
        has something to do only when raw rows came.
        """
        with self.connection() as db:
            end = self.end if self._newest(db) >= self.end else None
            digest = hashlib.sha256(f"{self.start}|{end}|{self.history}".encode())
            for view in self.views:
                for path in parquet_files(view.folder):
                    name, rows = path.relative_to(view.folder), pq.read_metadata(path).num_rows
                    line = f"{view.name}|{name}|{path.stat().st_size}|{rows}\n"
                    digest.update(line.encode())
        return digest.hexdigest()[:12]

    def _newest(self, db: duckdb.DuckDBPyConnection) -> datetime:
        """Return the event time of the newest raw row."""
        newest = " UNION ALL ".join(
            f'SELECT max("{view.timestamp}") AS moment FROM {view.table}' for view in self.views
        )
        table = db.sql(f"SELECT max(moment) AS moment FROM ({newest})").to_arrow_table()
        moment: datetime | None = table.column("moment")[0].as_py()
        return self.end if moment is None else moment

    def count(self) -> int:
        """Return the number of rows."""
        with self.connection() as db:
            return int(db.sql(f"SELECT count(*) FROM ({self._spine()})").fetchall()[0][0])

    def batches(self, *, batch_rows: int = 8192, ordered: bool = False) -> Iterator[pa.RecordBatch]:
        """Yield all rows.

        Parameters
        ----------
        batch_rows : int
            Largest number of rows of a batch.
        ordered : bool
            Order by user and moment (a reproducible training set needs it; it costs a sort).

        Yields
        ------
        pyarrow.RecordBatch
            ``user_id``, ``event_timestamp`` (us, UTC: the row's moment, never earlier than any raw
            row inside), then ``view__field`` for each field, null where the user is not in the
            view.

        Raises
        ------
        DataFault
            A raw view holds a user twice at one event time and created time.
        """
        fields = [[f'"{f}" AS "{v.name}__{f}"' for f in v.fields] for v in self.views]
        with self.connection() as db:
            expected = self.match(db)
            reader = db.sql(self.matched(fields, ordered=ordered)).to_arrow_reader(batch_rows)
            seen = 0
            for batch in reader:
                seen += batch.num_rows
                yield batch
            self.check(seen, expected)

    def new_moments(self) -> str:
        """Return a condition on ``moment`` and ``created``: the raw row is new to this source."""
        if self.start is None:
            return "true"
        new = f"moment >= {instant(self.start)}"
        if self.created_since is not None:
            new += f" OR created >= {instant(self.created_since)}"
        return f"({new})"

    def moments(self) -> str:
        """Return a query of every raw row's key, ``moment`` and ``created``."""
        return " UNION ALL ".join(
            f'SELECT "{self.key}", "{view.timestamp}" AS moment, "{view.created}" AS created '
            f"FROM {self.rows(k)}"
            for k, view in enumerate(self.views)
        )

    def rows(self, k: int) -> str:
        """Return a parenthesised query of the rows of view ``k`` before ``end``."""
        view = self.views[k]
        return f'(FROM {view.table} WHERE "{view.timestamp}" < {instant(self.end)})'

    @contextmanager
    def connection(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Yield a bounded DuckDB connection; no file of the views is removed meanwhile."""
        self.spill.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            for view in self.views:
                stack.enter_context(reading(view.folder))
            db = stack.enter_context(bounded_connection(self.memory_limit_mb, self.spill))
            if self.threads is not None:
                db.execute(f"SET threads = {self.threads}")
            yield db

    def match(self, db: duckdb.DuckDBPyConnection) -> int:
        """Make table ``matched``: each moment with the keys of the raw row that holds at it.

        Returns its number of rows.
        """
        db.execute(f"CREATE TEMP TABLE spine AS {self._spine()}")
        for k, view in enumerate(self.views):
            # One row a user and event time: the one created last.
            db.execute(
                f'CREATE TEMP TABLE keys{k} AS SELECT "{self.key}", "{view.timestamp}" AS ts, '
                f'max("{view.created}") AS created FROM {self.rows(k)} GROUP BY ALL'
            )
        joins = " ".join(
            f'ASOF LEFT JOIN keys{k} ON spine."{self.key}" = keys{k}."{self.key}" '
            f"AND spine.moment >= keys{k}.ts"
            for k in range(len(self.views))
        )
        columns = ", ".join(
            f"keys{k}.ts AS ts{k}, keys{k}.created AS created{k}" for k in range(len(self.views))
        )
        db.execute(
            f'CREATE TEMP TABLE matched AS SELECT spine."{self.key}", spine.moment, {columns} '
            f"FROM spine {joins}"
        )
        return int(db.sql("SELECT count(*) FROM matched").fetchall()[0][0])

    def matched(self, columns: Sequence[Sequence[str]], *, ordered: bool) -> str:
        """Return a query of the matched rows with columns of each view, quoted and maybe named."""
        wanted = [f"v{k}.{column}" for k, own in enumerate(columns) for column in own]
        joins = " ".join(
            f'LEFT JOIN {self.rows(k)} v{k} ON v{k}."{self.key}" = m."{self.key}" '
            f'AND v{k}."{view.timestamp}" = m.ts{k} '
            f'AND v{k}."{view.created}" IS NOT DISTINCT FROM m.created{k}'
            for k, view in enumerate(self.views)
        )
        order = f' ORDER BY m."{self.key}", m.moment' if ordered else ""
        return (
            f'SELECT m."{self.key}", m.moment AS event_timestamp, {", ".join(wanted)} '
            f"FROM matched m {joins}{order}"
        )

    def check(self, seen: int, expected: int) -> None:
        """Raise when a moment did not come exactly once."""
        if seen != expected:
            raise DataFault(
                f"{expected} rows were expected and {seen} came: a raw view of "
                f"{', '.join(v.name for v in self.views)} holds a user twice at one event time "
                "and created time. Remove the duplicate rows."
            )

    def _spine(self) -> str:
        chosen = f"SELECT * FROM ({self.moments()})"
        if self.start is not None:
            # A late row changes what holds at every later moment of its user.
            chosen += (
                " QUALIFY moment >= "
                f'min(moment) FILTER (WHERE {self.new_moments()}) OVER (PARTITION BY "{self.key}")'
            )
        if self.history:
            return f'SELECT DISTINCT "{self.key}", moment FROM ({chosen})'
        return f'SELECT "{self.key}", max(moment) AS moment FROM ({chosen}) GROUP BY "{self.key}"'
