"""Encoders in memory: loaded once, kept while used, and no thread waits for another's encoder."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from encoder.artifact import EncoderArtifact
from encoder.errors import ArtifactError
from encoder.store import ArtifactStore
from tests.encoders import SCHEMA, tiny_artifact
from tests.strategies import random_batch
from transforms.runtime import configure, encode, load_encoder

_WAIT = 30.0


class _SlowFileSystem(MemoryFileSystem):
    """An object store: it counts the reads of manifests, and answers after a moment."""

    protocol = "slow"
    store: dict[str, Any] = {}  # noqa: RUF012  fsspec keeps a memory file system's files in the class
    pseudo_dirs: list[str] = [""]  # noqa: RUF012
    reads: list[str] = []  # noqa: RUF012
    held: dict[str, threading.Event] = {}  # noqa: RUF012
    """Version -> what its read waits for."""

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        stripped: str = super()._strip_protocol(path.removeprefix("slow:"))
        return stripped

    def cat_file(self, path: str, *args: Any, **kwargs: Any) -> bytes:
        if path.endswith("manifest.json"):
            version = path.split("/")[-2]
            self.reads.append(version)
            time.sleep(0.02)  # lets the other threads ask meanwhile
            if version in self.held:
                assert self.held[version].wait(_WAIT)
        content: bytes = super().cat_file(path, *args, **kwargs)
        return content


@pytest.fixture(scope="module")
def artifacts() -> list[EncoderArtifact]:
    return [tiny_artifact(seed) for seed in range(5)]


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
    _SlowFileSystem.held.clear()
    configure()


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
    tmp_path: Path, artifacts: list[EncoderArtifact]
) -> None:
    version = artifacts[0].encoder_version
    with pytest.raises(ArtifactError, match=f"Unknown encoder version '{version}'. Stored: none"):
        load_encoder(str(tmp_path), version)
    ArtifactStore(str(tmp_path)).save(artifacts[0])
    assert load_encoder(str(tmp_path), version).encoder_version == version


def test_a_loaded_encoder_and_another_one_do_not_wait_for_one_that_loads(
    slow: str, artifacts: list[EncoderArtifact]
) -> None:
    loaded, held, other = (one.encoder_version for one in artifacts[:3])
    load_encoder(slow, loaded)
    gate = _SlowFileSystem.held[held] = threading.Event()
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(load_encoder, slow, held) for _ in range(2)]
        try:
            while held not in _SlowFileSystem.reads:
                time.sleep(0.001)
            assert load_encoder(slow, loaded).encoder_version == loaded
            assert pool.submit(load_encoder, slow, other).result(_WAIT).encoder_version == other
            assert not any(one.done() for one in waiting)
        finally:
            gate.set()
        assert waiting[0].result(_WAIT) is waiting[1].result(_WAIT)
    assert sorted(_SlowFileSystem.reads) == sorted([loaded, held, other])


def test_threads_that_wait_for_a_load_that_fails_get_its_error(slow: str) -> None:
    start = threading.Barrier(4)

    def ask(_: int) -> str:
        start.wait()
        with pytest.raises(ArtifactError) as caught:
            load_encoder(slow, "0" * 12)
        return str(caught.value)

    with ThreadPoolExecutor(4) as pool:
        messages = set(pool.map(ask, range(4)))
    assert len(messages) == 1
    assert "Unknown encoder version" in messages.pop()


def test_as_many_encoders_are_kept_as_configured(
    slow: str, artifacts: list[EncoderArtifact]
) -> None:
    configure(keep=1)
    versions = [one.encoder_version for one in artifacts[:2]]
    for version in (*versions, *versions):
        load_encoder(slow, version)
    assert _SlowFileSystem.reads == [*versions, *versions]
    configure(keep=2)
    _SlowFileSystem.reads.clear()
    for version in (*versions, *versions):
        load_encoder(slow, version)
    assert _SlowFileSystem.reads == versions[:1]


def test_an_encoder_that_is_dropped_while_it_encodes_finishes(
    slow: str, artifacts: list[EncoderArtifact]
) -> None:
    configure(keep=1)
    batch = random_batch(SCHEMA, 30)
    expected = {one.encoder_version: one.encode(batch) for one in artifacts[:3]}

    rounds, together = 5, threading.Barrier(3)

    def work(version: str) -> bool:
        same = []
        for _ in range(rounds):
            together.wait(_WAIT)  # all three ask for one place
            same.append(np.array_equal(encode(batch, version, slow).embedding, expected[version]))
        return all(same)

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(work, expected))
    # At most one of them is there when a round begins.
    assert len(_SlowFileSystem.reads) >= 3 + 2 * (rounds - 1)
