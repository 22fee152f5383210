"""An int8 form of an encoder: the same weights and preprocessing, another graph. Needs onnx."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from encoder.alignment import cosines
from encoder.artifact import EncoderArtifact
from encoder.errors import ArtifactError
from encoder.kinds import Feed
from encoder.manifest import FLOAT32, INT8

__all__ = ["EmbeddingDifference", "embedding_difference", "quantise", "quantised_graph"]

Float32 = npt.NDArray[np.float32]

_LAYERS = ("Gemm", "MatMul")
_CHUNK_ROWS = 1024
_PROOF_ROWS = 64


@dataclass(frozen=True)
class EmbeddingDifference:
    """How far two encoders' embeddings of the same inputs lie from each other.

    Attributes
    ----------
    rows : int
    cosine_error_mean, cosine_error_max : float
        Of 1 - cosine.
    max_abs : float
        Largest difference of a number.
    relative_rms : float
        Root mean square of the differences, in that of the exact embeddings about their mean.
    """

    rows: int
    cosine_error_mean: float
    cosine_error_max: float
    max_abs: float
    relative_rms: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


def quantise(artifact: EncoderArtifact, calibration: npt.NDArray[Any]) -> EncoderArtifact:
    """Return an artifact with an int8 graph, of another encoder version; ``artifact`` stays.

    Parameters
    ----------
    artifact : EncoderArtifact
        With float32 graphs.
    calibration : array (n, n_inputs at most)
        Preprocessed rows like those to come; only the range of each layer's input is taken from
        them. Equal rows, in any order, give an equal artifact.

    Raises
    ------
    ArtifactError
        ``artifact`` is int8 already, or ONNX Runtime's int8 kernels answer a row alone otherwise
        than among others.
    ValueError
        No calibration row.
    """
    manifest = artifact.manifest
    if manifest.precision != FLOAT32:
        raise ArtifactError(
            f"Encoder {artifact.encoder_version!r} has a {manifest.precision} graph, {FLOAT32} is "
            "expected. Quantise the encoder that it was made from.",
            encoder_version=artifact.encoder_version,
        )
    if len(calibration) == 0:
        raise ValueError("No calibration row was given, at least one is expected.")
    given = artifact.graph_inputs(calibration)
    found = EncoderArtifact.build(
        preprocessor=artifact.preprocessor,
        weights=artifact.weights,
        graphs={name: quantised_graph(artifact.graphs[name], given[name]) for name in given},
        modality=artifact.modality,
        model={**manifest.model, "precision": INT8},
        dataset=manifest.dataset,
        data_cutoff=datetime.fromisoformat(manifest.data_cutoff),
        training={
            **manifest.training,
            "quantisation": {"of": artifact.encoder_version, "calibration_rows": len(calibration)},
        },
        created_at=datetime.now(timezone.utc),
    )
    rows, other = calibration[:_PROOF_ROWS], replace(found)  # that remembers nothing yet
    alone = np.concatenate([other.encode_inputs(rows[k : k + 1]) for k in range(len(rows))])
    if alone.tobytes() != found.encode_inputs(rows).tobytes():
        raise ArtifactError(
            "The int8 graph's embedding of a row depends on the rows beside it. Report this with "
            "the version of onnxruntime and the processor; keep the float32 encoder.",
            encoder_version=found.encoder_version,
        )
    return found


def quantised_graph(graph: bytes, given: Sequence[Feed]) -> bytes:
    """Return an int8 form of an encoder's graph; equal arguments give equal bytes.

    Weights are signed bytes with a scale for each output of a layer; the input of each layer is
    unsigned bytes with one scale, which is fixed here. Biases, activation functions and the
    embedding stay float32.

    Parameters
    ----------
    graph : bytes
    given : sequence of mapping of str to array
        What the graph is given in use.

    Raises
    ------
    ValueError
        No calibration row.

    Notes
    -----
    Scales are fixed because a scale that is taken from the batch at run time (dynamic quantisation)
    makes a user's embedding depend on who else is in the batch. Weights have 7 bits: with 8, two
    products can leave 16 bits in the instruction that processors without VNNI multiply with, and
    the sum saturates there and not elsewhere. So the integers are the same on every processor.

    References
    ----------
    Jacob et al. 2018, "Quantization and training of neural networks for efficient
    integer-arithmetic-only inference", section 2.
    """
    if not any(len(array) for feed in given for array in feed.values()):
        raise ValueError("No calibration row was given, at least one is expected.")
    model = onnx.load_model_from_string(graph)
    with tempfile.TemporaryDirectory() as folder:
        prepared, written = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
        # Shapes only: its own optimisations are the session's to make.
        quant_pre_process(model, prepared, skip_optimization=True, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            written,
            _Given(given),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_LAYERS),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            # The next layer's input is rounded, once; a layer's output never is.
            extra_options={
                "OpTypesToExcludeOutputQuantization": list(_LAYERS),
                # Not products of two activations, which attention is made of.
                "MatMulConstBOnly": True,
            },
        )
        quantised = onnx.load_model(written)
    del quantised.metadata_props[:]
    content: bytes = quantised.SerializeToString(deterministic=True)
    return content


def embedding_difference(
    exact: EncoderArtifact, other: EncoderArtifact, inputs: npt.NDArray[Any]
) -> EmbeddingDifference:
    """Return how far ``other``'s embeddings of ``inputs`` lie from those of ``exact``.

    Parameters
    ----------
    exact, other : EncoderArtifact
        Of the same preprocessing.
    inputs : array (n, n_inputs at most), n >= 1
    """
    reference = exact.encode_inputs(inputs).astype(np.float64)  # (n, embedding_dim)
    found = other.encode_inputs(inputs).astype(np.float64)
    error = 1.0 - cosines(reference, found)
    spread = float((reference - reference.mean(axis=0)).std())
    return EmbeddingDifference(
        rows=len(inputs),
        cosine_error_mean=float(error.mean()),
        cosine_error_max=float(error.max()),
        max_abs=float(np.abs(found - reference).max()),
        relative_rms=float(np.sqrt(np.square(found - reference).mean())) / max(spread, 1e-30),
    )


class _Given(CalibrationDataReader):  # type: ignore[misc]
    """Hands what a graph is given to ONNX Runtime, a part at a time."""

    def __init__(self, given: Sequence[Feed]) -> None:
        self._parts: Iterator[Feed] = (
            {name: array[start : start + _CHUNK_ROWS] for name, array in feed.items()}
            for feed in given
            for start in range(0, len(next(iter(feed.values()))), _CHUNK_ROWS)
        )

    def get_next(self) -> Feed | None:
        return next(self._parts, None)
