"""A run on small partitions: what resumes, what is written again, who may work on it."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from encoder.errors import DataFault, LedgerConflict, SpaceMismatch, VerificationFailed
from materialize import partition, raw_pass, view_run
from materialize.batch import materialize_space, materialize_view
from materialize.config import RepoSettings
from materialize.ledger import Ledger, Space
from materialize.partition import Throttle
from materialize.source import parquet_files
from materialize.stores.append import locked
from materialize.view_run import RunReport
from tests.repositories import VIEWS, TinyRepository, raw_rows
from transforms.layout import ACTIVITY
from transforms.names import stored_view

USERS = list(range(60))
END = datetime(2100, 1, 1, tzinfo=timezone.utc)


class World:
    """A tiny repository with raw rows of sixty users, cut into partitions of ten."""

    def __init__(self, folder: Path) -> None:
        self.tiny = TinyRepository.make(folder)
        self.tiny.write_raw(raw_rows(USERS), offline=True)
        self.settings = self.tiny.settings.with_job(rows_per_partition=10, workers=2)
        self.ledger = Ledger(self.settings.ledger_url)
        version = self.tiny.save_encoder()
        self.tiny.apply_space(1, version)
        url = self.settings.artifacts_url
        self.space: Space = self.ledger.register(version, url, {"raw_views": list(VIEWS)})

    def run(self, *, settings: RepoSettings | None = None, **options: Any) -> RunReport:
        return materialize_space(
            self.tiny.store,
            settings or self.settings,
            self.ledger,
            self.space,
            **({"end": END, "progress": False} | options),
        )

    def staging(self, report_or_id: Any) -> Path:
        return self.settings.offline_dir / "_staging" / report_or_id

    def served(self) -> list[Any]:
        return self.tiny.store.get_online_features(
            features=["user_embedding_s1:as_of"],
            entity_rows=[{"user_id": user} for user in USERS],
        ).to_dict()["as_of"]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "repo")


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Rows of each call that encodes."""
    seen: list[int] = []
    original = partition.encode_rows

    def counting(batch: Any, *rest: Any) -> Any:
        seen.append(batch.num_rows)
        return original(batch, *rest)

    monkeypatch.setattr(partition, "encode_rows", counting)
    return seen


def test_a_run_is_one_file_a_partition_and_everybody_is_served(world: World) -> None:
    plan = world.run(dry_run=True)
    assert (plan.outcome, plan.rows, plan.partitions) == ("planned", 60, 6)
    assert not (world.settings.offline_dir / "_staging").exists()
    assert world.ledger.runs() == []
    report = world.run()
    assert (report.outcome, report.rows, report.online_rows) == ("committed", 60, 60)
    assert report.run_id == plan.run_id
    assert set(report.stage_seconds) == {"exchange", "read", "encode", "offline", "online"}
    files = parquet_files(world.settings.offline_dir / stored_view(1) / f"run-{report.run_id}")
    assert len(files) == 6
    users = [u for f in files for u in pq.read_table(f)["user_id"].to_pylist()]
    assert sorted(users) == USERS
    assert None not in world.served()
    assert not world.staging(report.run_id).exists()


