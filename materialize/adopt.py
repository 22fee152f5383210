"""``palate spaces adopt``: an encoder that was trained elsewhere becomes a space here."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from encoder.errors import SpaceMismatch
from encoder.schema import Block, FeatureSchema
from encoder.store import ArtifactStore, artifact_at
from materialize.batch import open_source
from materialize.config import RepoSettings
from materialize.embedding_rows import ensure_readable
from materialize.features import current_modalities
from materialize.ledger import Ledger, Space
from materialize.training_rows import layout_of
from transforms.names import stored_view
from transforms.texts import texts_schema

if TYPE_CHECKING:
    from feast import FeatureStore

__all__ = ["OTHER_USERS", "AdoptionReport", "adopt_space"]

_log = logging.getLogger(__name__)

OTHER_USERS = "other_users"
"""Fact of a space whose encoder was trained on none of this repository's users."""


@dataclass(frozen=True)
class AdoptionReport:
    """What an adoption did.

    Attributes
    ----------
    space : int or None
        None: a dry run.
    encoder_version : str
    dataset : str
        That it was trained on.
    new : bool
        False: the encoder had its space before.
    """

    space: int | None
    encoder_version: str
    dataset: str
    new: bool

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return asdict(self)


def adopt_space(
    store: FeatureStore,
    settings: RepoSettings,
    ledger: Ledger,
    url: str,
    *,
    other_users: bool = False,
    dry_run: bool = False,
) -> AdoptionReport:
    """Copy an encoder into this repository's artifact store and register its space.

    An encoder of texts reads token ids, so it can encode the users of any repository whose texts
    are made with its tokenizer (``texts.tokenizer`` in ``dataset.yaml``). One that reads item
    vectors can do so where the very same vectors are in use.

    Parameters
    ----------
    store : FeatureStore
        With the raw views applied.
    settings : RepoSettings
    ledger : Ledger
    url : str
        Folder of the artifact, a local path or an fsspec URL: ``.../artifacts/VERSION``.
    other_users : bool
        None of the users that it was trained on is among this repository's: evaluations then do
        not compare its cut-off with theirs.
    dry_run : bool
        Check, and change nothing.

    Raises
    ------
    ArtifactError
        There is no artifact, or it is damaged.
    SpaceMismatch
        The encoder cannot read this repository's raw features.
    DataFault
        Raw features are not applied or not built.
    LedgerConflict
        The encoder's space is being retired, or was.
    """
    artifact = artifact_at(url)
    schema, version = artifact.preprocessor.schema, artifact.encoder_version
    _check_readable(settings, version, schema)
    source = open_source(store, settings, schema, end=datetime.now(timezone.utc))
    known = {space.encoder_version for space in ledger.spaces()}
    came_from = artifact.manifest.dataset
    trained_on = str(came_from.get("dataset", ""))
    if dry_run:
        return AdoptionReport(None, version, trained_on, version not in known)
    here = ArtifactStore(settings.artifacts_url).save(artifact)
    facts = {"vectors": settings.file.vectors, "adopted_from": url, OTHER_USERS: other_users}
    space = ledger.register(version, here, came_from | facts)
    ensure_readable(settings.offline_dir / stored_view(space.number), source.key_type)
    _tell_kept(space, facts)
    return AdoptionReport(space.number, version, trained_on, version not in known)


def _check_readable(settings: RepoSettings, version: str, schema: FeatureSchema) -> None:
    modalities = current_modalities(settings.features_dir)
    layout = layout_of(settings, modalities)
    here = [layout.schema(modalities.version)]
    if layout.texts is not None:
        here.append(texts_schema(layout, modalities))
    wanted = {schema.modality_version}
    if schema.texts_modality is not None:
        wanted.add(schema.texts_modality.version)
    lacking = sorted(wanted - {one.modality_version for one in here})
    if lacking:
        raise SpaceMismatch(
            f"Encoder {version!r} reads features of modality version {', '.join(lacking)}, those "
            f"of {settings.features_dir} are "
            f"{', '.join(one.modality_version for one in here)}. For an encoder of texts, name "
            "its folder as texts.tokenizer in dataset.yaml, then run `palate features build` and "
            "`feast apply`."
        )
    blocks = {block.name: block for one in here for block in one.blocks}
    other = [b.name for b in schema.blocks if not _fits(b, blocks.get(b.name))]
    if other:
        raise SpaceMismatch(
            f"Encoder {version!r} reads {', '.join(other)} as they were where it was trained, "
            "which the raw features here do not have, or have otherwise. Use the same windows, "
            "columns and limits of texts in dataset.yaml."
        )


def _fits(block: Block, here: Block | None) -> bool:
    """Return whether an encoder's block can be read of ours: shorter lists of tokens can."""
    if here is None or block.kind != "tokens":
        return block == here
    return block.column == here.column and here.width <= block.width


def _tell_kept(space: Space, facts: dict[str, Any]) -> None:
    """Say so when the encoder has had its space before: that is served as it was registered."""
    if {name: space.facts.get(name) for name in facts} != facts:
        _log.warning("space %s was registered before and stays as it was then", space.number)
