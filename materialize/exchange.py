"""Raw rows cut into partitions of users, once, so that no partition reads another's rows."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import duckdb
from tqdm import tqdm

from materialize.source import RawSource, RawView
from transforms.engine import quoted

__all__ = ["Exchange"]

_ROW_GROUP = 4_096
_LEAST_MB = 128
"""DuckDB needs this much to join a partition's row groups."""
_HEADER = "header.parquet"
_PARTITION = "palate_partition"


class Exchange:
    """A source's rows in partitions of users, as Parquet files in one folder.

    Without it every partition would read all raw files and keep its own users: raw rows times
    partitions. Here each raw row that can matter is written once and read once.

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
        views = self._source.views
        with (
            self._source.connection() as db,
            tqdm(views, desc="partition raw views", unit="view", disable=not progress) as bar,
        ):
            # Order does not matter here, and keeping it would hold whole row groups in memory.
            db.execute("SET preserve_insertion_order = false")
            db.execute(f"SET partitioned_write_flush_threshold = {_ROW_GROUP}")
            if self._source.start is not None:
                db.execute(f"CREATE TEMP TABLE chosen AS {self._chosen_users()}")
            for view in bar:
                self._write(db, view, working / view.name)
        os.replace(working, self._folder)

    def partition(self, number: int) -> RawSource:
        """Return the rows of one partition, 0 to ``partitions`` - 1.

        Every user of it is wanted: who has a new row was found out over all views and all rows, of
        which a partition without history keeps the newest.
        """
        whole = self._source
        if self.partitions == 1:
            return whole
        views = [
            replace(
                view,
                folder=self._folder / view.name / f"{_PARTITION}={number}",
                header=self._folder / view.name / _HEADER,
            )
            for view in whole.views
        ]
        return RawSource(
            views,
            end=whole.end,
            start=whole.start if whole.history else None,
            created_since=whole.created_since if whole.history else None,
            history=whole.history,
            memory_limit_mb=max(_LEAST_MB, whole.memory_limit_mb // self._readers),
            spill=whole.spill,
            threads=whole.threads if self._readers == 1 else 1,
        )

    def _chosen_users(self) -> str:
        source = self._source
        return (
            f'SELECT DISTINCT "{source.key}" AS key FROM ({source.moments()}) '
            f"WHERE {source.new_moments()}"
        )

    def _write(self, db: duckdb.DuckDBPyConnection, view: RawView, folder: Path) -> None:
        key, ts, created = f'"{view.key}"', f'"{view.timestamp}"', f'"{view.created}"'
        names = dict.fromkeys([view.key, view.timestamp, view.created, *view.fields])
        columns = ", ".join(f'v."{name}"' for name in names)
        every = view.sql(self._source.end)
        rows = f"SELECT {columns} FROM {every} v"
        if self._source.start is not None:
            rows += f" SEMI JOIN chosen c ON c.key = v.{key}"
        if not self._source.history:
            # Found on keys alone. A second row of equal times stays: reading reports it.
            db.execute(
                "CREATE OR REPLACE TEMP TABLE newest AS "
                f"SELECT v.{key} AS key, v.{ts} AS ts, max(v.{created}) AS created FROM {every} v "
                f"JOIN (SELECT {key} AS key, max({ts}) AS ts FROM {every} GROUP BY {key}) n "
                f"ON n.key = v.{key} AND n.ts = v.{ts} GROUP BY ALL"
            )
            rows += (
                f" SEMI JOIN newest n ON n.key = v.{key} AND n.ts = v.{ts} "
                f"AND n.created IS NOT DISTINCT FROM v.{created}"
            )
        folder.mkdir(parents=True)
        db.sql(f"{rows} LIMIT 0").write_parquet(str(folder / _HEADER))
        db.execute(
            f"COPY (SELECT *, hash({key}) % {self.partitions} AS {_PARTITION} FROM ({rows})) "
            f"TO {quoted(folder)} (FORMAT parquet, PARTITION_BY ({_PARTITION}), "
            f"ROW_GROUP_SIZE {_ROW_GROUP}, COMPRESSION snappy, OVERWRITE_OR_IGNORE)"
        )
