"""``palate train``: raw features before the cut-off -> encoder -> artifact -> a new space."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoder.store import ArtifactStore
from materialize.config import CONFIG_FILE, RepoSettings
from materialize.embedding_rows import ensure_readable
from materialize.features import current_data_fingerprint
from materialize.ledger import Ledger, Space
from materialize.recipes import Recipe, recipe_of
from materialize.source import RawSource
from transforms.names import request_context, stored_view, vector_form
from transforms.runtime import load_encoder

if TYPE_CHECKING:
    from feast import FeatureStore

__all__ = ["TrainReport", "train_space"]

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
    dataset = settings.dataset
    recipe = recipe_of(store, settings, ledger)
    key = _key(recipe)
    folder = settings.data_dir / "training" / key
    if resume:
        for space in ledger.spaces():
            if space.facts["training_key"] == key:
                # Refused now, and not after hours of training, when the space is retired.
                ledger.register(space.encoder_version, space.artifact_url, space.facts)
                _log.info("space %s was trained on the same rows and settings", space.number)
                return _trained_before(settings, space, recipe.source, folder)
    path = folder / "rows.parquet"
    rows = recipe.write(path, progress=progress)
    artifact = recipe.fit(
        path,
        folder / "checkpoint",
        facts={
            "dataset": dataset.name,
            "cutoff": dataset.evaluation.cutoff.isoformat(),
            "windows": list(dataset.windows),
            "modality_version": recipe.schema.modality_version,
            "raw_views": list(dict.fromkeys(c.split("__")[0] for c in recipe.schema.columns)),
            "training_rows": rows,
            "embedding_dim": recipe.embedding_dim,
            "training_key": key,
            "data_fingerprint": current_data_fingerprint(settings.features_dir),
            **recipe.facts,
        },
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
    _finish(settings, space, recipe.source, folder)
    _log.info("space %s is encoder version %s", space.number, space.encoder_version)
    history = artifact.manifest.training["history"]
    return TrainReport(space, rows, history, artifact.encoder_version not in known)


def _key(recipe: Recipe) -> str:
    """Return 16 hex digits that are equal only for trainings with the same result."""
    decisive = [recipe.source.fingerprint, recipe.schema.to_dict(), recipe.decisive]
    content = json.dumps(decisive, sort_keys=True)
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
