"""On-demand views through Feast itself: registry round trip, fresh process, and pinned traps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from feast import FeatureService, Field, OnDemandFeatureView
from feast.transformation.python_transformation import PythonTransformation
from feast.types import Array, Float32, Int64

from encoder.errors import ArtifactError, MalformedInput
from tests.repositories import TinyRepository, as_batch, raw_rows
from tests.startup import python_path
from transforms.layout import ACTIVITY, ONBOARDING, PROFILE, field
from transforms.names import USER_KEY, on_demand_view
from transforms.runtime import Encoded, encode

ROOT = Path(__file__).parents[2]

USERS = [1, 2, 3, 4, 5, 6]
"""1 to 3 are everywhere, 4 has picks and a profile, 5 a profile only, nobody has heard of 6."""
PRESENT = {
    ACTIVITY: [True, True, True, False, False, False],
    PROFILE: [True, True, False, True, True, False],
    ONBOARDING: [True, False, True, True, False, False],
}
VIEW = on_demand_view(1)
FEATURES = ("embedding", "as_of", "space", "encoder_version", "status", "n_events")


@dataclass(frozen=True)
class Served:
    """A repository, what runtime.encode gives for its users, and what a fresh process answered."""

    repository: TinyRepository
    encoder_version: str
    raw: pa.Table
    expected: Encoded
    answers: dict[str, dict[str, list[Any]]]


_FRESH = """
import datetime, json, sys
import numpy as np
import pandas as pd
from feast import FeatureStore

