"""Raw feature views: what jobs build from events, users and items."""

from __future__ import annotations

from feast import Entity, FeatureView

from materialize.config import RepoSettings
from transforms.layout import RawLayout
from transforms.raw_views import declare_item_vectors, declare_raw_views

__all__ = ["declare_views"]


def declare_views(settings: RepoSettings, user: Entity, item: Entity) -> list[FeatureView]:
    """Return the raw user views and the item vectors of the repository's data set."""
    layout = RawLayout.of(settings.dataset)
    modalities = tuple(m.name for m in layout.modalities)
    return [
        *declare_raw_views(user, layout, settings.features_dir),
        declare_item_vectors(item, modalities, settings.features_dir),
    ]
