"""Kinds of encoders: what an artifact of each holds, and how it encodes. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from encoder.artifact_files import Arrays
from encoder.columns import RawBatch
from encoder.errors import ArtifactError
from encoder.manifest import AUTOENCODER, CLUE, HYBRID, NETWORKS
from encoder.preprocessing import Preprocessor
from encoder.row_summary import RowSummary
from encoder.schema import FeatureSchema

__all__ = [
    "GRAPH",
    "EncoderInputs",
    "EncoderKind",
    "Feed",
    "Runner",
    "Session",
    "Sessions",
    "autoencoder_runner",
    "kind_of",
]

Float32 = npt.NDArray[np.float32]

GRAPH = "encoder.onnx"
"""The autoencoder's graph: "inputs" float32 (n, n_inputs) -> "embedding"."""

_BATCH_ROWS = 4096


class EncoderInputs(Protocol):
    """From raw features to what an encoder's graphs read, and to what is said beside them.

    State: learned when the encoder was trained; nothing changes afterwards.
    """

    @property
    def schema(self) -> FeatureSchema:
        """The raw features that are read."""

    @property
    def n_inputs(self) -> int:
        """Most columns of ``transform``'s answer."""

    def transform(self, batch: RawBatch) -> npt.NDArray[Any]:
        """Return the inputs, (n_rows, n) of the kind's type.

        Raises
        ------
        MalformedInput, SpaceMismatch
        """

    def summary(self, batch: RawBatch) -> RowSummary:
        """Return age, number of events and status of each row."""

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """Return (arrays, JSON types) from which the kind rebuilds an equal one."""


class Runner(Protocol):
    """Graphs of one artifact in memory; safe for threads."""

    def __call__(self, inputs: npt.NDArray[Any], threads: int) -> Float32:
        """Return the embeddings float32 (n, embedding_dim); a row's depends on that row alone."""


Feed = Mapping[str, npt.NDArray[Any]]
"""Inputs of a graph by name, the same number of rows each."""


class Session(Protocol):
    """A graph in memory, as ONNX Runtime has it."""

    def run(self, outputs: list[str], feed: Feed) -> list[npt.NDArray[Any]]:
        """Return the named outputs."""


Sessions = Callable[[str, int], Session]
"""Name of a graph and number of threads -> its session."""


@dataclass(frozen=True)
class EncoderKind:
    """What an artifact of a kind holds.

    Attributes
    ----------
    graphs : tuple of str
        Names of its ONNX files.
    model : tuple of str
        Fields of the manifest's ``model`` that decide an embedding.
    weights : tuple of str
        Prefixes of the weights that do.
    preprocessing : callable
        JSON state of the inputs -> what of it does.
    inputs : callable
        Schema, arrays and JSON state -> the inputs; raises ArtifactError when they do not fit.
    runner : callable
        Sessions, manifest's ``model``, weights and inputs -> what runs the graphs.
    """

    graphs: tuple[str, ...]
    model: tuple[str, ...]
    weights: tuple[str, ...]
    preprocessing: Callable[[Mapping[str, Any]], dict[str, Any]]
    inputs: Callable[[FeatureSchema, Arrays, dict[str, Any]], EncoderInputs]
    runner: Callable[[Sessions, Mapping[str, Any], Arrays, EncoderInputs], Runner]


def kind_of(model: Mapping[str, Any]) -> EncoderKind:
    """Return the kind that a manifest's ``model`` names.

    Raises
    ------
    ArtifactError
        This release knows no such kind.
    """
    name = model.get("kind")
    if name == AUTOENCODER:
        return _AUTOENCODER
    if name == CLUE:
        from encoder.clue.serving import KIND

        return KIND
    if name == HYBRID:
        from encoder.hybrid.serving import KIND as KIND_OF_BOTH

        return KIND_OF_BOTH
    raise ArtifactError(
        f"Encoder of kind {name!r} given, this release reads {', '.join(sorted(NETWORKS))}. "
        "Install the release that wrote it."
    )


def autoencoder_runner(sessions: Sessions, model: Mapping[str, Any]) -> Runner:
    """Return what runs the autoencoder's graph, some thousand rows at a time."""
    dim = int(model["embedding_dim"])

    def run(inputs: Float32, threads: int) -> Float32:
        session = sessions(GRAPH, threads)
        embedding: Float32
        if 0 < len(inputs) <= _BATCH_ROWS:
            (embedding,) = session.run(["embedding"], {"inputs": inputs})
            return embedding
        embedding = np.empty((len(inputs), dim), np.float32)
        for start in range(0, len(inputs), _BATCH_ROWS):
            part = slice(start, start + _BATCH_ROWS)
            (embedding[part],) = session.run(["embedding"], {"inputs": inputs[part]})
        return embedding

    return run


_AUTOENCODER = EncoderKind(
    graphs=(GRAPH,),
    model=("kind", "n_inputs", "embedding_dim", "hidden"),
    weights=("encoder.",),
    # The entropies scale the training loss and nothing else.
    preprocessing=lambda config: {"categories": config["categories"]},
    inputs=Preprocessor.from_state,
    runner=lambda sessions, model, _weights, _inputs: autoencoder_runner(sessions, model),
)
