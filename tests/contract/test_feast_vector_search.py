"""What Feast's own vector search can do here, and why Palate brings an index of its own."""

from __future__ import annotations

import sqlite3
import sys
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.online_stores.redis import RedisOnlineStore
from feast.types import Array, Float32

_STORE = """\
project: vectors
registry: {folder}/registry.db
provider: local
online_store: {{type: sqlite, path: {folder}/online.db, vector_enabled: true}}
entity_key_serialization_version: 3
"""


def test_redis_has_no_vector_search() -> None:
    search = RedisOnlineStore.retrieve_online_documents_v2
    assert search is OnlineStore.retrieve_online_documents_v2
    with pytest.raises(NotImplementedError, match="RedisOnlineStore does not support"):
        search(RedisOnlineStore(), None, None, [], [1.0], 1)  # type: ignore[arg-type]


@pytest.mark.skipif(sys.version_info[:2] == (3, 10), reason="Feast loads sqlite-vec on 3.10 alone")
def test_sqlite_searches_vectors_on_python_3_10_alone(tmp_path: Path) -> None:
    """Elsewhere it writes them, and fails when asked, whether or not sqlite-vec is installed."""
    (tmp_path / "feature_store.yaml").write_text(_STORE.format(folder=tmp_path), encoding="utf-8")
    rows = pd.DataFrame(
        {
            "user_id": [1, 2],
            "embedding": [[1.0, 0.0], [0.0, 1.0]],
            "event_timestamp": pd.to_datetime(["2026-01-01"] * 2, utc=True),
        }
    )
    rows.to_parquet(tmp_path / "rows.parquet")
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
    vector = Field(
        name="embedding",
        dtype=Array(Float32),
        vector_index=True,
        vector_length=2,
        vector_search_metric="cosine",
    )
    view = FeatureView(
        name="near",
        entities=[user],
        ttl=timedelta(0),
        schema=[vector],
        source=FileSource(path=str(tmp_path / "rows.parquet"), timestamp_field="event_timestamp"),
    )
    store = FeatureStore(repo_path=str(tmp_path))
    store.apply([user, view])
    store.write_to_online_store("near", rows)
    with pytest.raises(sqlite3.OperationalError, match="no such module: vec0"):
        store.retrieve_online_documents_v2(features=["near:embedding"], query=[1.0, 0.0], top_k=1)
    store._get_provider().online_store._conn.close()
