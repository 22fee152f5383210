"""Raw rows cut into partitions of users, once, so that no partition reads another's rows."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from encoder.errors import DataFault
from materialize.source import RawSource, RawView, instant, parquet_files, read_files
from transforms.engine import bounded_connection

__all__ = ["Exchange"]

_READ_ROWS = 4_096
_STRETCH_ROWS = 100_000
"""About what a thread reads before it takes something else."""
_INSTANT = pa.timestamp("us", "UTC")
_PIECE_BYTES = 32 * 2**20
"""What is held before a piece is written."""
_PART_BYTES = 2**16
"""Least a partition's part of a piece should hold on average, so that reading is no seeking."""
_ROW = "palate_row"
_LEAST_MB = 128
"""What DuckDB needs to match a partition's keys."""


class Exchange:
    """A source's rows in partitions of users, as Arrow files in one folder.

    Without it every partition would read all raw files and keep its own users: raw rows times
    partitions. Here each raw row that can matter is read and written once.

    Parameters
    ----------
    source : RawSource
    folder : Path
        Made by `build`; of the run alone.
    partitions : int
        Users are cut by a hash of their id into this many.
    readers : int
        Partitions that are read at the same time; they share the source's memory.

    Notes
    -----
    As in a sort-based shuffle, a piece of the rows is held in memory, ordered by partition, and
    written as one file with a record batch for each partition, found again by its number. Arrow
    files, not Parquet: the rows are read once, soon, and mapped instead of decoded
    (docs/adr/0016-batch-job-in-partitions.md has figures).

    One partition needs no cutting: it is the source itself, and nothing is written.
    """

    def __init__(self, source: RawSource, folder: Path, partitions: int, readers: int = 1) -> None:
        self._source, self._folder = source, folder
        self.partitions, self._readers = partitions, readers

    def build(self, *, progress: bool = True) -> None:
        """Write the partitions; safe to kill and to repeat: they count when all are there."""
        if self.partitions == 1 or self._folder.exists():
            return
        working = self._folder.with_name(f"{self._folder.name}.tmp")
        shutil.rmtree(working, ignore_errors=True)
        with self._source.connection() as db:
            # The other half is for the rows, which DuckDB does not see.
            db.execute(
                f"SET memory_limit = '{max(_LEAST_MB, self._source.memory_limit_mb // 2)}MiB'"
            )
            if self._source.start is not None:
                db.execute(f"CREATE TEMP TABLE chosen AS {self._chosen_users()}")
            for k, view in enumerate(self._source.views):
                folder = working / view.name
                folder.mkdir(parents=True)
                files = parquet_files(view.folder)  # once: a push may add one at any moment
                rows = self._pick(db, k, files)
                with tqdm(
                    total=rows,
                    desc=f"partition {view.name}",
                    unit="row",
                    unit_scale=True,
                    disable=not progress,
                ) as bar:
                    self._cut(db, view, files, folder, bar)
        os.replace(working, self._folder)
        pa.default_memory_pool().release_unused()  # workers come next

    def partition(self, number: int) -> RawSource:
        """Return the rows of one partition, 0 to ``partitions`` - 1."""
        if self.partitions == 1:
            return self._source
        return _Partition(self._source, self._folder, number, self._readers)

    def _chosen_users(self) -> str:
        source = self._source
        return (
            f'SELECT DISTINCT "{source.key}" AS key FROM ({source.moments()}) '
            f"WHERE {source.new_moments()}"
        )

    def _pick(self, db: duckdb.DuckDBPyConnection, k: int, files: list[Path]) -> int:
        """Make table ``picked``: where the rows of view ``k`` lie that can matter; return how many.

        Decided on keys alone. A second row of equal times stays: reading reports it.
        """
        source, view = self._source, self._source.views[k]
        key, ts, created = f'"{view.key}"', f'"{view.timestamp}"', f'"{view.created}"'
        joins = ""
        if source.start is not None:
            joins += f" SEMI JOIN chosen c ON c.key = v.{key}"
        if not source.history:
            db.execute(
                "CREATE OR REPLACE TEMP TABLE newest AS SELECT v.key, v.ts, max(v.created) AS "
                f"created FROM (SELECT {key} AS key, {ts} AS ts, {created} AS created "
                f"FROM {source.rows(k)}) v JOIN (SELECT {key} AS key, max({ts}) AS ts "
                f"FROM {source.rows(k)} GROUP BY ALL) n ON n.key = v.key AND n.ts = v.ts "
                "GROUP BY ALL"
            )
            joins += (
                f" SEMI JOIN newest n ON n.key = v.{key} AND n.ts = v.{ts}::TIMESTAMPTZ "
                f"AND n.created IS NOT DISTINCT FROM v.{created}::TIMESTAMPTZ"
            )
        db.execute(
            "CREATE OR REPLACE TEMP TABLE picked AS SELECT v.file_index AS file, "
            "v.file_row_number AS row, "
            f"(hash(v.{key}) % {self.partitions})::INTEGER AS partition "
            f"FROM {read_files(files)} v {joins} "
            f"WHERE v.{ts}::TIMESTAMPTZ < {instant(source.end)} ORDER BY ALL"
        )
        return int(db.sql("SELECT count(*) FROM picked").fetchall()[0][0])

    def _cut(
        self,
        db: duckdb.DuckDBPyConnection,
        view: RawView,
        files: list[Path],
        folder: Path,
        bar: tqdm[Any],
    ) -> None:
        """Write the picked rows of a view, several stretches of its files at the same time."""
        schema = _schema(files[0], view)
        # Always one piece: it says the columns' types.
        _write_piece([schema.empty_table()], [np.zeros(0, np.int32)], self.partitions, folder)
        waiting: set[Future[int]] = set()
        with ThreadPoolExecutor(self._readers) as pool:
            for stretch in _stretches(db, files):
                waiting.add(
                    pool.submit(_cut_stretch, stretch, schema, view, self.partitions, folder)
                )
                if len(waiting) > 2 * self._readers:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    bar.update(sum(future.result() for future in done))
            bar.update(sum(future.result() for future in waiting))


