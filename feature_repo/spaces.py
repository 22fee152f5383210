"""Embedding views: those of every space that the ledger keeps, and of every bridge that serves."""

from __future__ import annotations

from feast import Entity, FeatureView, OnDemandFeatureView

from materialize.config import RepoSettings
from materialize.ledger import Ledger
from transforms.embedding_views import (
    declare_bridged_view,
    declare_on_demand_view,
    declare_stored_view,
)
from transforms.names import bridged_view, request_context, stored_view, vector_form

__all__ = ["declare_spaces"]


def declare_spaces(
    settings: RepoSettings, ledger: Ledger, user: Entity, raw_views: list[FeatureView]
) -> list[FeatureView | OnDemandFeatureView]:
    """Return the views of all spaces and bridges; none before the first `palate train`.

    A space that is being retired keeps its views: the job that removes them is not done. Of a
    retired space nothing is declared.
    """
    views: list[FeatureView | OnDemandFeatureView] = []
    kept = {space.number: space for space in ledger.spaces() if space.state != "retired"}
    for space in kept.values():
        read = set(space.facts["raw_views"])
        views.append(
            declare_stored_view(
                user,
                space=space.number,
                encoder_version=space.encoder_version,
                folder=settings.offline_dir / stored_view(space.number),
                vectors=vector_form(space.facts),
            )
        )
        views.append(
            declare_on_demand_view(
                [view for view in raw_views if view.name in read],
                space=space.number,
                encoder_version=space.encoder_version,
                store=settings.artifacts_url,
                request_context=request_context(space.facts),
            )
        )
    views.extend(
        declare_bridged_view(
            user,
            target=bridge.target,
            source=bridge.source,
            bridge_version=bridge.version,
            folder=settings.offline_dir / bridged_view(bridge.target, bridge.source),
            vectors=vector_form(kept[bridge.target].facts),
        )
        for bridge in ledger.bridges()
        if bridge.state == "serving" and {bridge.target, bridge.source} <= kept.keys()
    )
    return views
