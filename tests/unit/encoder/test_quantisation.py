"""An int8 encoder is another encoder, and its embedding of a user depends on that user alone."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnxruntime.quantization import QuantType, quantize_dynamic

from encoder.artifact import EncoderArtifact
from encoder.autoencoder import AutoencoderConfig, DenoisingAutoencoder
from encoder.errors import ArtifactError
from encoder.export import export_artifact
from encoder.kinds import GRAPH
from encoder.manifest import CLUE
from encoder.parts import artifact_parts
from encoder.preprocessing import Preprocessor
from encoder.quantisation import embedding_difference, quantise, quantised_graph
from encoder.store import ArtifactStore
from encoder.training import TrainingConfig, TrainingResult
from tests.chains import build_artifact, fit_encoders
from tests.encoders import CLUE_SCHEMA, SCHEMA, WHEN, VectorState, tiny, tiny_artifact
from tests.strategies import batches, random_batch, take

ROOT = Path(__file__).parents[3]
Float32 = npt.NDArray[np.float32]


def _float(model: AutoencoderConfig) -> EncoderArtifact:
    """Return an encoder whose biases are not zero, as a trained one's are not."""
    batch = random_batch(SCHEMA, 200)
    preprocessor = Preprocessor.fit(SCHEMA, [batch])
    network = DenoisingAutoencoder(preprocessor.input_slices, model)
    generator = torch.Generator().manual_seed(3)
    for layer in network.encoder:
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.normal_(layer.bias, 0.0, 0.1, generator=generator)
    result = TrainingResult(network, (), 1, False, 180, 20, preprocessor.transform(batch))
    config = TrainingConfig(model=model)
    facts = {"name": "tiny"}
    return export_artifact(
        result, config, preprocessor, VectorState(), dataset=facts, data_cutoff=WHEN
    )


def _rows(artifact: EncoderArtifact, n: int = 500, seed: int = 7) -> Float32:
    return artifact.preprocessor.transform(random_batch(SCHEMA, n, seed=seed))


def _dynamic(graph: bytes, folder: Path) -> bytes:
    """Return the graph with scales that are taken from the batch at run time."""
    (folder / "float.onnx").write_bytes(graph)
    path = folder / "dynamic.onnx"
    quantize_dynamic(folder / "float.onnx", path, weight_type=QuantType.QInt8)
    return path.read_bytes()


# Widths that no vector register divides, beside the usual powers of two.
_MODELS = {"even": AutoencoderConfig(8, (64, 32)), "odd": AutoencoderConfig(7, (33, 17))}


@pytest.fixture(scope="module", params=sorted(_MODELS))
def pair(request: pytest.FixtureRequest) -> tuple[EncoderArtifact, EncoderArtifact]:
    """An encoder and its int8 form."""
    exact = _float(_MODELS[request.param])
    return exact, quantise(exact, _rows(exact))


@pytest.fixture(scope="module")
def int8(pair: tuple[EncoderArtifact, EncoderArtifact]) -> EncoderArtifact:
    return pair[1]


# --- numbers


@given(st.data())
def test_encoding_all_equals_encoding_parts_in_any_order_bit_for_bit(
    int8: EncoderArtifact, data: st.DataObject
) -> None:
    """encode(all) == concat(encode(parts)), and it commutes with any permutation, exactly."""
    batch = data.draw(batches(SCHEMA, min_rows=2))
    order = np.array(data.draw(st.permutations(range(batch.n_rows))))
    cut = data.draw(st.integers(1, batch.n_rows - 1))
    whole = int8.encode(batch)
    assert np.isfinite(whole).all()
    shuffled = take(batch, order)
    parts = [int8.encode(take(shuffled, part)) for part in (slice(cut), slice(cut, None))]
    assert np.concatenate(parts).tobytes() == whole[order].tobytes()


