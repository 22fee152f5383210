"""A space with int8 vectors goes the whole way: it is small online, and every reader agrees."""

from __future__ import annotations

import json
import logging
import re
import sqlite3

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from feast import FeatureStore
from feast.data_source import PushMode

from materialize.source import parquet_files
from materialize.stores.compact import round_trip
from materialize.train import train_space
from tests.e2e.conftest import END, Raw, Story, build_story, run
from transforms.names import VECTORS_TAG
from transforms.on_demand import EMBEDDING_FIELDS

pytestmark = pytest.mark.slow

OFFLINE = "materialize.stores.parquet.PalateParquetOfflineStore"
VIEW = "user_embedding_s1"
DIM = 16


@pytest.fixture(scope="module")
def compact(raw: Raw, tmp_path_factory: pytest.TempPathFactory) -> Story:
    story = build_story(tmp_path_factory.mktemp("compact") / "repo", raw, END, vectors="int8")
    config = story.repo / "feature_store.yaml"
    text = config.read_text(encoding="utf-8")
    # Feast's own DuckDB store refuses a push into a folder of files.
    config.write_text(
        re.sub(r"(offline_store:\s+type:) .*", rf"\1 {OFFLINE}", text), encoding="utf-8"
    )
    return story


def _online(story: Story, users: list[str]) -> npt.NDArray[np.float32]:
    answer = story.context.store.get_online_features(
        features=[f"{VIEW}:embedding"], entity_rows=[{"user_id": user} for user in users]
    )
    return np.array(answer.to_dict()["embedding"], np.float32)


def _newest_offline(story: Story) -> tuple[list[str], npt.NDArray[np.float32]]:
    folder = story.context.settings.offline_dir / VIEW
    rows = pa.concat_tables(pq.read_table(path) for path in parquet_files(folder)).to_pandas()
    rows = rows.sort_values(["event_timestamp", "created_timestamp"]).groupby("user_id").last()
    return rows.index.tolist(), np.stack(rows["embedding"].tolist()).astype(np.float32)


def test_each_vector_lies_online_as_a_scale_and_a_byte_a_number(compact: Story) -> None:
    path = compact.repo / compact.context.store.config.online_store.path
    with sqlite3.connect(path) as connection:
        (table,) = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE ?", [f"%{VIEW}"]
        ).fetchone()
        sizes = connection.execute(
            f'SELECT DISTINCT length(value) FROM "{table}" WHERE feature_name = ?',  # noqa: S608
            ["embedding"],
        ).fetchall()
    connection.close()
    assert sizes == [(2 + 4 + DIM,)]  # protobuf's tag and length, the scale, the numbers


def test_online_offline_and_point_in_time_answer_the_same_bits(compact: Story) -> None:
    users, offline = _newest_offline(compact)
    assert len(users) > 300
    assert _online(compact, users).tobytes() == offline.tobytes()
    assert round_trip(offline, "int8").tobytes() == offline.tobytes()
    frame = pd.DataFrame({"user_id": users, "event_timestamp": [END] * len(users)})
    answer = compact.context.store.get_historical_features(frame, [f"{VIEW}:embedding"]).to_df()
    by_user = answer.set_index("user_id")["embedding"].loc[users]
    assert np.stack(by_user.tolist()).astype(np.float32).tobytes() == offline.tobytes()


def test_on_demand_differs_by_the_rounding_and_no_more(compact: Story) -> None:
    answer = json.loads(run("palate", "spaces", "compare", "--users", "400", cwd=compact.repo))
    assert answer["users"] > 300
    assert answer["vectors"] == "int8"
    assert answer["max_abs_diff"] > 1e-5
    assert answer["max_unexplained_diff"] <= 1e-5


def test_a_push_is_rounded_offline_as_online(compact: Story) -> None:
    store = FeatureStore(repo_path=str(compact.repo))
    (user, *_), _ = _newest_offline(compact)
    row = store.get_online_features(
        features=[f"user_embedding_on_demand_s1:{f.name}" for f in EMBEDDING_FIELDS],
        entity_rows=[{"user_id": user}],
    ).to_df()
    vector = np.array(row["embedding"].tolist(), np.float32)
    expected = round_trip(vector, "int8")
    assert expected.tobytes() != vector.tobytes()
    moment = pd.to_datetime(row["as_of"], unit="us", utc=True) + pd.Timedelta(seconds=1)
    # The offline store shows a push only to who asks for a time after it was created.
    pushed = row.assign(event_timestamp=moment, created_timestamp=moment)
    store.push(f"{VIEW}_push", pushed, to=PushMode.ONLINE_AND_OFFLINE)
    assert _online(compact, [user]).tobytes() == expected.tobytes()
    frame = pd.DataFrame({"user_id": [user], "event_timestamp": moment})
    answer = store.get_historical_features(frame, [f"{VIEW}:embedding"]).to_df()
    found = np.array(answer["embedding"].tolist(), np.float32)
    assert found.tobytes() == expected.tobytes()


def test_a_space_keeps_its_form_when_palate_yaml_changes(
    compact: Story, caplog: pytest.LogCaptureFixture
) -> None:
    config = compact.repo / "palate.yaml"
    before = config.read_text(encoding="utf-8")
    changed = yaml.safe_load(before) | {"vectors": "float16"}
    config.write_text(yaml.safe_dump(changed), encoding="utf-8")
    try:
        context = type(compact.context)(compact.repo)
        with caplog.at_level(logging.WARNING, logger="materialize.train"):
            trained = train_space(context.store, context.settings, context.ledger, progress=False)
        run("feast", "apply", cwd=compact.repo)
    finally:
        config.write_text(before, encoding="utf-8")
    assert not trained.new
    assert trained.space.facts["vectors"] == "int8"
    assert "space 1 keeps int8 vectors, as it was registered; float16 in" in caplog.text
    view = FeatureStore(repo_path=str(compact.repo)).get_feature_view(VIEW)
    assert view.tags[VECTORS_TAG] == "int8"
