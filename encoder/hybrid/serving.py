"""The hybrid encoder in serving: texts to a vector, the vector among blocks. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from encoder.artifact_files import Arrays
from encoder.clue import serving as clue
from encoder.clue.tokenizer import PAD
from encoder.columns import ArrayColumn
from encoder.errors import ArtifactError
from encoder.hybrid.inputs import HybridInputs
from encoder.kinds import (
    GRAPH,
    EncoderInputs,
    EncoderKind,
    Runner,
    Sessions,
    autoencoder_runner,
)
from encoder.manifest import CLUE

__all__ = ["KIND", "PREFIX", "HybridRunner", "text_vectors"]

Float32 = npt.NDArray[np.float32]

PREFIX = "clue."
"""Begins the names of the contrastive network's weights; the autoencoder's are what they were."""


def text_vectors(
    run: Runner, tokens: npt.NDArray[np.int32], width: int, threads: int
) -> ArrayColumn:
    """Return the contrastive encoder's vectors of rows; a row without texts has none.

    Not the mean user's, which that encoder alone would answer: a block that is absent is what the
    autoencoder learned to do without.

    Parameters
    ----------
    run : Runner
        Of the contrastive encoder.
    tokens : int32 (n_rows, longest)
    width : int
        Of a vector.
    threads : int
    """
    there = (tokens != PAD).any(axis=1)
    vectors = np.zeros((len(tokens), width), np.float32)
    if there.any():
        vectors[there] = run(tokens[there], threads)
    return ArrayColumn(vectors, there)


class HybridRunner:
    """Encodes rows of `HybridInputs`: first the vectors of texts, then the autoencoder.

    State: item vectors that the contrastive encoder's runner keeps; safe for threads.

    Parameters
    ----------
    sessions : callable
        Name of a graph and number of threads -> session.
    model : mapping
        The manifest's.
    weights : dict of arrays
    inputs : HybridInputs
    """

    def __init__(
        self,
        sessions: Sessions,
        model: Mapping[str, Any],
        weights: Arrays,
        inputs: HybridInputs,
    ) -> None:
        own = {k.removeprefix(PREFIX): v for k, v in weights.items() if k.startswith(PREFIX)}
        kept = {name: model[name] for name in (clue.KEPT_ITEMS,) if name in model}
        self._texts = clue.ClueRunner(sessions, model[CLUE] | kept, own)
        self._blocks = autoencoder_runner(sessions, model)
        self._inputs = inputs

    def __call__(self, inputs: npt.NDArray[Any], threads: int) -> Float32:
        """Return the embeddings float32 (n, embedding_dim) of rows int32 (n, n_inputs at most)."""
        known, tokens = self._inputs.split(inputs)
        width = self._inputs.place.width
        self._inputs.add_vectors(known, text_vectors(self._texts, tokens, width, threads))
        return self._blocks(known, threads)


def _runner(
    sessions: Sessions, model: Mapping[str, Any], weights: Arrays, inputs: EncoderInputs
) -> Runner:
    if not isinstance(inputs, HybridInputs):
        raise ArtifactError("Inputs of another kind given, those of a hybrid encoder expected.")
    return HybridRunner(sessions, model, weights, inputs)


KIND = EncoderKind(
    graphs=(clue.ITEMS, clue.SERVICE, GRAPH),
    model=("kind", "n_inputs", "embedding_dim", "hidden", CLUE),
    weights=("encoder.", *(PREFIX + name for name in clue.KIND.weights)),
    preprocessing=lambda config: {
        name: config[name] for name in ("categories", "texts", "vector_width")
    },
    inputs=HybridInputs.from_state,
    runner=_runner,
)
"""What an artifact of the hybrid kind holds. Its manifest's ``model`` is the autoencoder's, with
what decides the contrastive encoder's graphs under ``clue``."""
