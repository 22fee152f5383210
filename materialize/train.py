"""``palate train``: raw features before the cut-off -> encoder -> artifact -> a new space."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoder.errors import DataFault
from encoder.schema import FeatureSchema
from encoder.store import ArtifactStore
from materialize.batch import open_source
from materialize.config import CONFIG_FILE, RepoSettings
from materialize.embedding_rows import ensure_readable
from materialize.features import current_data_fingerprint, current_modalities
from materialize.fitting import fit_encoder
from materialize.ledger import Ledger, Space
from materialize.source import RawSource
from materialize.training_rows import predicted_schema, raw_schema, with_future, write_rows
from transforms.names import request_context, stored_view, vector_form
from transforms.runtime import load_encoder

if TYPE_CHECKING:
    from feast import FeatureStore

    from encoder.compatibility import Compatibility
    from encoder.training import TrainingConfig

__all__ = ["TrainReport", "train_space", "training_config"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainReport:
    """What a training did.

    Attributes
    ----------
    space : Space
    rows : int
        Training rows: moments before the cut-off at which a user's raw features changed.
    history : list of dict
        Losses per epoch.
    new : bool
        False: the same data and settings were trained before, and gave this space.
    """

    space: Space
    rows: int
    history: list[dict[str, Any]]
    new: bool


def train_space(
    store: FeatureStore,
    settings: RepoSettings,
    ledger: Ledger,
    *,
    resume: bool = True,
    progress: bool = True,
) -> TrainReport:
    """Train an encoder on everything before the cut-off and register its space.

    Parameters
    ----------
    store : FeatureStore
        With the raw views applied.
    settings : RepoSettings
    ledger : Ledger
    resume : bool
        Go on from a checkpoint of the same data and settings, when there is one.
    progress : bool
        Show bars on stderr.

    Raises
    ------
    DataFault
        Raw features are not applied or not built, or hold no row before the cut-off, or
        ``compatibility`` names a space whose encoder cannot read them.
    TrainingFault
        The loss is not finite, or a checkpoint belongs to other data.
    LedgerConflict
        The space of the same rows and settings is being retired, or was.

    Notes
    -----
    Safe to repeat: training rows and checkpoints are kept under ``data_dir/training`` until the
    space is registered, the artifact is content addressed, and the ledger row comes last.
    """
    config = training_config(settings)
    dataset = settings.dataset
    modalities = current_modalities(settings.features_dir)
    schema = raw_schema(settings, modalities)
    compatibility = _compatibility(settings, ledger, schema, config.model.embedding_dim)
    source = open_source(store, settings, schema, end=dataset.evaluation.cutoff, history=True)
    future = predicted_schema(settings, modalities, config)
    fingerprint = current_data_fingerprint(settings.features_dir)
    key = _key(
        source,
        schema,
        asdict(config) | _future_facts(future, fingerprint) | _compatibility_facts(settings),
    )
    folder = settings.data_dir / "training" / key
    if resume:
        for space in ledger.spaces():
            if space.facts["training_key"] == key:
                # Refused now, and not after hours of training, when the space is retired.
                ledger.register(space.encoder_version, space.artifact_url, space.facts)
                _log.info("space %s was trained on the same rows and settings", space.number)
                return _trained_before(settings, space, source, folder)
    path = folder / "rows.parquet"
    if not path.exists():
        source = with_future(
            source, settings, modalities, config, folder / "future", progress=progress
        )
    rows = write_rows(source, path, schema, future=future, progress=progress)
    shutil.rmtree(folder / "future", ignore_errors=True)
    artifact = fit_encoder(
        path,
        schema,
        config,
        modalities,
        folder / "checkpoint",
        facts={
            "dataset": dataset.name,
            "cutoff": dataset.evaluation.cutoff.isoformat(),
            "windows": list(dataset.windows),
            "modality_version": modalities.version,
            "raw_views": list(dict.fromkeys(c.split("__")[0] for c in schema.columns)),
            "training_rows": rows,
            "embedding_dim": config.model.embedding_dim,
            "training_key": key,
            "data_fingerprint": fingerprint,
            **_compatibility_facts(settings),
        },
        data_cutoff=source.end,
        compatibility=compatibility,
        resume=resume,
        progress=progress,
    )
    url = ArtifactStore(settings.artifacts_url).save(artifact)
    known = {space.encoder_version for space in ledger.spaces()}
    # How it is served is the space's matter, not the encoder's: it is no part of the artifact.
    served: dict[str, Any] = {"vectors": settings.file.vectors}
    if dataset.events.request_context:
        served["request_context"] = list(dataset.events.request_context)
    facts = artifact.manifest.dataset | served
    space = ledger.register(artifact.encoder_version, url, facts)
    _tell_other_form(settings, space)
    _finish(settings, space, source, folder)
    _log.info("space %s is encoder version %s", space.number, space.encoder_version)
    history = artifact.manifest.training["history"]
    return TrainReport(space, rows, history, artifact.encoder_version not in known)


def training_config(settings: RepoSettings) -> TrainingConfig:
    """Return the training's settings: the defaults, and what ``palate.yaml`` says otherwise.

    Raises
    ------
    DataFault
        ``autoencoder`` or ``training`` has an unknown field or a value that it does not take.
    """
    from encoder.autoencoder import AutoencoderConfig
    from encoder.training import TrainingConfig

    seed = {"seed": settings.file.seed}
    part = "autoencoder"
    try:
        model = AutoencoderConfig(**_tupled(seed | settings.file.autoencoder))
        part = "training"
        return TrainingConfig(model=model, **_tupled(seed | settings.file.training))
    except (TypeError, ValueError) as exc:
        raise DataFault(
            f"{settings.repo / CONFIG_FILE}, {part}: {exc} Correct the field: "
            "docs/configuration.md lists them."
        ) from exc


def _compatibility(
    settings: RepoSettings, ledger: Ledger, schema: FeatureSchema, embedding_dim: int
) -> Compatibility | None:
    """Return the encoder to stay compatible with, or None when the settings name no space.

    Raises
    ------
    DataFault
        The encoder reads other raw features, or its embedding has another length.
    """
    from encoder.compatibility import Compatibility

    wanted = settings.file.compatibility
    if wanted is None:
        return None
    space = ledger.space(wanted.space)
    earlier = load_encoder(settings.artifacts_url, space.encoder_version)
    theirs = earlier.preprocessor.schema
    lacking = sorted(set(theirs.columns) - set(schema.columns))
    if theirs.modality_version != schema.modality_version:
        fault = (
            f"its modality encoders are {theirs.modality_version}, those of the raw features are "
            f"{schema.modality_version}: no row can be read by both encoders"
        )
    elif lacking:
        fault = f"it reads {', '.join(lacking)}, which the raw features do not have any more"
    elif earlier.manifest.embedding_dim != embedding_dim:
        fault = (
            f"its embedding has {earlier.manifest.embedding_dim} numbers, autoencoder."
            f"embedding_dim is {embedding_dim}"
        )
    else:
        return Compatibility(earlier, wanted.weight)
    raise DataFault(
        f"{settings.repo / CONFIG_FILE}, compatibility: space {wanted.space} cannot be stayed "
        f"compatible with: {fault}. Train without the section; a bridge to that space can be "
        "measured afterwards (`palate spaces stability`)."
    )


def _compatibility_facts(settings: RepoSettings) -> dict[str, Any]:
    """Return the setting as facts; nothing without it, so that such trainings keep their key."""
    wanted = settings.file.compatibility
    return {} if wanted is None else {"compatibility": wanted.model_dump()}


def _future_facts(future: FeatureSchema | None, data: str | None) -> dict[str, Any]:
    """Return what decides the predicted values; nothing without any."""
    return {} if future is None else {"future": future.to_dict(), "events": data}


def _key(source: RawSource, schema: FeatureSchema, config: Mapping[str, Any]) -> str:
    """Return 16 hex digits that are equal only for trainings with the same result."""
    content = json.dumps([source.fingerprint, schema.to_dict(), config], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _trained_before(
    settings: RepoSettings, space: Space, source: RawSource, folder: Path
) -> TrainReport:
    _finish(settings, space, source, folder)  # a training may have been killed just before
    _tell_other_form(settings, space)
    manifest = load_encoder(settings.artifacts_url, space.encoder_version).manifest
    return TrainReport(space, space.facts["training_rows"], manifest.training["history"], new=False)


def _tell_other_form(settings: RepoSettings, space: Space) -> None:
    """Say so when a space that was registered before is served as it was declared then."""
    form, wanted = vector_form(space.facts), settings.file.vectors
    if form != wanted:
        _log.warning(
            "space %s keeps %s vectors, as it was registered; %s in %s is for new spaces: train "
            "with another seed, or on newer data",
            *(space.number, form, wanted, CONFIG_FILE),
        )
    given, asked = request_context(space.facts), settings.dataset.events.request_context
    if given != asked:
        _log.warning(
            "requests of space %s give %s, as it was registered; events.request_context (%s) is "
            "for new spaces: train with another seed, or on newer data",
            *(space.number, ", ".join(given) or "no context", ", ".join(asked) or "none"),
        )


def _finish(settings: RepoSettings, space: Space, source: RawSource, folder: Path) -> None:
    """Make the new view readable and drop what only the training needed; safe to repeat."""
    ensure_readable(settings.offline_dir / stored_view(space.number), source.key_type)
    shutil.rmtree(folder, ignore_errors=True)


def _tupled(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