@pytest.mark.parametrize("threads", [1, 2])
def test_every_size_of_batch_gives_the_same_bits(int8: EncoderArtifact, threads: int) -> None:
    rows = _rows(int8, 5000, seed=1)
    whole = int8.encode_inputs(rows, threads)
    assert whole.tobytes() == int8.encode_inputs(rows).tobytes()
    for size in (1, 2, 3, 7, 16, 100, 499):
        few = range(0, 1000, size)
        parts = [int8.encode_inputs(rows[k : min(k + size, 1000)], threads) for k in few]
        assert np.concatenate(parts).tobytes() == whole[:1000].tobytes()


def test_scales_taken_from_the_batch_would_make_users_depend_on_each_other(
    tmp_path: Path, pair: tuple[EncoderArtifact, EncoderArtifact]
) -> None:
    """Why dynamic quantisation is not what is done."""
    exact, _ = pair
    graph = _dynamic(exact.onnx, tmp_path)
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    rows = _rows(exact, 50)
    (whole,) = session.run(["embedding"], {"inputs": rows})
    (alone,) = session.run(["embedding"], {"inputs": rows[:1]})
    assert np.abs(alone[0] - whole[0]).max() > 1e-3


def test_the_error_is_small_and_measured(pair: tuple[EncoderArtifact, EncoderArtifact]) -> None:
    exact, int8 = pair
    rows = _rows(exact, 400, seed=8)
    found = embedding_difference(exact, int8, rows)
    assert found.rows == 400
    assert 0.0 < found.cosine_error_mean < 1e-3
    assert found.cosine_error_mean <= found.cosine_error_max < 1e-2
    assert 0.0 < found.relative_rms < 0.05
    assert found.max_abs == np.abs(exact.encode_inputs(rows) - int8.encode_inputs(rows)).max()
    nothing = embedding_difference(exact, exact, rows)
    assert (nothing.max_abs, nothing.relative_rms) == (0.0, 0.0)
    assert nothing.cosine_error_max == pytest.approx(0.0, abs=1e-12)


def test_inputs_beyond_the_calibrated_range_are_clipped_not_wrapped(int8: EncoderArtifact) -> None:
    rows = _rows(int8, 3)
    beyond = np.where(rows > 0, np.float32(1e6), np.float32(-1e6))
    further = (beyond * 10).astype(np.float32)
    assert int8.encode_inputs(beyond).tobytes() == int8.encode_inputs(further).tobytes()
    assert np.isfinite(int8.encode_inputs(beyond)).all()


