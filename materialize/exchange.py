"""Raw rows cut into partitions of users, once, so that no partition reads another's rows."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from tqdm import tqdm

from materialize.source import RawSource, RawView
from transforms.engine import bounded_connection

__all__ = ["Exchange"]

_READ_ROWS = 8_192
_PIECE_BYTES = 32 * 2**20
"""What is held before a piece is written."""
_PART_BYTES = 2**16
"""Least a partition's part of a piece should hold on average, so that reading is no seeking."""
_PARTITION = "palate_partition"
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
    files, not Parquet: the rows are read once, soon, and mapped instead of decoded (measured for
    200,000 rows of 640 numbers: 3.7 s against 6.2 s to write, 0.1 s against 2.4 s to read).

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
        with (
            self._source.connection() as db,
            tqdm(desc="raw rows", unit="row", unit_scale=True, disable=not progress) as bar,
        ):
            # Order does not matter here, and keeping it would hold whole row groups in memory.
            db.execute("SET preserve_insertion_order = false")
            if self._source.start is not None:
                db.execute(f"CREATE TEMP TABLE chosen AS {self._chosen_users()}")
            for k, view in enumerate(self._source.views):
                folder = working / view.name
                folder.mkdir(parents=True)
                reader = db.sql(self._candidates(db, k)).to_arrow_reader(_READ_ROWS)
                self._write(reader, folder, bar)
        os.replace(working, self._folder)

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

    def _candidates(self, db: duckdb.DuckDBPyConnection, k: int) -> str:
        """Return a query of the rows of view ``k`` that can matter, with their partition."""
        source, view = self._source, self._source.views[k]
        key, ts, created = f'"{view.key}"', f'"{view.timestamp}"', f'"{view.created}"'
        columns = ", ".join(f'v."{name}"' for name in _columns(view))
        partition = f"(hash(v.{key}) % {self.partitions})::INTEGER AS {_PARTITION}"
        query = f"SELECT {columns}, {partition} FROM {source.rows(k)} v"
        if source.start is not None:
            query += f" SEMI JOIN chosen c ON c.key = v.{key}"
        if not source.history:
            # Found on keys alone. A second row of equal times stays: reading reports it.
            db.execute(
                "CREATE OR REPLACE TEMP TABLE newest AS SELECT v.key, v.ts, max(v.created) AS "
                f"created FROM (SELECT {key} AS key, {ts} AS ts, {created} AS created "
                f"FROM {source.rows(k)}) v JOIN (SELECT {key} AS key, max({ts}) AS ts "
                f"FROM {source.rows(k)} GROUP BY ALL) n ON n.key = v.key AND n.ts = v.ts "
                "GROUP BY ALL"
            )
            query += (
                f" SEMI JOIN newest n ON n.key = v.{key} AND n.ts = v.{ts} "
                f"AND n.created IS NOT DISTINCT FROM v.{created}"
            )
        return query

    def _write(self, reader: pa.RecordBatchReader, folder: Path, bar: tqdm[Any]) -> None:
        most = max(_PIECE_BYTES, self.partitions * _PART_BYTES)
        held: list[pa.RecordBatch] = []
        size, pieces = 0, 0
        for batch in reader:
            held.append(batch)
            size += batch.nbytes
            bar.update(batch.num_rows)
            if size >= most:
                self._write_piece(pa.Table.from_batches(held), folder / f"{pieces:06d}.arrow")
                held, size, pieces = [], 0, pieces + 1
        # Always one: it says the columns' types.
        last = pa.Table.from_batches(held, reader.schema)
        self._write_piece(last, folder / f"{pieces:06d}.arrow")

    def _write_piece(self, rows: pa.Table, path: Path) -> None:
        numbers = rows.column(_PARTITION).to_numpy()
        order = np.argsort(numbers, kind="stable")
        bounds = np.searchsorted(numbers[order], np.arange(self.partitions + 1))
        ordered = rows.drop_columns(_PARTITION).combine_chunks().take(pa.array(order))
        batches = ordered.combine_chunks().to_batches()
        batch = batches[0] if batches else pa.RecordBatch.from_pylist([], ordered.schema)
        with pa.ipc.new_file(str(path), ordered.schema) as writer:
            for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
                writer.write_batch(batch.slice(start, stop - start))


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


_ROW = "palate_row"


def _columns(view: RawView) -> list[str]:
    return list(dict.fromkeys([view.key, view.timestamp, view.created, *view.fields]))


def _read(folder: Path, number: int) -> pa.Table:
    """Return a partition's rows of one view."""
    batches = []
    for path in sorted(folder.glob("*.arrow")):
        with pa.memory_map(str(path)) as source:
            batches.append(pa.ipc.open_file(source).get_batch(number))
    # In one piece, which taking rows by number needs, and a copy, which lets go of the files.
    return pa.Table.from_batches(batches).combine_chunks()
