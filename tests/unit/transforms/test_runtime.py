"""The one encode function: what it returns, what it keeps in memory, what it does without."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoder.artifact import EncoderArtifact
from encoder.errors import MalformedInput, SpaceMismatch
from encoder.store import ArtifactStore
from tests.encoders import SCHEMA, tiny_artifact
from tests.repositories import as_batch, raw_rows
from tests.strategies import batches, random_batch, take, to_table
from transforms.layout import ACTIVITY, ONBOARDING, PROFILE, column
from transforms.runtime import encode, encode_on_demand

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def artifact() -> EncoderArtifact:
    return tiny_artifact(0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, artifact: EncoderArtifact) -> str:
    url = str(tmp_path_factory.mktemp("encoders"))
    ArtifactStore(url).save(artifact)
    return url


# --- numbers


@given(st.data())
def test_encoding_all_equals_encoding_parts(
    store: str, artifact: EncoderArtifact, data: st.DataObject
) -> None:
    """encode(all) == concat(encode(parts)), every field of it."""
    batch = data.draw(batches(SCHEMA, min_rows=2))
    cut = data.draw(st.integers(1, batch.n_rows - 1))
    whole = encode(batch, artifact.encoder_version, store)
    parts = [
        encode(take(batch, part), artifact.encoder_version, store)
        for part in (slice(cut), slice(cut, None))
    ]
    joined = np.concatenate([p.embedding for p in parts])
    np.testing.assert_allclose(joined, whole.embedding, rtol=1e-6, atol=1e-6)
    for name in ("as_of", "n_events", "status"):
        together = np.concatenate([getattr(p, name) for p in parts])
        assert together.tolist() == getattr(whole, name).tolist()


def test_types_shapes_and_status(store: str, artifact: EncoderArtifact) -> None:
    present = {
        ACTIVITY: [True, False, False, False],
        PROFILE: [True, True, True, False],
        ONBOARDING: [True, True, False, False],
    }
    table = raw_rows([1, 2, 3, 4], present)
    encoded = encode(as_batch(table), artifact.encoder_version, store)
    assert encoded.embedding.shape == (4, artifact.manifest.embedding_dim)
    assert encoded.embedding.dtype == np.float32
    assert encoded.as_of.dtype == encoded.n_events.dtype == np.int64
    assert encoded.status.tolist() == ["warm", "onboarded", "cold", "cold"]
    moments = zip(*(table.column(name).to_pylist() for name in SCHEMA.as_of_columns), strict=True)
    newest = [max((m for m in row if m is not None), default=0) for row in moments]
    assert encoded.as_of.tolist() == newest
    counts = table.column(column(ACTIVITY, "counts")).to_pylist()
    assert encoded.n_events.tolist() == [counts[0][0], 0, 0, 0]


def test_no_row_gives_no_row(store: str, artifact: EncoderArtifact) -> None:
    encoded = encode(random_batch(SCHEMA, 0), artifact.encoder_version, store)
    assert encoded.embedding.shape == (0, artifact.manifest.embedding_dim)
    assert len(encoded.as_of) == len(encoded.n_events) == len(encoded.status) == 0


def test_a_count_beyond_int64_is_cut_and_the_user_stays_warm(
    store: str, artifact: EncoderArtifact
) -> None:
    batch = as_batch(raw_rows([1]))
    batch.columns[column(ACTIVITY, "counts")].values[0, 0] = 2.0**100
    encoded = encode(batch, artifact.encoder_version, store)
    assert (encoded.n_events.tolist(), encoded.status.tolist()) == ([2**62], ["warm"])


# --- on demand


def _answer(artifact: EncoderArtifact, store: str, inputs: dict[str, Any]) -> dict[str, list[Any]]:
    return encode_on_demand(
        inputs, view="v", space=3, encoder_version=artifact.encoder_version, store=store
    )


def test_on_demand_equals_encode_under_both_names(store: str, artifact: EncoderArtifact) -> None:
    table = raw_rows([1, 2, 3], {ACTIVITY: [True, False, True]})
    expected = encode(as_batch(table), artifact.encoder_version, store)
    answer = _answer(artifact, store, table.to_pydict())
    assert np.array_equal(answer["embedding"], expected.embedding)
    assert answer["space"] == [3, 3, 3]
    assert answer["encoder_version"] == [artifact.encoder_version] * 3
    assert answer["as_of"] == expected.as_of.tolist()
    short = [name for name in answer if "__" not in name]
    assert set(answer) == {*short, *(f"v__{name}" for name in short)}
    assert all(answer[f"v__{name}"] is answer[name] for name in short)


def test_historical_retrieval_gets_each_feature_once(store: str, artifact: EncoderArtifact) -> None:
    inputs = raw_rows([1, 2]).to_pydict()
    inputs["event_timestamp"] = [datetime.now(timezone.utc)] * 2
    assert not [name for name in _answer(artifact, store, inputs) if name.startswith("v__")]


def test_faults_of_a_row_are_raised_and_not_answered(store: str, artifact: EncoderArtifact) -> None:
    inputs = raw_rows([1, 2]).to_pydict()
    nan, other = dict(inputs), dict(inputs)
    name = column(ACTIVITY, "pooled")
    nan[name] = [inputs[name][0], [float("nan")] * 4]
    with pytest.raises(MalformedInput, match="not finite") as caught:
        _answer(artifact, store, nan)
    assert (caught.value.user, caught.value.column) == ("2", name)
    other[column(ACTIVITY, "modality")] = ["f" * 12] * 2
    with pytest.raises(SpaceMismatch, match="modality version 'ffffffffffff' given"):
        _answer(artifact, store, other)


_SERVE = """
import json, sys
from transforms.runtime import encode_on_demand
inputs = json.load(open(sys.argv[1]))
answer = encode_on_demand(
    inputs, view="v", space=1, encoder_version=sys.argv[2], store=sys.argv[3]
)
print(json.dumps([row.tolist() for row in answer["embedding"]]))
for name in ("torch", "feast", "pandas", "duckdb"):
    assert name not in sys.modules, name
"""


def test_serving_loads_neither_torch_nor_feast(
    store: str, artifact: EncoderArtifact, tmp_path: Path
) -> None:

    batch = random_batch(SCHEMA, 5)
    (tmp_path / "inputs.json").write_text(json.dumps(to_table(batch).to_pydict()))
    arguments = [str(tmp_path / "inputs.json"), artifact.encoder_version, store]
    done = subprocess.run(
        [sys.executable, "-c", _SERVE, *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.float32(json.loads(done.stdout)), artifact.encode(batch))
