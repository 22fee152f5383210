"""Embedding views: one stored and one on-demand view for each space that the ledger knows."""

from __future__ import annotations

from feast import Entity, FeatureView, OnDemandFeatureView

from materialize.config import RepoSettings
from materialize.ledger import Ledger
from transforms.embedding_views import declare_on_demand_view, declare_stored_view
from transforms.names import stored_view, vector_form

__all__ = ["declare_spaces"]


def declare_spaces(
    settings: RepoSettings, user: Entity, raw_views: list[FeatureView]
) -> list[FeatureView | OnDemandFeatureView]:
    """Return the views of all spaces; none before the first `palate train`."""
    views: list[FeatureView | OnDemandFeatureView] = []
    for space in Ledger(settings.ledger_url).spaces():
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
            )
        )
    return views
