"""A tiny encoder artifact, made the same way every time."""

from __future__ import annotations

import copy
import tempfile
import threading
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from encoder.artifact import EncoderArtifact, ModalityState
from encoder.autoencoder import AutoencoderConfig, DenoisingAutoencoder
from encoder.clue.artifact import export_clue
from encoder.clue.config import ClueTrainingConfig
from encoder.clue.from_rows import read_sequences
from encoder.clue.inputs import ClueInputs
from encoder.clue.network import ClueConfig, ClueNetwork
from encoder.clue.training import ClueResult
from encoder.export import export_artifact
from encoder.hybrid.artifact import compose_hybrid
from encoder.hybrid.inputs import blocks_schema
from encoder.manifest import AUTOENCODER, CLUE, HYBRID
from encoder.preprocessing import Preprocessor
from encoder.rows import RowSource
from encoder.schema import FeatureSchema
from encoder.training import TrainingConfig, TrainingResult
from tests.strategies import TOKENS, VERSION, random_batch, to_table
from transforms.layout import Modality, RawLayout, TextLayout

__all__ = [
    "CLUE_SCHEMA",
    "EXPORTED",
    "HYBRID_SCHEMA",
    "LAYOUT",
    "MODEL",
    "SCHEMA",
    "TEXT_LAYOUT",
    "WHEN",
    "VectorState",
    "export_tiny",
    "export_tiny_clue",
    "export_tiny_hybrid",
    "tiny",
    "tiny_artifact",
]

LAYOUT = RawLayout(
    (Modality("collaborative", 4, 3),), (7,), categories=("gender",), onboarding=True
)
SCHEMA = LAYOUT.schema(VERSION)
MODEL = AutoencoderConfig(8, (16,))
WHEN = datetime(2026, 1, 1, tzinfo=timezone.utc)

TEXT_LAYOUT = replace(LAYOUT, texts=TextLayout(TOKENS.events, TOKENS.item))
CLUE_SCHEMA = TEXT_LAYOUT.texts_schema(VERSION, TOKENS.guides - 1)
HYBRID_SCHEMA = SCHEMA.with_texts(CLUE_SCHEMA)
_CLUE = ClueConfig(
    8,
    width=16,
    item_layers=1,
    service_layers=1,
    head_width=8,
    max_item_tokens=TOKENS.item,
    max_events=TOKENS.events,
)


@dataclass(frozen=True)
class VectorState:
    """What an artifact keeps of modality encoders, with three items."""

    version: str = VERSION
    texts_version: str | None = None

    def state(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """Return three vectors and their ids."""
        return {"vectors": np.arange(6, dtype=np.float32).reshape(3, 2)}, {"ids": ["a", "ü", "c"]}


_THREE_ITEMS = VectorState()
_WITH_TEXTS = VectorState(texts_version=VERSION)


def tiny_artifact(
    seed: int = 0, layout: RawLayout = LAYOUT, modality: ModalityState = _THREE_ITEMS
) -> EncoderArtifact:
    """Return an artifact with initial weights; equal seeds give equal numbers.

    Each is a copy of its own, without sessions. Torch's exporter takes seconds, so that it is asked
    once a process for the artifact of a seed and a layout.
    """
    if modality is not _THREE_ITEMS:
        return export_tiny(seed, layout, modality)
    return _copy(_exported(seed, layout))


def tiny(kind: str) -> EncoderArtifact:
    """Return a tiny artifact of a kind, a copy of its own."""
    return _copy(_exported_kind(kind))


def _copy(kept: EncoderArtifact) -> EncoderArtifact:
    own = {name: copy.deepcopy(getattr(kept, name)) for name in _CHANGEABLE}
    return replace(kept, **own, _sessions={}, _making=threading.Lock())


_CHANGEABLE = ("manifest", "preprocessor", "weights")


@cache
def _exported(seed: int, layout: RawLayout) -> EncoderArtifact:
    return export_tiny(seed, layout)


@cache
def _exported_kind(kind: str) -> EncoderArtifact:
    return tiny_artifact() if kind == AUTOENCODER else EXPORTED[kind]()


def export_tiny_clue(
    schema: FeatureSchema = CLUE_SCHEMA,
    modality: ModalityState = _THREE_ITEMS,
    vocabulary: int = TOKENS.vocabulary,
) -> EncoderArtifact:
    """Make a contrastive encoder with initial weights, of texts with the limits of `TOKENS`."""
    inputs = ClueInputs(schema, vocabulary, TOKENS.guides, TOKENS.item, TOKENS.events)
    batch = random_batch(schema, 200)
    network = ClueNetwork(_CLUE, vocabulary)
    result = ClueResult(network, (), 1, False, 180, 20)
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.parquet"
        pq.write_table(to_table(batch), rows)
        found = read_sequences(RowSource(rows, schema), inputs, ("books", "films"), progress=False)
    return export_clue(
        result,
        ClueTrainingConfig(model=_CLUE),
        inputs,
        found,
        modality,
        dataset={"name": "tiny"},
        data_cutoff=WHEN,
    )


def export_tiny(
    seed: int = 0, layout: RawLayout = LAYOUT, modality: ModalityState = _THREE_ITEMS
) -> EncoderArtifact:
    """Make what `tiny_artifact` returns, each time anew."""
    return _export_blocks(layout.schema(modality.version), seed, modality)


def _export_blocks(schema: FeatureSchema, seed: int, modality: ModalityState) -> EncoderArtifact:
    batch = random_batch(schema, 200)
    preprocessor = Preprocessor.fit(schema, [batch])
    model = replace(MODEL, seed=seed)
    network = DenoisingAutoencoder(preprocessor.input_slices, model)
    result = TrainingResult(network, (), 1, False, 180, 20, preprocessor.transform(batch))
    return export_artifact(
        result,
        TrainingConfig(model=model),
        preprocessor,
        modality,
        dataset={"name": "tiny"},
        data_cutoff=WHEN,
    )


def export_tiny_hybrid(
    schema: FeatureSchema = HYBRID_SCHEMA,
    modality: ModalityState = _WITH_TEXTS,
    clue: EncoderArtifact | None = None,
) -> EncoderArtifact:
    """Make a hybrid encoder: an autoencoder with initial weights, and `export_tiny_clue`'s."""
    blocks = _export_blocks(blocks_schema(schema, _CLUE.embedding_dim), 0, modality)
    return compose_hybrid(blocks, clue or tiny(CLUE), schema, modality)


EXPORTED = {AUTOENCODER: export_tiny, CLUE: export_tiny_clue, HYBRID: export_tiny_hybrid}
"""Kind of encoder -> what makes a tiny one anew."""
