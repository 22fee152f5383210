"""``palate data validate``: a company's own tables become clean ones, or a list of faults."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import duckdb
from tqdm import tqdm

from encoder.errors import TransientError
from materialize.validation.parsed import create_views
from materialize.validation.report import FatalFaults, Fault, TableCounts, ValidationReport
from materialize.validation.rows import check_rows
from materialize.validation.sources import literal, matching_files
from materialize.validation.structure import structure_faults
from materialize.validation.write import write_clean, write_rejected
from transforms.clean import CLEAN_TABLES, CleanTables
from transforms.dataset import Dataset

__all__ = ["FatalFaults", "Fault", "TableCounts", "ValidationReport", "validate"]

_RULES = 1
"""Raised when the same input would give other clean tables, so that old results are not reused."""

_WORK = "validate.tmp"
_OLD = "clean.old.tmp"


def validate(
    dataset: Dataset,
    out: Path,
    *,
    now: datetime | None = None,
    dry_run: bool = False,
    force: bool = False,
    memory_limit_mb: int = 2048,
    threads: int | None = None,
    progress: bool = True,
) -> ValidationReport:
    """Check a data set and write its clean tables under ``out/clean``.

    Out of core: DuckDB spills to a folder under ``out`` beyond the memory limit. The former clean
    tables stay in place until the new ones are complete; a fatal fault leaves them untouched.
    Input that was validated before is recognised by its files' names, sizes and times, and by what
    dataset.yaml says about the three tables; then nothing is done again.

    Parameters
    ----------
    dataset : Dataset
    out : Path
        The data folder; made when missing.
    now : datetime, optional
        With a time zone. Later timestamps are in the future; default: the clock.
    dry_run : bool
        Check everything, write nothing.
    force : bool
        Validate again although nothing changed.
    memory_limit_mb : int
        Of DuckDB, in MiB.
    threads : int, optional
        Default: one a core.
    progress : bool
        Show a progress bar on stderr.

    Returns
    -------
    ValidationReport
        Also written to ``out/clean/validation.json``.

    Raises
    ------
    FatalFaults
        A ``DataFault`` that lists every fatal fault; nothing was written.
    TransientError
        Another validation is writing to ``out``.
    """
    started = time.perf_counter()
    moment = now or datetime.now(timezone.utc)
    if moment.tzinfo is None:
        raise ValueError(f"now={moment.isoformat()} given, a time with a time zone is expected.")
    out = Path(out)
    with _work_folder(out) as work:
        _restore(out)
        fingerprint = _fingerprint(dataset)
        if not (force or dry_run):
            former = _former(out, fingerprint, moment)
            if former is not None:
                return replace(former, unchanged=True)
        with _connection(work, memory_limit_mb, threads) as con, _bar(con, progress) as step:
            step("read schemas")
            tables, faults = structure_faults(con, dataset)
            create_views(con, dataset, tables)
            counts, row_faults = check_rows(
                con, dataset, tables, moment, cross=not faults, step=step
            )
            faults += row_faults
            fatal = [fault for fault in faults if fault.severity == "fatal"]
            if fatal:
                raise FatalFaults(dataset.name, fatal)
            report = ValidationReport(
                dataset=dataset.name,
                fingerprint=fingerprint,
                now=moment,
                tables={name: counts.get(name, TableCounts()) for name in CLEAN_TABLES},
                faults=tuple(faults),
                first_event=None,
                last_event=None,
                seconds=time.perf_counter() - started,
            )
            if dry_run:
                return report
            clean = CleanTables(work)
            written, (first, last) = write_clean(con, dataset, clean, step)
            step("write rejected rows")
            (work / "rejected").mkdir()
            write_rejected(con, tables, work / "rejected")
        report = replace(
            report,
            tables={
                name: replace(c, added=written[name] - c.kept) for name, c in report.tables.items()
            },
            first_event=first,
            last_event=last,
            seconds=round(time.perf_counter() - started, 3),
        )
        text = json.dumps(report.to_dict(), indent=2, ensure_ascii=False)
        clean.report.write_text(text + "\n", encoding="utf-8")
        _publish(work, out)
    return report


def _fingerprint(dataset: Dataset) -> str:
    """Return 12 hex digits of the rules, the tables' description and their files."""
    described: dict[str, Any] = dataset.model_dump(
        mode="json", include={"name", "events", "users", "items"}
    )
    files = []
    for table in (dataset.events, dataset.users, dataset.items):
        for name in matching_files(table.path) if table is not None else ():
            stat = os.stat(name)
            files.append([name, stat.st_size, stat.st_mtime_ns])
    text = json.dumps([_RULES, described, files], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _former(out: Path, fingerprint: str, now: datetime) -> ValidationReport | None:
    """Return the report of the clean tables in place, if a new run would give the same ones."""
    clean = CleanTables(out)
    if not clean.exists():
        return None
    data = json.loads(clean.report.read_text(encoding="utf-8"))
    if data.get("fingerprint") != fingerprint:
        return None
    report = ValidationReport.from_dict(data)
    waiting = any(fault.code == "timestamp_in_future" for fault in report.faults)
    # Time alone changes the result where rows were rejected for lying ahead of it.
    return report if report.now == now or (report.now <= now and not waiting) else None


@contextmanager
def _work_folder(out: Path) -> Iterator[Path]:
    """Lock ``out``, give an empty folder inside, and leave nothing of it behind."""
    made = [p for p in (out, *out.parents) if not p.exists()]
    out.mkdir(parents=True, exist_ok=True)
    work = out / _WORK
    handle = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TransientError(
                f"Another validation is writing to {out}. Wait for it, or name another folder."
            ) from None
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            yield work
        finally:
            shutil.rmtree(work)
            for folder in made:
                if not any(folder.iterdir()):
                    folder.rmdir()
    finally:
        os.close(handle)


@contextmanager
def _connection(
    work: Path, memory_limit_mb: int, threads: int | None
) -> Iterator[duckdb.DuckDBPyConnection]:
    con = duckdb.connect(":memory:")
    try:
        con.execute(f"SET memory_limit = '{int(memory_limit_mb)}MiB'")
        con.execute(f"SET temp_directory = {literal(str(work / 'spill'))}")
        con.execute("SET TimeZone = 'UTC'")
        con.execute("SET preserve_insertion_order = true")
        if threads is not None:
            con.execute(f"SET threads = {int(threads)}")
        yield con
    finally:
        con.close()


@contextmanager
def _bar(con: duckdb.DuckDBPyConnection, shown: bool) -> Iterator[Callable[[str], None]]:
    """Give a function that begins a named step; DuckDB's own progress moves the bar in between."""
    con.execute("SET enable_progress_bar = true")
    con.execute("SET enable_progress_bar_print = false")
    bar = tqdm(
        total=100, unit="%", disable=not shown, leave=False, bar_format="{desc}: {bar} {n:.0f}%"
    )
    stop = threading.Event()

    def follow() -> None:
        while not stop.wait(0.2):
            bar.n = max(0.0, con.query_progress())
            bar.refresh()

    def step(name: str) -> None:
        bar.set_description_str(name)

    follower = threading.Thread(target=follow, daemon=True) if shown else None
    try:
        if follower is not None:
            follower.start()
        yield step
    finally:
        stop.set()
        if follower is not None:
            follower.join()
        bar.close()


def _publish(work: Path, out: Path) -> None:
    """Put the new folders in the place of the former; the clean tables come last.

    A kill between the two renames of ``clean`` leaves the former tables under ``clean.old.tmp``,
    from where the next validation brings them back.
    """
    rejected, clean, old = out / "rejected", out / "clean", out / _OLD
    if rejected.exists():
        rejected.rename(work / "rejected.old")
    (work / "rejected").rename(rejected)
    if clean.exists():
        clean.rename(old)
    (work / "clean").rename(clean)
    shutil.rmtree(old, ignore_errors=True)


def _restore(out: Path) -> None:
    """Finish or undo the renames of a validation that was killed while it published."""
    old, clean = out / _OLD, out / "clean"
    if not old.exists():
        return
    if clean.exists():
        shutil.rmtree(old)
    else:
        old.rename(clean)
