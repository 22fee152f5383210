"""One variant with one seed: trained as ``palate train`` does, without a ledger entry."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from materialize.fitting import fit_encoder
from materialize.study.rows import StudyRows, narrow_rows
from materialize.study.variant import Variant
from materialize.training_rows import future_of

if TYPE_CHECKING:
    from encoder.artifact import EncoderArtifact
    from encoder.training_config import TrainingConfig

__all__ = ["Unit", "discard_training", "fit_unit", "training_facts"]


@dataclass(frozen=True)
class Unit:
    """A piece of a study that is done whole: one variant with one seed."""

    variant: Variant
    seed: int

    @property
    def name(self) -> str:
        """Name of the unit's file."""
        return f"{self.variant.name}.s{self.seed}"


def fit_unit(
    unit: Unit,
    rows: StudyRows,
    default: TrainingConfig,
) -> EncoderArtifact:
    """Train a unit's encoder.

    The rows it reads and its checkpoint are kept under ``rows.folder`` until ``discard_training``:
    a call after a kill goes on there, and a call after the end returns the same encoder at once.

    Raises
    ------
    DataFault
        No training row before the variant's end, or one part of the users has none.
    TrainingFault
        The loss is not finite.
    """
    variant = unit.variant
    folder = _folder(unit, rows)
    folder.mkdir(parents=True, exist_ok=True)
    schema = variant.schema(rows.schema)
    path = rows.file(variant.age_days, progress=False)
    if schema != rows.schema:
        future = variant.predicted(future_of(path))
        path = narrow_rows(path, schema, future, folder / "rows.parquet")
    return fit_encoder(
        path,
        schema,
        variant.config(default, unit.seed),
        rows.modalities,
        folder / "checkpoint",
        facts={
            "study_unit": unit.name,
            "training_rows": pq.read_metadata(path).num_rows,
        },
        data_cutoff=rows.end(variant.age_days),
        progress=False,
    )


def discard_training(unit: Unit, rows: StudyRows) -> None:
    """Remove what only the unit's training needed."""
    shutil.rmtree(_folder(unit, rows), ignore_errors=True)


def training_facts(artifact: EncoderArtifact) -> dict[str, Any]:
    """Return what a training took and gave, JSON types."""
    history = artifact.manifest.training["history"]
    weights = artifact.weights.items()
    return {
        "encoder_version": artifact.encoder_version,
        "embedding_dim": artifact.manifest.embedding_dim,
        "n_inputs": artifact.preprocessor.n_inputs,
        "n_parameters": int(sum(np.size(w) for name, w in weights if name.startswith("encoder."))),
        "training_rows": artifact.manifest.dataset["training_rows"],
        "epochs": len(history),
        "best_epoch": artifact.manifest.dataset["best_epoch"],
        "validation_loss": min(epoch["validation_loss"] for epoch in history),
        "seconds": round(sum(epoch["seconds"] for epoch in history), 3),
    }


def _folder(unit: Unit, rows: StudyRows) -> Path:
    return rows.folder / "training" / unit.name
