"""From a trained contrastive network to an artifact: two graphs and their proof. Needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

import numpy as np

from encoder.artifact import EncoderArtifact, ModalityState
from encoder.clue.config import ClueTrainingConfig
from encoder.clue.encoding import encode_users
from encoder.clue.export import export_items, export_service
from encoder.clue.from_rows import RowSequences
from encoder.clue.inputs import ClueInputs
from encoder.clue.sequences import UserSequences
from encoder.clue.serving import COLD, ITEMS, KEPT_ITEMS, MODEL_FIELDS, SERVICE
from encoder.clue.training import ClueResult
from encoder.export import require_parity
from encoder.manifest import CLUE
from encoder.rows import held_out

__all__ = ["export_clue", "kept_items"]

_USERS_AT_ONCE = 65_536

_KEPT_SHARE = 0.99
"""Of the events: so many shall find the vectors of their items kept."""
_LEAST_KEPT = 1024
_MOST_KEPT_BYTES = 256 * 2**20


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
            KEPT_ITEMS: kept_items(rows.sequences, config.model.width),
            "services": list(rows.sequences.services),
        },
        dataset=dict(dataset),
        data_cutoff=data_cutoff,
        training={
            "config": config.told(),
            "history": [asdict(epoch) for epoch in result.history],
            "best_epoch": result.best_epoch,
            "stopped_early": result.stopped_early,
            "n_training_rows": result.n_training_users,
            "n_validation_rows": result.n_validation_users,
        },
        created_at=datetime.now(timezone.utc),
    )
    some = np.arange(len(rows.sample))
    expected = encode_users(network, rows.sequences, some)
    warm = (rows.sample != 0).any(axis=1)
    require_parity(artifact, rows.sample[warm], expected[warm])
    return artifact


def kept_items(sequences: UserSequences, width: int) -> int:
    """Return how many item vectors serving shall keep: those of nearly all events there are.

    Users meet few items of a catalogue often and most hardly ever: what is kept follows what they
    really meet, not the catalogue's size. Never more than 256 MiB of vectors.

    Parameters
    ----------
    sequences : UserSequences
    width : int
        Of an item vector, float32.
    """
    met = np.zeros(len(sequences.tokens), np.int64)
    for events in sequences.services.values():
        met += np.bincount(events.items, minlength=len(met))
    covered = np.cumsum(np.sort(met)[::-1])
    wanted = 1 + int(np.searchsorted(covered, _KEPT_SHARE * covered[-1])) if len(met) else 0
    return min(max(wanted, _LEAST_KEPT), _MOST_KEPT_BYTES // (4 * width))


def _mean_embedding(
    result: ClueResult, config: ClueTrainingConfig, rows: RowSequences
) -> np.ndarray[Any, Any]:
    """Return the mean over training users who have an event, float32 (embedding_dim,)."""
    kept = np.flatnonzero(~held_out(rows.sequences.users, config.held_out_share))
    total, warm = np.zeros(config.model.embedding_dim), 0
    for start in range(0, len(kept), _USERS_AT_ONCE):
        some = kept[start : start + _USERS_AT_ONCE]
        found = encode_users(result.network, rows.sequences, some)
        total += found.sum(axis=0, dtype=np.float64)
        warm += int(found.any(axis=1).sum())
    mean: np.ndarray[Any, Any] = (total / warm).astype(np.float32)
    return mean
