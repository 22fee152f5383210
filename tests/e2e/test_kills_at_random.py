"""A run killed at a random moment loses nothing and makes nothing older; a repeat completes it."""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from materialize.batch import materialize_space
from materialize.context import Context
from materialize.ledger import Run, Space
from materialize.source import parquet_files
from materialize.view_run import RunReport
from tests.e2e.killable import KillableRun
from tests.encoders import MODEL
from tests.repositories import INSTANT, VIEWS, TinyRepository, as_batch, raw_rows
from tests.servers import Server
from tests.stores import PROFILES
from transforms.embedding_views import declare_on_demand_view, declare_stored_view
from transforms.layout import field as raw_field
from transforms.names import USER_KEY, stored_view
from transforms.runtime import encode

SEED = 0
KILLS = {"local": 20, "ray": int(os.environ.get("RAY_KILLS", "4"))}
"""On Ray each run starts Ray and imports Feast in every worker: RAY_KILLS=20 takes minutes."""
USERS, NEW_USERS = 2_000, 20
METRICS = "metrics"
JOB: dict[str, Any] = {"workers": 2, "rows_per_partition": 100, "metrics_folder": METRICS}
START = datetime(2026, 1, 1, tzinfo=timezone.utc)
END = START + timedelta(days=365)
VIEW = stored_view(1)


