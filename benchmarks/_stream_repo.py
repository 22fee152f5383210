"""A repository with a trained space, materialised and seeded, and its Redis as a snapshot.

Every section of the stream benchmark starts a Redis of its own from the same snapshot.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis
import yaml

from benchmarks import _stream_data
from benchmarks._stream_truth import write_truth
from materialize.context import Context
from materialize.template import init_repository
from tests.servers import Server, redis_server

if TYPE_CHECKING:
    from feast import FeatureStore

__all__ = ["SPACE", "Prepared", "apply_views", "note", "prepare", "serving"]

SPACE = 1
_ADDRESS = "PALATE_REDIS"
_TRAINING = {"max_epochs": 1, "batch_size": 1024}
_MARK, _SNAPSHOT, _TRUTH = "prepared.json", "dump.rdb", "truth.npz"


@dataclass(frozen=True)
class Prepared:
    """What all sections share.

    Attributes
    ----------
    dataset : str
    repository : Path
    snapshot : Path
        Redis' file with raw rows, embeddings and states of all that happened before ``start``.
    truth : Path
        Of `_stream_truth.write_truth`: the batch's embeddings of the cut-off.
    start : datetime
        The replay begins here.
    users : int
        Users with a state in the snapshot.
    seconds : dict of str to float
        Of the steps that made it.
    """

    dataset: str
    repository: Path
    snapshot: Path
    truth: Path
    start: datetime
    users: int
    seconds: dict[str, float]

    @property
    def real(self) -> bool:
        """Whether somebody did these things."""
        return self.dataset == _stream_data.REAL


def note(text: str) -> None:
    """Say on stderr what is being done."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def prepare(folder: Path, users: int, events: int, seed: int) -> Prepared:
    """Return what is in a folder, or make it.

    Parameters
    ----------
    folder : Path
    users : int
        Users at most.
    events : int
        Events of the replay before the cut-off; what follows the cut-off is replayed too.
    seed : int
    """
    asked = {"users": users, "events": events, "seed": seed, "data": os.environ.get("PALATE_DATA")}
    mark = folder / _MARK
    if mark.exists():
        known = json.loads(mark.read_text(encoding="utf-8"))
        if known["asked"] == asked:
            note(f"prepared before in {folder}")
            return _read(folder, known)
    for old in ("raw", "repo", "redis"):
        shutil.rmtree(folder / old, ignore_errors=True)
    known = _make(folder, users, events, seed) | {"asked": asked}
    mark.write_text(json.dumps(known), encoding="utf-8")
    return _read(folder, known)


def _read(folder: Path, known: dict[str, Any]) -> Prepared:
    return Prepared(
        known["dataset"],
        folder / "repo",
        folder / "redis" / _SNAPSHOT,
        folder / _TRUTH,
        datetime.fromisoformat(known["start"]),
        known["users"],
        known["seconds"],
    )


def _make(folder: Path, users: int, events: int, seed: int) -> dict[str, Any]:
    from materialize.batch import materialize_space, materialize_view
    from materialize.features import build_features
    from materialize.stream.seed import seed_states
    from materialize.train import train_space
    from materialize.validate import validate
    from transforms.clean import CleanTables

    seconds: dict[str, float] = {}

    @contextmanager
    def step(name: str) -> Iterator[None]:
        note(f"prepare: {name}")
        began = time.perf_counter()
        yield
        seconds[name] = round(time.perf_counter() - began, 2)

    with step("raw data"):
        dataset, described = _stream_data.write_dataset(folder / "raw", users, seed)
    repository = _write_repository(folder / "repo", dataset, described)
    settings = Context(repository).settings
    with step("validate"):
        validate(settings.dataset, settings.data_dir, progress=False)
    clean = CleanTables(settings.data_dir)
    cutoff = settings.dataset.evaluation.cutoff
    start = _stream_data.replay_start(clean.events, cutoff, events)
    night = start.replace(hour=0, minute=0, second=0, microsecond=0)
    _stream_data.set_first_snapshot(described, night)
    settings = Context(repository).settings
    with step("features"):
        build_features(
            settings.dataset, clean, settings.features_dir, until=cutoff, seed=seed,
            progress=False, memory_limit_mb=settings.file.memory_limit_mb,
        )  # fmt: skip
    (folder / "redis").mkdir()
    with redis_server(folder / "redis") as server, _address(server):
        context = Context(repository)
        where = (context.store, context.settings, context.ledger)
        with step("train"):
            apply_views(context, context.store)
            space = train_space(*where, progress=False).space
            assert space.number == SPACE
            apply_views(context, context.store)
        with step("batch of the cut-off"):
            write_truth(context, SPACE, folder / _TRUTH)
        with step("materialise"):
            for view in space.facts["raw_views"]:
                materialize_view(*where, view, end=night, progress=False)
            materialize_space(*where, space, end=night, progress=False)
        with step("seed"):
            seed_states(*where, until=night, progress=False)
        with step("seed the day until the replay"):
            # Of users whose state gains something, rows and embeddings are made anew.
            seeded = seed_states(*where, until=start, progress=False)
        assert seeded.outcome == "seeded"
        assert not seeded.failed
        with redis.Redis(port=server.port) as client:
            client.save()
    return {
        "dataset": dataset,
        "start": start.isoformat(),
        "users": seeded.users,
        "seconds": seconds,
    }


def _write_repository(folder: Path, dataset: str, described: Path) -> Path:
    """Write what `palate init` writes, with Redis as its online store."""
    init_repository(folder, dataset)
    shutil.move(folder / "feature_store.redis.yaml", folder / "feature_store.yaml")
    path = folder / "palate.yaml"
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings |= {"dataset": str(described), "training": _TRAINING}
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return folder


def apply_views(context: Context, store: FeatureStore) -> None:
    """Apply the raw views and those of the spaces that the ledger knows to a store."""
    from feast import Entity, ValueType

    from transforms.clean import CleanTables
    from transforms.embedding_views import declare_on_demand_view, declare_stored_view
    from transforms.layout import RawLayout
    from transforms.names import USER_KEY, stored_view
    from transforms.raw_views import declare_raw_views

    settings = context.settings
    kinds = {"int64": ValueType.INT64, "string": ValueType.STRING}
    kind = kinds[CleanTables(settings.data_dir).user_type()]
    user = Entity(name="user", join_keys=[USER_KEY], value_type=kind)
    views = declare_raw_views(user, RawLayout.of(settings.dataset), settings.features_dir)
    store.apply([user, *views])
    for space in context.ledger.spaces():
        version = {"space": space.number, "encoder_version": space.encoder_version}
        stored = declare_stored_view(
            user, **version, folder=settings.offline_dir / stored_view(space.number)
        )
        demand = declare_on_demand_view(views, **version, store=settings.artifacts_url)
        store.apply([stored, demand])


@contextmanager
def _address(server: Server) -> Iterator[None]:
    """Name the server to this process and to those that it starts."""
    os.environ[_ADDRESS] = f"{server.host}:{server.port}"
    try:
        yield
    finally:
        del os.environ[_ADDRESS]


@contextmanager
def serving(prepared: Prepared, folder: Path) -> Iterator[Server]:
    """Run a Redis that holds the snapshot; ``folder`` is made, and removed afterwards.

    The repository's address is that of this server while the block lasts.
    """
    folder.mkdir(parents=True)
    try:
        os.link(prepared.snapshot, folder / _SNAPSHOT)
        with redis_server(folder) as server, _address(server):
            yield server
    finally:
        shutil.rmtree(folder)
