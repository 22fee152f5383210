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
from encoder.artifact import EncoderArtifact
from encoder.bridge import BridgeArtifact, BridgeStore
from encoder.item_texts import TextsSpec, fit_item_texts
from encoder.modality import Items, ItemVectors, ModalityEncoders
from encoder.store import ArtifactStore
from materialize.context import Context
from materialize.embedding_rows import ensure_readable
from materialize.ledger import Bridge, Space
from materialize.publish import write_json
from materialize.stream.apply import Applier, ApplyReport
from materialize.stream.source import Delivery
from tests.encoders import MODEL, export_tiny_clue, export_tiny_hybrid, tiny_artifact
from tests.repositories import TinyRepository
from tests.strategies import TOKENS
from transforms.embedding_views import declare_bridged_view
from transforms.layout import Modality, RawLayout, TextLayout
from transforms.names import FLOAT32, bridged_view, stored_view
from transforms.raw_views import declare_raw_views
from transforms.stream.events import StreamEvent, event_payload

__all__ = ["DAY", "LAYOUT", "NOON", "SERVICES", "TinyStream", "consume", "item_vectors"]

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
SERVICES = ("books", "music")
"""Those that the tokenizer of a stream with texts knows."""
_WHO = {"who": "test", "why": "a test"}
_DATASET: dict[str, Any] = {
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
_TEXTS = {
    "events": _DATASET["events"] | {"service": "s"},
    "items": {"path": "items.parquet", "item": "i", "text": ["title"]},
    "texts": {"vocabulary": 300, "max_item_tokens": TOKENS.item, "max_events": TOKENS.events},
}
"""What a data set with texts says beside, or in place of that."""
_WITH_TEXTS = replace(LAYOUT, texts=TextLayout(TOKENS.events, TOKENS.item))
_IDS = itertools.count(1)


def item_vectors(seed: int = 0, *, texts: bool = False) -> ModalityEncoders:
    """Return made-up vectors of ``item-0`` to ``item-11``; the last item has none.

    With texts, what the items say, and so their tokenizer, depends on the seed, too.
    """
    ids = pa.array([f"item-{k}" for k in range(N_ITEMS)])
    tokens = None
    if texts:
        letters = "abcdefgh"[seed % 4 :]
        said = [" ".join(letters[: 1 + (k + seed) % 5]) for k in range(N_ITEMS)]
        spec = TextsSpec(SERVICES, vocabulary=300, max_tokens=TOKENS.item)
        tokens = fit_item_texts(Items(ids, said), np.ones(N_ITEMS, bool), spec)
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(N_ITEMS, 4)).astype(np.float32)
    cluster = rng.integers(0, 3, N_ITEMS).astype(np.int32)
    vectors[-1], cluster[-1] = 0, -1
    centroids = np.zeros((3, 4), np.float32)
    return ModalityEncoders(
        ids,
        (ItemVectors("collaborative", vectors, cluster, 3, centroids),),
        np.ones(N_ITEMS, bool),
        {"cutoff": "2026-01-01T00:00:00+00:00", "seed": seed},
        texts=tokens,
    )


def consume(
    user: Any,
    item: int,
    at: int,
    *,
    weight: float = 1.0,
    country: str = "BR",
    service: str | None = None,
) -> StreamEvent:
    """Return one consumed item."""
    return StreamEvent("consume", user, at, f"item-{item}", weight, (country,), service)


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
        texts: bool = False,
    ) -> TinyStream:
        """Write and apply a repository without spaces; with texts, raw features carry them, too."""
        layout = _WITH_TEXTS if texts else LAYOUT
        tiny = TinyRepository.make(path, user_type, layout=layout, online=online)
        dataset = _DATASET | (_TEXTS if texts else {})
        (path / "tiny.yaml").write_text(yaml.safe_dump(dataset), encoding="utf-8")
        palate = {"dataset": "tiny.yaml", "stream": dict(stream or {})}
        (path / "palate.yaml").write_text(yaml.safe_dump(palate), encoding="utf-8")
        context = Context(path)
        made = cls(replace(tiny, settings=context.settings, store=context.store), context)
        made.publish(item_vectors(texts=texts))
        return made

    def with_texts(self) -> TinyStream:
        """Name texts in dataset.yaml, build and apply: the same repository as it is from then."""
        path = self.tiny.path
        (path / "tiny.yaml").write_text(yaml.safe_dump(_DATASET | _TEXTS), encoding="utf-8")
        context = Context(path)
        views = declare_raw_views(self.tiny.user, _WITH_TEXTS, context.settings.features_dir)
        context.store.apply(views)
        own = {"settings": context.settings, "store": context.store}
        made = TinyStream(replace(self.tiny, **own, raw_views=views, layout=_WITH_TEXTS), context)
        made.publish(item_vectors(texts=True))
        return made

    @property
    def layout(self) -> RawLayout:
        """Shape of the raw features."""
        return self.tiny.layout

    def publish(self, encoders: ModalityEncoders) -> None:
        """Publish raw features that were pooled from some item vectors."""
        folder = self.context.settings.features_dir
        encoders.save(folder / "modality" / encoders.version)
        for view in self.layout.views:
            (folder / view).mkdir(parents=True, exist_ok=True)
        versions = {
            "modality_version": encoders.version,
            "texts_version": encoders.texts_version,
        }
        write_json(folder / "state.json", versions | {"request": uuid.uuid4().hex})

    def add_space(
        self,
        seed: int = 0,
        *,
        encoders: ModalityEncoders | None = None,
        vectors: str = FLOAT32,
        applied: bool = True,
    ) -> Space:
        """Register an encoder with initial weights as a ready space, which is live while newest."""
        modality = encoders or item_vectors(texts=self.layout.texts is not None)
        artifact = tiny_artifact(seed, self.layout, modality)
        return self._register(artifact, vectors, applied=applied)

    def add_text_space(self) -> Space:
        """Register a contrastive encoder, which reads texts alone, as a ready space."""
        return self._register(self._text_encoder(), FLOAT32, applied=True)

    def add_hybrid_space(self) -> Space:
        """Register an encoder that reads blocks and texts as a ready space."""
        modality, texts = item_vectors(texts=True), self._text_encoder()
        schema = self.layout.schema(modality.version).with_texts(texts.preprocessor.schema)
        artifact = export_tiny_hybrid(schema, modality, texts)
        return self._register(artifact, FLOAT32, applied=True)

    def _text_encoder(self) -> EncoderArtifact:
        modality = item_vectors(texts=True)
        assert modality.texts is not None
        assert modality.texts_version is not None
        schema = self.layout.texts_schema(modality.texts_version, len(SERVICES))
        return export_tiny_clue(schema, modality, modality.texts.tokenizer.vocabulary)

    def _register(self, artifact: EncoderArtifact, vectors: str, *, applied: bool) -> Space:
        settings, ledger = self.context.settings, self.context.ledger
        ArtifactStore(settings.artifacts_url).save(artifact)
        schema = artifact.preprocessor.schema
        facts = {
            "raw_views": list(dict.fromkeys(c.split("__")[0] for c in schema.columns)),
            "modality_version": schema.modality_version,
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
