"""A tiny feature repository: real embedded stores, real encoder artifacts, a handful of users."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from encoder.columns import RawBatch, batch_from_arrow
from encoder.schema import FeatureSchema
from encoder.store import ArtifactStore
from materialize.config import RepoSettings, load_settings
from materialize.ledger import Space
from materialize.online import OnlineWriter
from materialize.template import template_folder
from tests.encoders import LAYOUT, SCHEMA, tiny_artifact
from tests.strategies import random_batch, to_table
from transforms.layout import ACTIVITY, ONBOARDING, PROFILE, RawLayout, column
from transforms.names import FLOAT32, USER_KEY, stored_view

if TYPE_CHECKING:
    from feast import Entity, FeatureStore, FeatureView

__all__ = ["INSTANT", "VIEWS", "TinyRepository", "as_batch", "raw_rows", "space_of", "write_online"]

INSTANT = pa.timestamp("us", "UTC")
VIEWS = (ACTIVITY, PROFILE, ONBOARDING)

_PALATE = "dataset: tiny.yaml\n"
_DATASET = """\
name: tiny
events: {path: events.parquet, user: u, item: i, timestamp: t}
users: {path: users.parquet, user: u, categories: [gender], onboarding: picks}
items: {path: items.parquet, item: i}
windows: [7]
modalities: {collaborative: {dim: 4, clusters: 3}}
evaluation: {cutoff: 2026-01-01T00:00:00Z}
"""


def write_online(store: FeatureStore, view: str, batches: Iterable[pa.RecordBatch]) -> int:
    """Write batches as the batch job does; return the number of their rows."""
    writer, rows = OnlineWriter(store, view), 0
    for batch in batches:
        writer.write(batch)
        rows += batch.num_rows
    return rows


def space_of(number: int, encoder_version: str, url: str = "", vectors: str | None = None) -> Space:
    """Return a space as the ledger would; without ``vectors`` it has no such fact."""
    now = datetime(2026, 1, 1, tzinfo=timezone.utc)
    facts: dict[str, Any] = {"raw_views": list(VIEWS)}
    if vectors is not None:
        facts["vectors"] = vectors
    return Space(number, encoder_version, url, "trained", now, facts)


def raw_rows(
    users: Sequence[Any],
    present: dict[str, Sequence[bool]] | None = None,
    seed: int = 0,
    schema: FeatureSchema = SCHEMA,
) -> pa.Table:
    """Return ``user_id`` and the raw columns ``view__field`` of some users.

    ``present`` says by view which users are in it (default: all); a user is in a view whole or not
    at all. Counts are whole numbers from 1 on, so that who has activity is warm.
    """
    batch = random_batch(schema, len(users), seed=seed, present=1.1)
    rng = np.random.default_rng(seed)
    counts = batch.columns[column(ACTIVITY, "counts")].values
    counts[:] = rng.integers(1, 50, counts.shape)
    batch.columns[column(ONBOARDING, "pooled")].values[:, -1] = rng.integers(1, 9, len(users))
    for name, raw in batch.columns.items():
        raw.valid[:] = (present or {}).get(name.split("__")[0], True)
    return to_table(batch).set_column(0, USER_KEY, pa.array(users))


def as_batch(table: pa.Table, schema: FeatureSchema = SCHEMA) -> RawBatch:
    """Return raw rows as the batch job reads them."""
    scalars = (*schema.as_of_columns, *schema.modality_columns)
    return batch_from_arrow(
        table, schema.array_columns, schema.text_columns, scalars, user_column=USER_KEY
    )


@dataclass(frozen=True)
class TinyRepository:
    """An applied feature repository with the raw views.

    SQLite online unless a test names a store, and DuckDB offline.
    """

    path: Path
    settings: RepoSettings
    store: FeatureStore
    user: Entity
    raw_views: list[FeatureView]
    layout: RawLayout = LAYOUT

    @classmethod
    def make(
        cls,
        path: Path,
        user_type: str = "INT64",
        *,
        layout: RawLayout = LAYOUT,
        online: Mapping[str, Any] | None = None,
    ) -> TinyRepository:
        """Write and apply a repository; user ids are ``INT64`` or ``STRING``.

        ``online`` is another ``online_store`` of feature_store.yaml. Its repository gets a project
        of its own, because tests share servers.
        """
        from feast import Entity, FeatureStore, ValueType

        from transforms.raw_views import declare_raw_views

        path.mkdir(parents=True, exist_ok=True)
        shipped = (template_folder() / "feature_store.yaml").read_text(encoding="utf-8")
        # Feast's own store: tests put rows into states that the plugin refuses to write.
        stock = shipped.replace("materialize.stores.sqlite.PalateSqliteOnlineStore", "sqlite")
        if online is not None:
            content = yaml.safe_load(stock) | {"online_store": dict(online)}
            content["project"] = f"tiny_{uuid.uuid4().hex[:8]}"
            stock = yaml.safe_dump(content)
        (path / "feature_store.yaml").write_text(stock, encoding="utf-8")
        (path / "palate.yaml").write_text(_PALATE, encoding="utf-8")
        (path / "tiny.yaml").write_text(_DATASET, encoding="utf-8")
        settings = load_settings(path)
        settings.data_dir.mkdir(exist_ok=True)
        user = Entity(name="user", join_keys=[USER_KEY], value_type=ValueType[user_type])
        views = declare_raw_views(user, layout, settings.features_dir)
        store = FeatureStore(repo_path=str(path))
        store.apply([user, *views])
        return cls(path, settings, store, user, views, layout)

    def save_encoder(self, seed: int = 0) -> str:
        """Store an encoder and return its version; other seeds give other encoders."""
        artifact = tiny_artifact(seed, self.layout)
        ArtifactStore(self.settings.artifacts_url).save(artifact)
        return artifact.encoder_version

    def apply_space(
        self,
        number: int,
        encoder_version: str,
        artifacts: str | None = None,
        vectors: str = FLOAT32,
        request_context: Sequence[str] = (),
    ) -> Space:
        """Declare and apply both views of a space."""
        from transforms.embedding_views import declare_on_demand_view, declare_stored_view

        store = artifacts or self.settings.artifacts_url
        folder = self.settings.offline_dir / stored_view(number)
        self.store.apply(
            [
                declare_stored_view(
                    self.user,
                    space=number,
                    encoder_version=encoder_version,
                    folder=folder,
                    vectors=vectors,
                ),
                declare_on_demand_view(
                    self.raw_views,
                    space=number,
                    encoder_version=encoder_version,
                    store=store,
                    request_context=request_context,
                ),
            ]
        )
        return space_of(number, encoder_version, store, vectors)

    def write_raw(self, table: pa.Table, *, offline: bool = False) -> None:
        """Write raw rows online, each user into the views it is in; ``offline``: as Parquet too."""
        for view in self.layout.views:
            names = [name for name in table.column_names if name.startswith(f"{view}__")]
            rows = table.select([USER_KEY, *names]).rename_columns(
                [USER_KEY, *(name.removeprefix(f"{view}__") for name in names)]
            )
            as_of = column(view, "as_of").removeprefix(f"{view}__")
            rows = rows.filter(rows.column(as_of).is_valid())
            moment = rows.column(as_of).cast(INSTANT)
            rows = rows.append_column("event_timestamp", moment)
            rows = rows.append_column("created_timestamp", moment)
            write_online(self.store, view, rows.combine_chunks().to_batches())
            if offline:
                folder = self.settings.features_dir / view
                folder.mkdir(parents=True, exist_ok=True)
                pq.write_table(rows, folder / "part.parquet")
