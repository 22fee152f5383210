"""What a stream writes at this moment: raw views, live spaces, bridges, and how each is stored."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from encoder.errors import DataFault
from encoder.modality import ModalityEncoders
from materialize.applied import applied_among
from materialize.config import RepoSettings
from materialize.features import current_modalities
from materialize.ledger import Bridge, Ledger, Space
from materialize.live import LiveTargets, live_targets
from materialize.publish import Publication
from transforms.clean import IdType
from transforms.layout import RawLayout
from transforms.names import USER_KEY, bridged_view, stored_view
from transforms.serving import configure, serving_settings

if TYPE_CHECKING:
    from feast import FeatureStore, FeatureView

__all__ = ["EmbeddingTarget", "StoredView", "StreamTargets", "TargetWatch"]

logger = logging.getLogger(__name__)

_ID_TYPES: dict[str, IdType] = {"INT64": "int64", "STRING": "string"}


@dataclass(frozen=True)
class StoredView:
    """A view, and where its values lie in a user's hash.

    Attributes
    ----------
    view : FeatureView
        Applied.
    features, kinds : tuple of str
        Names and value types, in the order of ``fields``.
    fields : tuple of bytes
        Names in the hash: one a feature, then the row's event time.
    """

    view: FeatureView
    features: tuple[str, ...]
    kinds: tuple[str, ...]
    fields: tuple[bytes, ...]

    @classmethod
    def of(cls, view: FeatureView, store: FeatureStore) -> StoredView:
        """Return where the view's values lie."""
        from feast.infra.online_stores.helpers import compute_versioned_name

        from materialize.stores.redis import hash_fields

        versioned = store.config.registry.enable_online_feature_view_versioning
        features = tuple(f.name for f in view.features)
        names = hash_fields({compute_versioned_name(view, versioned): features})
        kinds = tuple(f.dtype.to_value_type().name for f in view.features)
        return cls(view, features, kinds, tuple(names))

    @property
    def name(self) -> str:
        """Name of the view."""
        return self.view.name

    @property
    def stamp(self) -> bytes:
        """Name in the hash of the row's event time."""
        return self.fields[-1]


@dataclass(frozen=True)
class EmbeddingTarget:
    """A view of embeddings.

    Attributes
    ----------
    stored : StoredView
    space : Space
        Whose encoder makes the rows.
    bridge : Bridge or None
        From that space to the one in which the rows lie.
    """

    stored: StoredView
    space: Space
    bridge: Bridge | None


@dataclass(frozen=True)
class StreamTargets:
    """Everything that decides which rows an event makes.

    Attributes
    ----------
    raw : tuple of StoredView
        Those that the layout fills, in its order.
    embeddings : tuple of EmbeddingTarget
        Those of one space next to each other.
    encoders : ModalityEncoders
        Of the published raw features.
    layout : RawLayout
    user_type, item_type : {"int64", "string"}
    """

    raw: tuple[StoredView, ...]
    embeddings: tuple[EmbeddingTarget, ...]
    encoders: ModalityEncoders
    layout: RawLayout
    user_type: IdType
    item_type: IdType

    @cached_property
    def stamps(self) -> tuple[bytes, ...]:
        """Event times of all views in a user's hash: raw views, then embeddings."""
        return tuple(one.stamp for one in (*self.raw, *(e.stored for e in self.embeddings)))

    @cached_property
    def read_fields(self) -> tuple[bytes, ...]:
        """What is read of a user: the raw features, then the event times."""
        return tuple(f for one in self.raw for f in one.fields[:-1]) + self.stamps


