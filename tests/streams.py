"""A tiny repository that a stream can write to: item vectors, encoders, spaces; no batch build."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from encoder.alignment import orthogonal_map
from encoder.bridge import BridgeArtifact, BridgeStore
from encoder.modality import ItemVectors, ModalityEncoders
from encoder.store import ArtifactStore
from materialize.context import Context
from materialize.embedding_rows import ensure_readable
from materialize.ledger import Bridge, Space
from materialize.publish import write_json
from materialize.stream.apply import Applier, ApplyReport
from materialize.stream.source import Delivery
from tests.encoders import MODEL, tiny_artifact
from tests.repositories import VIEWS, TinyRepository
from transforms.embedding_views import declare_bridged_view
from transforms.layout import Modality, RawLayout
from transforms.names import FLOAT32, bridged_view, stored_view
from transforms.stream.events import StreamEvent, event_payload

__all__ = ["DAY", "LAYOUT", "NOON", "TinyStream", "consume", "item_vectors"]

DAY = 86_400_000_000
NOON = 1_767_268_800_000_000
"""2026-01-01 12:00 UTC."""
LAYOUT = RawLayout(
    (Modality("collaborative", 4, 3),),
    (2, 7),
    context=("country",),
    categories=("gender",),
    numbers=("age",),
    onboarding=True,
)
N_ITEMS = 12
_WHO = {"who": "test", "why": "a test"}
_DATASET = {
    "name": "tiny",
    "events": {
        "path": "events.parquet",
        **{"user": "u", "item": "i", "timestamp": "t", "weight": "w", "context": ["country"]},
    },
    "users": {
        "path": "users.parquet",
        **{"user": "u", "signed_up_at": "joined", "onboarding": "picks"},
        **{"categories": ["gender"], "numbers": ["age"]},
    },
    "items": {"path": "items.parquet", "item": "i"},
    "windows": [2, 7],
    "modalities": {"collaborative": {"dim": 4, "clusters": 3}},
    "evaluation": {"cutoff": "2026-01-01T00:00:00Z"},
}
_IDS = itertools.count(1)


def item_vectors(seed: int = 0) -> ModalityEncoders:
    """Return made-up vectors of ``item-0`` to ``item-11``; the last item has none."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(N_ITEMS, 4)).astype(np.float32)
    cluster = rng.integers(0, 3, N_ITEMS).astype(np.int32)
    vectors[-1], cluster[-1] = 0, -1
    centroids = np.zeros((3, 4), np.float32)
    return ModalityEncoders(
        pa.array([f"item-{k}" for k in range(N_ITEMS)]),
        (ItemVectors("collaborative", vectors, cluster, 3, centroids),),
        np.ones(N_ITEMS, bool),
        {"cutoff": "2026-01-01T00:00:00+00:00", "seed": seed},
    )


def consume(
    user: Any, item: int, at: int, *, weight: float = 1.0, country: str = "BR"
) -> StreamEvent:
    """Return one consumed item."""
    return StreamEvent("consume", user, at, f"item-{item}", weight, (country,))


