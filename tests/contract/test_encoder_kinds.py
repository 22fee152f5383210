"""All kinds of encoders answer alike on every online store: on demand, stored, past, at fault."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from encoder.artifact import EncoderArtifact
from encoder.columns import raw_batch
from encoder.errors import MalformedInput
from encoder.manifest import AUTOENCODER, CLUE, HYBRID
from encoder.store import ArtifactStore
from materialize.embedding_rows import encode_rows
from tests.encoders import CLUE_SCHEMA, TEXT_LAYOUT, tiny
from tests.repositories import TinyRepository, raw_rows, write_online
from tests.stores import PROFILES
from tests.strategies import random_batch, to_table
from transforms.layout import ACTIVITY, ONBOARDING, PROFILE, TEXTS, column
from transforms.names import USER_KEY, on_demand_view, stored_view
from transforms.runtime import configure

SPACES = {AUTOENCODER: 1, CLUE: 2, HYBRID: 3}
FEATURES = ("embedding", "as_of", "space", "encoder_version", "status", "n_events")
USERS = [1, 2, 3, 4]
"""Everything; events alone; picks alone; nobody."""
PRESENT = {
    ACTIVITY: [True, True, False, False],
    TEXTS: [True, True, False, False],
    PROFILE: [True, False, False, False],
    ONBOARDING: [True, False, True, False],
}
BAD = 71
"""A user with a negative count and a token id that no encoder knows."""


@dataclass(frozen=True)
class Served:
    """A repository with a space of each kind."""

    repository: TinyRepository
    artifacts: dict[str, EncoderArtifact]
    raw: pa.Table

    def read(self, kind: str, users: list[int], **options: Any) -> dict[str, list[Any]]:
        view = on_demand_view(SPACES[kind])
        answer: dict[str, list[Any]] = self.repository.store.get_online_features(
            features=[f"{view}:{name}" for name in FEATURES],
            entity_rows=[{USER_KEY: user} for user in users],
            **options,
        ).to_dict()
        return answer

    def encoded(self, kind: str, rows: pa.Table) -> Any:
        artifact = self.artifacts[kind]
        return artifact.encode(raw_batch(rows, artifact.preprocessor.schema))


def _rows(users: list[int], present: dict[str, list[bool]]) -> pa.Table:
    """Return raw rows of all views, texts among them."""
    table = raw_rows(users, present)
    texts = random_batch(CLUE_SCHEMA, len(users), seed=1, present=1.1)
    texts.columns[column(TEXTS, "count")].values[:] = 3  # whole, so that who has texts is warm
    for raw in texts.columns.values():
        raw.valid[:] = present[TEXTS]
    for name, values in zip(to_table(texts).column_names, to_table(texts).columns, strict=True):
        table = table if name == USER_KEY else table.append_column(name, values)
    return table


@pytest.fixture(
    scope="module", params=["stock-sqlite", "palate-sqlite", "palate-redis", "palate-postgres"]
)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    profile = PROFILES[request.param]
    server = request.getfixturevalue(profile.server) if profile.server else None
    root = tmp_path_factory.mktemp("kinds")
    online = profile.settings(server, str(root))
    repository = TinyRepository.make(root / "repository", layout=TEXT_LAYOUT, online=online)
    artifacts = {kind: tiny(kind) for kind in SPACES}
    for kind, artifact in artifacts.items():
        ArtifactStore(repository.settings.artifacts_url).save(artifact)
        repository.apply_space(SPACES[kind], artifact.encoder_version)
    raw = _rows(USERS, PRESENT)
    repository.write_raw(raw, offline=True)
    bad = _rows([BAD], {view: [True] for view in PRESENT})
    for name, element in (
        (column(ACTIVITY, "counts"), -1.0),
        (column(TEXTS, "tokens"), 1_000_000),
    ):
        values = bad[name].to_pylist()
        values[0] = [*values[0][:-1], element] if values[0] else [element]
        at = bad.column_names.index(name)
        bad = bad.set_column(at, name, pa.array(values, bad[name].type))
    repository.write_raw(bad)
    return Served(repository, artifacts, raw)


@pytest.fixture(params=sorted(SPACES))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def per_row() -> Iterator[None]:
    configure(on_error="row")
    yield
    configure()


def test_every_kind_of_user_gets_what_the_encoder_gives(served: Served, kind: str) -> None:
    artifact = served.artifacts[kind]
    answer = served.read(kind, USERS)
    vectors = np.array(answer["embedding"], np.float32)
    np.testing.assert_allclose(vectors, served.encoded(kind, served.raw), rtol=0, atol=1e-6)
    summary = artifact.preprocessor.summary(raw_batch(served.raw, artifact.preprocessor.schema))
    assert answer["status"] == summary.status.tolist()
    assert answer["as_of"] == summary.as_of.tolist()
    assert answer["n_events"] == summary.n_events.tolist()
    assert set(answer["space"]) == {SPACES[kind]}
    assert set(answer["encoder_version"]) == {artifact.encoder_version}
    assert (answer["status"][0], answer["status"][3]) == ("warm", "cold")


def test_a_user_alone_gets_the_same_as_in_company(served: Served, kind: str) -> None:
    together = np.array(served.read(kind, USERS)["embedding"])
    for row, user in enumerate(USERS):
        (alone,) = served.read(kind, [user])["embedding"]
        np.testing.assert_allclose(alone, together[row], rtol=0, atol=1e-6)


def test_stored_rows_are_the_same_vectors(served: Served, kind: str) -> None:
    artifact, repository = served.artifacts[kind], served.repository
    number, url = SPACES[kind], repository.settings.artifacts_url
    space = repository.apply_space(number, artifact.encoder_version)
    batch = served.raw.combine_chunks().to_batches()[0].slice(0, 2)
    write_online(repository.store, stored_view(number), [encode_rows(batch, space, url)])
    answer = repository.store.get_online_features(
        features=[f"{stored_view(number)}:embedding"],
        entity_rows=[{USER_KEY: user} for user in USERS[:2]],
    ).to_dict()
    on_demand = served.read(kind, USERS[:2])["embedding"]
    np.testing.assert_allclose(answer["embedding"], on_demand, rtol=0, atol=1e-6)


def test_the_past_is_encoded_as_it_was_known(served: Served, kind: str) -> None:
    view = on_demand_view(SPACES[kind])
    late = pd.Timestamp("2100-01-01", tz="UTC")
    answer = served.repository.store.get_historical_features(
        entity_df=pd.DataFrame({USER_KEY: USERS, "event_timestamp": late}),
        features=[f"{view}:embedding", f"{view}:status"],
    ).to_df()
    answer = answer.set_index(USER_KEY).loc[USERS]
    now = served.read(kind, USERS)
    np.testing.assert_allclose(np.stack(answer["embedding"]), now["embedding"], rtol=0, atol=1e-6)
    assert answer["status"].tolist() == now["status"]


def test_a_malformed_row_raises_and_names_the_user(served: Served, kind: str) -> None:
    with pytest.raises(MalformedInput, match=str(BAD)):
        served.read(kind, [1, BAD])


@pytest.mark.usefixtures("per_row")
def test_a_malformed_row_is_an_answer_where_the_process_says_so(served: Served, kind: str) -> None:
    answer = served.read(kind, [1, BAD, 4])
    assert answer["status"][1] == "error"
    assert answer["embedding"][1] is None
    expected = served.encoded(kind, served.raw)
    np.testing.assert_allclose(answer["embedding"][0], expected[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(answer["embedding"][2], expected[3], rtol=0, atol=1e-6)
