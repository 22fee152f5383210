"""Views in Feast's registry: which are applied, who else reads them, and how one is taken out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from transforms.names import SPACE_TAG

if TYPE_CHECKING:
    from feast import FeatureStore

__all__ = ["applied_among", "readers_of", "undeclare"]


def applied_among(store: FeatureStore, names: Sequence[str]) -> dict[str, Any]:
    """Return the views of these names that the registry has at this moment."""
    found = store.registry.list_all_feature_views(store.project, allow_cache=False)
    return {view.name: view for view in found if view.name in names}


def readers_of(store: FeatureStore, names: Sequence[str]) -> list[tuple[str, str]]:
    """Return (who, view) for each other object of the registry that reads one of these views.

    Feature services, on-demand views and views that are derived from views. What is itself among
    the names does not count, and no service that Palate made: the ledger decides what these read.
    """
    registry, project = store.registry, store.project
    services = registry.list_feature_services(project, allow_cache=False)
    views = registry.list_all_feature_views(project, allow_cache=False)
    reading = [
        *(
            (f"feature service {service.name!r}", projection.name)
            for service in services
            if SPACE_TAG not in service.tags
            for projection in service.feature_view_projections
        ),
        *(
            (f"view {view.name!r}", source)
            for view in views
            if view.name not in names
            for source in _sources(view)
        ),
    ]
    return [(who, view) for who, view in reading if view in names]


def undeclare(store: FeatureStore, view: str) -> None:
    """Take a view and its own data sources out of the registry; safe to repeat.

    Feast's ``apply(objects_to_delete=...)`` would delete the online values in the same call,
    without a word of progress, and on a SQL registry after the view is gone: a kill in between
    would leave values that nobody knows of.
    """
    from feast.errors import (
        DataSourceNotFoundException,
        DataSourceObjectNotFoundException,
        FeatureViewNotFoundException,
    )

    with suppress(FeatureViewNotFoundException):
        store.delete_feature_view(view)
    for source in (f"{view}_push", f"{view}_source"):
        # The file registry raises the first, a SQL registry the second.
        with suppress(DataSourceNotFoundException, DataSourceObjectNotFoundException):
            store.registry.delete_data_source(source, store.project)


def _sources(view: Any) -> Iterator[str]:
    for projection in getattr(view, "source_feature_view_projections", {}).values():
        yield projection.name
    for source in getattr(view, "source_views", None) or ():
        yield source.name
