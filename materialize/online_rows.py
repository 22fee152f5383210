"""Rows of an embedding view, read from the online store for serving."""

from __future__ import annotations

import operator
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from encoder.errors import DataFault
from materialize.ledger import Pin
from transforms.names import USER_KEY

if TYPE_CHECKING:
    from feast import FeatureStore, FeatureView

__all__ = ["OnlineRows", "RowReader", "Rows", "entity_keys"]

_FIELDS = ("embedding", "as_of", "space", "encoder_version", "status", "n_events")

_REGISTRY_SECONDS = 2.0
"""How long to wait for a view that the ledger names: Feast rewrites a registry's file in place, so
that a reader may meet half of it."""
_POLL_SECONDS = 0.02


@dataclass(frozen=True, eq=False)
class Rows:
    """What the online store has of n users; the other arrays hold the m of them who are found.

    Attributes
    ----------
    found : bool (n,)
    embedding : float32 (m, d)
    as_of, n_events : int64 (m,)
    space : tuple of int or None, m
        As the rows say; None: they do not.
    encoder_version : tuple of str or None, m
    status : tuple of str, m
    """

    found: npt.NDArray[np.bool_]
    embedding: npt.NDArray[np.float32]
    as_of: npt.NDArray[np.int64]
    n_events: npt.NDArray[np.int64]
    space: tuple[int | None, ...]
    encoder_version: tuple[str | None, ...]
    status: tuple[str, ...]


class RowReader(Protocol):
    """Where a client gets rows from."""

    def read(self, pin: Pin, users: Sequence[Any]) -> Rows:
        """Return the rows of the pin's view, found ones in the order of ``users``; unchecked."""


class OnlineRows:
    """Reads through Feast's online store of a repository; safe for threads.

    Not by ``get_online_features``: that refuses a view while ``feast materialize`` runs, and for
    good after one that was killed; and over a SQL registry it goes on, until its cache expires,
    with the view that a feature service named before.

    Parameters
    ----------
    store : FeatureStore

    Notes
    -----
    State: an online store of its own, and the definitions of views that were read. A view's
    definition does not change while its encoder version is the same.
    """

    def __init__(self, store: FeatureStore) -> None:
        from feast.infra.online_stores.helpers import get_online_store_from_config

        self._store = store
        self._online = get_online_store_from_config(store.config.online_store)
        self._views: dict[tuple[str, str], FeatureView] = {}
        self._lock = threading.Lock()

    def read(self, pin: Pin, users: Sequence[Any]) -> Rows:
        """Return the rows of the pin's view; see `RowReader`.

        Raises
        ------
        DataFault
            The view is not applied.
        TypeError
            An id is not of the user entity's type.
        """
        from feast.types import String

        view = self._view(pin)
        (column,) = view.entity_columns
        keys = entity_keys(users, text=column.dtype == String)
        answer = (
            self._online.online_read(self._store.config, view, keys, list(_FIELDS)) if keys else []
        )
        # A user who was never written is None, or a row of unset values, depending on the store.
        values = [
            row if row is not None and row["embedding"].WhichOneof("val") is not None else None
            for _, row in answer
        ]
        there = [row for row in values if row is not None]
        return Rows(
            found=np.array([row is not None for row in values], np.bool_),
            embedding=_matrix([row["embedding"].float_list_val.val for row in there], pin.view),
            as_of=np.array([row["as_of"].int64_val for row in there], np.int64),
            n_events=np.array([row["n_events"].int64_val for row in there], np.int64),
            space=tuple(_given(row["space"], "int64_val") for row in there),
            encoder_version=tuple(_given(row["encoder_version"], "string_val") for row in there),
            status=tuple(row["status"].string_val for row in there),
        )

    def _view(self, pin: Pin) -> FeatureView:
        key = (pin.view, pin.encoder_version)
        if key not in self._views:
            with self._lock:
                if key not in self._views:
                    self._views[key] = self._wait_for(pin.view)
        return self._views[key]

    def _wait_for(self, view: str) -> FeatureView:
        from feast.errors import FeatureViewNotFoundException

        deadline = time.monotonic() + _REGISTRY_SECONDS
        while True:
            try:
                return self._store.get_feature_view(view)  # past the registry's cache
            except Exception as exc:
                if time.monotonic() > deadline:
                    if isinstance(exc, FeatureViewNotFoundException):
                        raise DataFault(
                            f"Feast's registry has no view {view!r}, which the ledger names. Run "
                            "`feast apply` in the repository."
                        ) from exc
                    raise
            time.sleep(_POLL_SECONDS)


def entity_keys(users: Sequence[Any], *, text: bool) -> list[Any]:
    """Return Feast's keys of users; ``text``: their ids are strings, else integers.

    Raises
    ------
    TypeError
        An id is of another type.
    """
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    if text:
        values = [Value(string_val=user) for user in users]
    else:
        values = [Value(int64_val=operator.index(user)) for user in users]
    return [EntityKey(join_keys=[USER_KEY], entity_values=[value]) for value in values]


def _matrix(vectors: list[Any], view: str) -> npt.NDArray[np.float32]:
    """Return vectors of one width as float32 (m, d)."""
    widths = {len(vector) for vector in vectors}
    if len(widths) > 1:
        raise DataFault(f"Vectors of {view!r} have the widths {sorted(widths)}; one is expected.")
    return np.array(vectors, np.float32).reshape(len(vectors), *(widths or {0}))


def _given(value: Any, kind: str) -> Any:
    return getattr(value, kind) if value.WhichOneof("val") == kind else None