@dataclass
class World:
    """A repository, and what a run over its raw rows must leave in every store.

    ``vectors`` and ``as_of`` are by user, who is numbered from 0.
    """

    repo: Path
    context: Context
    space: Space
    job: dict[str, Any]
    vectors: npt.NDArray[np.float32] = field(
        default_factory=lambda: np.zeros((0, MODEL.embedding_dim), np.float32)
    )
    as_of: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    rounds: int = 0

    @property
    def offline(self) -> Path:
        return self.context.settings.offline_dir / VIEW

    def add_raw_rows(self, users: npt.NDArray[np.int64]) -> None:
        """Give these users newer rows in every raw view; users above the known ones are new."""
        self.rounds += 1
        rows = raw_rows(users.tolist(), seed=self.rounds)
        moment = START + timedelta(hours=self.rounds)
        as_of = int(moment.timestamp()) * 1_000_000 + users
        for view in VIEWS:
            name = f"{view}__{raw_field(view, 'as_of')}"
            rows = rows.set_column(rows.column_names.index(name), name, pa.array(as_of))
        for view in VIEWS:
            names = [n for n in rows.column_names if n.startswith(f"{view}__")]
            own = rows.select([USER_KEY, *names]).rename_columns(
                [USER_KEY, *(n.removeprefix(f"{view}__") for n in names)]
            )
            for name in ("event_timestamp", "created_timestamp"):
                own = own.append_column(name, pa.array(as_of).cast(INSTANT))
            folder = self.context.settings.features_dir / view
            folder.mkdir(parents=True, exist_ok=True)
            pq.write_table(own, folder / f"{self.rounds:05d}.parquet")
        encoded = encode(
            as_batch(rows), self.space.encoder_version, self.context.settings.artifacts_url
        )
        more = max(0, int(users.max()) + 1 - len(self.as_of))
        self.vectors = np.pad(self.vectors, ((0, more), (0, 0)))
        self.as_of = np.pad(self.as_of, (0, more))
        self.vectors[users], self.as_of[users] = encoded.embedding, as_of

    def change(self, rng: np.random.Generator) -> None:
        """Give a third of the users newer rows, and add new users."""
        n = len(self.as_of)
        changed = rng.choice(n, n // 3, replace=False)
        self.add_raw_rows(np.concatenate([changed, np.arange(n, n + NEW_USERS)]))

    def run(self, **options: Any) -> RunReport:
        """Run in this process, on its threads: any engine goes on with what another has begun."""
        return materialize_space(
            self.context.store,
            self.context.settings.with_job(**JOB),
            self.context.ledger,
            self.space,
            end=END,
            progress=False,
            **options,
        )

    def served(self) -> tuple[list[Any], list[int | None]]:
        """Return each user's vector and ``as_of`` online, None for nothing."""
        answer = self.context.store.get_online_features(
            features=[f"{VIEW}:{name}" for name in ("embedding", "as_of", "space")],
            entity_rows=[{USER_KEY: user} for user in range(len(self.as_of))],
        ).to_dict()
        assert set(answer["space"]) <= {1, None}
        return answer["embedding"], answer["as_of"]

    def files(self) -> dict[str, str]:
        """Return a digest of each file of the stored view, by path."""
        return {
            str(path): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self.offline.rglob("*")
            if path.is_file()
        }

    def committed(self) -> set[str]:
        return {run.run_id for run in self.context.ledger.runs() if run.state == "committed"}


_RAY = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")


@pytest.fixture(params=["local", pytest.param("ray", marks=_RAY)])
def world(request: pytest.FixtureRequest, tmp_path: Path, redis_server: Server) -> World:
    tiny = TinyRepository.make(tmp_path / "repo")
    version = tiny.save_encoder()
    # The same repository with our Redis store: a project of its own keeps its keys apart.
    path = tmp_path / "repo" / "feature_store.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["project"] = f"kills_{uuid.uuid4().hex[:8]}"
    config["online_store"] = PROFILES["palate-redis"].settings(redis_server, "")
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    context = Context(tmp_path / "repo")
    url = context.settings.artifacts_url
    space = context.ledger.register(version, f"{url}/{version}", {"raw_views": list(VIEWS)})
    folder = context.settings.offline_dir / VIEW
    names = {"space": space.number, "encoder_version": version}
    context.store.apply(
        [
            *(tiny.user, *tiny.raw_views),
            declare_stored_view(tiny.user, **names, folder=folder),
            declare_on_demand_view(tiny.raw_views, **names, store=url),
        ]
    )
    made = World(tmp_path / "repo", context, space, JOB | {"engine": request.param})
    made.add_raw_rows(np.arange(USERS))
    assert made.run().partitions >= 20
    return made


@dataclass
class Before:
    """What the stores held when a run began."""

    vectors: npt.NDArray[np.float32]
    as_of: npt.NDArray[np.int64]
    files: dict[str, str]
    committed: set[str]

    @classmethod
    def of(cls, world: World) -> Before:
        return cls(world.vectors.copy(), world.as_of.copy(), world.files(), world.committed())


@dataclass
class Left:
    """What a killed run had done: partitions in the ledger with their rows, and encoded files."""

    where: str
    recorded: dict[int, int] = field(default_factory=dict)
    encoded: dict[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, world: World, run: Run | None) -> Left:
        if run is None:
            return cls("before the ledger knew the run")
        if run.state == "committed":
            return cls("after its commit")
        done = world.context.ledger.partitions_done(run.run_id)
        recorded = {number: counts["rows"] for number, counts in done.items()}
        published = world.offline / f"run-{run.run_id}"
        if published.exists():
            return cls("between publishing and the commit", recorded, identities(published))
        staging = world.context.settings.offline_dir / "_staging" / run.run_id
        if not (staging / "raw").exists():
            return cls("while raw rows were cut into partitions", recorded)
        where = "in the partitions" if len(recorded) < run.plan["partitions"] else "in the checks"
        return cls(where, recorded, identities(staging / "encoded"))


def identities(folder: Path) -> dict[str, tuple[int, int]]:
    """Return inode and time of each Parquet file, which a rename of the folder keeps."""
    stats = {path.name: path.stat() for path in folder.glob("*.parquet")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def check_nothing_is_lost_or_older(world: World, before: Before) -> None:
    """Each user's online row is whole, that of before or that of the run."""
    vectors, served = world.served()
    there = np.array([moment is not None for moment in served])
    as_of = np.array([moment or 0 for moment in served])
    n = len(before.as_of)
    assert there[:n].all(), "a user was served and is lost"
    assert (as_of[:n] >= before.as_of).all(), "a user got older"
    is_new = there & (as_of == world.as_of)
    is_old = there[:n] & (as_of[:n] == before.as_of)
    np.testing.assert_array_equal(is_new[:n] | is_old, there[:n])
    np.testing.assert_array_equal(is_new[n:], there[n:])
    expected = np.where(is_new[:, None], world.vectors, 0)
    expected[:n][is_old] = before.vectors[is_old]
    zeros = [0.0] * MODEL.embedding_dim
    whole = np.array([zeros if vector is None else vector for vector in vectors], np.float32)
    np.testing.assert_allclose(whole, expected, atol=1e-6)


def check_complete(world: World, run_id: str) -> None:
    """Every user's online row and offline row is that of an undisturbed run."""
    vectors, as_of = world.served()
    assert as_of == world.as_of.tolist()
    np.testing.assert_allclose(np.array(vectors, np.float32), world.vectors, atol=1e-6)
    published = world.offline / f"run-{run_id}"
    rows = pq.ParquetDataset(parquet_files(published)).read([USER_KEY, "embedding", "as_of"])
    rows = rows.sort_by(USER_KEY)
    assert rows[USER_KEY].to_pylist() == list(range(len(world.as_of)))
    assert rows["as_of"].to_pylist() == world.as_of.tolist()
    np.testing.assert_allclose(
        np.array(rows["embedding"].to_pylist(), np.float32), world.vectors, atol=1e-6
    )
    assert [p.name for p in published.iterdir() if p.suffix != ".parquet"] == []
    (run,) = [r for r in world.context.ledger.runs() if r.run_id == run_id]
    assert run.state == "committed"
    assert run.counts["rows"] == run.counts["online_rows"] == len(world.as_of)
    assert world.context.ledger.partitions_done(run_id) == {}


def repeat(world: World, left: Left) -> int:
    """Run again to the end; return the rows that went online again, of partitions not recorded."""
    report = world.run()
    published = world.offline / f"run-{report.run_id}"
    assert left.encoded.items() <= identities(published).items(), "encoded partitions are kept"
    if report.outcome == "unchanged":
        return 0
    (counter,) = [
        sample.value
        for family in text_string_to_metric_families(
            (world.repo / METRICS / f"palate_{VIEW}.prom").read_text(encoding="utf-8")
        )
        for sample in family.samples
        if sample.name == "palate_run_rows_total" and sample.labels["stage"] == "online"
    ]
    assert counter == len(world.as_of) - sum(left.recorded.values()), "what is recorded stays done"
    assert not any((world.context.settings.offline_dir / "_staging").iterdir())
    return int(counter)


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_kills_at_random_moments_lose_nothing(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(SEED)
    kills = KILLS[world.job["engine"]]
    world.change(rng)
    undisturbed = KillableRun(world.repo, END, world.job)
    undisturbed.begin()
    began = time.perf_counter()
    assert undisturbed.wait(120.0)
    duration = time.perf_counter() - began
    check_complete(world, world.run(dry_run=True).run_id)

    places: Counter[str] = Counter()
    kept = again = ended = 0
    while places.total() < kills:
        before = Before.of(world)
        world.change(rng)
        run_id = world.run(dry_run=True).run_id
        job = KillableRun(world.repo, END, world.job)
        job.begin()
        if job.wait(rng.uniform(0.0, duration)) or not job.kill():
            ended += 1
            assert ended <= kills, "runs end before they are killed"
            check_complete(world, run_id)
            continue

        runs = {run.run_id: run for run in world.context.ledger.runs()}
        left = Left.of(world, runs.get(run_id))
        places[left.where] += 1
        check_nothing_is_lost_or_older(world, before)
        files = world.files()
        assert before.files.items() <= files.items(), "committed files stay as they are"
        assert all(f"run-{run_id}" in name for name in files.keys() - before.files.keys())
        finished = {run_id} if left.where == "after its commit" else set()
        assert world.committed() == before.committed | finished
        # What is encoded and not recorded was under way: one partition a worker.
        assert len(left.encoded) - len(left.recorded) <= world.job["workers"]

        if places.total() % 4 == 0:  # nobody completes this run: a later one has newer rows
            world.change(rng)
            left = Left(left.where)
            run_id = world.run(dry_run=True).run_id
        again += repeat(world, left)
        kept += sum(left.recorded.values())
        check_complete(world, run_id)
        assert before.files.items() <= world.files().items()
    with capsys.disabled():
        print(f"\n{world.job['engine']}: {kills} runs killed ({ended} had ended before)")
        for where, count in places.most_common():
            print(f"  {count:2} {where}")
        print(
            f"  repeats kept {kept} rows of the killed runs and wrote {again}; none lost or older"
        )


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("world", [pytest.param("ray", marks=_RAY)], indirect=True)
def test_ray_workers_killed_in_the_middle_lose_nothing(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.change(np.random.default_rng(SEED))
    run_id = world.run(dry_run=True).run_id
    # Slow enough to be met in the middle: about 2,000 rows at 400 a second.
    job = KillableRun(world.repo, END, world.job | {"online_rows_per_second": 400.0})
    job.begin()
    killed = 0
    while not job.wait(0.2):
        done = len(world.context.ledger.partitions_done(run_id))
        # One after a few partitions, another one much later.
        if killed < 2 and done >= 3 + 8 * killed:
            killed += job.kill_one("ray::")
    assert killed == 2
    check_complete(world, run_id)
    with capsys.disabled():
        print(f"\nray: {killed} workers killed in one run of {len(world.as_of)} users; none lost")
