"""Artifacts on a local disk and behind an fsspec URL."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from encoder.artifact import EncoderArtifact
from encoder.errors import ArtifactError
from encoder.store import ArtifactStore
from tests.encoders import tiny_artifact


@pytest.fixture(scope="module")
def artifact() -> EncoderArtifact:
    return tiny_artifact()


@pytest.fixture(params=["local", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path / "encoders")
        return
    name = f"memory://{uuid.uuid4().hex}/encoders"
    yield name
    fs, root = fsspec.core.url_to_fs(name)
    if fs.exists(root):
        fs.rm(root, recursive=True)


def _path(url: str, name: str) -> tuple[fsspec.AbstractFileSystem, str]:
    fs, root = fsspec.core.url_to_fs(url)
    return fs, f"{root}/{name}"


def test_what_is_saved_is_listed_and_loads(url: str, artifact: EncoderArtifact) -> None:
    store, version = ArtifactStore(url), artifact.encoder_version
    assert store.list() == []
    assert not store.exists(version)
    saved = store.save(artifact)
    assert saved.endswith(f"/encoders/{version}")
    assert store.list() == [version]
    assert store.exists(version)
    assert ArtifactStore(url).load(version).files() == artifact.files()


def test_saving_again_changes_nothing(url: str, artifact: EncoderArtifact) -> None:
    store, version = ArtifactStore(url), artifact.encoder_version
    first = store.save(artifact)
    fs, manifest = _path(url, f"{version}/manifest.json")
    before = fs.cat_file(manifest)
    described = EncoderArtifact(
        type(artifact.manifest)(**{**vars(artifact.manifest), "dataset": {"name": "later"}}),
        artifact.preprocessor, artifact.weights, artifact.graphs, artifact.modality,
    )  # fmt: skip
    assert store.save(described) == first
    assert fs.cat_file(manifest) == before


def test_saving_over_a_damaged_artifact_is_refused(url: str, artifact: EncoderArtifact) -> None:
    store, version = ArtifactStore(url), artifact.encoder_version
    store.save(artifact)
    fs, weights = _path(url, f"{version}/weights.safetensors")
    fs.pipe_file(weights, b"short")
    with pytest.raises(ArtifactError, match=r"weights.safetensors of encoder version"):
        store.save(artifact)


def test_an_unknown_version_names_the_stored_ones(url: str, artifact: EncoderArtifact) -> None:
    store = ArtifactStore(url)
    with pytest.raises(ArtifactError, match=r"Unknown encoder version 'ab12'. Stored: none\."):
        store.load("ab12")
    store.save(artifact)
    stored = f"Stored: '{artifact.encoder_version}'"
    with pytest.raises(ArtifactError, match=stored) as caught:
        store.load("ab12")
    assert caught.value.encoder_version == "ab12"


def test_a_save_that_was_cut_off_does_not_count(url: str, artifact: EncoderArtifact) -> None:
    """All files but the last one, the manifest: not listed, not loaded, and saved anew."""
    store, version = ArtifactStore(url), artifact.encoder_version
    files = artifact.files()
    assert list(files)[-1] == "manifest.json"
    fs, folder = _path(url, f"{version}.0.tmp" if "://" not in url else version)
    fs.makedirs(folder)
    for name in list(files)[:-1]:
        fs.pipe_file(f"{folder}/{name}", files[name])
    assert store.list() == []
    with pytest.raises(ArtifactError, match="Unknown encoder version"):
        store.load(version)
    store.save(artifact)
    assert store.load(version).files() == files


def test_no_temporary_folder_stays(tmp_path: Path, artifact: EncoderArtifact) -> None:
    ArtifactStore(str(tmp_path)).save(artifact)
    assert [p.name for p in tmp_path.iterdir()] == [artifact.encoder_version]


def test_what_is_deleted_is_gone_and_may_be_saved_again(
    url: str, artifact: EncoderArtifact
) -> None:
    store, version = ArtifactStore(url), artifact.encoder_version
    assert store.size(version) == 0
    store.save(artifact)
    assert store.size(version) == sum(len(data) for data in artifact.files().values())
    store.delete(version)
    assert (store.exists(version), store.list(), store.size(version)) == (False, [], 0)
    store.delete(version)
    store.save(artifact)
    assert store.load(version).files() == artifact.files()


def test_a_deletion_that_was_killed_is_finished_by_the_next(
    url: str, artifact: EncoderArtifact
) -> None:
    store, version = ArtifactStore(url), artifact.encoder_version
    store.save(artifact)
    fs, manifest = _path(url, f"{version}/manifest.json")
    fs.rm_file(manifest)  # as the first step leaves it
    assert not store.exists(version)
    assert store.size(version) > 0
    store.delete(version)
    assert store.size(version) == 0
