"""Folders of Parquet files that only ever grow: pushes append, readers see a consistent set."""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from encoder.errors import DataFault
from materialize.stores.parquet_form import writer_options

__all__ = [
    "MANIFEST",
    "PUSHED",
    "Manifest",
    "any_file",
    "append_rows",
    "is_pushed",
    "live_files",
    "locked",
    "reading",
    "sync",
    "working_name",
]

PUSHED = "push-"
"""Files of this prefix hold rows that were pushed; compaction touches no others."""
MANIFEST = ".compaction.json"
"""A compaction that is decided but not finished; hidden, as are all files that are being made."""


@dataclass(frozen=True)
class Manifest:
    """What replaces what.

    Attributes
    ----------
    output : str
        File name that stands for all inputs; under its `working_name` until it is published.
    inputs : tuple of str
        File names that no longer count.
    """

    output: str
    inputs: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """Return the folder's pending compaction, or None."""
        try:
            found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return cls(found["output"], tuple(found["inputs"]))


def working_name(name: str) -> str:
    """Return the name that a file has while it is written.

    Hidden as well as ``.tmp``: pyarrow's folder discovery, which stock Feast asks for a source's
    columns, skips names that begin with a dot and reads every other name.
    """
    return f".{name}.tmp"


def is_pushed(path: Path) -> bool:
    """Return whether the file holds pushed rows (compacted or not)."""
    return path.name.startswith(PUSHED)


def live_files(folder: Path) -> list[Path]:
    """Return the files whose rows count, ordered by path; a file stands for itself.

    Safe beside running pushes and compactions for as long as `reading` is held.
    """
    if folder.is_file():
        return [folder]
    # Before the listing: a compaction decided in between has not removed any input yet.
    manifest = Manifest.read(folder)
    files = {p for p in folder.rglob("*.parquet") if not p.name.startswith(".")}
    if manifest is not None:
        files -= {folder / name for name in manifest.inputs}
        output = folder / manifest.output
        files.add(output if output.exists() else folder / working_name(manifest.output))
    return sorted(files)


def any_file(folder: Path) -> Path | None:
    """Return one Parquet file of a folder without listing all of them, or None."""
    if folder.is_file():
        return folder
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.endswith(".parquet") and not name.startswith("."):
                return Path(parent) / name
    return None


@contextmanager
def locked(folder: Path, operation: int) -> Iterator[None]:
    """Hold an advisory lock on the folder itself (no file is made, reading rights suffice).

    Parameters
    ----------
    folder : Path
        Existing folder, or a file (then its own lock).
    operation : int
        Of ``fcntl.flock``; with ``LOCK_NB`` a held lock raises ``BlockingIOError``.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, operation)
        yield
    finally:
        os.close(handle)  # which lets go of the lock, as does the end of the process


@contextmanager
def reading(folder: Path) -> Iterator[list[Path]]:
    """Yield the live files; none of them is removed by a compaction until the context ends.

    Raises
    ------
    DataFault
        There is no such folder, or it holds no Parquet file.
    """
    if not folder.exists():
        raise DataFault(
            f"{str(folder)!r} does not exist, so its feature view has no rows to read. "
            "Build or push features first, or correct the source's path."
        )
    with locked(folder, fcntl.LOCK_SH):
        files = live_files(folder)
        if not files:
            raise DataFault(f"{str(folder)!r} holds no Parquet file. Build or push features first.")
        yield files


def append_rows(folder: Path, table: pa.Table) -> Path:
    """Write a table as one new file; its rows appear all at once or not at all.

    Never reads or changes another file, so the time does not depend on the rows already there and
    any number of processes may append at once.

    Returns
    -------
    Path
        ``folder/push-<32 hex>.parquet``.

    Raises
    ------
    DataFault
        ``folder`` is a file: a single Parquet file cannot be appended to.
    """
    if folder.is_file():
        raise DataFault(
            f"{str(folder)!r} is a single Parquet file, which cannot be appended to. Move it into "
            "a folder and name the folder as the source's path."
        )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{PUSHED}{uuid.uuid4().hex}.parquet"
    working = folder / working_name(path.name)
    try:
        pq.write_table(table, working, **writer_options(table.schema))
        sync(working)
        os.replace(working, path)
    finally:
        working.unlink(missing_ok=True)
    sync(folder)
    return path


def sync(path: Path) -> None:
    """Force a file's content, or a folder's names, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
