"""How the contrastive encoder is trained in a repository: from the texts of the raw features."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoder.errors import DataFault
from materialize.batch import open_source
from materialize.config import CONFIG_FILE, RepoSettings
from materialize.features import current_modalities
from materialize.recipes import refused_config, tupled
from materialize.training_rows import layout_of, write_rows
from transforms.layout import TextLayout
from transforms.names import USER_KEY
from transforms.texts import texts_schema

if TYPE_CHECKING:
    from feast import FeatureStore

    from encoder.artifact import EncoderArtifact
    from encoder.clue.config import ClueTrainingConfig

__all__ = ["ClueRecipe", "clue_config"]


class ClueRecipe:
    """Learns from each user's newest texts before the cut-off.

    Parameters
    ----------
    store : FeatureStore
        With the raw views applied.
    settings : RepoSettings

    Raises
    ------
    DataFault
        The raw features carry no texts, or the settings do not fit.
    """

    def __init__(self, store: FeatureStore, settings: RepoSettings) -> None:
        self.modalities = current_modalities(settings.features_dir)
        layout = layout_of(settings, self.modalities)
        if layout.texts is None or self.modalities.texts is None:
            where = settings.dataset_path if layout.texts is None else settings.features_dir
            raise DataFault(
                f"{where} has no texts, which an encoder of kind clue reads. Add `texts` to "
                "dataset.yaml, then run `palate features build` and `feast apply`."
            )
        self._texts = self.modalities.texts
        if settings.file.compatibility is not None:
            raise DataFault(
                f"{settings.repo / CONFIG_FILE}, compatibility: an encoder of kind clue is not "
                "trained to stay compatible. Remove the section; a bridge can be measured "
                "afterwards (`palate spaces stability`)."
            )
        self._config = clue_config(settings, layout.texts)
        self.embedding_dim = self._config.model.embedding_dim
        self.schema = texts_schema(layout, self.modalities)
        end = settings.dataset.evaluation.cutoff
        self.source = open_source(store, settings, self.schema, end=end)
        self.decisive: Mapping[str, Any] = {"kind": "clue"} | self._config.told()
        self.facts: Mapping[str, Any] = {"services": list(self._texts.tokenizer.services)}

    def write(self, path: Path, *, progress: bool) -> int:
        """Write the newest row of each user; see `materialize.recipes.Recipe`."""
        return write_rows(self.source, path, self.schema, progress=progress)

    def fit(
        self,
        rows: Path,
        folder: Path,
        *,
        facts: Mapping[str, Any],
        resume: bool,
        progress: bool,
    ) -> EncoderArtifact:
        """Train, and return the artifact; see `materialize.recipes.Recipe`."""
        from encoder.clue.artifact import export_clue
        from encoder.clue.from_rows import read_sequences
        from encoder.clue.inputs import ClueInputs
        from encoder.clue.training import train_clue
        from encoder.rows import RowSource

        tokenizer, shape = self._texts.tokenizer, self._config.model
        inputs = ClueInputs(
            self.schema,
            tokenizer.vocabulary,
            len(tokenizer.services) + 1,
            shape.max_item_tokens,
            shape.max_events,
        )
        source = RowSource(rows, self.schema, user_column=USER_KEY)
        found = read_sequences(
            source, inputs, tokenizer.services, share=self._config.user_share, progress=progress
        )
        result = train_clue(
            found.sequences,
            tokenizer.vocabulary,
            self._config,
            folder,
            resume=resume,
            progress=progress,
        )
        return export_clue(
            result,
            self._config,
            inputs,
            found,
            self.modalities,
            dataset={**facts, "best_epoch": result.best_epoch},
            data_cutoff=self.source.end,
        )


def clue_config(settings: RepoSettings, texts: TextLayout) -> ClueTrainingConfig:
    """Return the training's settings: the defaults, and what ``palate.yaml`` says otherwise.

    Raises
    ------
    DataFault
        ``clue`` or ``clue_training`` has an unknown field or a value that it does not take.
    """
    from encoder.clue.config import ClueTrainingConfig
    from encoder.clue.grad_cache import Chunks
    from encoder.clue.network import ClueConfig

    seed = {"seed": settings.file.seed}
    part = "clue"
    try:
        lengths = {"max_item_tokens": texts.max_item_tokens, "max_events": texts.max_events}
        twice = sorted(set(lengths) & set(settings.file.clue))
        if twice:
            raise ValueError(f"{', '.join(twice)}: the data set's `texts` has it.")
        model = ClueConfig(**lengths, **tupled(seed | settings.file.clue))
        part = "clue_training"
        fields = tupled(seed | settings.file.clue_training)
        if "chunks" in fields:
            fields["chunks"] = Chunks(**fields["chunks"])
        return ClueTrainingConfig(model=model, **fields)
    except (TypeError, ValueError) as exc:
        raise refused_config(settings, part, exc) from exc
