"""Several spaces in one pass over the raw features: read once, each with a run of its own."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from encoder.alignment import orthogonal_map
from encoder.bridge import BridgeArtifact, BridgeStore
from encoder.errors import VerificationFailed
from materialize import partition, raw_pass, view_run
from materialize.batch import materialize_space, materialize_spaces, materialize_view
from materialize.embedding_rows import embedding_matrix
from materialize.ledger import Bridge, Ledger, Space
from materialize.live import live_targets
from materialize.publish import write_json
from materialize.source import parquet_files
from materialize.stores.compact import round_trip
from materialize.view_run import RunReport
from tests.encoders import tiny_artifact
from tests.repositories import VIEWS, TinyRepository, raw_rows
from transforms.embedding_views import declare_bridged_view
from transforms.layout import ACTIVITY
from transforms.names import FLOAT32, VECTOR_FORMS, bridged_view, stored_view

USERS = list(range(60))
END = datetime(2100, 1, 1, tzinfo=timezone.utc)
ONE, TWO, ACROSS = stored_view(1), stored_view(2), bridged_view(1, 2)


class World:
    """Two spaces over the same raw rows of sixty users, and a bridge from the new to the old."""

    def __init__(self, folder: Path, vectors: str = FLOAT32) -> None:
        self.tiny = TinyRepository.make(folder)
        self.tiny.write_raw(raw_rows(USERS), offline=True)
        self.settings = self.tiny.settings.with_job(rows_per_partition=10, workers=2)
        self.ledger = Ledger(self.settings.ledger_url)
        url = self.settings.artifacts_url
        self.spaces: list[Space] = []
        for number in (1, 2):
            version = self.tiny.save_encoder(seed=number)
            self.tiny.apply_space(number, version)
            self.spaces.append(self.ledger.register(version, url, {"raw_views": list(VIEWS)}))
        rng = np.random.default_rng(0)
        width = tiny_artifact(0).manifest.embedding_dim
        across = orthogonal_map(rng.normal(size=(50, width)), rng.normal(size=(50, width)))
        old, new = (space.encoder_version for space in self.spaces)
        self.artifact = BridgeArtifact(source=new, target=old, map=across)
        stored = BridgeStore(url).save(self.artifact)
        self.bridge: Bridge = self.ledger.record_bridge(
            self.artifact.version, source=2, target=1, url=stored, figures={}, who="test"
        )
        self.tiny.store.apply(
            [
                declare_bridged_view(
                    self.tiny.user,
                    target=1,
                    source=2,
                    bridge_version=self.bridge.version,
                    folder=self.settings.offline_dir / ACROSS,
                    vectors=vectors,
                )
            ]
        )

    def run(self, **options: Any) -> dict[str, RunReport]:
        how: dict[str, Any] = {"end": END, "progress": False, "bridges": [self.bridge]} | options
        where = (self.tiny.store, self.settings, self.ledger, self.spaces)
        return {report.view: report for report in materialize_spaces(*where, **how)}

    def offline(self, view: str) -> pa.Table:
        files = parquet_files(self.settings.offline_dir / view)
        return pa.concat_tables(pq.read_table(file) for file in files).sort_by("user_id")

    def online(self, view: str) -> dict[str, list[Any]]:
        answer: dict[str, list[Any]] = self.tiny.store.get_online_features(
            features=[f"{view}:{name}" for name in ("embedding", "space", "encoder_version")],
            entity_rows=[{"user_id": user} for user in USERS],
        ).to_dict()
        return answer


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "repo")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Raw rows that were read from partitions."""
    seen: list[int] = []
    original = partition._read

    def counting(*arguments: Any) -> Iterator[pa.RecordBatch]:
        for batch in original(*arguments):
            seen.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(partition, "_read", counting)
    return seen


