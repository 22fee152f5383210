"""Online stores that answer on-demand embeddings from stored bytes; see `stores.on_demand`."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from feast import FeatureService, RepoConfig
from feast.infra.online_stores.online_store import OnlineStore
from feast.online_response import OnlineResponse

from materialize.stores.on_demand import Request, asks_on_demand, prepare
from transforms.runtime import Encoded

__all__ = ["OnDemandReads", "Replies"]

Replies = Sequence[Sequence[bytes | None]]
"""For each key, view by view: the values of its fields, and its event time."""


class OnDemandReads(OnlineStore):
    """Mixed in before a store whose rows can be read as bytes.

    Answers are those of Feast: names, values, order, statuses and times. A request that is not for
    Palate's on-demand views alone, beside stored features, goes Feast's own way.
    """

    @abstractmethod
    def _read_stored(
        self, config: RepoConfig, keys: Sequence[bytes], fields: Mapping[str, Sequence[str]]
    ) -> Replies:
        """Return what is stored under keys, in one round trip."""

    @abstractmethod
    async def _read_stored_async(
        self, config: RepoConfig, keys: Sequence[bytes], fields: Mapping[str, Sequence[str]]
    ) -> Replies:
        """Return what `_read_stored` returns."""

    @abstractmethod
    def _key_suffix(self, config: RepoConfig) -> bytes:
        """Return what is appended to an entity key."""

    def get_online_features(
        self,
        config: RepoConfig,
        features: list[str] | FeatureService,
        entity_rows: Any,
        registry: Any,
        project: str,
        full_feature_names: bool = False,
        include_feature_view_version_metadata: bool = False,
    ) -> OnlineResponse:
        """Answer as Feast does."""
        asked = (config, features, entity_rows, registry, project, full_feature_names)
        request = self._prepared(*asked, include_feature_view_version_metadata)
        if request is not None:
            start = time.monotonic()
            found = self._read_stored(config, request.keys, request.fields)
            encoded = _encoded(request, found, start)
            if encoded is not None:
                if request.direct:
                    self._read_features_per_fv(*_direct(request, config, full_feature_names))
                return request.respond(encoded, self._build_feature_types(request.grouped))
        return super().get_online_features(*asked, include_feature_view_version_metadata)

    async def get_online_features_async(
        self,
        config: RepoConfig,
        features: list[str] | FeatureService,
        entity_rows: Any,
        registry: Any,
        project: str,
        full_feature_names: bool = False,
        include_feature_view_version_metadata: bool = False,
    ) -> OnlineResponse:
        """Answer as Feast does; the encoder runs in the event loop's thread, as with Feast."""
        asked = (config, features, entity_rows, registry, project, full_feature_names)
        request = self._prepared(*asked, include_feature_view_version_metadata)
        if request is not None:
            start = time.monotonic()
            found = await self._read_stored_async(config, request.keys, request.fields)
            encoded = _encoded(request, found, start)
            if encoded is not None:
                if request.direct:
                    direct = _direct(request, config, full_feature_names)
                    await self._read_features_per_fv_async(*direct)
                return request.respond(encoded, self._build_feature_types(request.grouped))
        return await super().get_online_features_async(
            *asked, include_feature_view_version_metadata
        )

    def _prepared(
        self,
        config: RepoConfig,
        features: list[str] | FeatureService,
        entity_rows: Any,
        registry: Any,
        project: str,
        full_feature_names: bool,
        version_metadata: bool,
    ) -> Request | None:
        """Return the request, or None where Feast's own way has to be taken."""
        if version_metadata or not asks_on_demand(features):
            return None
        asked = (config, features, entity_rows, registry, project, full_feature_names)
        return prepare(*asked, self._key_suffix(config))


def _encoded(request: Request, found: Replies, start: float) -> list[Encoded] | None:
    """Count the read that began at ``start`` where Feast's server counts reads, and encode."""
    from feast import metrics

    if metrics._config.online_features:
        metrics.track_online_store_read(time.monotonic() - start)
    return request.encode(found)


def _direct(request: Request, config: RepoConfig, full_feature_names: bool) -> tuple[Any, ...]:
    """Return the arguments with which Feast reads the stored features that were asked for."""
    return (
        config,
        request.direct,
        request.join_key_values,
        request.join_keys,
        request.response,
        full_feature_names,
        False,
    )
