"""What the tests of applying share: what users do, and what is stored of them afterwards."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from materialize.stream.atomic import UserHashes
from materialize.stream.targets import StoredView
from tests.repositories import INSTANT, write_online
from tests.servers import Server
from tests.stores import PROFILES
from tests.streams import DAY, TinyStream
from transforms.layout import ACTIVITY, PROFILE
from transforms.names import EMBEDDING_FEATURES, bridged_view, on_demand_view, stored_view
from transforms.stream.events import StreamEvent

__all__ = [
    "BRIDGED",
    "FIRST",
    "HOUR",
    "SECOND",
    "USERS",
    "assert_as_on_demand",
    "change",
    "everything",
    "field_of",
    "online_settings",
    "pick",
    "stored",
    "write_raw",
]

FIRST, SECOND, BRIDGED = stored_view(1), stored_view(2), bridged_view(1, 2)
USERS = itertools.count(1)
HOUR = DAY // 24


def online_settings(server: Server, folder: Path, **more: Any) -> dict[str, Any]:
    return PROFILES["palate-redis"].settings(server, str(folder)) | more


def stored(stream: TinyStream, view: str) -> StoredView:
    store = stream.context.store
    return StoredView.of(store.get_feature_view(view), store)


def field_of(stream: TinyStream, view: str, feature: str) -> bytes:
    one = stored(stream, view)
    return one.fields[one.features.index(feature)]


def everything(hashes: UserHashes, user: Any) -> dict[bytes, bytes]:
    (key,) = hashes.keys([user])
    found: dict[bytes, bytes] = hashes.client.hgetall(key)
    return found


def pick(user: Any, item: int, at: int) -> StreamEvent:
    return StreamEvent("onboarding_pick", user, at, f"item-{item}")


def change(user: Any, at: int, **columns: Any) -> StreamEvent:
    categories = {name: value for name, value in columns.items() if isinstance(value, str)}
    numbers = {name: value for name, value in columns.items() if not isinstance(value, str)}
    return StreamEvent("profile_change", user, at, categories=categories, numbers=numbers)


def write_raw(stream: TinyStream, view: str, table: pa.Table, *, at: int, created: int) -> None:
    """Write a row of a report as the batch job would, at another time."""
    for name, moment in (("event_timestamp", at), ("created_timestamp", created)):
        index = table.column_names.index(name)
        table = table.set_column(index, name, pa.array([moment] * len(table)).cast(INSTANT))
    name = {ACTIVITY: "activity_as_of", PROFILE: "profile_as_of"}.get(view)
    if name is not None:
        index = table.column_names.index(name)
        table = table.set_column(index, name, pa.array([at] * len(table)))
    write_online(stream.context.store, view, table.combine_chunks().to_batches())


def assert_as_on_demand(stream: TinyStream, users: Sequence[Any]) -> None:
    """Stored rows are what an on-demand read makes of the raw rows beside them, bit for bit."""
    stored_rows = stream.online(FIRST, users)
    on_demand = stream.online(on_demand_view(1), users)
    for name in EMBEDDING_FEATURES:
        assert stored_rows[name] == on_demand[name], name
    compact, exact = stream.online(SECOND, users), stream.online(on_demand_view(2), users)
    for name in EMBEDDING_FEATURES[1:]:
        assert compact[name] == exact[name], name
    np.testing.assert_allclose(compact["embedding"], exact["embedding"], atol=0.05)
    bridged = stream.online(BRIDGED, users)
    assert bridged["as_of"] == compact["as_of"]
    assert bridged["space"] == [1] * len(users)
    assert np.isfinite(np.array(bridged["embedding"])).all()
