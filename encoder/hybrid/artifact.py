"""From two encoders to one artifact: an autoencoder of blocks, and what gives it the vector."""

from __future__ import annotations

from datetime import datetime, timezone

import numpy as np

from encoder.artifact import EncoderArtifact, ModalityState
from encoder.clue.inputs import ClueInputs
from encoder.clue.serving import KEPT_ITEMS, MODEL_FIELDS
from encoder.columns import RawBatch
from encoder.errors import ArtifactError
from encoder.hybrid.inputs import HybridInputs, texts_schema
from encoder.hybrid.serving import PREFIX
from encoder.manifest import CLUE, FLOAT32, HYBRID
from encoder.schema import FeatureSchema

__all__ = ["compose_hybrid", "require_same_embeddings", "text_inputs"]

_TOLERANCE = 1e-4
"""Of numbers around 1: the vectors of texts are computed twice, in other batches."""


def text_inputs(clue: EncoderArtifact, schema: FeatureSchema) -> ClueInputs:
    """Return how a hybrid encoder reads the tokens for a contrastive encoder.

    Parameters
    ----------
    clue : EncoderArtifact
        Of kind ``clue``, with float32 graphs.
    schema : FeatureSchema
        Of blocks and texts.

    Raises
    ------
    ArtifactError
        ``clue`` is of another kind or precision.
    """
    kind, precision = clue.manifest.model["kind"], clue.manifest.precision
    if (kind, precision) != (CLUE, FLOAT32):
        raise ArtifactError(
            f"Encoder {clue.encoder_version!r} is of kind {kind!r} and {precision}; {CLUE!r} and "
            f"{FLOAT32} expected. Quantise the hybrid encoder, not what it is made of.",
            encoder_version=clue.encoder_version,
        )
    return ClueInputs.from_state(texts_schema(schema), *clue.preprocessor.state())


def compose_hybrid(
    blocks: EncoderArtifact,
    clue: EncoderArtifact,
    schema: FeatureSchema,
    modality: ModalityState,
) -> EncoderArtifact:
    """Return one artifact of two.

    Parameters
    ----------
    blocks : EncoderArtifact
        An autoencoder of `encoder.hybrid.inputs.blocks_schema`, trained on the vectors of ``clue``.
    clue : EncoderArtifact
        The contrastive encoder.
    schema : FeatureSchema
        Of blocks and texts.
    modality : ModalityState
        Those that the raw features were built with, texts among them.

    Raises
    ------
    ArtifactError
        The encoders do not fit the schema or each other, or the modality encoders are of other
        versions than it names.
    """
    try:
        inputs = HybridInputs(schema, blocks.block_inputs, text_inputs(clue, schema))
    except ValueError as exc:
        raise ArtifactError(f"The two encoders do not fit together: {exc}") from exc
    if inputs.place.width != clue.manifest.embedding_dim:
        raise ArtifactError(
            f"The autoencoder reads vectors of {inputs.place.width} numbers, encoder "
            f"{clue.encoder_version!r} gives {clue.manifest.embedding_dim}. Pass the one that it "
            "was trained with."
        )
    manifest = blocks.manifest
    return EncoderArtifact.build(
        preprocessor=inputs,
        weights=blocks.weights | {PREFIX + name: array for name, array in clue.weights.items()},
        graphs={**clue.graphs, **blocks.graphs},
        modality=modality,
        model={
            **manifest.model,
            "kind": HYBRID,
            CLUE: {name: clue.manifest.model[name] for name in MODEL_FIELDS},
            # Beside what decides an embedding, which this does not.
            **{k: clue.manifest.model[k] for k in (KEPT_ITEMS,) if k in clue.manifest.model},
        },
        dataset=manifest.dataset,
        data_cutoff=datetime.fromisoformat(manifest.data_cutoff),
        training=manifest.training,
        created_at=datetime.now(timezone.utc),
    )


def require_same_embeddings(
    hybrid: EncoderArtifact, batch: RawBatch, blocks: EncoderArtifact
) -> None:
    """Refuse a composed encoder that answers otherwise than the trained one on its own rows.

    Parameters
    ----------
    hybrid : EncoderArtifact
    batch : RawBatch
        Training rows: raw features, and the vectors that ``blocks`` was trained on.
    blocks : EncoderArtifact
        The autoencoder that ``hybrid`` was made of.

    Raises
    ------
    ArtifactError
    """
    expected = blocks.encode(batch)
    difference = float(np.abs(hybrid.encode(batch) - expected).max(initial=0.0))
    limit = _TOLERANCE * max(1.0, float(np.abs(expected).max(initial=0.0)))
    if not difference <= limit:
        raise ArtifactError(
            f"The hybrid encoder differs from the autoencoder that it was made of by "
            f"{difference:.2e}, at most {limit:.0e} is accepted. Its training rows hold vectors of "
            "another contrastive encoder: train with --no-resume.",
            encoder_version=hybrid.encoder_version,
        )
