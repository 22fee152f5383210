"""A view's Parquet folder: what it takes, and its removal beside running readers."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from pathlib import Path

import pyarrow.parquet as pq
from tqdm import tqdm

from encoder.errors import TransientError
from materialize.stores.append import live_files, locked

__all__ = ["folder_share", "held_by_a_run", "remove_folder"]

_TRASH = "_retired"
_POLL_SECONDS = 0.05


def folder_share(folder: Path, *, rows: bool = True) -> dict[str, int]:
    """Return ``files`` and ``bytes`` of a folder (hidden ones too) and ``rows`` of its live files.

    What `remove_folder` has put aside and not removed yet counts as the folder's.
    """
    files = [
        path
        for root in (folder, _aside(folder))
        if root.exists()
        for path in root.rglob("*")
        if path.is_file()
    ]
    share = {"files": len(files), "bytes": sum(path.stat().st_size for path in files)}
    if rows:
        live = live_files(folder) if folder.exists() else []
        share["rows"] = sum(pq.read_metadata(path).num_rows for path in live)
    return share


def held_by_a_run(staging: Path) -> bool:
    """Return whether a process works on the run whose staging folder this is."""
    try:
        with locked(staging, fcntl.LOCK_EX | fcntl.LOCK_NB):
            return False
    except BlockingIOError:
        return True
    except FileNotFoundError:  # it has just ended
        return False


def remove_folder(folder: Path, *, wait_seconds: float, progress: bool = True) -> None:
    """Remove a view's folder; safe to kill and to repeat.

    It is renamed first, while nobody reads it: a reader sees all of its files or none.

    Parameters
    ----------
    folder : Path
        Of a view; need not exist.
    wait_seconds : float
        How long to wait for readers.
    progress : bool
        Show a bar on stderr.

    Raises
    ------
    TransientError
        Readers hold it for longer.
    """
    aside = _aside(folder)
    _empty(aside, folder.name, progress=progress)  # what a killed call left
    if not folder.exists():
        return
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            with locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
                aside.parent.mkdir(parents=True, exist_ok=True)
                os.replace(folder, aside)
                break
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise TransientError(
                    f"{folder} is being read for more than {wait_seconds:g} s. Wait for the "
                    "readers to end, then run the command again."
                ) from None
            time.sleep(_POLL_SECONDS)
    _empty(aside, folder.name, progress=progress)


def _aside(folder: Path) -> Path:
    return folder.parent / _TRASH / folder.name


def _empty(aside: Path, title: str, *, progress: bool) -> None:
    if not aside.exists():
        return
    files = [path for path in aside.rglob("*") if path.is_file()]
    for path in tqdm(files, desc=f"remove {title}", unit="file", disable=not progress):
        path.unlink()
    shutil.rmtree(aside)
