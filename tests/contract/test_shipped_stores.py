"""Each ``feature_store*.yaml`` that ships works with its real server, chosen by the environment."""

from __future__ import annotations

import gc
from datetime import datetime, timezone
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import Engine

from materialize.context import Context
from materialize.template import init_repository, template_folder
from tests.servers import Server
from tests.sinks import close

SHIPPED = sorted(path.name for path in template_folder().glob("feature_store*.yaml"))


def test_the_documented_stores_ship() -> None:
    assert SHIPPED == [
        "feature_store.postgres.yaml",
        "feature_store.redis.yaml",
        "feature_store.yaml",
    ]


@pytest.fixture
def _servers(
    redis_server: Server, postgres_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PALATE_REDIS", f"{redis_server.host}:{redis_server.port},db=13")
    where = {"host": postgres_server.host, "port": postgres_server.port}
    for name, value in {
        **where,
        "database": "palate",
        "user": "palate",
        "password": "palate",
    }.items():
        monkeypatch.setenv(f"PALATE_POSTGRES_{name.upper()}", str(value))


@pytest.mark.usefixtures("_servers")
@pytest.mark.parametrize("name", SHIPPED)
def test_rows_go_online_and_come_back(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pandas as pd
    from feast import Entity, FeatureView, Field, FileSource, ValueType
    from feast.data_format import ParquetFormat
    from feast.types import Int64

    init_repository(tmp_path / "repo", "simulated")
    monkeypatch.setenv("FEAST_FS_YAML_FILE_PATH", str(tmp_path / "repo" / name))
    now = datetime.now(timezone.utc)
    (tmp_path / "rows").mkdir()
    rows = {"user_id": [7], "value": [42], "event_timestamp": [now], "created_timestamp": [now]}
    pq.write_table(pa.table(rows), tmp_path / "rows" / "a.parquet")
    context = Context(tmp_path / "repo")
    context.settings.data_dir.mkdir()
    store = context.store
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
    view = FeatureView(
        name="shipped",
        entities=[user],
        schema=[Field(name="user_id", dtype=Int64), Field(name="value", dtype=Int64)],
        source=FileSource(
            name="shipped_source",
            path=str(tmp_path / "rows"),
            file_format=ParquetFormat(),
            timestamp_field="event_timestamp",
            created_timestamp_column="created_timestamp",
        ),
    )
    store.apply([user, view])
    online = store._get_provider().online_store
    try:
        assert type(online).__module__.startswith("materialize.stores")
        store.materialize_incremental(end_date=datetime.now(timezone.utc))
        answer = store.get_online_features(["shipped:value"], [{"user_id": 7}]).to_dict()
        assert answer["value"] == [42]
        asked = pd.DataFrame({"user_id": [7], "event_timestamp": [datetime.now(timezone.utc)]})
        known = store.get_historical_features(asked, features=["shipped:value"]).to_df()
        assert known["value"].tolist() == [42]
    finally:
        store.teardown()
        close(online)
        # Feast makes registries on the way, too, and closes none of them. By type: asking objects
        # for their class wakes deprecated ones.
        for one in gc.get_objects():
            if type(one) is Engine:
                one.dispose()
