"""What ``palate train`` does for a kind of encoder: which rows it learns from, and how."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from encoder.errors import DataFault
from encoder.manifest import AUTOENCODER
from encoder.modality import ModalityEncoders
from encoder.schema import FeatureSchema
from materialize.batch import open_source
from materialize.config import CONFIG_FILE, RepoSettings
from materialize.features import current_data_fingerprint, current_modalities
from materialize.fitting import fit_encoder
from materialize.ledger import Ledger
from materialize.source import RawSource
from materialize.training_rows import predicted_schema, raw_schema, with_future, write_rows
from transforms.runtime import load_encoder

if TYPE_CHECKING:
    from feast import FeatureStore

    from encoder.artifact import EncoderArtifact
    from encoder.compatibility import Compatibility
    from encoder.training import TrainingConfig

__all__ = [
    "Recipe",
    "future_facts",
    "recipe_of",
    "refused_config",
    "training_config",
    "tupled",
    "write_moments",
]


class Recipe(Protocol):
    """How one kind of encoder is trained in a repository."""

    @property
    def modalities(self) -> ModalityEncoders:
        """Those that the raw features were built with."""

    @property
    def schema(self) -> FeatureSchema:
        """What the encoder reads."""

    @property
    def source(self) -> RawSource:
        """Raw rows before the cut-off."""

    @property
    def embedding_dim(self) -> int:
        """Length of the embedding."""

    @property
    def decisive(self) -> Mapping[str, Any]:
        """JSON types that decide, beside the rows, what is learned."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """Further facts for the manifest."""

    def write(self, path: Path, *, progress: bool) -> int:
        """Write the training rows, unless they are there; return their number.

        Raises
        ------
        DataFault
            There is none.
        """

    def fit(
        self,
        rows: Path,
        folder: Path,
        *,
        facts: Mapping[str, Any],
        resume: bool,
        progress: bool,
    ) -> EncoderArtifact:
        """Train, and return the artifact; checkpoints lie in ``folder``.

        Raises
        ------
        DataFault, TrainingFault, ArtifactError
        """


def recipe_of(store: FeatureStore, settings: RepoSettings, ledger: Ledger) -> Recipe:
    """Return the recipe of the kind of encoder that the settings name.

    Raises
    ------
    DataFault
        Raw features are not applied or not built, or without what the kind reads; or settings that
        the kind does not take.
    """
    if settings.file.encoder == "clue":
        from materialize.recipe_clue import ClueRecipe

        return ClueRecipe(store, settings)
    if settings.file.encoder == "hybrid":
        from materialize.recipe_hybrid import HybridRecipe

        return HybridRecipe(store, settings, ledger)
    return _AutoencoderRecipe(store, settings, ledger)


class _AutoencoderRecipe:
    """Learns from each moment before the cut-off at which a user's raw features changed."""

    def __init__(self, store: FeatureStore, settings: RepoSettings, ledger: Ledger) -> None:
        self._settings = settings
        self._config = config = training_config(settings)
        self.embedding_dim = config.model.embedding_dim
        self.modalities = modalities = current_modalities(settings.features_dir)
        self.schema = raw_schema(settings, modalities)
        self._compatibility = _compatibility(settings, ledger, self.schema, self.embedding_dim)
        end = settings.dataset.evaluation.cutoff
        self.source = open_source(store, settings, self.schema, end=end, history=True)
        self._future = predicted_schema(settings, modalities, config)
        fingerprint = current_data_fingerprint(settings.features_dir)
        self.facts = _compatibility_facts(settings)
        self.decisive = asdict(config) | future_facts(self._future, fingerprint) | self.facts

    def write(self, path: Path, *, progress: bool) -> int:
        where = (self._settings, self.modalities, self._config)
        return write_moments(
            self.source, path, self.schema, *where, future=self._future, progress=progress
        )

    def fit(
        self,
        rows: Path,
        folder: Path,
        *,
        facts: Mapping[str, Any],
        resume: bool,
        progress: bool,
    ) -> EncoderArtifact:
        return fit_encoder(
            rows,
            self.schema,
            self._config,
            self.modalities,
            folder,
            facts=facts,
            data_cutoff=self.source.end,
            compatibility=self._compatibility,
            resume=resume,
            progress=progress,
        )


def write_moments(
    source: RawSource,
    path: Path,
    schema: FeatureSchema,
    settings: RepoSettings,
    modalities: ModalityEncoders,
    config: TrainingConfig,
    *,
    future: FeatureSchema | None,
    keep: Callable[[pa.RecordBatch], pa.RecordBatch] | None = None,
    progress: bool,
) -> int:
    """Write the moments of a source, with what came next where training predicts it.

    Returns their number. A file that is there is kept.

    Parameters
    ----------
    source : RawSource
        Of all raw views, with history.
    path : Path
        Further columns lie beside it while rows are written.
    schema : FeatureSchema
        Columns to write.
    settings, modalities, config
        As `materialize.training_rows.with_future` takes them.
    future : FeatureSchema or None
        What is predicted (`predicted_schema`).
    keep : callable, optional
        As in `materialize.training_rows.write_rows`.
    progress : bool
        Show bars on stderr.

    Raises
    ------
    DataFault
        There is no row before the source's end.
    """
    folder = path.parent / "future"
    if not path.exists():
        source = with_future(source, settings, modalities, config, folder, progress=progress)
    rows = write_rows(source, path, schema, future=future, progress=progress, keep=keep)
    shutil.rmtree(folder, ignore_errors=True)
    return rows


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
        model = AutoencoderConfig(**tupled(seed | settings.file.autoencoder))
        part = "training"
        return TrainingConfig(model=model, **tupled(seed | settings.file.training))
    except (TypeError, ValueError) as exc:
        raise refused_config(settings, part, exc) from exc


def refused_config(settings: RepoSettings, part: str, fault: Exception) -> DataFault:
    """Return the error of a section of ``palate.yaml`` that a configuration does not take."""
    return DataFault(
        f"{settings.repo / CONFIG_FILE}, {part}: {fault} Correct the field: "
        "docs/configuration.md lists them."
    )


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
    if earlier.manifest.model["kind"] != AUTOENCODER:
        fault = f"its encoder is of kind {earlier.manifest.model['kind']}"
    elif theirs.modality_version != schema.modality_version:
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


def future_facts(future: FeatureSchema | None, data: str | None) -> dict[str, Any]:
    """Return what decides the predicted values; nothing without any."""
    return {} if future is None else {"future": future.to_dict(), "events": data}


def tupled(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields with lists as tuples, as configurations have them."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
