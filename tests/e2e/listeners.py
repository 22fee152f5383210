"""Simulated listeners as raw features of a tiny repository: an encoder can learn from them."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from encoder.columns import RawBatch, batch_from_arrow
from encoder.schema import FeatureSchema
from encoder.synthetic import simulate_listeners
from materialize.batch import open_source
from materialize.config import RepoSettings, load_settings
from materialize.context import Context
from materialize.features import build_features, current_modalities
from materialize.ledger import Space
from materialize.train import train_space
from materialize.validate import validate
from tests.spaces import DIM, Spaces, close_registry
from transforms.clean import CleanTables
from transforms.layout import RawLayout
from transforms.names import USER_KEY
from transforms.raw_views import declare_raw_views

__all__ = ["Draws", "Listeners", "train"]

_ITEMS = 120
_HEARD = datetime(2024, 8, 1, tzinfo=timezone.utc)
"""After the simulation's last session."""
_DATASET: dict[str, Any] = {
    "name": "listeners",
    "events": {
        "path": "events.parquet",
        **{"user": "listener", "item": "track id", "timestamp": "played at"},
        **{"weight": "minutes played", "session": "session-id"},
    },
    "users": {
        "path": "users.parquet",
        **{"user": "listener", "categories": ["Country"], "onboarding": "first picks"},
    },
    "items": {"path": "items.parquet", "item": "track id"},
    "windows": [7, 30],
    "modalities": {"collaborative": {"dim": 8, "clusters": 4}},
    "evaluation": {"cutoff": "2024-05-30T00:00:00Z"},
}
_PALATE: dict[str, Any] = {
    "dataset": "listeners.yaml",
    "autoencoder": {"embedding_dim": DIM, "hidden": [32]},
    "training": {"max_epochs": 4, "warmup_steps": 10, "learning_rate": 0.003, "device": "cpu"},
    "memory_limit_mb": 512,
}


@dataclass(frozen=True)
class Listeners:
    """What `palate data validate` and `palate features build` made of a simulation.

    Attributes
    ----------
    folder : Path
        The simulated files, and ``data``, the jobs' folder.
    dataset : dict
        Content of its data set's file.
    """

    folder: Path
    dataset: dict[str, Any]

    @classmethod
    def build(cls, folder: Path, n_users: int) -> Listeners:
        """Simulate users 0 to ``n_users`` - 1 and build their raw features."""
        truth = simulate_listeners(folder, n_users=n_users, n_items=_ITEMS)
        for name in ("events", "users"):
            path = folder / f"{name}.parquet"
            table = pq.read_table(path)
            numbers = pc.index_in(table.column("listener"), pa.array(truth.users)).cast(pa.int64())
            place = table.column_names.index("listener")
            pq.write_table(table.set_column(place, "listener", numbers), path)
        dataset = dict(_DATASET)
        for name in ("events", "users", "items"):
            dataset[name] = dataset[name] | {"path": str(folder / dataset[name]["path"])}
        made = cls(folder, dataset)
        made._configure(folder, {})
        settings = load_settings(folder)
        validate(settings.dataset, settings.data_dir, progress=False)
        build_features(
            settings.dataset, CleanTables(settings.data_dir), settings.features_dir, progress=False
        )
        return made

    def move_into(self, spaces: Spaces) -> Spaces:
        """Return the repository with these raw features, their views and settings, applied."""
        path = spaces.tiny.path
        self._configure(path, yaml.safe_load((path / "palate.yaml").read_text(encoding="utf-8")))
        close_registry(spaces.context.store)
        context = Context(path)
        settings = context.settings
        shutil.copytree(load_settings(self.folder).data_dir, settings.data_dir, dirs_exist_ok=True)
        views = declare_raw_views(spaces.tiny.user, _layout(settings), settings.features_dir)
        context.store.apply([spaces.tiny.user, *views])
        tiny = replace(spaces.tiny, settings=settings, store=context.store, raw_views=views)
        return Spaces(tiny, context, spaces.dim)

    def _configure(self, repo: Path, palate: dict[str, Any]) -> None:
        _write_yaml(repo / "palate.yaml", palate | _PALATE)
        _write_yaml(repo / str(_PALATE["dataset"]), self.dataset)


@dataclass(frozen=True)
class Draws:
    """Rows of raw features that listeners have had, to be given to others.

    Attributes
    ----------
    schema : FeatureSchema
    rows : pyarrow.Table
        ``user_id`` and the raw columns, of users who are in every view.
    """

    schema: FeatureSchema
    rows: pa.Table

    @classmethod
    def of(cls, spaces: Spaces) -> Draws:
        """Read every row of the repository that was built from what was heard."""
        settings = spaces.settings
        schema = _layout(settings).schema(current_modalities(settings.features_dir).version)
        source = open_source(spaces.context.store, settings, schema, end=_HEARD, history=True)
        rows = pa.Table.from_batches(source.batches(ordered=True))
        whole = [rows.column(name).is_valid() for name in schema.as_of_columns]
        rows = rows.filter(reduce(pc.and_, whole))
        return cls(schema, rows.select([USER_KEY, *schema.columns]))

    def draw(self, users: npt.NDArray[np.int64], seed: int) -> pa.Table:
        """Return a row for each user, of whoever's features; equal seeds give equal ones."""
        drawn = np.random.default_rng(seed).integers(0, self.rows.num_rows, len(users))
        rows = self.rows.take(pa.array(drawn))
        return rows.set_column(rows.column_names.index(USER_KEY), USER_KEY, pa.array(users))

    def batch(self, rows: pa.Table) -> RawBatch:
        """Return raw rows as the batch job reads them."""
        schema = self.schema
        scalars = (*schema.as_of_columns, *schema.modality_columns)
        return batch_from_arrow(
            rows, schema.array_columns, schema.text_columns, scalars, user_column=USER_KEY
        )


def train(spaces: Spaces, seed: int) -> Space:
    """Train another encoder as `palate train` does, register its space, apply its views."""
    path = spaces.tiny.path / "palate.yaml"
    _write_yaml(path, yaml.safe_load(path.read_text(encoding="utf-8")) | {"seed": seed})
    report = train_space(
        spaces.context.store, load_settings(spaces.tiny.path), spaces.ledger, progress=False
    )
    losses = [float(epoch["validation_loss"]) for epoch in report.history]
    assert report.new
    assert losses[-1] < 0.9 * losses[0], f"it learns: {losses}"
    spaces.apply(report.space)
    return report.space


def _layout(settings: RepoSettings) -> RawLayout:
    modalities = current_modalities(settings.features_dir).modalities
    return RawLayout.of(settings.dataset, {m.name: m.dim for m in modalities})


def _write_yaml(path: Path, content: dict[str, Any]) -> None:
    """Write a file that other processes may read at any moment."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(yaml.safe_dump(content), encoding="utf-8")
    os.replace(temporary, path)
