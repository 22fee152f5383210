"""A repository for a stream: users of a batch, two live spaces and a bridge, on Redis."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from encoder.alignment import orthogonal_map
from encoder.bridge import BridgeArtifact, BridgeStore
from encoder.modality import ModalityEncoders
from encoder.store import ArtifactStore
from materialize.batch import materialize_spaces, materialize_view
from materialize.config import RepoSettings
from materialize.consumers import add_consumer
from materialize.context import Context
from materialize.embedding_rows import ensure_readable
from materialize.features import build_features, current_modalities
from materialize.ledger import Bridge, Space
from materialize.validate import validate
from tests.e2e.stream_events import DAY_US, NEW_ITEMS, START_US, Facts, items
from tests.encoders import MODEL, tiny_artifact
from tests.repositories import INSTANT, VIEWS, TinyRepository
from tests.servers import Server
from tests.stores import PROFILES
from transforms.clean import CleanTables
from transforms.embedding_views import (
    declare_bridged_view,
    declare_on_demand_view,
    declare_stored_view,
)
from transforms.layout import RawLayout
from transforms.names import bridged_view, stored_view
from transforms.raw_views import declare_raw_views
from transforms.tables import view_schema

__all__ = ["NEW_USERS", "USERS", "World", "described", "write_tables"]

USERS = tuple(range(1, 31))
"""Those of the batch."""
NEW_USERS = tuple(range(101, 131))
_LISTENERS = tuple(range(1_001, 1_081))
"""Users whose history the item vectors are learned from; the stream brings nothing of theirs."""
_START = datetime.fromtimestamp(START_US / 1e6, tz=timezone.utc)
_WHO = {"who": "test", "why": "a test"}


def described(folder: Path) -> dict[str, Any]:
    """Return the data set of tables that `write_tables` wrote to a folder."""
    return {
        "name": "streamed",
        "events": {
            "path": str(folder / "events.parquet"),
            **{"user": "u", "item": "i", "timestamp": "t", "weight": "w"},
            "context": ["country", "device"],
        },
        "users": {
            "path": str(folder / "users.parquet"),
            **{"user": "u", "signed_up_at": "joined", "onboarding": "picks"},
            **{"categories": ["gender"], "numbers": ["age"]},
        },
        "items": {"path": str(folder / "items.parquet"), "item": "i", "text": ["title"]},
        "windows": [2, 5, 30],
        "modalities": {
            "collaborative": {"dim": 4, "clusters": 3},
            "content": {"dim": 3, "clusters": 2},
        },
        "evaluation": {"cutoff": _START.isoformat()},
    }


def write_tables(
    folder: Path, facts: Facts, users: Sequence[int], known_items: Sequence[str]
) -> None:
    """Write what happened as a company's own tables; who signed up nowhere is no row of ``users``.

    Parameters
    ----------
    folder : Path
    facts : Facts
    users : sequence of int
        Whose facts; no others may be in ``facts``.
    known_items : sequence of str
    """
    folder.mkdir(parents=True, exist_ok=True)
    consumed = sorted(facts.consumed.items())
    pq.write_table(
        pa.table(
            {
                "u": pa.array([key[0] for key, _ in consumed], pa.int64()),
                "i": pa.array([key[1] for key, _ in consumed], pa.string()),
                "t": pa.array([key[2] for key, _ in consumed], pa.int64()).cast(INSTANT),
                "w": pa.array([weight for _, (weight, _) in consumed], pa.float64()),
                "country": pa.array([named[0] or None for _, (_, named) in consumed], pa.string()),
                "device": pa.array([named[1] or None for _, (_, named) in consumed], pa.string()),
            }
        ),
        folder / "events.parquet",
    )
    picks: dict[int, list[str]] = {}
    for user, item, _ in sorted(facts.picked, key=lambda pick: (pick[0], pick[2], pick[1])):
        picks.setdefault(user, []).append(item)

    columns = facts.columns()
    rows = [u for u in users if u in facts.signed_up or u in picks or u in columns]
    joined = pa.array([facts.signed_up.get(u) for u in rows], pa.int64()).cast(INSTANT)
    pq.write_table(
        pa.table(
            {
                "u": pa.array(rows, pa.int64()),
                "joined": joined,
                "gender": pa.array([columns.get(u, {}).get("gender") for u in rows], pa.string()),
                "age": pa.array([columns.get(u, {}).get("age") for u in rows], pa.float64()),
                "picks": pa.array([picks.get(u, []) for u in rows], pa.list_(pa.string())),
            }
        ),
        folder / "users.parquet",
    )
    pq.write_table(
        pa.table({"i": known_items, "title": [_title(item) for item in known_items]}),
        folder / "items.parquet",
    )


def _title(item: str) -> str:
    draw = random.Random(item)  # noqa: S311 - no secret
    return " ".join(draw.choices(["red", "green", "blue", "slow", "fast", "loud"], k=4))


def _history(listeners: Sequence[int], users: Sequence[int]) -> Facts:
    """Return what happened before the stream began."""
    draw, facts, catalogue = random.Random(0), Facts(), items()  # noqa: S311 - no secret
    for user in (*listeners, *users):
        at = START_US - 25 * DAY_US + draw.randrange(DAY_US)
        sign_up = {"type": "sign_up", "user_id": user, "timestamp": at}
        profile = {"categories": {"gender": draw.choice("fm")}, "numbers": {"age": 40.0}}
        facts.add(sign_up | (profile if user % 3 else {}))
        for item in draw.sample(catalogue, user % 4):
            facts.add(
                {"type": "onboarding_pick", "user_id": user, "item_id": item, "timestamp": at}
            )
        taste = draw.randrange(2)
        for _ in range(draw.randrange(5, 30)):
            at = min(at + draw.randrange(DAY_US), START_US - 1)
            item = draw.choice(catalogue[taste * 20 : taste * 20 + 20])
            event = {"type": "consume", "user_id": user, "item_id": item, "timestamp": at}
            facts.add(event | {"weight": draw.choice((0.5, 1.0)), "context": {"country": "DE"}})
    return facts


@dataclass(frozen=True)
class World:
    """The repository, and what was true before the stream began.

    Attributes
    ----------
    raw : Path
        Folder of the company's own tables.
    before : Facts
        Of ``USERS`` alone.
    """

    path: Path
    context: Context
    layout: RawLayout
    raw: Path
    before: Facts
    spaces: tuple[Space, ...]
    bridge: Bridge

    @classmethod
    def make(cls, path: Path, server: Server, stream: dict[str, Any]) -> World:
        """Write, apply and materialise a repository up to the moment when the stream begins.

        ``stream`` are fields of ``stream:`` in palate.yaml.
        """
        raw = path / "raw"
        past = _history(_LISTENERS, USERS)
        write_tables(raw, past, (*_LISTENERS, *USERS), items())
        repo = path / "repo"
        online = PROFILES["palate-redis"].settings(server, "")
        tiny = TinyRepository.make(repo, online=online)
        (repo / "streamed.yaml").write_text(yaml.safe_dump(described(raw)), encoding="utf-8")
        palate = {"dataset": "streamed.yaml", "memory_limit_mb": 512, "stream": stream}
        (repo / "palate.yaml").write_text(yaml.safe_dump(palate), encoding="utf-8")
        context = Context(repo)
        settings = context.settings
        _build(settings)
        encoders = current_modalities(settings.features_dir)
        layout = RawLayout.of(settings.dataset, {m.name: m.dim for m in encoders.modalities})
        tiny = replace(tiny, settings=settings, store=context.store, layout=layout)
        context.store.apply([tiny.user, *_raw_views(tiny)])
        spaces = tuple(_space(tiny, context, encoders, seed) for seed in (0, 1))
        end = _START
        for view in layout.views:
            materialize_view(context.store, settings, context.ledger, view, end=end, progress=False)
        job = (context.store, settings, context.ledger)
        materialize_spaces(*job, spaces, end=end, progress=False)
        bridge = _bridge(tiny, context, *spaces)
        materialize_spaces(*job, spaces, [bridge], end=end, progress=False)
        add_consumer(context.store, context.ledger, "pinned", spaces[0].number, **_WHO)
        own = Facts(
            consumed={key: value for key, value in past.consumed.items() if key[0] in USERS},
            picked={pick for pick in past.picked if pick[0] in USERS},
            changed={change for change in past.changed if change[0] in USERS},
            signed_up={user: at for user, at in past.signed_up.items() if user in USERS},
        )
        return cls(repo, context, layout, raw, own, spaces, bridge)

    @property
    def settings(self) -> RepoSettings:
        return self.context.settings

    @property
    def project(self) -> str:
        return self.context.store.project

    @property
    def bridged(self) -> str:
        """Name of the bridged view."""
        return bridged_view(self.bridge.target, self.bridge.source)

    @property
    def types(self) -> dict[str, pa.Schema]:
        """Columns of each raw view."""
        return {view: view_schema(view, self.layout, "int64") for view in self.layout.views}

    def embedding_views(self) -> dict[str, tuple[int, str]]:
        """Return space and encoder version of each stored view and of the bridged one."""
        views = {stored_view(s.number): (s.number, s.encoder_version) for s in self.spaces}
        return views | {self.bridged: (self.bridge.target, self.bridge.version)}

    def learn_new_items(self) -> None:
        """Add ``NEW_ITEMS`` to the catalogue, as the nightly jobs do: tables, checks, features.

        Again: nothing changes.
        """
        known = [*items(), *NEW_ITEMS]
        path = self.raw / "items.parquet"
        if pq.read_metadata(path).num_rows == len(known):
            return
        table = pa.table({"i": known, "title": [_title(item) for item in known]})
        pq.write_table(table, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)
        _build(self.settings)


def _build(settings: RepoSettings) -> None:
    validate(settings.dataset, settings.data_dir, progress=False)
    clean = CleanTables(settings.data_dir)
    build_features(settings.dataset, clean, settings.features_dir, progress=False)


def _raw_views(tiny: TinyRepository) -> list[Any]:
    return declare_raw_views(tiny.user, tiny.layout, tiny.settings.features_dir)


def _space(tiny: TinyRepository, context: Context, encoders: ModalityEncoders, seed: int) -> Space:
    """Register and apply a space of an encoder with initial weights."""
    artifact = tiny_artifact(seed, tiny.layout, encoders)
    settings = tiny.settings
    ArtifactStore(settings.artifacts_url).save(artifact)
    facts = {"raw_views": list(VIEWS), "modality_version": encoders.version}
    url = f"{settings.artifacts_url}/{artifact.encoder_version}"
    space = context.ledger.register(artifact.encoder_version, url, facts)
    folder = settings.offline_dir / stored_view(space.number)
    ensure_readable(folder, pa.int64())
    names = {"space": space.number, "encoder_version": space.encoder_version}
    context.store.apply(
        [
            declare_stored_view(tiny.user, **names, folder=folder),
            declare_on_demand_view(_raw_views(tiny), **names, store=settings.artifacts_url),
        ]
    )
    return space


def _bridge(tiny: TinyRepository, context: Context, old: Space, new: Space) -> Bridge:
    """Serve the old space from the new one, by a map between two sets of made-up vectors."""
    rng = np.random.default_rng(0)
    dim = MODEL.embedding_dim
    fitted = orthogonal_map(rng.standard_normal((50, dim)), rng.standard_normal((50, dim)))
    artifact = BridgeArtifact(new.encoder_version, old.encoder_version, fitted)
    settings, ledger = tiny.settings, context.ledger
    url = BridgeStore(settings.artifacts_url).save(artifact)
    names = {"source": new.number, "target": old.number}
    ledger.record_bridge(artifact.version, **names, url=url, figures={}, who="test")
    bridge = ledger.serve_bridge(artifact.version, **_WHO)
    folder = settings.offline_dir / bridged_view(old.number, new.number)
    ensure_readable(folder, pa.int64())
    context.store.apply(
        [declare_bridged_view(tiny.user, **names, bridge_version=artifact.version, folder=folder)]
    )
    return bridge
