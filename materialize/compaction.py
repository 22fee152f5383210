"""Compaction: many small pushed files become one, beside running readers and pushes."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from encoder.errors import DataFault, TransientError, VerificationFailed
from materialize.stores.append import (
    MANIFEST,
    PUSHED,
    Manifest,
    is_pushed,
    live_files,
    locked,
    sync,
    working_name,
)

__all__ = ["BELOW_MB", "WAIT_SECONDS", "CompactionPlan", "CompactionReport", "compact", "plan"]

logger = logging.getLogger(__name__)

BELOW_MB = 64.0
"""Pushed files of at least this size (MiB) are left alone, unless the caller says otherwise."""
WAIT_SECONDS = 60.0
"""How long to wait for readers, unless the caller says otherwise."""
_LOCK = ".compaction.lock"
_OUTPUT = f"{PUSHED}compacted-"
_ROW_GROUP = 65_536
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class CompactionReport:
    """What one call did.

    Attributes
    ----------
    merged : int
        Files that are now one (this call's, not those of a finished earlier one).
    rows : int
        Rows of the merged file.
    pending : bool
        The merge is decided and readers follow it, but readers held the old files until the wait
        was over; the next call removes them.
    """

    merged: int
    rows: int
    pending: bool


@dataclass(frozen=True)
class CompactionPlan:
    """What a call would do.

    Attributes
    ----------
    files : int
        Small pushed files that would become one; 0 when there is at most one.
    rows, size_bytes : int
        Of these files together.
    unfinished : bool
        An earlier compaction is decided; its old files would be removed first.
    """

    files: int
    rows: int
    size_bytes: int
    unfinished: bool


def plan(folder: str | Path, *, below_mb: float = BELOW_MB) -> CompactionPlan:
    """Return what `compact` would do; writes nothing and takes the readers' lock alone.

    Raises
    ------
    DataFault
        There is no such folder.
    """
    root = _folder(folder)
    with locked(root, fcntl.LOCK_SH):
        small = _small_files(root, below_mb)
        metadata = [pq.read_metadata(path) for path in small]
        return CompactionPlan(
            len(small),
            sum(one.num_rows for one in metadata),
            sum(path.stat().st_size for path in small),
            Manifest.read(root) is not None,
        )


def compact(
    folder: str | Path,
    *,
    below_mb: float = BELOW_MB,
    wait_seconds: float = WAIT_SECONDS,
    progress: bool = False,
) -> CompactionReport:
    """Merge a view's small pushed files into one; every row stays, equal rows included.

    Parameters
    ----------
    folder : str or Path
        A feature view's folder.
    below_mb : float
        Pushed files of at least this size (MiB) are left alone, so that a row is rewritten a
        bounded number of times.
    wait_seconds : float
        How long to wait for readers before the old files' removal is left to the next call.
    progress : bool
        Show a bar on stderr.

    Raises
    ------
    DataFault
        There is no such folder, or two files' columns cannot be brought to one type.
    TransientError
        Another compaction of the folder is running.
    VerificationFailed
        The merged file does not hold as many rows as its inputs; nothing was changed.

    Notes
    -----
    Write the merged file under a hidden name; rename a manifest into place (from here on readers
    take the merged file for its inputs); then, with no reader inside, remove the inputs and the
    manifest. A kill before the manifest leaves only a hidden file, which the next call removes; a
    kill after it leaves a state that readers understand and the next call finishes.
    """
    root = _folder(folder)
    lock = root / _LOCK
    lock.touch()
    try:
        with locked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
            return _compact(root, below_mb, wait_seconds, progress=progress)
    except BlockingIOError:
        raise TransientError(
            f"Another compaction of {str(root)!r} is running. Repeat when it has ended."
        ) from None


def _folder(folder: str | Path) -> Path:
    root = Path(folder)
    if not root.is_dir():
        raise DataFault(f"{str(root)!r} is no folder. Name a feature view's folder of Parquet.")
    return root


def _small_files(root: Path, below_mb: float) -> list[Path]:
    """Return the pushed files that would become one; none when there is nothing to merge."""
    small = [
        path
        for path in live_files(root)
        if path.parent == root and is_pushed(path) and path.stat().st_size < below_mb * 2**20
    ]
    return small if len(small) > 1 else []


def _compact(
    root: Path, below_mb: float, wait_seconds: float, *, progress: bool
) -> CompactionReport:
    began = time.perf_counter()
    if Manifest.read(root) is not None and not _finish(root, wait_seconds):
        return CompactionReport(0, 0, pending=True)
    for orphan in root.glob(working_name(f"{_OUTPUT}*.parquet")):
        orphan.unlink()  # of a killed compaction: nothing refers to it
    small = _small_files(root, below_mb)
    if not small:
        return CompactionReport(0, 0, pending=False)
    output = f"{_OUTPUT}{uuid.uuid4().hex}.parquet"
    rows = _merge(small, root / working_name(output), progress=progress)
    _commit(root, Manifest(output, tuple(path.name for path in small)))
    done = _finish(root, wait_seconds)
    logger.info(
        "compacted %s: %d files, %d rows, %s, %.1f s",
        root, len(small), rows, "done" if done else "pending", time.perf_counter() - began,
    )  # fmt: skip
    return CompactionReport(len(small), rows, pending=not done)


def _merge(paths: Sequence[Path], working: Path, *, progress: bool) -> int:
    """Write all rows of ``paths`` into one file, a row group in memory at a time."""
    try:
        schema = pa.unify_schemas(
            [pq.read_schema(path).remove_metadata() for path in paths],
            promote_options="permissive",
        )
    except pa.ArrowTypeError as exc:
        raise DataFault(f"The pushed files of {working.parent} do not fit together: {exc}") from exc
    expected = sum(pq.read_metadata(path).num_rows for path in paths)
    written, waiting = 0, 0
    held: list[pa.Table] = []
    with pq.ParquetWriter(working, schema, compression="zstd") as writer:
        for path in tqdm(paths, desc="compact", unit="file", disable=not progress):
            for batch in pq.ParquetFile(path).iter_batches(_ROW_GROUP):
                held.append(_as(pa.Table.from_batches([batch]), schema))
                waiting += batch.num_rows
                if waiting >= _ROW_GROUP:
                    writer.write_table(pa.concat_tables(held))
                    held, written, waiting = [], written + waiting, 0
        if held:
            writer.write_table(pa.concat_tables(held))
            written += waiting
    found = pq.read_metadata(working).num_rows
    if not expected == written == found:
        working.unlink()
        raise VerificationFailed(f"{expected} rows to merge, {found} in the merged file.")
    sync(working)
    return written


def _as(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = [
        table.column(field.name).cast(field.type)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _commit(root: Path, manifest: Manifest) -> None:
    working = root / working_name(MANIFEST)
    working.write_text(json.dumps(asdict(manifest)), encoding="utf-8")
    sync(working)
    os.replace(working, root / MANIFEST)
    sync(root)


def _finish(root: Path, wait_seconds: float) -> bool:
    """Carry the manifest out once no reader holds the folder; return whether it could be done."""
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            with locked(root, fcntl.LOCK_EX | fcntl.LOCK_NB):
                manifest = Manifest.read(root)
                assert manifest is not None  # noqa: S101 - only the holder of `_LOCK` removes it
                working = root / working_name(manifest.output)
                if working.exists():
                    os.replace(working, root / manifest.output)
                for name in manifest.inputs:
                    (root / name).unlink(missing_ok=True)
                sync(root)
                (root / MANIFEST).unlink()
                return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_SECONDS)
