"""From a trained model to an artifact: the ONNX graph and its proof. Needs torch."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from encoder.artifact import EncoderArtifact, ModalityState
from encoder.errors import ArtifactError
from encoder.kinds import GRAPH
from encoder.manifest import AUTOENCODER
from encoder.preprocessing import Preprocessor
from encoder.training import TrainingConfig, TrainingResult

__all__ = ["PARITY", "export_artifact", "export_graph", "export_onnx", "require_parity"]

PARITY = 1e-5
"""Largest difference between torch and ONNX Runtime, times the largest number of the embeddings
where that is above 1: sums of larger numbers round more coarsely, in both."""


def export_onnx(encoder: nn.Module, n_inputs: int) -> bytes:
    """Return the ONNX graph "inputs" float32 (n, n_inputs) -> "embedding", n free."""
    return export_graph(encoder, {"inputs": torch.zeros(2, n_inputs)}, "embedding")


def export_graph(
    module: nn.Module,
    examples: Mapping[str, torch.Tensor],
    output: str,
    free: Mapping[str, Mapping[int, str]] | None = None,
) -> bytes:
    """Return a module as an ONNX graph.

    The exporter's notes on where each node comes from are dropped: they hold paths of the machine.

    Parameters
    ----------
    module : nn.Module
        In evaluation mode afterwards.
    examples : mapping of str to Tensor
        Name of each input -> an example, in the order of ``forward``.
    output : str
        Name of the only output.
    free : mapping of str to mapping of int to str, optional
        Input -> its dimensions that may be of any size, with a name each; the same name means the
        same size. Default: the first of every input, all of the same size.

    Raises
    ------
    ArtifactError
        The exporter gave no graph.
    """
    free = free or {name: {0: "n"} for name in examples}
    sizes = {size: torch.export.Dim(size) for of in free.values() for size in of.values()}
    shapes = tuple(
        {axis: sizes[size] for axis, size in free.get(name, {}).items()} for name in examples
    )
    torch_log = logging.getLogger("torch.onnx")
    level = torch_log.level
    torch_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter(
                "ignore"
            )  # deprecations inside torch's and onnxscript's exporters
            program = torch.onnx.export(
                module.eval(),
                tuple(examples.values()),
                dynamo=True,
                input_names=list(examples),
                output_names=[output],
                dynamic_shapes=shapes,
                verbose=False,
            )
    finally:
        torch_log.setLevel(level)
    if program is None:
        raise ArtifactError(
            "torch.onnx.export gave no graph. Install the versions of `palate[train]`."
        )
    proto = program.model_proto
    del proto.metadata_props[:], proto.graph.metadata_props[:]
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        del value.metadata_props[:]
    for tensor in proto.graph.initializer:
        del tensor.metadata_props[:]
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def export_artifact(
    result: TrainingResult,
    config: TrainingConfig,
    preprocessor: Preprocessor,
    modality: ModalityState,
    *,
    dataset: Mapping[str, Any],
    data_cutoff: datetime,
) -> EncoderArtifact:
    """Return the artifact of a trained model.

    Parameters
    ----------
    result : TrainingResult
    config : TrainingConfig
    preprocessor : Preprocessor
        The one that ``result`` was trained with.
    modality : ModalityState
        Those that the raw features were built with.
    dataset : mapping
        Facts to keep in the manifest (JSON types): name, windows, ...
    data_cutoff : datetime
        Nothing learned saw an event from this instant on.

    Raises
    ------
    ArtifactError
        The graph differs from the model by more than `PARITY` on random inputs or on held-out rows,
        or the modality encoders are not those of the schema.
    """
    model = config.model
    artifact = EncoderArtifact.build(
        preprocessor=preprocessor,
        weights={k: v.numpy() for k, v in result.model.state_dict().items()},
        graphs={GRAPH: export_onnx(result.model.encoder, preprocessor.n_inputs)},
        modality=modality,
        model={
            "kind": AUTOENCODER,
            "n_inputs": preprocessor.n_inputs,
            **asdict(model),
            "hidden": list(model.hidden),
        },
        dataset=dict(dataset),
        data_cutoff=data_cutoff,
        training={
            "config": asdict(config),
            "history": [asdict(record) for record in result.history],
            "best_epoch": result.best_epoch,
            "stopped_early": result.stopped_early,
            "n_training_rows": result.n_training_rows,
            "n_validation_rows": result.n_validation_rows,
        },
        created_at=datetime.now(timezone.utc),
    )
    noise = np.random.default_rng(0).standard_normal((64, preprocessor.n_inputs))
    for inputs in (noise.astype(np.float32), result.sample):
        require_parity(artifact, inputs, result.model.encode(torch.from_numpy(inputs)).numpy())
    return artifact


def require_parity(
    artifact: EncoderArtifact, inputs: npt.NDArray[Any], expected: npt.NDArray[np.float32]
) -> None:
    """Refuse an artifact whose graphs give other embeddings than torch.

    Parameters
    ----------
    artifact : EncoderArtifact
    inputs : array (n, n_inputs)
    expected : float32 (n, embedding_dim)

    Raises
    ------
    ArtifactError
        They differ by more than `PARITY`.
    """
    difference = float(np.abs(artifact.encode_inputs(inputs) - expected).max(initial=0.0))
    limit = PARITY * max(1.0, float(np.abs(expected).max(initial=0.0)))
    if not difference <= limit:
        raise ArtifactError(
            f"ONNX Runtime differs from torch by {difference:.2e}, at most {limit:.0e} is "
            "accepted. Report this with the versions of torch, onnx and onnxruntime.",
            encoder_version=artifact.encoder_version,
        )
