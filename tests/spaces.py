"""A tiny repository with several spaces, on the stores and the ledger that a test names."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from feast import FeatureStore

from materialize.config import RepoSettings
from materialize.context import Context
from materialize.embedding_rows import embedding_schema, ensure_readable
from materialize.ledger import Bridge, Ledger, Space
from tests.repositories import INSTANT, VIEWS, TinyRepository, write_online
from transforms.embedding_views import (
    declare_bridged_view,
    declare_on_demand_view,
    declare_stored_view,
)
from transforms.names import USER_KEY, bridged_view, stored_view

__all__ = ["DIM", "Spaces", "close_registry", "vectors"]

DIM = 8
_NOON_US = 1_767_268_800_000_000
"""2026-01-01 12:00 UTC."""


@dataclass(frozen=True)
class Spaces:
    """A repository whose spaces have made-up vectors, each told by its space, user and round.

    Its project has a name of its own: Feast remembers which views a service reads by project, in
    every store of a process.
    """

    tiny: TinyRepository
    context: Context
    dim: int = DIM

    @classmethod
    def make(
        cls,
        path: Path,
        *,
        online: Mapping[str, Any] | None = None,
        registry: Mapping[str, Any] | None = None,
        ledger: str | None = None,
        user_type: str = "INT64",
        dim: int = DIM,
    ) -> Spaces:
        """Write and apply a repository; what is not named is a file in it."""
        tiny = TinyRepository.make(path, user_type)
        config = path / "feature_store.yaml"
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
        content["project"] = f"spaces_{uuid.uuid4().hex[:8]}"
        if online is not None:
            content["online_store"] = dict(online)
        if registry is not None:
            content["registry"] = dict(registry)
        config.write_text(yaml.safe_dump(content), encoding="utf-8")
        if ledger is not None:
            with (path / "palate.yaml").open("a", encoding="utf-8") as file:
                file.write(f"ledger: {ledger}\n")
        context = Context(path)
        context.store.apply([tiny.user, *tiny.raw_views])
        return cls(tiny, context, dim)

    @contextmanager
    def elsewhere(self) -> Iterator[FeatureStore]:
        """Yield the store as another process opens it."""
        store = FeatureStore(repo_path=str(self.tiny.path))
        try:
            yield store
        finally:
            close_registry(store)

    @property
    def settings(self) -> RepoSettings:
        return self.context.settings

    @property
    def ledger(self) -> Ledger:
        return self.context.ledger

    @property
    def user_type(self) -> pa.DataType:
        return pa.int64() if self.tiny.user.value_type.name == "INT64" else pa.string()

    def register(self, *, applied: bool = True) -> Space:
        """Register another space, without rows."""
        version = uuid.uuid4().hex[:12]
        facts = {"raw_views": list(VIEWS), "embedding_dim": self.dim}
        space = self.ledger.register(version, f"{self.settings.artifacts_url}/{version}", facts)
        ensure_readable(self.settings.offline_dir / stored_view(space.number), self.user_type)
        if applied:
            self.apply(space)
        return space

    def apply(self, space: Space) -> None:
        """Declare both views of a space, as `feast apply` does."""
        names = {"space": space.number, "encoder_version": space.encoder_version}
        folder = self.settings.offline_dir / stored_view(space.number)
        self.context.store.apply(
            [
                declare_stored_view(self.tiny.user, **names, folder=folder),
                declare_on_demand_view(
                    self.tiny.raw_views, **names, store=self.settings.artifacts_url
                ),
            ]
        )

    def add_space(self, users: Sequence[Any]) -> Space:
        """Add a ready space with a row of each user, online and offline."""
        space = self.register()
        self.write(space, users)
        return self.ledger.space(space.number)

    def add_bridge(self, source: Space, target: Space, users: Sequence[Any]) -> Bridge:
        """Serve a target space from a source, with a row of each user."""
        names = {"source": source.number, "target": target.number}
        version = uuid.uuid4().hex[:12]
        self.ledger.record_bridge(version, **names, url="", figures={}, who="test")
        bridge = self.ledger.serve_bridge(version, who="test", why="measured")
        folder = self.settings.offline_dir / bridged_view(target.number, source.number)
        ensure_readable(folder, self.user_type)
        self.context.store.apply(
            [declare_bridged_view(self.tiny.user, **names, bridge_version=version, folder=folder)]
        )
        self.write(
            target, users, view=bridged_view(target.number, source.number), encoder_version=version
        )
        return bridge

    def write(
        self,
        space: Space,
        users: Sequence[Any],
        *,
        view: str | None = None,
        encoder_version: str | None = None,
        turn: int = 0,
        history: bool = False,
    ) -> None:
        """Write rows of a space as a committed run does; ``history``: offline only."""
        name = view or stored_view(space.number)
        table = self.rows(space, users, encoder_version=encoder_version, turn=turn)
        run_id = uuid.uuid4().hex[:16]
        self.ledger.begin_run(run_id, name, run_id, {"from_history": history}, space=space.number)
        folder = self.settings.offline_dir / name / f"run-{run_id}"
        folder.mkdir(parents=True)
        pq.write_table(table, folder / "part.parquet")
        if not history:
            write_online(self.context.store, name, table.to_batches())
        self.ledger.commit_run(run_id, {"rows": len(users)})

    def rows(
        self,
        space: Space,
        users: Sequence[Any],
        *,
        encoder_version: str | None = None,
        turn: int = 0,
    ) -> pa.Table:
        """Return rows of a stored view."""
        n = len(users)
        version = encoder_version or space.encoder_version
        moment = pa.array([_NOON_US + turn] * n)
        columns = {
            USER_KEY: pa.array(users, self.user_type),
            "embedding": pa.array(
                list(vectors(version, users, turn, self.dim)), pa.list_(pa.float32())
            ),
            "as_of": moment,
            "space": pa.array([space.number] * n),
            "encoder_version": pa.array([version] * n),
            "status": pa.array(["warm"] * n),
            "n_events": pa.array(range(1, n + 1)),
            "event_timestamp": moment.cast(INSTANT),
            "created_timestamp": moment.cast(INSTANT),
        }
        return pa.table(columns, embedding_schema(self.user_type))


def close_registry(store: FeatureStore) -> None:
    """Close the connections of a SQL registry, which Feast keeps open."""
    for name in ("write_engine", "read_engine"):
        engine = getattr(store.registry, name, None)
        if engine is not None:
            engine.dispose()


def vectors(
    encoder_version: str, users: Sequence[Any], turn: int = 0, dim: int = DIM
) -> npt.NDArray[np.float32]:
    """Return the made-up vectors of some users, float32 (n, dim): no two are alike."""
    made = np.empty((len(users), dim), np.float32)
    for row, user in enumerate(users):
        digest = hashlib.sha256(f"{encoder_version} {user!r} {turn}".encode()).digest()
        made[row] = np.random.default_rng(list(digest)).standard_normal(dim, np.float32)
    return made
