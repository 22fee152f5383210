"""Raw feature columns -> what both networks of a hybrid encoder read, side by side."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from encoder.artifact_files import Arrays
from encoder.clue.inputs import ClueInputs
from encoder.columns import ArrayColumn, RawBatch
from encoder.errors import ArtifactError
from encoder.preprocessing import Preprocessor
from encoder.row_summary import RowSummary
from encoder.schema import Block, FeatureSchema

__all__ = ["VECTOR", "HybridInputs", "blocks_schema", "texts_schema", "vector_block"]

Ints = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]

VECTOR = "clue__vector"
"""Column of the contrastive encoder's vectors: of training rows, never of raw features."""

_BLOCK = "clue"


def vector_block(width: int) -> Block:
    """Return the block that holds the contrastive encoder's vector."""
    return Block(_BLOCK, "pooled", VECTOR, 0, width)


def blocks_schema(schema: FeatureSchema, width: int) -> FeatureSchema:
    """Return what the autoencoder reads: the raw blocks, then the vector of ``width`` numbers.

    Parameters
    ----------
    schema : FeatureSchema
        Of a hybrid encoder (`FeatureSchema.with_texts`).
    width : int
    """
    kept = tuple(b for b in schema.blocks if b.kind != "tokens")
    texts = schema.texts_modality
    return replace(
        schema,
        blocks=(*kept, vector_block(width)),
        modality_columns=tuple(
            name for name in schema.modality_columns if texts is None or name != texts.column
        ),
        texts_modality=None,
    )


def texts_schema(schema: FeatureSchema) -> FeatureSchema:
    """Return what the contrastive encoder reads: the tokens and their version.

    Raises
    ------
    ValueError
        ``schema`` reads no texts beside its blocks.
    """
    texts = schema.texts_modality
    if texts is None:
        raise ValueError("A schema without texts given, one of blocks and texts expected.")
    return replace(
        schema,
        blocks=tuple(b for b in schema.blocks if b.kind == "tokens"),
        onboarding_count=None,
        modality_columns=(texts.column,),
        modality_version=texts.version,
        texts_modality=None,
    )


class HybridInputs:
    """The inputs of an autoencoder without the vector of texts, then token ids to make it of.

    State: that of both parts; learned when the encoder was trained.

    Parameters
    ----------
    schema : FeatureSchema
        Of blocks and texts (`FeatureSchema.with_texts`).
    blocks : Preprocessor
        Of `blocks_schema`.
    texts : ClueInputs
        Of `texts_schema`.

    Attributes
    ----------
    vector : Preprocessor
        Of the vector's block alone, with the numbers that ``blocks`` has for it.

    Raises
    ------
    ValueError
        The parts are of other schemas.
    """

    def __init__(self, schema: FeatureSchema, blocks: Preprocessor, texts: ClueInputs) -> None:
        self.schema, self.blocks, self.texts = schema, blocks, texts
        self.place = blocks.input_slices[-1]
        if blocks.schema != blocks_schema(schema, self.place.width):
            raise ValueError("The preprocessor's blocks are not those of the schema.")
        if texts.schema != texts_schema(schema):
            raise ValueError("The inputs of texts do not read the schema's tokens.")
        arrays, _ = blocks.state()
        own = slice(self.place.start, self.place.stop)
        alone = replace(
            blocks.schema, blocks=blocks.schema.blocks[-1:], modality_columns=(), as_of_columns=()
        )
        self.vector = Preprocessor(alone, arrays["mean"][own], arrays["scale"][own], {}, {})

    @property
    def n_inputs(self) -> int:
        """Most columns of ``transform``'s answer."""
        return self.blocks.n_inputs + self.texts.n_inputs

    def transform(self, batch: RawBatch) -> Ints:
        """Return the inputs, int32 (n_rows, blocks' inputs + longest list of tokens).

        The blocks' inputs are float32, of which the bits stand here: two arrays in one, because
        what runs an encoder is given one. The vector of texts is absent from them.

        Raises
        ------
        MalformedInput, SpaceMismatch
            As in `Preprocessor.transform` and `ClueInputs.transform`.
        """
        nothing = ArrayColumn(
            np.zeros((batch.n_rows, self.place.width), np.float32),
            np.zeros(batch.n_rows, np.bool_),
        )
        known = self.blocks.transform(
            replace(batch, columns={**batch.columns, VECTOR: nothing})
        )  # (n_rows, blocks' inputs)
        tokens = self.texts.transform(batch)  # (n_rows, longest)
        return np.concatenate([known.view(np.int32), tokens], axis=1)

    def split(self, inputs: Ints) -> tuple[Float32, Ints]:
        """Return what ``transform`` put together: blocks' inputs, a copy, and token ids."""
        n = self.blocks.n_inputs
        return inputs[:, :n].copy().view(np.float32), inputs[:, n:]

    def add_vectors(self, known: Float32, vectors: ArrayColumn) -> None:
        """Write the vectors' block into blocks' inputs without it, in place.

        Parameters
        ----------
        known : float32 (n_rows, blocks' inputs)
        vectors : ArrayColumn
            float32 (n_rows, width); a row that is not valid has no texts.
        """
        made = self.vector.transform(RawBatch({VECTOR: vectors}, len(known)))
        known[:, self.place.start : self.place.stop] = made[:, :-1]
        known[:, self.place.mask] = made[:, -1]

    def summary(self, batch: RawBatch) -> RowSummary:
        """Return age, number of events and status of each row.

        Raises
        ------
        MalformedInput
            A column is missing.
        """
        return self.blocks.summary(batch)

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """Return (arrays, JSON types) from which ``from_state`` rebuilds equal inputs."""
        arrays, config = self.blocks.state()
        beside = {"texts": self.texts.state()[1], "vector_width": self.place.width}
        return arrays, config | beside

    @classmethod
    def from_state(
        cls, schema: FeatureSchema, arrays: Arrays, config: dict[str, Any]
    ) -> HybridInputs:
        """Rebuild what ``state`` returned.

        Raises
        ------
        ArtifactError
            The state does not fit.
        """
        try:
            own = blocks_schema(schema, config["vector_width"])
            texts = ClueInputs.from_state(texts_schema(schema), {}, config["texts"])
            return cls(schema, Preprocessor.from_state(own, arrays, config), texts)
        except (KeyError, ValueError) as exc:
            raise ArtifactError(
                f"The preprocessing state does not fit the schema: {exc} Fetch the artifact again."
            ) from exc