def plain(value):
    if isinstance(value, np.ndarray):
        return [plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value

request = json.loads(sys.argv[1])
assert "transforms" not in sys.modules
store = FeatureStore(repo_path=request["repository"])
answers = {}
rows = [{"user_id": user} for user in request["users"]]
for name, full in (("online_short", False), ("online_full", True)):
    answers[name] = store.get_online_features(
        features=request["features"], entity_rows=rows, full_feature_names=full
    ).to_dict()
entities = pd.DataFrame(
    {"user_id": request["users"], "event_timestamp": datetime.datetime.now(datetime.timezone.utc)}
)
for name, full in (("historical_short", False), ("historical_full", True)):
    table = store.get_historical_features(
        entity_df=entities, features=request["features"], full_feature_names=full
    ).to_df()
    answers[name] = {c: [plain(v) for v in table[c]] for c in table if "timestamp" not in c}
with open(request["answers"], "w") as file:
    json.dump(answers, file)
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    root = tmp_path_factory.mktemp("on_demand")
    repository = TinyRepository.make(root / "repository")
    version = repository.save_encoder()
    repository.apply_space(1, version)
    raw = raw_rows(USERS, PRESENT)
    repository.write_raw(raw, offline=True)
    expected = encode(as_batch(raw), version, repository.settings.artifacts_url)
    elsewhere = root / "elsewhere"
    elsewhere.mkdir()
    request = {
        "repository": str(repository.path),
        "users": USERS,
        "features": [f"{VIEW}:{name}" for name in FEATURES],
        "answers": str(root / "answers.json"),
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _FRESH, json.dumps(request)],
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": python_path(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads((root / "answers.json").read_text())
    return Served(repository, version, raw, expected, answers)


def _read(served: Served, features: Any, *, full: bool = False) -> dict[str, list[Any]]:
    rows = [{USER_KEY: user} for user in USERS]
    return served.repository.store.get_online_features(
        features=features, entity_rows=rows, full_feature_names=full
    ).to_dict()


# --- what we promise


@pytest.mark.parametrize("kind", ["online", "historical"])
@pytest.mark.parametrize(("names", "prefix"), [("short", ""), ("full", f"{VIEW}__")])
def test_a_fresh_process_elsewhere_encodes_as_the_batch_job(
    served: Served, kind: str, names: str, prefix: str
) -> None:
    answer = served.answers[f"{kind}_{names}"]
    order = [answer[USER_KEY].index(user) for user in USERS]  # historical rows come in any order
    got = {name: [answer[prefix + name][row] for row in order] for name in FEATURES}
    np.testing.assert_allclose(got["embedding"], served.expected.embedding, rtol=0, atol=1e-6)
    assert got["as_of"] == served.expected.as_of.tolist()
    assert got["n_events"] == served.expected.n_events.tolist()
    assert got["status"] == ["warm", "warm", "warm", "onboarded", "cold", "cold"]
    assert got["space"] == [1] * len(USERS)
    assert got["encoder_version"] == [served.encoder_version] * len(USERS)


def test_an_unknown_user_gets_the_cold_start_embedding(served: Served) -> None:
    nobody = raw_rows([0], {ACTIVITY: [False], PROFILE: [False], ONBOARDING: [False]})
    url = served.repository.settings.artifacts_url
    cold = encode(as_batch(nobody), served.encoder_version, url)
    answer = served.answers["online_short"]
    assert answer["status"][5] == "cold"
    assert answer["as_of"][5] == 0
    np.testing.assert_allclose(answer["embedding"][5], cold.embedding[0], rtol=0, atol=1e-6)


def test_another_encoder_version_is_seen_by_apply_and_served(served: Served) -> None:
    repository = served.repository
    other = repository.save_encoder(seed=1)
    assert other != served.encoder_version
    for version in (served.encoder_version, other):
        repository.apply_space(2, version)
        applied = repository.store.get_on_demand_feature_view(on_demand_view(2))
        assert version in applied.feature_transformation.udf_string
        answer = _read(
            served, [f"{on_demand_view(2)}:embedding", f"{on_demand_view(2)}:encoder_version"]
        )
        assert answer["encoder_version"] == [version] * len(USERS)
    expected = encode(as_batch(served.raw), other, repository.settings.artifacts_url)
    np.testing.assert_allclose(answer["embedding"], expected.embedding, rtol=0, atol=1e-6)
    assert not np.allclose(expected.embedding, served.expected.embedding)


def test_applying_needs_no_artifact_and_serving_without_one_is_an_error(served: Served) -> None:
    nowhere = str(served.repository.path / "nowhere")
    served.repository.apply_space(3, "0" * 12, artifacts=nowhere)
    with pytest.raises(ArtifactError, match=r"Unknown encoder version '000000000000'"):
        _read(served, [f"{on_demand_view(3)}:embedding"])


def test_a_row_that_does_not_fit_names_its_user(
    served: Served, tmp_path_factory: pytest.TempPathFactory
) -> None:
    repository = TinyRepository.make(tmp_path_factory.mktemp("malformed"))
    repository.apply_space(1, repository.save_encoder())
    raw = raw_rows([7, 8])
    name = f"{ACTIVITY}__{field(ACTIVITY, 'pooled')}"
    wrong = pa.array([raw.column(name)[0].as_py(), [1.0, 2.0]], pa.list_(pa.float32()))
    repository.write_raw(raw.set_column(raw.column_names.index(name), name, wrong))
    with pytest.raises(MalformedInput, match=r"2 values were given, an array of 4") as caught:
        repository.store.get_online_features(
            features=[f"{VIEW}:embedding"], entity_rows=[{USER_KEY: 7}, {USER_KEY: 8}]
        )
    assert (caught.value.row, caught.value.column) == (1, name)
    assert caught.value.user == "8"


# --- what Feast does, pinned: each of these decided something in transforms/


def _view(name: str, transformation: PythonTransformation, served: Served) -> OnDemandFeatureView:
    return OnDemandFeatureView(
        name=name,
        sources=list(served.repository.raw_views),
        schema=[Field(name="newest", dtype=Int64)],
        feature_transformation=transformation,
        udf=transformation.udf,
        udf_string=transformation.udf_string,
        mode="python",
    )


_SHORT_KEYS = f"""\
def short_keys(inputs):
    return {{"newest": inputs["{ACTIVITY}__{field(ACTIVITY, "as_of")}"]}}
"""


def test_feast_drops_a_feature_that_is_only_under_its_short_name(served: Served) -> None:
    """Why ``encode_on_demand`` answers every feature under two names."""
    scope: dict[str, Any] = {}
    exec(_SHORT_KEYS, scope)  # noqa: S102  as Feast does
    transformation = PythonTransformation(scope["short_keys"], _SHORT_KEYS)
    served.repository.store.apply([_view("short_keys", transformation, served)])
    assert "newest" in _read(served, ["short_keys:newest"])
    assert set(_read(served, ["short_keys:newest"], full=True)) == {USER_KEY}


def test_feast_drops_an_aliased_on_demand_feature(served: Served) -> None:
    """Why only stored views are aliased (ARCHITECTURE, decision 1)."""
    store = served.repository.store
    view = store.get_on_demand_feature_view(VIEW).with_name("alias")
    service = FeatureService(name="aliased", features=[view])
    store.apply([service])
    assert set(FEATURES) < set(_read(served, service))
    assert set(_read(served, service, full=True)) == {USER_KEY}


def test_feast_rebuilds_a_function_without_its_module(served: Served) -> None:
    """Why the body imports inside: a module-level name is gone after the registry."""
    source = "def uses_global(inputs):\n    return {'newest': [OFFSET for _ in inputs]}\n"
    scope: dict[str, Any] = {"OFFSET": 7}
    exec(source, scope)  # noqa: S102  as Feast does
    view = _view("uses_global", PythonTransformation(scope["uses_global"], source), served)
    assert view.feature_transformation.udf({"a": [1]}) == {"newest": [7]}
    rebuilt = OnDemandFeatureView.from_proto(view.to_proto())
    with pytest.raises(NameError, match="OFFSET"):
        rebuilt.feature_transformation.udf({"a": [1]})


def test_feast_compares_functions_by_their_text(served: Served) -> None:
    """Why the text names the encoder version."""

    def closure(value: int) -> PythonTransformation:
        def body(inputs: dict[str, Any]) -> dict[str, Any]:
            return {"newest": [value for _ in inputs]}

        return PythonTransformation(body, "def body(inputs): ...")

    assert closure(1) == closure(2)


def test_feast_runs_a_stock_transformation_when_applying(served: Served) -> None:
    """Why the transformation answers ``infer_features`` itself."""
    seen: list[dict[str, Any]] = []
    source = "def sees(inputs):\n    return {'newest': [0]}\n"

    def sees(inputs: dict[str, Any]) -> dict[str, Any]:
        seen.append(inputs)
        return {"newest": [0]}

    _view("sees", PythonTransformation(sees, source), served).infer_features()
    invented = seen[0][f"{ACTIVITY}__{field(ACTIVITY, 'pooled')}"]
    assert len(invented) == 1  # one row
    assert len(invented[0]) == 1  # of one invented element, whatever the width
    # The short name is there too, so two views' equal field names would overwrite each other.
    assert field(ACTIVITY, "pooled") in seen[0]


def test_fields_of_different_raw_views_never_share_a_short_name(served: Served) -> None:
    names = [f.name for view in served.repository.raw_views for f in view.features]
    assert len(names) == len(set(names)) > 3
    assert {Array(Float32)} < {f.dtype for v in served.repository.raw_views for f in v.features}
