"""From training rows on disk to an encoder artifact; no ledger, no store."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoder.errors import DataFault
from encoder.modality import ModalityEncoders
from encoder.schema import FeatureSchema
from materialize.training_rows import future_of
from transforms.names import USER_KEY

if TYPE_CHECKING:
    from encoder.artifact import EncoderArtifact
    from encoder.compatibility import Compatibility
    from encoder.training import TrainingConfig

__all__ = ["fit_encoder"]


def fit_encoder(
    rows: Path,
    schema: FeatureSchema,
    config: TrainingConfig,
    modalities: ModalityEncoders,
    folder: Path,
    *,
    facts: Mapping[str, Any],
    data_cutoff: datetime,
    compatibility: Compatibility | None = None,
    resume: bool = True,
    progress: bool = True,
) -> EncoderArtifact:
    """Fit preprocessing and network on training rows, and return the artifact.

    Parameters
    ----------
    rows : Path
        Parquet of training rows: ``user_id``, the schema's columns and, where anything is to be
        predicted, what came next (``write_rows``).
    schema : FeatureSchema
        What the encoder reads; the file may hold more.
    config : TrainingConfig
    modalities : ModalityEncoders
        Those that the raw features were built with.
    folder : Path
        Takes the checkpoint and, while training runs, the encoder inputs; the caller removes it.
    facts : mapping
        To keep in the manifest (JSON types). The best epoch and, where there are any, the names of
        the predicted blocks are added.
    data_cutoff : datetime
        No row knows an event from this instant on.
    compatibility : Compatibility, optional
        Stay close to an earlier encoder.
    resume : bool
        Go on from the checkpoint in ``folder``, when there is one.
    progress : bool
        Show bars on stderr.

    Raises
    ------
    DataFault
        The rows lack a column, or what is to be predicted, or one part of the users has none.
    TrainingFault
        The loss is not finite, or the checkpoint belongs to other data.
    ArtifactError
        The modality encoders are not those of the schema.
    """
    from encoder.export import export_artifact
    from encoder.preprocessing import Preprocessor
    from encoder.rows import RowSource
    from encoder.training import train

    predicted = future_of(rows) if config.prediction_weight > 0 else None
    if predicted is None and config.prediction_weight > 0:
        raise DataFault(
            f"{rows.name} does not say what came next, and prediction_weight is "
            f"{config.prediction_weight}. Write the rows with their future, or set it to 0."
        )
    source = RowSource(rows, schema, user_column=USER_KEY, future=predicted)
    share = config.held_out_share
    preprocessor = Preprocessor.fit(schema, source.batches("training", share))
    future = None
    if predicted is not None:
        future = Preprocessor.fit(predicted, source.batches("training", share))
    result = train(
        source,
        preprocessor,
        config,
        folder,
        future=future,
        compatibility=compatibility,
        resume=resume,
        progress=progress,
    )
    dataset = {**facts, "best_epoch": result.best_epoch}
    if predicted is not None:
        dataset["predicted"] = [block.name for block in predicted.blocks]
    return export_artifact(
        result, config, preprocessor, modalities, dataset=dataset, data_cutoff=data_cutoff
    )
