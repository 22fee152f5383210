"""The one encode function: what it returns, what it keeps in memory, what it does without."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

from encoder.artifact import EncoderArtifact
from encoder.errors import ArtifactError, MalformedInput, SpaceMismatch
from encoder.store import ArtifactStore
from tests.encoders import SCHEMA, tiny_artifact
from tests.repositories import as_batch, raw_rows
from tests.strategies import batches, random_batch, take, to_table
from transforms.layout import ACTIVITY, ONBOARDING, PROFILE, column
from transforms.runtime import encode, encode_on_demand, load_encoder

ROOT = Path(__file__).parents[3]


class _SlowFileSystem(MemoryFileSystem):
    """An object store: it counts the reads of manifests, and answers after a moment."""

    protocol = "slow"
    store: dict[str, Any] = {}  # noqa: RUF012  fsspec keeps a memory file system's files in the class
    pseudo_dirs: list[str] = [""]  # noqa: RUF012
    reads: list[str] = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        stripped: str = super()._strip_protocol(path.removeprefix("slow:"))
        return stripped

    def cat_file(self, path: str, *args: Any, **kwargs: Any) -> bytes:
        if path.endswith("manifest.json"):
            self.reads.append(path.split("/")[-2])
            time.sleep(0.02)  # lets the other threads ask meanwhile
        content: bytes = super().cat_file(path, *args, **kwargs)
        return content


@pytest.fixture(scope="module")
def artifacts() -> list[EncoderArtifact]:
    return [tiny_artifact(seed) for seed in range(5)]


@pytest.fixture(scope="module")
def artifact(artifacts: list[EncoderArtifact]) -> EncoderArtifact:
    return artifacts[0]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, artifact: EncoderArtifact) -> str:
    url = str(tmp_path_factory.mktemp("encoders"))
    ArtifactStore(url).save(artifact)
    return url


@pytest.fixture
def slow(artifacts: list[EncoderArtifact]) -> Iterator[str]:
    """The URL of a store of five encoders whose reads are counted."""
    fsspec.register_implementation("slow", _SlowFileSystem, clobber=True)
    url = f"slow://{uuid.uuid4().hex}"
    for one in artifacts:
        ArtifactStore(url).save(one)
    _SlowFileSystem.reads.clear()
    yield url
    _SlowFileSystem.store.clear()


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


# --- encoders in memory


def test_eight_threads_load_an_encoder_once(slow: str, artifacts: list[EncoderArtifact]) -> None:
    version = artifacts[0].encoder_version
    start = threading.Barrier(8)

    def ask(_: int) -> EncoderArtifact:
        start.wait()
        return load_encoder(slow, version)

    with ThreadPoolExecutor(8) as pool:
        loaded = list(pool.map(ask, range(8)))
    assert _SlowFileSystem.reads == [version]
    assert all(one is loaded[0] for one in loaded)


def test_eight_threads_that_encode_get_the_same_numbers(
    slow: str, artifacts: list[EncoderArtifact]
) -> None:
    batch = random_batch(SCHEMA, 20)
    # Three encoders fit into memory: each is read once, whoever comes first.
    versions = [artifacts[k % 3].encoder_version for k in range(24)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda v: encode(batch, v, slow).embedding, versions))
    for k, embedding in enumerate(found):
        assert np.array_equal(embedding, artifacts[k % 3].encode(batch))
    assert sorted(_SlowFileSystem.reads) == sorted(set(versions))


def test_the_four_encoders_used_last_are_kept(slow: str, artifacts: list[EncoderArtifact]) -> None:
    versions = [one.encoder_version for one in artifacts]
    for version in versions[:4]:
        load_encoder(slow, version)
    load_encoder(slow, versions[0])  # now the second is the one not used for longest
    load_encoder(slow, versions[4])
    assert _SlowFileSystem.reads == versions
    for version in (versions[0], versions[2], versions[3], versions[4]):
        load_encoder(slow, version)
    assert _SlowFileSystem.reads == versions
    load_encoder(slow, versions[1])
    assert _SlowFileSystem.reads == [*versions, versions[1]]


def test_an_encoder_that_failed_to_load_is_asked_for_again(
    tmp_path: Path, artifact: EncoderArtifact
) -> None:
    version = artifact.encoder_version
    with pytest.raises(ArtifactError, match=f"Unknown encoder version '{version}'. Stored: none"):
        load_encoder(str(tmp_path), version)
    ArtifactStore(str(tmp_path)).save(artifact)
    assert load_encoder(str(tmp_path), version).encoder_version == version


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
