"""What an on-demand view answers through Feast: cold start, context of the request, rows at fault.

On the stock SQLite store and on Palate's Redis store, which answers without Feast's conversions.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pytest
from feast.errors import (
    RequestDataNotFoundInEntityDfException,
    RequestDataNotFoundInEntityRowsException,
)

from encoder.artifact import EncoderArtifact
from encoder.columns import RawBatch
from encoder.errors import ArtifactError, MalformedInput
from encoder.store import ArtifactStore
from tests.encoders import tiny_artifact
from tests.repositories import TinyRepository, as_batch, raw_rows
from tests.startup import python_path
from tests.stores import PROFILES
from transforms.layout import ACTIVITY, ONBOARDING, PROFILE, Modality, RawLayout, column
from transforms.names import USER_KEY, on_demand_view
from transforms.on_demand import OnDemandSpec, spec_of
from transforms.runtime import configure, prewarm

LAYOUT = RawLayout(
    (Modality("collaborative", 4, 3),),
    (7,),
    context=("country", "device"),
    categories=("gender",),
    onboarding=True,
)
SCHEMA = LAYOUT.schema("0123456789ab")
CONTEXT = column(ACTIVITY, "context")
PLAIN, ASKING = on_demand_view(1), on_demand_view(2)
FEATURES = ("embedding", "as_of", "space", "encoder_version", "status", "n_events")

USERS = [1, 2, 3, 4, 5, 6]
"""Everything; activity alone; picks and profile; picks alone; profile alone; nobody."""
PRESENT = {
    ACTIVITY: [True, True, False, False, False, False],
    PROFILE: [True, False, True, False, True, False],
    ONBOARDING: [True, False, True, True, False, False],
}
STATUS = ["warm", "warm", "onboarded", "onboarded", "cold", "cold"]


@dataclass(frozen=True)
class Served:
    """A repository whose view 2 asks for the device, and view 1 for nothing."""

    repository: TinyRepository
    artifact: EncoderArtifact
    raw: pa.Table

    def read(
        self,
        view: str,
        users: Sequence[int] = USERS,
        names: Sequence[str] = FEATURES,
        *,
        full: bool = False,
        **request: Sequence[Any],
    ) -> dict[str, list[Any]]:
        return self.repository.store.get_online_features(
            features=[f"{view}:{name}" for name in names],
            entity_rows={USER_KEY: list(users), **{k: list(v) for k, v in request.items()}},
            full_feature_names=full,
        ).to_dict()


@pytest.fixture(scope="module", params=["stock-sqlite", "palate-sqlite", "palate-redis"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    profile = PROFILES[request.param]
    server = request.getfixturevalue(profile.server) if profile.server else None
    root = tmp_path_factory.mktemp("answers")
    online = profile.settings(server, str(root))
    repository = TinyRepository.make(root / "repository", layout=LAYOUT, online=online)
    version = repository.save_encoder()
    repository.apply_space(1, version)
    repository.apply_space(2, version, request_context=["device"])
    raw = raw_rows(USERS, PRESENT, schema=SCHEMA)
    repository.write_raw(raw, offline=True)
    artifact = ArtifactStore(repository.settings.artifacts_url).load(version)
    return Served(repository, artifact, raw)


@pytest.fixture
def per_row() -> Iterator[None]:
    configure(on_error="row")
    yield
    configure()


def _vectors(answer: dict[str, list[Any]]) -> npt.NDArray[np.float32]:
    return np.array(answer["embedding"], np.float32)


# --- cold start


def test_every_kind_of_user_gets_what_the_encoder_gives_for_exactly_these_inputs(
    served: Served,
) -> None:
    batch = as_batch(served.raw, SCHEMA)
    answer = served.read(PLAIN)
    assert np.abs(_vectors(answer) - served.artifact.encode(batch)).max() == 0.0
    assert answer["status"] == STATUS
    summary = served.artifact.preprocessor.summary(batch)
    assert answer["as_of"] == summary.as_of.tolist()
    assert answer["n_events"] == summary.n_events.tolist()
    assert answer["as_of"][5] == answer["n_events"][5] == 0
    assert len(np.unique(_vectors(answer), axis=0)) == len(USERS)


@pytest.mark.parametrize("row", range(len(USERS)))
def test_a_user_alone_gets_the_same_as_in_company(served: Served, row: int) -> None:
    alone = as_batch(served.raw.slice(row, 1), SCHEMA)
    answer = served.read(PLAIN, [USERS[row]])
    assert np.abs(_vectors(answer) - served.artifact.encode(alone)).max() == 0.0
    assert answer["status"] == [STATUS[row]]


def test_all_unknown_users_are_the_same_cold_user(served: Served) -> None:
    answer = served.read(PLAIN, [1001, 1002, 1003])
    assert len(np.unique(_vectors(answer), axis=0)) == 1
    assert answer["status"] == ["cold"] * 3
    assert np.isfinite(_vectors(answer)).all()


# --- what the request knows


def _with_device(served: Served, devices: Sequence[str | None]) -> RawBatch:
    """Return the raw batch as it were if the given devices were stored."""
    batch = as_batch(served.raw, SCHEMA)
    found = batch.columns[CONTEXT]
    for row, device in enumerate(devices):
        if device:
            found.values[row, 1] = device
            found.valid[row] = True
    return batch


DEVICES = ["a", None, "b", "", "never seen", "c"]


def test_a_given_circumstance_replaces_the_stored_one(served: Served) -> None:
    expected = served.artifact.encode(_with_device(served, DEVICES))
    answer = served.read(ASKING, device=DEVICES)
    assert np.abs(_vectors(answer) - expected).max() == 0.0
    assert answer["status"] == STATUS
    assert "device" not in answer
    without = _vectors(served.read(PLAIN))
    same = (expected == without).all(axis=1).tolist()
    # An unknown one stays as it is stored; one may happen to be given as it is stored.
    assert same[1] is same[3] is True
    assert same[2] is same[4] is same[5] is False


def test_a_request_that_knows_nothing_changes_nothing(served: Served) -> None:
    answer = served.read(ASKING, device=[None] * len(USERS))
    assert np.array_equal(_vectors(answer), _vectors(served.read(PLAIN)))


def test_what_is_known_at_a_past_moment_is_a_column_of_the_entity_rows(served: Served) -> None:
    entities = pd.DataFrame(
        {USER_KEY: USERS, "event_timestamp": datetime.now(timezone.utc), "device": DEVICES}
    )
    table = served.repository.store.get_historical_features(
        entity_df=entities, features=[f"{ASKING}:embedding", f"{ASKING}:status"]
    ).to_df()
    table = table.set_index(USER_KEY).loc[USERS]
    expected = served.artifact.encode(_with_device(served, DEVICES))
    got = np.array(table["embedding"].tolist(), np.float32)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)
    assert table["status"].tolist() == STATUS


def test_a_request_without_the_field_is_told_which_one_is_missing(served: Served) -> None:
    with pytest.raises(RequestDataNotFoundInEntityRowsException, match="'device'"):
        served.read(ASKING)
    entities = pd.DataFrame({USER_KEY: [1], "event_timestamp": [datetime.now(timezone.utc)]})
    with pytest.raises(RequestDataNotFoundInEntityDfException, match="device"):
        served.repository.store.get_historical_features(
            entity_df=entities, features=[f"{ASKING}:embedding"]
        )


def test_a_circumstance_of_another_type_names_the_user(served: Served) -> None:
    with pytest.raises(MalformedInput, match="User 2, column 'device': 7 was given") as caught:
        served.read(ASKING, [1, 2], device=[None, 7])
    assert (caught.value.user, caught.value.column) == ("2", "device")


def test_applying_again_without_the_opt_in_changes_nothing(served: Served) -> None:
    store, url = served.repository.store, served.repository.settings.artifacts_url
    applied = store.get_on_demand_feature_view(PLAIN)
    assert spec_of(applied) == OnDemandSpec(PLAIN, 1, served.artifact.encoder_version, url)
    assert applied.get_request_data_schema() == {}
    asking = store.get_on_demand_feature_view(ASKING)
    version = served.artifact.encoder_version
    assert spec_of(asking) == OnDemandSpec(ASKING, 2, version, url, ("device",))


# --- rows at fault


@pytest.fixture(scope="module")
def faulty(served: Served) -> Served:
    """The same repository with two users more, whose stored rows do not fit."""
    raw = raw_rows([71, 72], schema=SCHEMA)
    pooled, negative = column(ACTIVITY, "pooled"), column(ACTIVITY, "counts")
    columns = raw.to_pydict()
    columns[pooled][0] = [1.0, 2.0]
    columns[negative][1][0] = -1.0
    served.repository.write_raw(pa.table(columns, raw.schema))
    return served


def test_a_faulty_row_fails_the_request_by_default(faulty: Served) -> None:
    with pytest.raises(MalformedInput, match="2 values were given, an array of 4") as caught:
        faulty.read(PLAIN, [1, 71, 2])
    assert (caught.value.user, caught.value.row) == ("71", 1)
    with pytest.raises(MalformedInput, match="a negative value") as caught:
        faulty.read(PLAIN, [1, 72, 2])
    assert (caught.value.user, caught.value.row) == ("72", 1)


@pytest.mark.parametrize(("full", "prefix"), [(False, ""), (True, f"{PLAIN}__")])
def test_a_faulty_row_leaves_the_others_alone_when_asked(
    faulty: Served, per_row: None, full: bool, prefix: str
) -> None:
    answer = faulty.read(PLAIN, [1, 71, 2, 72, 6], full=full)
    assert answer[f"{prefix}status"] == ["warm", "error", "warm", "error", "cold"]
    vectors = answer[f"{prefix}embedding"]
    assert vectors[1] is None
    assert vectors[3] is None
    expected = faulty.artifact.encode(as_batch(faulty.raw, SCHEMA))
    good = np.array([vectors[row] for row in (0, 2, 4)], np.float32)
    np.testing.assert_allclose(good, expected[[0, 1, 5]], rtol=0, atol=1e-6)
    assert answer[f"{prefix}as_of"][1] == answer[f"{prefix}n_events"][3] == 0


def test_only_faulty_rows_are_an_answer_too(faulty: Served, per_row: None) -> None:
    answer = faulty.read(PLAIN, [71, 72])
    assert answer["embedding"] == [None, None]
    assert answer["status"] == ["error", "error"]


# --- warm before the first request


def test_prewarming_loads_what_the_registry_names(served: Served) -> None:
    store = served.repository.store
    assert set(prewarm(store)) == {PLAIN, ASKING}
    assert list(prewarm(store, [PLAIN])) == [PLAIN]
    with pytest.raises(ValueError, match=rf"'nothing' given; .* registry: {PLAIN}, {ASKING}"):
        prewarm(store, ["nothing"])


def test_a_space_that_cannot_be_warmed_does_not_keep_the_others_cold(
    served: Served, tmp_path: Path
) -> None:
    repository, nowhere, elsewhere = served.repository, tmp_path / "nowhere", tmp_path / "elsewhere"
    other = tiny_artifact(7, LAYOUT)
    ArtifactStore(str(elsewhere)).save(other)
    repository.apply_space(3, "0" * 12, artifacts=str(nowhere))
    repository.apply_space(4, other.encoder_version, artifacts=str(elsewhere))
    try:
        with pytest.raises(ArtifactError, match="Unknown encoder version '000000000000'"):
            prewarm(repository.store, [on_demand_view(3), on_demand_view(4)])
        shutil.rmtree(elsewhere)
        answer = served.read(on_demand_view(4))  # so it is in memory
        assert np.array_equal(_vectors(answer), other.encode(as_batch(served.raw, SCHEMA)))
    finally:
        for number in (3, 4):
            repository.store.delete_feature_view(on_demand_view(number))


_WITHOUT_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ImportError("torch is not installed here")

sys.meta_path.insert(0, Refuse())
from feast import FeatureStore
from transforms.runtime import prewarm

store = FeatureStore(repo_path=sys.argv[1])
prewarm(store, freeze=True)
answer = store.get_online_features(
    features=[f"{sys.argv[2]}:embedding", f"{sys.argv[2]}:status"], entity_rows=[{"user_id": 1}]
).to_dict()
assert answer["status"] == ["warm"], answer
assert "torch" not in sys.modules
"""


def test_a_serving_process_works_where_torch_is_not_installed(
    served: Served, tmp_path: Path
) -> None:
    """Feast itself imports torch where it finds it, so that it is kept from finding it."""
    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-c", _WITHOUT_TORCH),
            *(str(served.repository.path), PLAIN),
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": python_path(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
