"""Compaction beside readers, pushes, kills and other compactions."""

from __future__ import annotations

import fcntl
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from encoder.errors import TransientError
from materialize import compaction
from materialize.compaction import compact
from materialize.stores.append import Manifest, append_rows, live_files, locked, reading
from tests.forks import FORKS, preload
from tests.offline import table_of

preload(__name__)


def small_files(folder: Path, count: int = 5) -> list[tuple[int, float]]:
    folder.mkdir()
    rows = [(k, float(k)) for k in range(count)] + [(0, 0.0)]  # an equal row twice
    for user, value in rows:
        append_rows(folder, table_of([(user, 1, 1, value)]))
    return sorted(rows)


def stored(files: list[Path]) -> list[tuple[int, float]]:
    return sorted((r["user_id"], r["value"]) for f in files for r in pq.read_table(f).to_pylist())


def test_compaction_keeps_every_row_and_leaves_batch_files_alone(tmp_path: Path) -> None:
    rows = small_files(tmp_path / "v")
    pq.write_table(table_of([(9, 1, 1, 9.0)]), tmp_path / "v" / "part.parquet")
    report = compact(tmp_path / "v")
    assert (report.merged, report.rows, report.pending) == (6, 6, False)
    assert len(live_files(tmp_path / "v")) == 2
    assert stored(live_files(tmp_path / "v")) == sorted([*rows, (9, 9.0)])
    assert compact(tmp_path / "v").merged == 0


def test_a_reader_keeps_its_files_and_a_new_one_sees_each_row_once(tmp_path: Path) -> None:
    rows = small_files(tmp_path / "v")
    with reading(tmp_path / "v") as files:
        report = compact(tmp_path / "v", wait_seconds=0.1)
        assert report.pending
        assert stored(files) == rows, "the files of a running reader stay"
        with reading(tmp_path / "v") as later:
            assert len(later) == 1
            assert stored(later) == rows
    assert not compact(tmp_path / "v").pending
    assert Manifest.read(tmp_path / "v") is None
    assert stored(live_files(tmp_path / "v")) == rows
    assert len(list((tmp_path / "v").glob("*.parquet"))) == 1


@pytest.mark.parametrize("step", ["_merge", "_commit", "_finish"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_compaction_killed_at_any_step_loses_nothing(
    tmp_path: Path, step: str, when: str
) -> None:
    rows = small_files(tmp_path / "v")
    process = FORKS.Process(target=compact_and_die, args=(str(tmp_path / "v"), step, when))
    process.start()
    process.join(120)
    assert process.exitcode == -9
    with reading(tmp_path / "v") as files:
        assert stored(files) == rows
    append_rows(tmp_path / "v", table_of([(7, 1, 1, 7.0)]))
    compact(tmp_path / "v")
    assert stored(live_files(tmp_path / "v")) == sorted([*rows, (7, 7.0)])
    assert not list((tmp_path / "v").glob(".push-*"))


def compact_and_die(folder: str, step: str, when: str) -> None:
    import os
    import signal

    real = getattr(compaction, step)

    def dying(*args: Any, **kwargs: Any) -> Any:
        if when == "after":
            real(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(compaction, step, dying)
    compact(folder)


def test_two_compactions_do_not_run_at_once(tmp_path: Path) -> None:
    small_files(tmp_path / "v")
    (tmp_path / "v" / ".compaction.lock").touch()
    with (
        locked(tmp_path / "v" / ".compaction.lock", fcntl.LOCK_EX),
        pytest.raises(TransientError, match="Another compaction"),
    ):
        compact(tmp_path / "v")


def test_readers_beside_pushes_and_compactions_see_every_earlier_row_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "v"
    rows = small_files(folder)
    done = threading.Event()

    def work() -> None:
        for k in range(30):
            append_rows(folder, table_of([(100 + k, 1, 1, 0.0)]))
            compact(folder, wait_seconds=10)
        done.set()

    # Readers leave few gaps here; asking more often finds one sooner.
    monkeypatch.setattr(compaction, "_POLL_SECONDS", 0.001)
    worker = threading.Thread(target=work)
    worker.start()
    seen, deadline = 0, time.monotonic() + 100
    while not done.is_set() and time.monotonic() < deadline:
        with reading(folder) as files:
            found = stored(files)
        assert [row for row in found if row[0] < 100] == rows
        pushed = [row for row in found if row[0] >= 100]
        assert len(set(pushed)) == len(pushed) >= seen
        seen = len(pushed)
    worker.join(100)
    assert done.is_set()
    assert len(stored(live_files(folder))) == len(rows) + 30
