"""Applied repositories on one online store each, and rows for them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.infra.online_stores.helpers import get_online_store_from_config
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import (
    Array,
    Bool,
    Bytes,
    FeastType,
    Float32,
    Float64,
    Int32,
    Int64,
    String,
    UnixTimestamp,
)

from materialize.stores.base import WriteCounts
from tests.stores import PROFILES, StoreProfile
from transforms.names import VECTOR_FORMS, VECTORS_TAG

INSTANT = pa.timestamp("us", "UTC")
NOON = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)
MICROSECOND = timedelta(microseconds=1)

EVERY: dict[str, tuple[FeastType, pa.DataType, list[Any]]] = {
    "floats": (Array(Float32), pa.list_(pa.float32()), [[0.1, -0.0, 1e-45], None, [np.inf]]),
    "wide": (Array(Float32), pa.list_(pa.float32()), [[0.5] * 120, [1.5] * 120, [2.5] * 120]),
    "doubles": (Array(Float64), pa.list_(pa.float64()), [[0.1, 2.0], [3.0], None]),
    "texts": (Array(String), pa.list_(pa.string()), [["a", "", "ü"], None, ["x" * 300]]),
    "integers": (Array(Int64), pa.list_(pa.int64()), [[1, -1], [2**62], None]),
    "truths": (Array(Bool), pa.list_(pa.bool_()), [[True, False], None, [True]]),
    "int64": (Int64, pa.int64(), [0, -1, 2**63 - 1]),
    "int32": (Int32, pa.int32(), [-(2**31), 2**31 - 1, 0]),
    "text": (String, pa.string(), ["", "ü" * 200, "plain"]),
    "blob": (Bytes, pa.binary(), [b"", b"\x00\xff", b"b" * 200]),
    "double": (Float64, pa.float64(), [0.0, -1.5, 1e300]),
    "single": (Float32, pa.float32(), [0.0, 0.1, -3.5]),
    "truth": (Bool, pa.bool_(), [True, False, True]),
    "moment": (UnixTimestamp, INSTANT, [NOON, NOON + HOUR, NOON - 20 * 365 * 24 * HOUR]),
}
"""By feature: Feast's type, Arrow's type, three rows."""

PAIR = {"amount": Int64, "twin": Int64}
VIEWS: dict[str, tuple[dict[str, FeastType], timedelta]] = {
    "pair": (PAIR, timedelta(0)),
    "other": (PAIR, timedelta(0)),
    "brief": (PAIR, timedelta(days=1)),
    "every": ({name: kind for name, (kind, _, _) in EVERY.items()}, timedelta(0)),
    **{form: ({"vector": Array(Float32), "amount": Int64}, timedelta(0)) for form in VECTOR_FORMS},
}
"""By view: its features and ttl. A view called as a form of vectors is tagged with it."""
USERS = itertools.count(1)
OPENED: list[Any] = []
"""Online stores, which Feast never closes."""

Row = tuple[int, int, datetime, datetime | None]
"""User, amount (and twin), event time, created time."""


@dataclass(frozen=True)
class Sink:
    """An applied repository on one online store."""

    profile: StoreProfile
    store: FeatureStore

    def fresh(self) -> Any:
        """Return the online store as a process of its own would open it."""
        online = get_online_store_from_config(self.store.config.online_store)
        OPENED.append(online)
        return online

    def view(self, name: str) -> FeatureView:
        return self.store.get_feature_view(name)

    def write(self, rows: list[Row], view: str = "pair", online: Any = None) -> None:
        """Write by Feast's protobuf interface."""
        (online or self.fresh()).online_write_batch(
            self.store.config, self.view(view), protobuf_rows(rows), None
        )

    def write_arrow(self, rows: list[Row], view: str = "pair", online: Any = None) -> WriteCounts:
        counts: WriteCounts = (online or self.fresh()).write_arrow(
            self.store.config, self.view(view), arrow_rows(rows)
        )
        return counts

    def read(self, user: int, view: str = "pair") -> Any:
        ((moment, values),) = self.fresh().online_read(
            self.store.config, self.view(view), [key_of(user)], list(PAIR)
        )
        return moment, values

    def amount(self, user: int, view: str = "pair") -> int:
        _, values = self.read(user, view)
        assert values["amount"] == values["twin"]
        return int(values["amount"].int64_val)

    def served(self, user: int, view: str = "pair") -> tuple[Any, str]:
        """Return value and status from get_online_features."""
        answer = self.store.get_online_features(
            features=[f"{view}:amount"], entity_rows=[{"user_id": user}]
        )
        at = list(answer.proto.metadata.feature_names.val).index("amount")
        status = answer.proto.results[at].statuses[0]
        return answer.to_dict()["amount"][0], FieldStatus.Name(status)


def key_of(user: int) -> EntityKey:
    return EntityKey(join_keys=["user_id"], entity_values=[Value(int64_val=user)])


def protobuf_rows(rows: list[Row]) -> list[Any]:
    return [
        (key_of(user), {name: Value(int64_val=amount) for name in PAIR}, event, created)
        for user, amount, event, created in rows
    ]


def arrow_rows(rows: list[Row]) -> pa.RecordBatch:
    user, amount, event, created = map(list, zip(*rows, strict=True))
    return pa.RecordBatch.from_pydict(
        {
            "user_id": pa.array(user, pa.int64()),
            **{name: pa.array(amount, pa.int64()) for name in PAIR},
            "event_timestamp": pa.array(event, INSTANT),
            "created_timestamp": pa.array(created, INSTANT),
        }
    )


def open_store(folder: Path, online: dict[str, Any], project: str, registry: Path) -> FeatureStore:
    """Apply the views to a store; stores of one project share their rows."""
    folder.mkdir(parents=True)
    content = {
        **{"project": project, "provider": "local", "registry": str(registry)},
        **{"online_store": online, "offline_store": {"type": "duckdb"}},
        "entity_key_serialization_version": 3,
    }
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    store = FeatureStore(repo_path=str(folder))
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
    source = folder / "source.parquet"
    pq.write_table(pa.Table.from_batches([arrow_rows([(0, 0, NOON, NOON)])]), source)
    views = [
        FeatureView(
            name=name,
            entities=[user],
            schema=[
                Field(name="user_id", dtype=Int64),
                *(Field(name=feature, dtype=kind) for feature, kind in fields.items()),
            ],
            ttl=ttl,
            tags={VECTORS_TAG: name} if name in VECTOR_FORMS else {},
            source=FileSource(
                name=f"{name}_source",
                path=str(source),
                timestamp_field="event_timestamp",
                created_timestamp_column="created_timestamp",
            ),
        )
        for name, (fields, ttl) in VIEWS.items()
    ]
    store.apply([user, *views])
    return store


def close(online: Any) -> None:
    for name in ("_conn", "_writer", "_client"):
        if getattr(online, name, None) is not None:
            getattr(online, name).close()


_SERVERS = {p.name: p.server for p in PROFILES.values()}
ATOMIC = [name for name, profile in PROFILES.items() if profile.atomic]


def marked(name: str, *more: str) -> Any:
    # The server is started by name, which conftest's marking by fixture does not see.
    return pytest.param(
        *((name, *more) if more else (name,)),
        marks=[pytest.mark.server] if _SERVERS[name] else [],
        id="-".join((name, *more)),
    )