class _Partition(RawSource):
    """Users of one partition, from an exchange's files.

    Every user of it is wanted: who has a new row was found out over all views and all rows, of
    which a partition without history keeps the newest.
    """

    def __init__(self, whole: RawSource, folder: Path, number: int, readers: int) -> None:
        super().__init__(
            whole.views,
            end=whole.end,
            start=whole.start if whole.history else None,
            created_since=whole.created_since if whole.history else None,
            history=whole.history,
            memory_limit_mb=max(_LEAST_MB, whole.memory_limit_mb // readers),
            spill=whole.spill,
            threads=whole.threads if readers == 1 else 1,
        )
        self._tables = [_read(folder / view.name, number) for view in whole.views]

    def rows(self, k: int) -> str:
        return f"rows{k}"

    @contextmanager
    def connection(self) -> Iterator[duckdb.DuckDBPyConnection]:
        self.spill.mkdir(parents=True, exist_ok=True)
        with bounded_connection(self.memory_limit_mb, self.spill) as db:
            if self.threads is not None:
                db.execute(f"SET threads = {self.threads}")
            for k, (view, table) in enumerate(zip(self.views, self._tables, strict=True)):
                times = dict.fromkeys([view.key, view.timestamp, view.created])
                keys = table.select(list(times))
                row = pa.array(np.arange(table.num_rows))
                db.register(f"rows{k}", keys.append_column(_ROW, row))
            yield db

    def batches(self, *, batch_rows: int = 8192, ordered: bool = False) -> Iterator[pa.RecordBatch]:
        """Yield all rows, as every source does; DuckDB sees the keys alone."""
        with self.connection() as db:
            expected = self.match(db)
            columns = [[f"{_ROW} AS {_ROW}{k}"] for k in range(len(self.views))]
            found = db.sql(self.matched(columns, ordered=ordered)).to_arrow_table()
        self.check(found.num_rows, expected)
        for start in range(0, found.num_rows, batch_rows):
            part = found.slice(start, batch_rows).combine_chunks()
            arrays = {name: part.column(name) for name in (self.key, "event_timestamp")}
            for k, (view, table) in enumerate(zip(self.views, self._tables, strict=True)):
                rows = table.select(view.fields).take(part.column(f"{_ROW}{k}"))
                arrays |= {f"{view.name}__{name}": rows.column(name) for name in view.fields}
            yield from pa.table(arrays).combine_chunks().to_batches()


@dataclass(frozen=True)
class _Part:
    """Rows of one row group that are wanted."""

    path: Path
    group: int
    rows: npt.NDArray[np.int64]  # ascending places in the row group
    partitions: npt.NDArray[np.int32]


def _stretches(db: duckdb.DuckDBPyConnection, files: list[Path]) -> Iterator[list[_Part]]:
    """Yield the picked rows in stretches for one thread each; many small files make one stretch."""
    stretch: list[_Part] = []
    held = 0
    for index, path in enumerate(files):
        found = db.sql(
            f"SELECT row, partition FROM picked WHERE file = {index} ORDER BY row"
        ).to_arrow_table()
        if not found.num_rows:
            continue
        rows, partitions = (found.column(name).to_numpy() for name in ("row", "partition"))
        metadata = pq.read_metadata(path)
        sizes = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
        ends = np.cumsum(sizes)
        bounds = np.searchsorted(rows, ends).tolist()
        for group, (low, high) in enumerate(zip([0, *bounds[:-1]], bounds, strict=True)):
            if high == low:
                continue  # a row group without a picked row is not read
            first = int(ends[group]) - sizes[group]
            stretch.append(_Part(path, group, rows[low:high] - first, partitions[low:high]))
            held += sizes[group]
            if held >= _STRETCH_ROWS:
                yield stretch
                stretch, held = [], 0
    if stretch:
        yield stretch


def _cut_stretch(
    stretch: list[_Part], schema: pa.Schema, view: RawView, count: int, folder: Path
) -> int:
    """Write the rows of a stretch in pieces; return how many they are."""
    most = max(_PIECE_BYTES, count * _PART_BYTES)
    held: list[pa.Table] = []
    numbers: list[npt.NDArray[np.int32]] = []
    size, done = 0, 0
    for part in stretch:
        for rows, partitions in _wanted(part, schema, view):
            held.append(rows)
            numbers.append(partitions)
            size, done = size + rows.nbytes, done + rows.num_rows
            if size >= most:
                _write_piece(held, numbers, count, folder)
                held, numbers, size = [], [], 0
    if held:
        _write_piece(held, numbers, count, folder)
    return done


def _wanted(
    part: _Part, schema: pa.Schema, view: RawView
) -> Iterator[tuple[pa.Table, npt.NDArray[np.int32]]]:
    """Read a row group in batches; yield the wanted rows of each and their partitions."""
    file = pq.ParquetFile(part.path)
    missing = sorted(set(schema.names) - set(file.schema_arrow.names))
    if missing:
        raise DataFault(
            f"{part.path} lacks the columns {', '.join(missing)} of view {view.name!r}, which "
            "other files of its folder have. Write the file again, or remove it."
        )
    start = 0
    for batch in file.iter_batches(
        _READ_ROWS, row_groups=[part.group], columns=schema.names, use_threads=False
    ):
        low, high = np.searchsorted(part.rows, [start, start + batch.num_rows]).tolist()
        own = part.rows[low:high] - start
        start += batch.num_rows
        if not len(own):
            continue
        columns = [
            # Times lose what is finer than a microsecond; any other loss is an error.
            batch.column(field.name).cast(field.type, safe=not pa.types.is_timestamp(field.type))
            for field in schema
        ]
        rows = pa.table(columns, schema=schema)
        yield rows if len(own) == len(rows) else rows.take(pa.array(own)), part.partitions[low:high]


def _write_piece(
    held: list[pa.Table], numbers: list[npt.NDArray[np.int32]], count: int, folder: Path
) -> None:
    """Write rows as one Arrow file with a record batch for each partition, in their order."""
    number = np.concatenate(numbers)
    order = np.argsort(number, kind="stable")
    bounds = np.searchsorted(number[order], np.arange(count + 1))
    rows = pa.concat_tables(held).combine_chunks().take(pa.array(order)).combine_chunks()
    batches = rows.to_batches()
    batch = batches[0] if batches else pa.RecordBatch.from_pylist([], rows.schema)
    with pa.ipc.new_file(str(folder / f"{uuid.uuid4().hex}.arrow"), rows.schema) as writer:
        for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            writer.write_batch(batch.slice(start, stop - start))


def _schema(file: Path, view: RawView) -> pa.Schema:
    """Return the columns of a view's files: plain types, times in microseconds and UTC."""
    stored = pq.read_schema(file)
    times = {view.timestamp, view.created}
    return pa.schema(
        [
            (name, _INSTANT if name in times else _plain(stored.field(name).type))
            for name in dict.fromkeys([view.key, *sorted(times), *view.fields])
        ]
    )


def _plain(kind: pa.DataType) -> pa.DataType:
    """Return the type that DuckDB would answer for it, which the encoder reads."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(_plain(kind.value_type))
    if pa.types.is_list(kind):
        return pa.list_(_plain(kind.value_type))
    return kind


def _read(folder: Path, number: int) -> pa.Table:
    """Return a partition's rows of one view."""
    batches = []
    for path in sorted(folder.glob("*.arrow")):
        with pa.memory_map(str(path)) as source:
            batches.append(pa.ipc.open_file(source).get_batch(number))
    # In one piece, which taking rows by number needs, and a copy, which lets go of the files.
    return pa.Table.from_batches(batches).combine_chunks()