def test_raw_rows_are_read_once_and_every_view_has_all_users(world: World, read: list[int]) -> None:
    plan = world.run(dry_run=True)
    assert [report.outcome for report in plan.values()] == ["planned"] * 3
    assert world.ledger.runs() == []
    reports = world.run()
    assert list(reports) == [ONE, TWO, ACROSS]
    assert {report.outcome for report in reports.values()} == {"committed"}
    assert {report.rows for report in reports.values()} == {60}
    assert [report.space for report in reports.values()] == [1, 2, 1]
    assert sum(read) == 60
    marks = {
        ONE: (1, world.spaces[0].encoder_version),
        TWO: (2, world.spaces[1].encoder_version),
        ACROSS: (1, world.bridge.version),
    }
    for view, mark in marks.items():
        offline, online = world.offline(view), world.online(view)
        assert offline["user_id"].to_pylist() == USERS
        assert set(zip(online["space"], online["encoder_version"], strict=True)) == {mark}
        vectors = embedding_matrix(offline["embedding"].combine_chunks())
        assert np.array_equal(np.array(online["embedding"], np.float32), vectors)
    assert [space.state for space in world.ledger.spaces()] == ["ready", "ready"]


@pytest.mark.parametrize("form", VECTOR_FORMS)
def test_a_bridged_view_is_its_source_under_the_map_in_its_own_form(
    tmp_path: Path, form: str
) -> None:
    world = World(tmp_path / "repo", form)
    world.run()
    source, across = world.offline(TWO), world.offline(ACROSS)
    vectors = embedding_matrix(source["embedding"].combine_chunks())
    expected = round_trip(world.artifact.apply(vectors), form)
    assert np.array_equal(embedding_matrix(across["embedding"].combine_chunks()), expected)
    for column in ("user_id", "as_of", "status", "n_events", "event_timestamp"):
        assert across[column].equals(source[column])


def test_together_and_alone_write_the_same_rows_in_the_same_runs(
    world: World, tmp_path: Path
) -> None:
    together = world.run()
    other = World(tmp_path / "other")
    for space in other.spaces:
        alone = materialize_space(
            other.tiny.store, other.settings, other.ledger, space, end=END, progress=False
        )
        assert alone.rows == together[stored_view(space.number)].rows
        for column in ("user_id", "embedding", "as_of", "encoder_version"):
            assert pc.all(
                pc.equal(
                    pc.cast(world.offline(alone.view)["as_of"], pa.int64()),
                    pc.cast(other.offline(alone.view)["as_of"], pa.int64()),
                )
            ).as_py()
            mine, its = (w.offline(alone.view)[column].to_pylist() for w in (world, other))
            assert mine == its


def test_a_space_that_is_committed_is_left_out_of_the_next_pass(
    world: World, read: list[int]
) -> None:
    first = materialize_space(
        world.tiny.store, world.settings, world.ledger, world.spaces[0], end=END, progress=False
    )
    reports = world.run()
    assert {view: report.outcome for view, report in reports.items()} == {
        ONE: "unchanged",
        TWO: "committed",
        ACROSS: "committed",
    }
    assert reports[ONE].run_id == first.run_id
    assert sum(read) == 120, "once for the first run, once for both others"
    assert {report.outcome for report in world.run().values()} == {"unchanged"}