@dataclass(frozen=True)
class TinyStream:
    """A repository on Redis, with the raw features of made-up item vectors published."""

    tiny: TinyRepository
    context: Context

    @classmethod
    def make(
        cls,
        path: Path,
        online: Mapping[str, Any],
        *,
        user_type: str = "INT64",
        stream: Mapping[str, Any] | None = None,
    ) -> TinyStream:
        """Write and apply a repository without spaces."""
        tiny = TinyRepository.make(path, user_type, layout=LAYOUT, online=online)
        (path / "tiny.yaml").write_text(yaml.safe_dump(_DATASET), encoding="utf-8")
        palate = {"dataset": "tiny.yaml", "stream": dict(stream or {})}
        (path / "palate.yaml").write_text(yaml.safe_dump(palate), encoding="utf-8")
        context = Context(path)
        made = cls(replace(tiny, settings=context.settings, store=context.store), context)
        made.publish(item_vectors())
        return made

    def publish(self, encoders: ModalityEncoders) -> None:
        """Publish raw features that were pooled from some item vectors."""
        folder = self.context.settings.features_dir
        encoders.save(folder / "modality" / encoders.version)
        for view in LAYOUT.views:
            (folder / view).mkdir(parents=True, exist_ok=True)
        state = {"modality_version": encoders.version, "request": uuid.uuid4().hex}
        write_json(folder / "state.json", state)

    def add_space(
        self,
        seed: int = 0,
        *,
        encoders: ModalityEncoders | None = None,
        vectors: str = FLOAT32,
        applied: bool = True,
    ) -> Space:
        """Register an encoder with initial weights as a ready space, which is live while newest."""
        settings, ledger = self.context.settings, self.context.ledger
        modality = encoders or item_vectors()
        artifact = tiny_artifact(seed, LAYOUT, modality)
        ArtifactStore(settings.artifacts_url).save(artifact)
        facts = {
            "raw_views": list(VIEWS),
            "modality_version": modality.version,
            "vectors": vectors,
        }
        url = f"{settings.artifacts_url}/{artifact.encoder_version}"
        space = ledger.register(artifact.encoder_version, url, facts)
        run = uuid.uuid4().hex[:16]
        view = stored_view(space.number)
        ledger.begin_run(run, view, run, {"from_history": False}, space=space.number)
        ledger.commit_run(run, {"rows": 0})
        if applied:
            self.apply_space(space)
        return ledger.space(space.number)

    def apply_space(self, space: Space) -> None:
        """Declare a space's views, as `feast apply` does."""
        ensure_readable(self.offline(space), self._user_type)
        form = space.facts["vectors"]
        self.tiny.apply_space(space.number, space.encoder_version, vectors=form)

    def pin(self, space: Space, consumer: str = "pinned") -> None:
        """Keep a space live though it is not the newest."""
        self.context.ledger.add_consumer(consumer, space.number, **_WHO)

    def bridge(self, source: Space, target: Space) -> Bridge:
        """Serve a space from another one."""
        settings, ledger = self.context.settings, self.context.ledger
        rng = np.random.default_rng(0)
        dim = MODEL.embedding_dim
        fitted = orthogonal_map(rng.standard_normal((50, dim)), rng.standard_normal((50, dim)))
        artifact = BridgeArtifact(source.encoder_version, target.encoder_version, fitted)
        url = BridgeStore(settings.artifacts_url).save(artifact)
        names = {"source": source.number, "target": target.number}
        ledger.record_bridge(artifact.version, **names, url=url, figures={}, who="test")
        bridge = ledger.serve_bridge(artifact.version, **_WHO)
        folder = settings.offline_dir / bridged_view(target.number, source.number)
        ensure_readable(folder, self._user_type)
        view = declare_bridged_view(
            self.tiny.user, **names, bridge_version=artifact.version, folder=folder
        )
        self.context.store.apply([view])
        return bridge

    def offline(self, space: Space) -> Path:
        """Return the folder of a space's stored view."""
        return self.context.settings.offline_dir / stored_view(space.number)

    def applier(self) -> Applier:
        """Return an applier of its own."""
        return Applier(self.context.store, self.context.settings, self.context.ledger)

    def online(self, view: str, users: Sequence[Any]) -> dict[str, list[Any]]:
        """Return what Feast serves of a view."""
        store = self.context.store
        names = [f"{view}:{f.name}" for f in self._view(view).features]
        answer = store.get_online_features(names, [{"user_id": user} for user in users])
        found: dict[str, list[Any]] = answer.to_dict()
        return found

    def _view(self, name: str) -> Any:
        views = self.context.store.list_all_feature_views()
        return next(view for view in views if view.name == name)

    @property
    def _user_type(self) -> pa.DataType:
        return pa.int64() if self.tiny.user.value_type.name == "INT64" else pa.string()


def deliveries(
    events: Sequence[StreamEvent | bytes], *, redelivered: bool = False
) -> list[Delivery]:
    """Return events as a source hands them out, each with an id of its own."""
    return [
        Delivery(
            0,
            b"%d-0" % next(_IDS),
            event if isinstance(event, bytes) else event_payload(event, LAYOUT.context),
            redelivered,
            time.time_ns() // 1_000_000,
        )
        for event in events
    ]


def apply(applier: Applier, *events: StreamEvent | bytes) -> ApplyReport:
    """Apply events that were never delivered before."""
    return applier.apply(deliveries(events))