class TargetWatch:
    """Keeps `StreamTargets` up to date with the ledger, the registry and the raw features.

    Parameters
    ----------
    store : FeatureStore
    settings : RepoSettings
    ledger : Ledger

    Attributes
    ----------
    targets : StreamTargets
        As of the last `refresh`.

    Raises
    ------
    DataFault
        No raw features were built, or a raw view is not applied.
    """

    def __init__(self, store: FeatureStore, settings: RepoSettings, ledger: Ledger) -> None:
        self._store, self._settings, self._ledger = store, settings, ledger
        self._told: dict[str, str] = {}
        self._missing: frozenset[str] = frozenset()
        self._seen: Any = None
        self._built: Any = None
        self.targets: StreamTargets
        self.refresh()

    def refresh(self) -> bool:
        """Take up what changed; return whether anything did.

        Without a change it costs a look at the raw features' state and one at the ledger; at the
        registry only while a live view is not applied.
        """
        built = (Publication(self._settings.features_dir).state() or {}).get("request")
        live = live_targets(self._settings, self._ledger)
        seen = (
            built,
            [(space.number, space.encoder_version) for space in live.spaces],
            [bridge.version for bridge in live.bridges],
        )
        if seen == self._seen and not self._missing:
            return False
        before = None if self._seen is None else self.targets
        encoders = (
            before.encoders
            if before is not None and built == self._built
            else current_modalities(self._settings.features_dir)
        )
        self.targets = self._resolve(live, encoders)
        _keep_encoders(len({one.space.number for one in self.targets.embeddings}))
        changed = before is None or seen != self._seen or self.targets != before
        self._seen, self._built = seen, built
        if changed:
            logger.info(
                "the stream writes %s; item vectors %s",
                ", ".join(e.stored.name for e in self.targets.embeddings) or "no embeddings",
                encoders.version,
            )
        return changed

    def _resolve(self, live: LiveTargets, encoders: ModalityEncoders) -> StreamTargets:
        layout = RawLayout.of(self._settings.dataset, {m.name: m.dim for m in encoders.modalities})
        wanted: list[tuple[str, Space, Bridge | None]] = [
            (stored_view(space.number), space, None) for space in live.spaces
        ]
        for bridge in live.bridges:
            view = bridged_view(bridge.target, bridge.source)
            wanted.append((view, self._ledger.space(bridge.source), bridge))
        wanted.sort(key=lambda one: one[1].number)
        found = applied_among(self._store, [*layout.views, *(view for view, _, _ in wanted)])
        self._require(layout.views, found)
        skipped = dict(live.skipped)
        for view, _, _ in wanted:
            if view not in found:
                skipped[view] = "it is not applied; run `feast apply`"
        self._tell(skipped)
        self._missing = frozenset(view for view, _, _ in wanted if view not in found)
        raw = tuple(StoredView.of(found[view], self._store) for view in layout.views)
        user = raw[0].view.entity_columns[0].dtype.to_value_type().name
        is_integer = str(encoders.item_ids.type) == "int64"
        return StreamTargets(
            raw=raw,
            embeddings=tuple(
                EmbeddingTarget(StoredView.of(found[view], self._store), space, bridge)
                for view, space, bridge in wanted
                if view in found
            ),
            encoders=encoders,
            layout=layout,
            user_type=_ID_TYPES[user],
            item_type="int64" if is_integer else "string",
        )

    def _require(self, names: Sequence[str], found: dict[str, Any]) -> None:
        for name in names:
            if name not in found:
                raise DataFault(
                    f"The registry has no feature view {name!r}. Run `feast apply` in the "
                    "repository."
                )
            keys = [column.name for column in found[name].entity_columns]
            if keys != [USER_KEY]:
                raise DataFault(
                    f"View {name!r} has the join keys {keys}; a stream writes views of "
                    f"{USER_KEY!r} alone."
                )

    def _tell(self, skipped: dict[str, str]) -> None:
        """Log what is left out, once as long as the reason stays."""
        for view, why in skipped.items():
            if self._told.get(view) != why:
                logger.warning("the stream leaves out %s: %s", view, why)
        self._told = skipped


def _keep_encoders(spaces: int) -> None:
    """Let this process hold the encoders of all live spaces: each micro-batch asks for them all."""
    settings = serving_settings()
    if spaces > settings.keep:
        configure(keep=spaces, on_error=settings.on_error)
