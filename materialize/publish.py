"""Files that become visible together: staged first, then moved by a plan that survives a kill."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from materialize.stores.parquet_form import writer_options

__all__ = ["Publication", "write_json"]

_STATE, _PLAN, _STAGING = "state.json", "publish.json", ".staging"


class Publication:
    """A folder of views (sub-folders of Parquet files) and one state, changed together.

    Parameters
    ----------
    root : Path
        Made when missing.

    Notes
    -----
    New files are written under ``.staging/<work>/``, where no reader looks; a killed run with the
    same work finds its finished files there again. ``commit`` first writes ``publish.json``, the
    whole plan; from then on the change is decided, and ``recover`` (called on every start) carries
    it out: moves, removals, the state last. Until the plan exists, readers see the earlier files
    only. While it is carried out (renames, milliseconds) a reader can see some of the new files
    already; each of their rows is right on its own.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def state(self) -> dict[str, Any] | None:
        """Return what the last commit recorded, None before the first."""
        try:
            recorded: dict[str, Any] = json.loads((self.root / _STATE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return recorded

    def recover(self) -> bool:
        """Finish a commit that was decided and not carried out; return whether there was one."""
        plan_file = self.root / _PLAN
        if not plan_file.exists():
            return False
        plan = json.loads(plan_file.read_text(encoding="utf-8"))
        staged = self.root / _STAGING / plan["work"]
        for name in plan["add"]:
            if (staged / name).exists():  # else an earlier attempt moved it
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(staged / name, self.root / name)
        for name in plan["remove"]:
            (self.root / name).unlink(missing_ok=True)
        write_json(self.root / _STATE, plan["state"])
        plan_file.unlink()
        shutil.rmtree(self.root / _STAGING, ignore_errors=True)
        return True

    def begin(self, work: str, created_us: int) -> int:
        """Open the staging of ``work``; return when that work was first begun.

        Parameters
        ----------
        work : str
            Names what is done, a hash of its inputs: leftovers of other work are removed.
        created_us : int
            Now, microseconds since the epoch.

        Returns
        -------
        int
            ``created_us``, or that of the killed run that this one goes on with.
        """
        staging = self.root / _STAGING
        if staging.exists():
            for other in staging.iterdir():
                if other.name != work:
                    shutil.rmtree(other)
        note = staging / work / "work.json"
        if note.exists():
            return int(json.loads(note.read_text(encoding="utf-8"))["created_us"])
        note.parent.mkdir(parents=True, exist_ok=True)
        write_json(note, {"created_us": created_us})
        return created_us

    def stage(
        self,
        work: str,
        name: str,
        tables: Iterable[pa.Table],
        schema: pa.Schema,
        *,
        keep_empty: bool,
    ) -> int:
        """Write one Parquet file into the staging; return its number of rows.

        A file that a killed run had finished is kept, and ``tables`` is not read.

        Parameters
        ----------
        work : str
        name : str
            ``<view>/<file>.parquet``.
        tables : iterable of pyarrow.Table
            Each becomes a row group.
        schema : pyarrow.Schema
        keep_empty : bool
            False: no file is left when there are no rows.
        """
        path = self.staged(work, name)
        if path.exists():
            return int(pq.read_metadata(path).num_rows)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.tmp")
        rows = 0
        with _writer(temporary, schema) as writer:
            for table in tables:
                writer.write_table(table.select(schema.names).cast(schema))
                rows += table.num_rows
        if rows or keep_empty:
            os.replace(temporary, path)
        else:
            temporary.unlink()
        return rows

    def staged(self, work: str, name: str) -> Path:
        """Return where a staged file lies; it is not there when it has no rows to keep."""
        return self.root / _STAGING / work / name

    def commit(self, work: str, state: dict[str, Any], *, replace: bool) -> None:
        """Publish everything staged, record ``state``, and drop earlier files where ``replace``."""
        staged = self.root / _STAGING / work
        added = sorted(str(p.relative_to(staged)) for p in staged.glob("*/*.parquet"))
        views = {Path(name).parent for name in added}
        there = {
            str(p.relative_to(self.root)) for v in views for p in (self.root / v).glob("*.parquet")
        }
        removed = sorted(there - set(added)) if replace else []
        plan = {"work": work, "add": added, "remove": removed, "state": state}
        write_json(self.root / _PLAN, plan)
        self.recover()


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file: complete or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as handle:
        json.dump(value, handle, sort_keys=True)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, path)


@contextmanager
def _writer(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    with pq.ParquetWriter(path, schema, **writer_options(schema)) as writer:
        yield writer
