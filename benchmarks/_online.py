"""Rows, repositories and servers that the online benchmarks share."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.infra.online_stores.helpers import get_online_store_from_config
from feast.types import Array, Float32, Int64

DIM = 120
VIEW = "embedding"
INSTANT = pa.timestamp("us", "UTC")
START = datetime(2026, 1, 1, tzinfo=timezone.utc)
_DAY_US = 86_400_000_000


def rows(n: int, seed: int) -> pa.Table:
    """Return n users with a float32 vector of 120 and an event time within one day."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, DIM), dtype=np.float32)
    offsets = np.arange(0, DIM * n + 1, DIM, dtype=np.int32)
    start = int(START.timestamp()) * 1_000_000
    event = pa.array(start + rng.integers(0, _DAY_US, n)).cast(INSTANT)
    return pa.table(
        {
            "user_id": pa.array(np.arange(n)),
            "vector": pa.ListArray.from_arrays(offsets, pa.array(vectors.ravel())),
            "event_timestamp": event,
            "created_timestamp": event,
        }
    )


def repository(folder: Path, online: dict[str, Any], source: pa.Table) -> FeatureStore:
    """Apply a repository with one view over ``source``; its project is the folder's name."""
    folder.mkdir(parents=True)
    content = {
        **{"project": folder.name, "provider": "local", "registry": "registry.db"},
        **{"online_store": online, "offline_store": {"type": "duckdb"}},
        "entity_key_serialization_version": 3,
    }
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    path = folder / "rows.parquet"
    pq.write_table(source, path)
    store = FeatureStore(repo_path=str(folder))
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
    view = FeatureView(
        name=VIEW,
        entities=[user],
        schema=[Field(name="user_id", dtype=Int64), Field(name="vector", dtype=Array(Float32))],
        ttl=timedelta(0),
        source=FileSource(
            path=str(path),
            timestamp_field="event_timestamp",
            created_timestamp_column="created_timestamp",
        ),
    )
    store.apply([user, view])
    return store


def online_store(store: FeatureStore) -> Any:
    """Return the online store as a job opens it."""
    return get_online_store_from_config(store.config.online_store)


def read(store: FeatureStore, users: list[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the vectors of users through Feast, float32 (n, 120)."""
    answer = store.get_online_features(
        features=[f"{VIEW}:vector"], entity_rows=[{"user_id": user} for user in users]
    )
    return np.array(answer.to_dict()["vector"], np.float32)
