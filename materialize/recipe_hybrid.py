"""How the hybrid encoder is trained in a repository: blocks, and a contrastive space's vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from encoder.columns import raw_batch
from encoder.errors import DataFault
from encoder.hybrid.artifact import compose_hybrid, require_same_embeddings, text_inputs
from encoder.hybrid.inputs import VECTOR, blocks_schema, vector_block
from encoder.hybrid.serving import text_vectors
from encoder.manifest import CLUE, FLOAT32
from encoder.schema import FeatureSchema
from materialize.adopt import OTHER_USERS
from materialize.batch import open_source
from materialize.config import CONFIG_FILE, RepoSettings
from materialize.features import current_data_fingerprint, current_modalities
from materialize.fitting import fit_encoder
from materialize.ledger import Ledger, Space
from materialize.live import TEXTS_FACT
from materialize.recipes import future_facts, training_config, write_moments
from materialize.training_rows import layout_of, predicted_schema, raw_schema
from transforms.names import USER_KEY
from transforms.runtime import load_encoder
from transforms.texts import texts_schema

if TYPE_CHECKING:
    from feast import FeatureStore

    from encoder.artifact import EncoderArtifact

__all__ = ["HybridRecipe"]

_PROOF_ROWS = 256


class HybridRecipe:
    """Learns from each moment, as an autoencoder does, with the vector of the moment's texts.

    Parameters
    ----------
    store : FeatureStore
        With the raw views applied.
    settings : RepoSettings
    ledger : Ledger

    Raises
    ------
    DataFault
        The raw features carry no texts, or the settings do not fit.
    LedgerConflict
        There is no such contrastive space.
    """

    def __init__(self, store: FeatureStore, settings: RepoSettings, ledger: Ledger) -> None:
        if settings.file.compatibility is not None:
            raise DataFault(
                f"{settings.repo / CONFIG_FILE}, compatibility: an encoder of kind hybrid is not "
                "trained to stay compatible. Remove the section; a bridge can be measured "
                "afterwards (`palate spaces stability`)."
            )
        self._settings = settings
        self._config = config = training_config(settings)
        self.embedding_dim = config.model.embedding_dim
        self.modalities = modalities = current_modalities(settings.features_dir)
        texts = texts_schema(layout_of(settings, modalities), modalities)
        self.schema = raw_schema(settings, modalities).with_texts(texts)
        space, self._clue = _contrastive_space(settings, ledger, texts)
        vector = vector_block(self._clue.manifest.embedding_dim)
        self._written = replace(self.schema, blocks=(*self.schema.blocks, vector))
        end = settings.dataset.evaluation.cutoff
        self.source = open_source(store, settings, self.schema, end=end, history=True)
        self._future = predicted_schema(settings, modalities, config)
        made_of = {
            "clue_space": space.number,
            "clue_encoder_version": self._clue.encoder_version,
        }
        self.facts: Mapping[str, Any] = made_of | {TEXTS_FACT: texts.modality_version}
        fingerprint = current_data_fingerprint(settings.features_dir)
        self.decisive: Mapping[str, Any] = (
            {"kind": "hybrid", "clue": self._clue.encoder_version}
            | asdict(config)
            | future_facts(self._future, fingerprint)
        )

    def write(self, path: Path, *, progress: bool) -> int:
        """Write the moments with their vectors; see `materialize.recipes.Recipe`.

        The tokens are written, too: the finished encoder is tried on them.
        """
        return write_moments(
            self.source,
            path,
            self._written,
            *(self._settings, self.modalities, self._config),
            future=self._future,
            keep=_Vectors(self._clue, self.schema),
            progress=progress,
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
        """Train, and return the artifact; see `materialize.recipes.Recipe`."""
        from encoder.rows import RowSource

        schema = blocks_schema(self.schema, self._clue.manifest.embedding_dim)
        blocks = fit_encoder(
            rows,
            schema,
            self._config,
            self.modalities,
            folder,
            facts=facts,
            data_cutoff=self.source.end,
            resume=resume,
            progress=progress,
        )
        artifact = compose_hybrid(blocks, self._clue, self.schema, self.modalities)
        some = RowSource(rows, self._written, user_column=USER_KEY, batch_rows=_PROOF_ROWS)
        require_same_embeddings(artifact, next(some.batches()), blocks)
        return artifact


class _Vectors:
    """Adds to rows the contrastive encoder's vectors of their texts.

    Parameters
    ----------
    clue : EncoderArtifact
    schema : FeatureSchema
        Of blocks and texts.
    """

    def __init__(self, clue: EncoderArtifact, schema: FeatureSchema) -> None:
        import torch

        self._clue, self._inputs = clue, text_inputs(clue, schema)
        self._threads = torch.get_num_threads()  # as many as the training will have

    def __call__(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        tokens = self._inputs.transform(raw_batch(rows, self._inputs.schema, USER_KEY))
        width = self._clue.manifest.embedding_dim
        found = text_vectors(self._clue.encode_inputs, tokens, width, self._threads)
        flat = pa.array(found.values.ravel())
        lists = pa.FixedSizeListArray.from_arrays(flat, width, mask=pa.array(~found.valid))
        return rows.append_column(VECTOR, lists)


def _contrastive_space(
    settings: RepoSettings, ledger: Ledger, texts: FeatureSchema
) -> tuple[Space, EncoderArtifact]:
    """Return the space whose encoder gives the vector of texts, and that encoder.

    Raises
    ------
    DataFault
        The settings name none, or one that is gone, reads other texts or knows too much.
    LedgerConflict
        There is no such space.
    """
    wanted, file = settings.file.hybrid, settings.repo / CONFIG_FILE
    if wanted is None:
        raise DataFault(
            f"{file} has no section `hybrid`, which names the contrastive space that an encoder of "
            "this kind reads. Add `hybrid: {space: N}`; `palate train --encoder clue` makes one."
        )
    space = ledger.space(wanted.space)
    if space.state in ("retiring", "retired"):
        raise DataFault(_refused(file, wanted.space, f"it is {space.state}, its encoder goes"))
    encoder = load_encoder(settings.artifacts_url, space.encoder_version)
    manifest, theirs = encoder.manifest, encoder.preprocessor.schema
    end = settings.dataset.evaluation.cutoff
    if manifest.model["kind"] != CLUE:
        fault = f"its encoder is of kind {manifest.model['kind']}, {CLUE} is expected"
    elif manifest.precision != FLOAT32:
        fault = f"its encoder is {manifest.precision}; name the space that it was made from"
    elif theirs.modality_version != texts.modality_version:
        fault = (
            f"it reads item texts {theirs.modality_version}, those of the raw features are "
            f"{texts.modality_version}"
        )
    elif any(most > theirs.token_columns.get(k, 0) for k, most in texts.token_columns.items()):
        fault = "`texts` in dataset.yaml allows longer texts now than it was trained on"
    elif datetime.fromisoformat(manifest.data_cutoff) > end and not space.facts.get(OTHER_USERS):
        fault = (
            f"it learned from events up to {manifest.data_cutoff}, evaluation.cutoff is "
            f"{end.isoformat()}"
        )
    else:
        return space, encoder
    raise DataFault(_refused(file, wanted.space, fault))


def _refused(file: Path, space: int, fault: str) -> str:
    return (
        f"{file}, hybrid: space {space} cannot give the vector of texts: {fault}. Name another "
        "space, or train one (`palate train --encoder clue`)."
    )
