"""Definitions of the views that are read, from Feast's registry."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from encoder.errors import DataFault

if TYPE_CHECKING:
    from feast import FeatureStore, FeatureView

__all__ = ["ViewDefinitions"]

_REGISTRY_SECONDS = 2.0
"""How long to wait for a view that the ledger names: Feast rewrites a registry's file in place, so
that a reader may meet half of it."""
_POLL_SECONDS = 0.02


class ViewDefinitions:
    """Looks views up once for each encoder version; safe for threads.

    A view's definition does not change while the encoder version that it serves is the same.

    Parameters
    ----------
    store : FeatureStore

    Notes
    -----
    State: the definitions.
    """

    def __init__(self, store: FeatureStore) -> None:
        self._store = store
        self._views: dict[tuple[str, str], FeatureView] = {}
        self._lock = threading.Lock()

    def known(self, name: str, encoder_version: str) -> FeatureView | None:
        """Return a definition that was looked up before."""
        return self._views.get((name, encoder_version))

    def look_up(self, name: str, encoder_version: str) -> FeatureView:
        """Return a definition, past the registry's cache.

        Raises
        ------
        DataFault
            The view is not applied.
        """
        key = (name, encoder_version)
        with self._lock:
            if key not in self._views:
                self._views[key] = self._wait_for(name)
            return self._views[key]

    def _wait_for(self, view: str) -> FeatureView:
        from feast.errors import FeatureViewNotFoundException

        deadline = time.monotonic() + _REGISTRY_SECONDS
        while True:
            try:
                return self._store.get_feature_view(view)
            except Exception as exc:
                if time.monotonic() > deadline:
                    if isinstance(exc, FeatureViewNotFoundException):
                        raise DataFault(
                            f"Feast's registry has no view {view!r}, which the ledger names. Run "
                            "`feast apply` in the repository."
                        ) from exc
                    raise
            time.sleep(_POLL_SECONDS)