def test_a_pass_that_dies_between_two_commits_finishes_the_second(
    world: World, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = view_run.verify_online

    def failing(store: Any, view: str, folder: Path) -> int:
        if view == TWO:
            raise VerificationFailed("the online store lost a user")
        return original(store, view, folder)

    with monkeypatch.context() as patch:
        patch.setattr(view_run, "verify_online", failing)
        with pytest.raises(VerificationFailed):
            world.run()
    states = {run.view: run.state for run in world.ledger.runs()}
    assert states == {ONE: "committed", TWO: "failed", ACROSS: "failed"}
    reports = world.run()
    assert [report.outcome for report in reports.values()] == [
        "unchanged",
        "committed",
        "committed",
    ]
    assert sum(read) == 60, "what was encoded is kept"
    assert not any((world.settings.offline_dir / "_staging").iterdir())


def test_a_pass_goes_on_with_what_each_run_lacks(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[int, int]] = []
    original = raw_pass.run_partitions

    def cut(*arguments: Any) -> Iterator[Any]:
        for part in original(*arguments):
            done.append((part.target, part.number))
            yield part
            if len(done) == 4:
                raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(raw_pass, "run_partitions", cut)
        with pytest.raises(OSError, match="disk full"):
            world.run()
    known = {run.view: len(world.ledger.partitions_done(run.run_id)) for run in world.ledger.runs()}
    assert 4 <= sum(known.values()) < 18
    reports = world.run()
    assert {report.online_rows for report in reports.values()} == {60}
    for view in (ONE, TWO, ACROSS):
        assert None not in world.online(view)["space"]


def test_live_targets_leave_out_a_space_of_other_item_vectors(world: World) -> None:
    world.run()
    modality = "a" * 12
    write_json(world.settings.features_dir / "state.json", {"modality_version": modality})
    world.ledger.serve_bridge(world.bridge.version, who="test", why="a lagging consumer")
    world.ledger.add_consumer("old", 1, bridge=world.bridge.version, who="test", why="")
    live = live_targets(world.settings, world.ledger)
    assert [space.number for space in live.spaces] == [2], "space 1 is read through the bridge"
    assert [bridge.version for bridge in live.bridges] == [world.bridge.version]
    world.ledger.add_consumer("home", 1, who="test", why="")
    assert [s.number for s in live_targets(world.settings, world.ledger).spaces] == [1, 2]
    world.ledger.update_facts(1, {"modality_version": "f" * 12})
    live = live_targets(world.settings, world.ledger)
    assert [space.number for space in live.spaces] == [2]
    assert live.skipped == {
        ONE: f"space 1 reads item vectors ffffffffffff, raw features hold {modality}"
    }


def test_live_targets_leave_out_a_space_of_blocks_and_of_other_texts(world: World) -> None:
    """Whoever reads both needs both as they were."""
    world.run()
    vectors, texts, other = "a" * 12, "b" * 12, "f" * 12
    state = {"modality_version": vectors, "texts_version": texts}
    write_json(world.settings.features_dir / "state.json", state)
    world.ledger.add_consumer("home", 1, who="test", why="")
    for facts, fresh in (
        ({"modality_version": vectors, "texts_version": texts}, True),
        ({"modality_version": vectors, "texts_version": other}, False),
        ({"modality_version": other, "texts_version": texts}, False),
    ):
        world.ledger.update_facts(1, facts)
        live = live_targets(world.settings, world.ledger)
        assert (1 in [space.number for space in live.spaces]) == fresh, facts
        if not fresh:
            assert live.skipped[ONE] == (
                f"space 1 reads item vectors {facts['modality_version']} and item texts "
                f"{facts['texts_version']}, raw features hold {vectors} and item texts {texts}"
            )
    write_json(world.settings.features_dir / "state.json", {"modality_version": vectors})
    world.ledger.update_facts(1, state)
    assert ONE in live_targets(world.settings, world.ledger).skipped, "texts are there no more"


def test_late_rows_since_the_earliest_run_reach_every_space(world: World) -> None:
    """A pass over a range takes what any of its spaces may not have seen."""
    start = datetime(2099, 1, 1, tzinfo=timezone.utc)
    world.run()
    late = world.settings.features_dir / ACTIVITY / "late.parquet"
    table = pq.read_table(parquet_files(late.parent)[0])[:1]
    moment = pc.add(table["event_timestamp"], pa.scalar(1, pa.duration("us")))
    now = pa.chunked_array([pa.array([datetime.now(timezone.utc)], moment.type)])
    table = table.set_column(table.column_names.index("event_timestamp"), "event_timestamp", moment)
    table = table.set_column(
        table.column_names.index("created_timestamp"), "created_timestamp", now
    )
    pq.write_table(table, late)
    materialize_space(
        world.tiny.store, world.settings, world.ledger, world.spaces[0], start=start, end=END,
        progress=False,
    )  # fmt: skip
    reports = world.run(start=start)
    assert {view: report.rows for view, report in reports.items()} == {ONE: 1, TWO: 1, ACROSS: 1}


def test_a_raw_view_is_a_pass_of_one(world: World, read: list[int]) -> None:
    report = materialize_view(
        world.tiny.store, world.settings, world.ledger, ACTIVITY, end=END, progress=False
    )
    assert (report.outcome, sum(read)) == ("committed", 60)