def test_a_run_that_fails_goes_on_where_it_was(
    world: World, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = world.settings.with_job(workers=1)
    original, calls = partition.PartitionWorker.__call__, []

    def failing(self: Any, work: partition.PartitionWork) -> Any:
        calls.append(work.number)
        if len(calls) >= 4:
            raise OSError("disk full")
        return original(self, work)

    with monkeypatch.context() as patch:
        patch.setattr(partition.PartitionWorker, "__call__", failing)
        with pytest.raises(OSError, match="disk full"):
            world.run(settings=settings)
    (run,) = world.ledger.runs()
    assert (run.state, run.error) == ("failed", "OSError: disk full")
    done = world.ledger.partitions_done(run.run_id)
    assert len(done) == 3
    assert sum(encoded) == sum(counts["rows"] for counts in done.values())
    # A setting that changed meanwhile does not change the run's partitions.
    report = world.run(settings=settings.with_job(rows_per_partition=7))
    assert (report.outcome, report.rows, report.partitions) == ("committed", 60, 6)
    assert report.online_rows == 60
    assert sum(encoded) == 60, "no row was encoded twice"
    assert None not in world.served()


def test_a_failed_verification_writes_everything_again(
    world: World, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> int:
        raise VerificationFailed("the online store lost a user")

    with monkeypatch.context() as patch:
        patch.setattr(view_run, "verify_online", broken)
        with pytest.raises(VerificationFailed):
            world.run()
    (run,) = world.ledger.runs()
    assert world.ledger.partitions_done(run.run_id) == {}
    assert not (world.settings.offline_dir / stored_view(1) / f"run-{run.run_id}").exists()
    world.tiny.store.teardown()
    world.tiny.store.apply([world.tiny.user, *world.tiny.raw_views])
    world.tiny.apply_space(1, world.space.encoder_version)
    report = world.run()
    assert report.online_rows == 60
    assert None not in world.served()
    assert sum(encoded) == 60, "what was encoded is kept"


def test_a_second_process_is_refused_and_changes_nothing(world: World) -> None:
    run_id = world.run(dry_run=True).run_id
    staging = world.staging(run_id)
    staging.mkdir(parents=True)
    with (
        locked(staging, fcntl.LOCK_EX),
        pytest.raises(LedgerConflict, match=f"Run {run_id} is being worked on"),
    ):
        world.run()
    (run,) = world.ledger.runs()
    assert run.state == "running", "the other process's run has not failed"
    assert world.run().outcome == "committed"


def test_a_newer_run_of_the_range_clears_what_an_abandoned_one_left(world: World) -> None:
    def left(run_id: str, plan: dict[str, Any]) -> Path:
        world.ledger.begin_run(run_id, stored_view(1), run_id, plan, space=1)
        folder = world.staging(run_id)
        (folder / "encoded").mkdir(parents=True)
        return folder

    same = {"start": None, "from_history": False}
    abandoned = left("a" * 16, same)
    history = left("b" * 16, same | {"from_history": True})
    working = left("c" * 16, same)
    with locked(working, fcntl.LOCK_EX):
        world.run()
    assert not abandoned.exists()
    assert history.exists(), "it can still be completed"
    assert working.exists(), "another process is at it"


def test_the_online_store_is_written_no_faster_than_asked(world: World) -> None:
    began = time.perf_counter()
    world.run(settings=world.settings.with_job(online_rows_per_second=60.0))
    assert time.perf_counter() - began >= 0.8  # 60 rows, less the last partition's share


def test_a_throttle_keeps_no_unused_time() -> None:
    throttle = Throttle(100.0)
    throttle.take(10)
    time.sleep(0.25)
    began = time.perf_counter()
    for _ in range(3):
        throttle.take(10)
    assert time.perf_counter() - began >= 0.19


def test_a_raw_view_is_a_run_of_partitions_too(world: World) -> None:
    report = materialize_view(
        world.tiny.store, world.settings, world.ledger, ACTIVITY, end=END, progress=False
    )
    assert (report.view, report.space, report.partitions) == (ACTIVITY, None, 6)
    assert report.online_rows == 60
    assert report.stage_seconds["encode"] == 0
    assert not world.staging(report.run_id).exists()


def test_raw_rows_that_vanish_during_a_run_fail_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = world.settings.with_job(rows_per_partition=100)  # one partition reads the files
    original = raw_pass.run_partitions

    def losing(*arguments: Any) -> Any:
        for path in parquet_files(settings.features_dir / ACTIVITY):
            pq.write_table(pq.read_table(path)[:50], path)
        return original(*arguments)

    monkeypatch.setattr(raw_pass, "run_partitions", losing)
    with pytest.raises(VerificationFailed, match="holds 50 rows, 60 are expected"):
        materialize_view(
            world.tiny.store, settings, world.ledger, ACTIVITY, end=END, progress=False
        )
    assert world.ledger.runs()[0].state == "failed"


def test_a_run_over_a_range_takes_only_its_users(world: World) -> None:
    moments = sorted(
        moment
        for path in parquet_files(world.settings.features_dir / ACTIVITY)
        for moment in pq.read_table(path)["event_timestamp"].to_pylist()
    )
    report = world.run(start=moments[-1], end=moments[-1] + timedelta(microseconds=1))
    assert 1 <= report.rows < 60
    assert report.rows == sum(as_of is not None for as_of in world.served())


def test_a_space_that_does_not_fit_the_raw_features_is_refused(world: World) -> None:
    path = parquet_files(world.settings.features_dir / ACTIVITY)[0]
    table = pq.read_table(path)
    index = table.column_names.index("activity_modality")
    other = table.set_column(index, "activity_modality", [["f" * 12] * table.num_rows])
    pq.write_table(other, path)
    with pytest.raises(SpaceMismatch):
        world.run()
    assert world.served() == [None] * 60


def test_ray_that_is_not_installed_is_said(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray.data", None)
    with pytest.raises(DataFault, match=r"pip install 'palate\[ray\]'"):
        world.run(settings=world.settings.with_job(engine="ray"))
