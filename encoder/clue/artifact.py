"""From a trained contrastive network to an artifact: two graphs and their proof. Needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

import numpy as np
import torch

from encoder.artifact import EncoderArtifact, ModalityState
from encoder.clue.config import ClueTrainingConfig
from encoder.clue.encoding import encode_services
from encoder.clue.export import export_items, export_service
from encoder.clue.from_rows import RowSequences
from encoder.clue.inputs import ClueInputs
from encoder.clue.network import user_vector
from encoder.clue.serving import COLD, ITEMS, MODEL_FIELDS, SERVICE
from encoder.clue.training import ClueResult
from encoder.export import require_parity
from encoder.manifest import CLUE
from encoder.rows import held_out

__all__ = ["export_clue"]

_USERS_AT_ONCE = 65_536


def export_clue(
    result: ClueResult,
    config: ClueTrainingConfig,
    inputs: ClueInputs,
    rows: RowSequences,
    modality: ModalityState,
    *,
    dataset: Mapping[str, Any],
    data_cutoff: datetime,
) -> EncoderArtifact:
    """Return the artifact of a trained network.

    Parameters
    ----------
    result : ClueResult
    config : ClueTrainingConfig
    inputs : ClueInputs
    rows : RowSequences
        What ``result`` was trained on; the mean embedding of its training users is that of a user
        without events.
    modality : ModalityState
        With the item texts that the rows were made of.
    dataset : mapping
        Facts to keep in the manifest (JSON types).
    data_cutoff : datetime
        Nothing learned saw an event from this instant on.

    Raises
    ------
    ArtifactError
        The graphs differ from the network, or the item texts are not those of the schema.
    """
    network = result.network.eval()
    weights = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    shape = {name: value for name, value in asdict(config.model).items() if name in MODEL_FIELDS}
    artifact = EncoderArtifact.build(
        preprocessor=inputs,
        weights=weights | {COLD: _mean_embedding(result, config, rows)},
        graphs={ITEMS: export_items(network), SERVICE: export_service(network)},
        modality=modality,
        model={
            "kind": CLUE,
            "vocabulary": inputs.vocabulary,
            "n_guides": inputs.n_guides,
            **shape,
            "seed": config.model.seed,
            "services": list(rows.sequences.services),
        },
        dataset=dict(dataset),
        data_cutoff=data_cutoff,
        training={
            "config": asdict(config),
            "history": [asdict(epoch) for epoch in result.history],
            "best_epoch": result.best_epoch,
            "stopped_early": result.stopped_early,
            "n_training_rows": result.n_training_users,
            "n_validation_rows": result.n_validation_users,
        },
        created_at=datetime.now(timezone.utc),
    )
    some = np.arange(len(rows.sample))
    expected = _embeddings(result, rows, some)
    warm = (rows.sample != 0).any(axis=1)
    require_parity(artifact, rows.sample[warm], expected[warm])
    return artifact


def _embeddings(
    result: ClueResult, rows: RowSequences, users: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    services = encode_services(result.network, rows.sequences, users)
    found: np.ndarray[Any, Any] = user_vector(torch.from_numpy(services)).numpy()
    return found


def _mean_embedding(
    result: ClueResult, config: ClueTrainingConfig, rows: RowSequences
) -> np.ndarray[Any, Any]:
    """Return the mean over training users who have an event, float32 (embedding_dim,)."""
    kept = np.flatnonzero(~held_out(rows.sequences.users, config.held_out_share))
    total, warm = np.zeros(config.model.embedding_dim), 0
    for start in range(0, len(kept), _USERS_AT_ONCE):
        found = _embeddings(result, rows, kept[start : start + _USERS_AT_ONCE])
        total += found.sum(axis=0, dtype=np.float64)
        warm += int(found.any(axis=1).sum())
    mean: np.ndarray[Any, Any] = (total / warm).astype(np.float32)
    return mean
