"""What an embedding says of its user's taste: the decoder of an artifact, in numpy only."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from encoder.artifact import EncoderArtifact
from encoder.errors import ArtifactError

__all__ = ["decode_taste"]

Float32 = npt.NDArray[np.float32]

# Of SELU (Klambauer et al. 2017), as torch has them.
_SCALE, _ALPHA = 1.0507009873554805, 1.6732632423543772


def decode_taste(artifact: EncoderArtifact, embedding: Float32, block: str) -> Float32:
    """Return how the pooled item vector that the decoder rebuilds departs from the average one.

    A block's values are pooled vectors at length 1, less their mean over the training rows, by one
    scale for the whole block. What the decoder gives therefore points, in the space of the block's
    item vectors, to what a user consumes more than others do.

    Parameters
    ----------
    artifact : EncoderArtifact
        Of an autoencoder.
    embedding : float32 (n, embedding_dim)
        As the encoder gives it, at its own length. Not modified.
    block : str
        Name of a ``pooled`` block of the artifact's schema.

    Returns
    -------
    float32 (n, width)
        In the space of the block's item vectors.

    Raises
    ------
    ValueError
        No such block, one of another kind, or embeddings of another width.
    ArtifactError
        The artifact has no decoder, or one that has learned nothing of the block.
    """
    layout = {b.name: b for b in artifact.block_inputs.input_slices if b.kind == "pooled"}
    if block not in layout:
        raise ValueError(
            f"Block {block!r} given, a pooled one expected: {', '.join(sorted(layout))}."
        )
    dim = artifact.manifest.embedding_dim
    if embedding.ndim != 2 or embedding.shape[1] != dim:
        raise ValueError(f"Embeddings of shape {embedding.shape} given, (n, {dim}) expected.")
    _require_learned(artifact, block)
    state, _ = artifact.block_inputs.state()
    where = slice(layout[block].start, layout[block].stop)
    taste: Float32 = _decode(artifact, embedding)[:, where] * state["scale"][where]  # (n, width)
    return taste


def _require_learned(artifact: EncoderArtifact, block: str) -> None:
    """Refuse a decoder that rebuilds a block worse than its mean would, by its own record."""
    training = artifact.manifest.training
    history = training.get("history")
    if not history:
        return
    lost = history[training["best_epoch"] - 1]["block_errors"].get(block)
    if lost is not None and lost >= 1.0:
        raise ArtifactError(
            f"Encoder version {artifact.encoder_version!r} loses {lost:.0%} of the variance of "
            f"block {block!r}: its decoder has learned nothing of it, so items would be arbitrary. "
            "Train longer, or name another modality.",
            encoder_version=artifact.encoder_version,
        )


def _decode(artifact: EncoderArtifact, embedding: Float32) -> Float32:
    """Return the decoder's output for embeddings, float32 (n, n_values)."""
    prefix, suffix = "decoder.", ".weight"
    layers = sorted(
        int(name.removeprefix(prefix).removesuffix(suffix))
        for name in artifact.weights
        if name.startswith(prefix) and name.endswith(suffix)
    )
    if not layers:
        raise ArtifactError(
            f"Encoder version {artifact.encoder_version!r} has no decoder, so an embedding cannot "
            "be turned back into item vectors. Train an autoencoder.",
            encoder_version=artifact.encoder_version,
        )
    values = embedding
    for layer in layers:
        weight = artifact.weights[f"{prefix}{layer}{suffix}"]  # (n_out, n_in)
        values = values @ weight.T + artifact.weights[f"{prefix}{layer}.bias"]  # (n, n_out)
        if layer != layers[-1]:
            values = _selu(values)
    return values


def _selu(values: Float32) -> Float32:
    below = _ALPHA * np.expm1(np.minimum(values, 0.0))
    return (_SCALE * (np.maximum(values, 0.0) + below)).astype(np.float32)