def test_weights_have_seven_bits_and_a_scale_for_each_output(int8: EncoderArtifact) -> None:
    """With eight, processors without VNNI saturate where others do not."""
    model = onnx.load_model_from_string(int8.onnx)
    arrays = [onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    weights = [a for a in arrays if a.dtype == np.int8 and a.ndim == 2]
    assert len(weights) == 3
    for weight in weights:
        assert np.abs(weight.astype(np.int16)).max() <= 64
        assert any(a.dtype == np.float32 and a.shape == (weight.shape[0],) for a in arrays)


# --- identity


def test_the_int8_form_is_another_encoder(pair: tuple[EncoderArtifact, EncoderArtifact]) -> None:
    exact, int8 = pair
    assert (exact.manifest.precision, int8.manifest.precision) == ("float32", "int8")
    assert int8.encoder_version != exact.encoder_version
    assert int8.manifest.data_cutoff == exact.manifest.data_cutoff
    assert int8.manifest.training["quantisation"] == {
        "of": exact.encoder_version,
        "calibration_rows": 500,
    }
    assert {k: v for k, v in int8.manifest.model.items() if k != "precision"} == (
        exact.manifest.model
    )


def _rebuilt(artifact: EncoderArtifact, **changes: Any) -> EncoderArtifact:
    manifest = artifact.manifest
    arguments: dict[str, Any] = {
        **{"preprocessor": artifact.preprocessor, "weights": artifact.weights},
        **{"graphs": artifact.graphs, "modality": artifact.modality, "model": manifest.model},
        **{"dataset": manifest.dataset, "training": manifest.training},
        **{"data_cutoff": WHEN, "created_at": WHEN},
    }
    return EncoderArtifact.build(**(arguments | changes))


def test_a_float32_version_is_what_it_was_before_there_was_a_precision() -> None:
    """Stored artifacts keep their names: neither the word nor the graph's bytes enter the hash."""
    exact = tiny_artifact()
    model = {**exact.manifest.model, "precision": "float32"}
    other = _rebuilt(exact, model=model, graphs={GRAPH: exact.onnx + b"\x00"})
    assert other.encoder_version == exact.encoder_version


def test_an_int8_version_changes_with_its_graph(int8: EncoderArtifact) -> None:
    assert _rebuilt(int8).encoder_version == int8.encoder_version
    other = _rebuilt(int8, graphs={GRAPH: int8.onnx + b"\x00"})
    assert other.encoder_version != int8.encoder_version


def test_equal_rows_in_any_order_give_equal_bytes_and_other_ranges_do_not() -> None:
    exact = tiny_artifact()
    rows = _rows(exact, 2500)
    graph = quantised_graph(exact.onnx, [{"inputs": rows}])
    assert graph == quantised_graph(exact.onnx, [{"inputs": rows[::-1]}])
    assert graph == quantised_graph(exact.onnx, [{"inputs": rows[:9]}, {"inputs": rows[9:]}])
    assert graph != quantised_graph(exact.onnx, [{"inputs": rows * 2}])


_SERVE = """
import sys
import tempfile
import numpy as np
from encoder.store import ArtifactStore
artifact = ArtifactStore(sys.argv[1]).load(sys.argv[2])
np.save(sys.argv[4], artifact.encode_inputs(np.load(sys.argv[3])))
assert not {"torch", "onnx", "feast"} & set(sys.modules)
"""


def test_a_process_without_torch_and_onnx_gives_the_same_bits(
    int8: EncoderArtifact, tmp_path: Path
) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    store.save(int8)
    assert store.load(int8.encoder_version).manifest.precision == "int8"
    rows = _rows(int8, 40, seed=4)
    np.save(tmp_path / "inputs.npy", rows)
    names = [str(tmp_path / name) for name in ("store", "inputs.npy", "embedding.npy")]
    command = [sys.executable, "-c", _SERVE, names[0], int8.encoder_version, *names[1:]]
    subprocess.run(command, cwd=ROOT, check=True)
    assert np.load(names[2]).tobytes() == int8.encode_inputs(rows).tobytes()


def test_the_graph_is_smaller_and_holds_no_path_of_this_machine(
    pair: tuple[EncoderArtifact, EncoderArtifact],
) -> None:
    exact, int8 = pair
    assert len(int8.onnx) < len(exact.onnx)
    for path in (str(ROOT), "site-packages", tempfile.gettempdir()):
        assert path.encode() not in int8.onnx


def test_the_parts_differ_in_the_quantisation_alone() -> None:
    encoders = fit_encoders()
    exact = build_artifact(encoders)
    training = {**exact.manifest.training, "quantisation": {"calibration_rows": 9}}
    model = {**exact.manifest.model, "precision": "int8"}
    graphs = {GRAPH: b"another graph"}
    int8 = build_artifact(encoders, model=model, training=training, graphs=graphs)
    *same, own = artifact_parts(int8)
    assert same == artifact_parts(exact)
    assert (own.kind, own.settings) == (
        "quantisation",
        {"precision": "int8", "calibration_rows": 9},
    )


# --- refusals


def test_an_int8_encoder_is_not_quantised_again(int8: EncoderArtifact) -> None:
    with pytest.raises(ArtifactError, match=r"has a int8 graph, float32 is expected"):
        quantise(int8, _rows(int8))


def test_no_calibration_row_is_refused() -> None:
    exact = tiny_artifact()
    with pytest.raises(ValueError, match="No calibration row was given"):
        quantise(exact, _rows(exact)[:0])


def test_a_graph_that_looks_at_other_rows_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dynamic(graph: bytes, _: object) -> bytes:
        return _dynamic(graph, tmp_path)

    exact = tiny_artifact()
    monkeypatch.setattr("encoder.quantisation.quantised_graph", dynamic)
    with pytest.raises(ArtifactError, match="depends on the rows beside it"):
        quantise(exact, _rows(exact))


def test_an_unknown_precision_is_refused(int8: EncoderArtifact) -> None:
    files = int8.files()
    manifest = json.loads(files["manifest.json"])
    manifest["model"]["precision"] = "int4"
    files["manifest.json"] = json.dumps(manifest).encode()
    with pytest.raises(ArtifactError, match=r"precision 'int4' given, .* reads float32, int8"):
        EncoderArtifact.from_files(files, files.__getitem__)


def test_an_int8_artifact_does_not_pass_for_its_float32_one(int8: EncoderArtifact) -> None:
    files = int8.files()
    manifest = json.loads(files["manifest.json"])
    del manifest["model"]["precision"]
    files["manifest.json"] = json.dumps(manifest).encode()
    with pytest.raises(ArtifactError, match=f"{int8.encoder_version!r} was expected"):
        EncoderArtifact.from_files(files, files.__getitem__)


# --- sessions


def test_threads_that_come_first_together_share_one_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[ort.InferenceSession] = []
    real = ort.InferenceSession

    def counting(*args: Any, **kwargs: Any) -> ort.InferenceSession:
        made.append(real(*args, **kwargs))
        return made[-1]

    artifact = replace(tiny_artifact(), _sessions={})
    rows = _rows(artifact, 5)
    expected = tiny_artifact().encode_inputs(rows)
    monkeypatch.setattr("encoder.artifact.ort.InferenceSession", counting)
    barrier = threading.Barrier(8)
    found: list[Float32] = []

    def encode() -> None:
        barrier.wait(timeout=30)
        found.append(artifact.encode_inputs(rows))

    workers = [threading.Thread(target=encode) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=30)
    assert len(made) == 1
    assert [one.tobytes() for one in found] == [expected.tobytes()] * 8


# --- the contrastive kind


@pytest.fixture(scope="module")
def texts() -> tuple[EncoderArtifact, EncoderArtifact]:
    exact = tiny(CLUE)
    return exact, quantise(exact, exact.preprocessor.transform(random_batch(CLUE_SCHEMA, 300)))


def test_both_graphs_of_an_encoder_of_texts_have_an_int8_form(
    texts: tuple[EncoderArtifact, EncoderArtifact],
) -> None:
    exact, int8 = texts
    assert int8.encoder_version != exact.encoder_version
    assert int8.manifest.precision == "int8"
    for name, graph in int8.graphs.items():
        arrays = [
            onnx.numpy_helper.to_array(tensor)
            for tensor in onnx.load_model_from_string(graph).graph.initializer
        ]
        weights = [a for a in arrays if a.dtype == np.int8 and a.ndim == 2]
        # Four products of a layer; the service's projection.
        assert len(weights) == (4 if name == "items.onnx" else 5)
    rows = exact.preprocessor.transform(random_batch(CLUE_SCHEMA, 400, seed=8))
    found = embedding_difference(exact, int8, rows[(rows != 0).any(axis=1)])
    # Initial weights, 8 numbers: errors of a trained encoder are measured on its own users.
    assert 0.0 < found.cosine_error_mean < 5e-3
    assert found.cosine_error_max < 5e-2


@given(st.data())
def test_an_int8_encoder_of_texts_answers_a_row_alike_in_any_company(
    texts: tuple[EncoderArtifact, EncoderArtifact], data: st.DataObject
) -> None:
    _, int8 = texts
    batch = data.draw(batches(CLUE_SCHEMA, min_rows=2))
    whole = int8.encode(batch)
    for row in range(batch.n_rows):
        alone = replace(int8).encode(take(batch, slice(row, row + 1)))
        np.testing.assert_allclose(alone[0], whole[row], rtol=0, atol=1e-6)


def test_int8_graphs_of_texts_survive_a_store(
    texts: tuple[EncoderArtifact, EncoderArtifact],
) -> None:
    _, int8 = texts
    files = int8.files()
    again = EncoderArtifact.from_files(files, files.__getitem__, int8.encoder_version)
    batch = random_batch(CLUE_SCHEMA, 50, seed=2)
    assert np.array_equal(again.encode(batch), int8.encode(batch))
