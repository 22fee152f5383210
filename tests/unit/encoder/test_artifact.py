"""An artifact is its content: named by it, verified by it, equal after a round trip."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from encoder.artifact import EncoderArtifact, Manifest, artifact_files
from encoder.autoencoder import DenoisingAutoencoder
from encoder.errors import ArtifactError
from encoder.export import PARITY, export_onnx
from encoder.preprocessing import Preprocessor
from encoder.store import ArtifactStore
from tests.encoders import (
    EXPORTED,
    MODEL,
    SCHEMA,
    WHEN,
    VectorState,
    export_tiny,
    tiny,
    tiny_artifact,
)
from tests.strategies import VERSION, batches, random_batch, take

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def artifact() -> EncoderArtifact:
    return tiny_artifact()


@pytest.fixture(scope="module", params=sorted(EXPORTED))
def either(request: pytest.FixtureRequest) -> EncoderArtifact:
    return tiny(request.param)


def _load(files: dict[str, bytes], version: str | None = None) -> EncoderArtifact:
    return EncoderArtifact.from_files(files, files.__getitem__, version)


# --- numbers


@given(st.data())
def test_encoding_all_equals_encoding_parts_in_any_order(
    either: EncoderArtifact, data: st.DataObject
) -> None:
    """encode(all) == concat(encode(parts)) within 1e-6, and it commutes with any permutation."""
    batch = data.draw(batches(either.preprocessor.schema, min_rows=2))
    order = np.array(data.draw(st.permutations(range(batch.n_rows))))
    cut = data.draw(st.integers(1, batch.n_rows - 1))
    whole = either.encode(batch)
    assert np.isfinite(whole).all()
    shuffled = take(batch, order)
    parts = [either.encode(take(shuffled, part)) for part in (slice(cut), slice(cut, None))]
    # Relative as well: numbers clipped at 8 deviations make embeddings larger than 1.
    np.testing.assert_allclose(np.concatenate(parts), whole[order], rtol=1e-6, atol=1e-6)


def test_more_rows_than_a_run_takes_are_encoded_in_order(artifact: EncoderArtifact) -> None:
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((9000, artifact.preprocessor.n_inputs)).astype(np.float32)
    whole = artifact.encode_inputs(inputs)
    assert whole.shape == (9000, 8)
    for row in (0, 4095, 4096, 8999):
        one = artifact.encode_inputs(inputs[row : row + 1])
        np.testing.assert_allclose(one[0], whole[row], rtol=1e-6, atol=1e-6)
    assert artifact.encode_inputs(inputs[:0]).shape == (0, 8)


def test_onnx_runtime_agrees_with_torch(artifact: EncoderArtifact) -> None:
    inputs = artifact.preprocessor.transform(random_batch(SCHEMA, 300, seed=9))
    model = DenoisingAutoencoder(artifact.preprocessor.input_slices, MODEL)
    model.load_state_dict({k: torch.from_numpy(v) for k, v in artifact.weights.items()})
    difference = np.abs(
        artifact.encode_inputs(inputs) - model.encode(torch.from_numpy(inputs)).numpy()
    )
    assert difference.max() <= PARITY


@pytest.mark.parametrize(
    ("largest", "error", "accepted"),
    [(100.0, 5e-4, True), (100.0, 2e-3, False), (0.01, 5e-6, True), (0.01, 2e-5, False)],
)
def test_large_embeddings_may_round_more_coarsely(
    monkeypatch: pytest.MonkeyPatch, largest: float, error: float, accepted: bool
) -> None:
    monkeypatch.setattr(
        DenoisingAutoencoder, "encode", lambda _, inputs: torch.full((len(inputs), 8), largest)
    )
    monkeypatch.setattr(
        EncoderArtifact,
        "encode_inputs",
        lambda _, inputs: np.full((len(inputs), 8), largest + error),
    )
    if accepted:
        export_tiny()
    else:
        with pytest.raises(ArtifactError, match="ONNX Runtime differs from torch by"):
            export_tiny()


def test_a_graph_that_differs_from_the_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = DenoisingAutoencoder(
        Preprocessor.fit(SCHEMA, [random_batch(SCHEMA, 200)]).input_slices,
        replace(MODEL, seed=99),
    )
    graph = export_onnx(other.encoder, tiny_artifact().preprocessor.n_inputs)
    monkeypatch.setattr("encoder.export.export_onnx", lambda *_: graph)
    with pytest.raises(ArtifactError, match="ONNX Runtime differs from torch by"):
        export_tiny()


def test_the_graph_holds_no_path_of_this_machine(either: EncoderArtifact) -> None:
    for graph in either.graphs.values():
        assert str(ROOT).encode() not in graph
        assert b"site-packages" not in graph


# --- round trip


def test_saving_and_loading_gives_bit_equal_embeddings(either: EncoderArtifact) -> None:
    files = either.files()
    assert set(files) == set(artifact_files(either.manifest.model))
    again = _load(files, either.encoder_version)
    batch = random_batch(either.preprocessor.schema, 100, seed=3)
    assert np.array_equal(again.encode(batch), either.encode(batch))
    assert again.encoder_version == either.encoder_version
    assert again.files() == files
    arrays, config = again.modality.state()
    assert np.array_equal(arrays["vectors"], VectorState().state()[0]["vectors"])
    assert config == {"ids": ["a", "ü", "c"]}


_SERVE = """
import sys
import numpy as np
from encoder.store import ArtifactStore
either = ArtifactStore(sys.argv[1]).load(sys.argv[2])
np.save(sys.argv[4], either.encode_inputs(np.load(sys.argv[3])))
assert "torch" not in sys.modules
assert "feast" not in sys.modules
"""


def test_a_process_without_torch_gives_the_same_bits(
    either: EncoderArtifact, tmp_path: Path
) -> None:
    ArtifactStore(str(tmp_path / "store")).save(either)
    inputs = either.preprocessor.transform(random_batch(either.preprocessor.schema, 50, seed=4))
    np.save(tmp_path / "inputs.npy", inputs)
    names = [str(tmp_path / name) for name in ("store", "inputs.npy", "embedding.npy")]
    command = [sys.executable, "-c", _SERVE, names[0], either.encoder_version, *names[1:]]
    subprocess.run(command, cwd=ROOT, check=True)
    assert np.array_equal(np.load(names[2]), either.encode_inputs(inputs))


def test_modality_encoders_are_read_only_when_asked_for(either: EncoderArtifact) -> None:
    files, read = either.files(), []

    def reading(name: str) -> bytes:
        read.append(name)
        return files[name]

    loaded = EncoderArtifact.from_files(files, reading)
    loaded.encode(random_batch(either.preprocessor.schema, 2))
    assert not {name for name in read if name.startswith("modality")}
    files["modality.safetensors"] += b"x"
    with pytest.raises(ArtifactError, match=r"modality.safetensors of encoder version .* changed"):
        loaded.modality.state()


# --- the version is the content


def _version(artifact: EncoderArtifact, **change: Any) -> str:
    """Return the version of ``artifact`` rebuilt with other parts."""
    m = artifact.manifest
    parts: dict[str, Any] = {
        "preprocessor": artifact.preprocessor,
        "weights": artifact.weights,
        "graphs": artifact.graphs,
        "modality": artifact.modality,
        "model": m.model,
        "dataset": m.dataset,
        "data_cutoff": datetime.fromisoformat(m.data_cutoff),
        "training": m.training,
        "created_at": datetime.fromisoformat(m.created_at),
    }
    return EncoderArtifact.build(**(parts | change)).encoder_version


def _touched(arrays: dict[str, npt.NDArray[Any]], name: str) -> dict[str, npt.NDArray[Any]]:
    array = arrays[name].copy()
    array.flat[0] = np.nextafter(array.flat[0], np.float32(np.inf))
    return {**arrays, name: array}


def _other_preprocessor(p: Preprocessor, *, swap: bool = False) -> Preprocessor:
    arrays, config = p.state()
    if swap:
        known = {name: list(reversed(v)) for name, v in config["categories"].items()}
        return Preprocessor.from_state(p.schema, arrays, {**config, "categories": known})
    return Preprocessor.from_state(p.schema, _touched(arrays, "scale"), config)


_NUMBERS: dict[str, Callable[[EncoderArtifact], dict[str, Any]]] = {
    "a weight by one bit": lambda a: {"weights": _touched(a.weights, "encoder.0.weight")},
    "a scale by one bit": lambda a: {"preprocessor": _other_preprocessor(a.preprocessor)},
    "the order of categories": lambda a: {
        "preprocessor": _other_preprocessor(a.preprocessor, swap=True)
    },
    "the schema": lambda a: {
        "preprocessor": Preprocessor.from_state(
            replace(SCHEMA, blocks=(replace(SCHEMA.blocks[0], name="other"), *SCHEMA.blocks[1:])),
            *a.preprocessor.state(),
        )
    },
    "the modality version": lambda a: {
        "preprocessor": Preprocessor.from_state(
            replace(SCHEMA, modality_version="fedcba987654"), *a.preprocessor.state()
        ),
        "modality": VectorState("fedcba987654"),
    },
    "the dimensions": lambda a: {"model": {**a.manifest.model, "hidden": [17]}},
}

_WORDS: dict[str, Callable[[EncoderArtifact], dict[str, Any]]] = {
    "the decoder": lambda a: {"weights": _touched(a.weights, "decoder.0.weight")},
    "the facts about the data": lambda a: {"dataset": {"name": "other"}},
    "the cut-off": lambda a: {"data_cutoff": WHEN.replace(year=2027)},
    "the history": lambda a: {"training": {"history": [1]}},
    "the time": lambda a: {"created_at": WHEN},
    "the corruption": lambda a: {"model": {**a.manifest.model, "noise_std": 0.7}},
}


@pytest.mark.parametrize("what", sorted(_NUMBERS))
def test_the_version_changes_with_what_changes_numbers(
    artifact: EncoderArtifact, what: str
) -> None:
    assert _version(artifact, **_NUMBERS[what](artifact)) != artifact.encoder_version


@pytest.mark.parametrize("what", sorted(_WORDS))
def test_the_version_does_not_change_with_what_does_not(
    artifact: EncoderArtifact, what: str
) -> None:
    assert _version(artifact, **_WORDS[what](artifact)) == artifact.encoder_version


def test_making_the_same_encoder_twice_gives_one_version(either: EncoderArtifact) -> None:
    again = EXPORTED[either.manifest.model["kind"]]()
    assert again.encoder_version == either.encoder_version
    assert again.graphs == either.graphs
    assert tiny_artifact(seed=1).encoder_version != either.encoder_version


def test_modality_encoders_of_another_version_are_refused(either: EncoderArtifact) -> None:
    with pytest.raises(ArtifactError, match=f"'fedcba987654' given, .* for '{VERSION}'"):
        _version(either, modality=VectorState("fedcba987654"))


# --- refusals


def test_a_changed_file_is_refused(either: EncoderArtifact) -> None:
    names = [n for n in either.files() if n != "manifest.json" and not n.startswith("modality")]
    for name in names:
        files = either.files()
        files[name] = files[name][:-1] + bytes([files[name][-1] ^ 1])
        with pytest.raises(ArtifactError, match=rf"{name} of .* fetch the artifact again") as fault:
            _load(files)
        assert fault.value.encoder_version == either.encoder_version


def test_missing_and_unexpected_files_are_named(artifact: EncoderArtifact) -> None:
    files = artifact.files()
    del files["encoder.onnx"]
    files["model.pkl"] = b""
    with pytest.raises(ArtifactError, match=r"missing: encoder.onnx; unexpected: model.pkl"):
        _load(files)


def _edited(artifact: EncoderArtifact, **change: Any) -> dict[str, bytes]:
    files = artifact.files()
    manifest = json.loads(files["manifest.json"])
    files["manifest.json"] = json.dumps(manifest | change).encode()
    return files


def test_another_format_version_is_refused(either: EncoderArtifact) -> None:
    with pytest.raises(ArtifactError, match="Artifact format 2 given, this release reads 1"):
        _load(_edited(either, format_version=2))


def test_a_manifest_that_is_no_manifest_is_refused(artifact: EncoderArtifact) -> None:
    for data in (b"", b"[]", b"{}"):
        with pytest.raises(ArtifactError, match=r"manifest.json cannot be read"):
            Manifest.from_json(data)
    with pytest.raises(ArtifactError, match=r"fields: .*'surprise'"):
        _load(_edited(artifact, surprise=1))


def test_missing_and_unexpected_tensors_are_named(artifact: EncoderArtifact) -> None:
    tensors = json.loads(artifact.files()["manifest.json"])["tensors"]
    shapes = tensors["weights.safetensors"]
    shapes["encoder.9.weight"] = shapes.pop("encoder.0.weight")
    with pytest.raises(
        ArtifactError, match=r"missing: encoder.9.weight; unexpected: encoder.0.weight"
    ):
        _load(_edited(artifact, tensors=tensors))


def test_a_tensor_of_another_shape_is_named(artifact: EncoderArtifact) -> None:
    tensors = json.loads(artifact.files()["manifest.json"])["tensors"]
    tensors["weights.safetensors"]["encoder.0.bias"] = ["float32", [17]]
    with pytest.raises(ArtifactError, match=r"encoder.0.bias .*\[16\].* instead of .*\[17\]"):
        _load(_edited(artifact, tensors=tensors))


def test_another_version_than_asked_for_is_refused(either: EncoderArtifact) -> None:
    with pytest.raises(ArtifactError, match="'ffffffffffff' was expected"):
        _load(either.files(), "ffffffffffff")
    with pytest.raises(ArtifactError, match="'ffffffffffff' was expected"):
        _load(_edited(either, encoder_version="ffffffffffff"))
