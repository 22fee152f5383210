"""Versions of encoders stay what they were: a space of an earlier release is found by its own."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import numpy as np
import pytest

from encoder.artifact import EncoderArtifact
from encoder.artifact_files import Arrays
from encoder.clue.inputs import ClueInputs
from encoder.kinds import EncoderInputs
from encoder.manifest import AUTOENCODER, CLUE
from encoder.preprocessing import Preprocessor
from tests.encoders import CLUE_SCHEMA, SCHEMA, VectorState
from tests.strategies import TOKENS

_WHEN = datetime(2026, 1, 1, tzinfo=timezone.utc)
_NETWORK: dict[str, Any] = {"n_inputs": 20, "embedding_dim": 2, "hidden": [3]}
_TEXTS: dict[str, Any] = {
    **{"vocabulary": 40, "n_guides": 3, "embedding_dim": 2, "width": 4, "item_layers": 1},
    **{"service_layers": 1, "head_width": 2, "max_item_tokens": 5, "max_events": 4},
}


def _blocks() -> Preprocessor:
    n = sum(block.width for block in SCHEMA.blocks) + 2  # two strings, and those unknown
    mean = np.arange(n, dtype=np.float32)
    return Preprocessor(SCHEMA, mean, mean + 1, {"profile_gender": ("a", "b")}, {})


def _tokens() -> ClueInputs:
    return ClueInputs(CLUE_SCHEMA, TOKENS.vocabulary, TOKENS.guides, TOKENS.item, TOKENS.events)


@pytest.mark.parametrize(
    ("inputs", "model", "weights", "version"),
    [
        (_blocks(), {"kind": AUTOENCODER, **_NETWORK}, ["encoder.0.weight"], "13f18af1e446"),
        (_tokens(), {"kind": CLUE, **_TEXTS}, ["item.x", "service.x", "cold"], "85d5c3560c1c"),
    ],
)
def test_a_version_of_the_first_release_is_found_again(
    inputs: EncoderInputs, model: dict[str, Any], weights: list[str], version: str
) -> None:
    """Made of numbers that no library draws; read with the release before hybrid encoders."""
    arrays: Arrays = {name: np.arange(6, dtype=np.float32).reshape(2, 3) for name in weights}
    artifact = EncoderArtifact.build(
        preprocessor=inputs,
        weights=arrays,
        graphs={},
        modality=VectorState(),
        model=model,
        dataset={},
        data_cutoff=_WHEN,
        training={},
        created_at=_WHEN,
    )
    assert artifact.encoder_version == version
