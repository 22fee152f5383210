"""``palate spaces quantise``: a space's encoder with an int8 graph, as a space of its own."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from tqdm import tqdm

from encoder.columns import raw_batch
from encoder.errors import DataFault, LedgerConflict
from encoder.manifest import INT8
from encoder.store import ArtifactStore
from materialize.batch import open_source
from materialize.config import RepoSettings
from materialize.embedding_rows import ensure_readable
from materialize.ledger import Ledger, Space
from materialize.source import RawSource
from transforms.names import USER_KEY, stored_view
from transforms.runtime import load_encoder

if TYPE_CHECKING:
    from feast import FeatureStore

    from encoder.artifact import EncoderArtifact

__all__ = ["QUANTISED_FACT", "QuantisationReport", "quantise_space"]

_log = logging.getLogger(__name__)


QUANTISED_FACT = "quantised_from"
"""Fact of an int8 space: the encoder version that it was made from."""


@dataclass(frozen=True)
class QuantisationReport:
    """What a quantisation made.

    Attributes
    ----------
    space : int or None
        The int8 space; None: a dry run of one that is not there yet.
    encoder_version : str
    quantised_from : str
        Encoder version of the float32 space.
    new : bool
        False: it was made before.
    figures : mapping
        ``calibration_rows``; ``error``: `encoder.quantisation.EmbeddingDifference` of other rows;
        ``graph_bytes``: of both graphs.
    """

    space: int | None
    encoder_version: str
    quantised_from: str
    new: bool
    figures: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


def quantise_space(
    store: FeatureStore,
    settings: RepoSettings,
    ledger: Ledger,
    number: int,
    *,
    rows: int = 8192,
    dry_run: bool = False,
    progress: bool = True,
) -> QuantisationReport:
    """Make the int8 form of a space's encoder and register it as the next space.

    The ranges of the graph's numbers are taken from users' raw features as they were before the
    encoder's cut-off; the error is measured on other users'.

    Parameters
    ----------
    store : FeatureStore
        With the raw views applied.
    settings : RepoSettings
    ledger : Ledger
    number : int
        Of a float32 space.
    rows : int
        Users to take the ranges from, and as many to measure with; about half of all each where
        there are fewer. Which ones is decided by a hash of the id.
    dry_run : bool
        Make and measure it; keep nothing.
    progress : bool
        Show a bar on stderr.

    Raises
    ------
    ValueError
        ``rows`` is below 1.
    DataFault
        The space is int8 already, raw features are not built, or too few users have any.
    LedgerConflict
        The space, or its int8 form, is being retired or was.
    SpaceMismatch
        Raw features were built with other modality encoders since.

    Notes
    -----
    Safe to repeat: a space that was quantised before gives the same int8 space again, whatever raw
    features came since; the artifact is content addressed, and the ledger row comes last.
    """
    if rows < 1:
        raise ValueError(f"rows {rows} given, at least 1 expected.")
    space = ledger.space(number)
    _refuse(space)
    artifact = load_encoder(settings.artifacts_url, space.encoder_version)
    source = open_source(
        store,
        settings,
        artifact.preprocessor.schema,
        end=datetime.fromisoformat(artifact.manifest.data_cutoff),
    )
    for known in ledger.spaces():
        if known.facts.get(QUANTISED_FACT) == space.encoder_version:
            if not dry_run:
                # Refused when it is retired, as a training that is repeated would be.
                ledger.register(known.encoder_version, known.artifact_url, known.facts)
                # A kill may have come just before.
                ensure_readable(settings.offline_dir / stored_view(known.number), source.key_type)
            return _report(known, new=False)
    return _quantised(settings, ledger, space, artifact, source, rows, dry_run, progress)


def _quantised(
    settings: RepoSettings,
    ledger: Ledger,
    space: Space,
    artifact: EncoderArtifact,
    source: RawSource,
    rows: int,
    dry_run: bool,
    progress: bool,
) -> QuantisationReport:
    from encoder.quantisation import embedding_difference, quantise  # onnx: extra `train`

    calibration, others = _inputs(artifact, source, rows, progress=progress)
    found = quantise(artifact, calibration)
    error = embedding_difference(artifact, found, others)
    figures = {
        "calibration_rows": len(calibration),
        "error": error.to_dict(),
        "graph_bytes": {"float32": _bytes(artifact), "int8": _bytes(found)},
    }
    version, origin = found.encoder_version, space.encoder_version
    if dry_run:
        return QuantisationReport(None, version, origin, True, figures)
    url = ArtifactStore(settings.artifacts_url).save(found)
    # All that the space was registered with holds for its int8 form.
    facts = {"precision": INT8, QUANTISED_FACT: origin, "quantisation": figures}
    made = ledger.register(version, url, {**space.facts, **facts})
    ensure_readable(settings.offline_dir / stored_view(made.number), source.key_type)
    _log.info(
        "space %s is int8 of space %s: 1 - cosine at most %.2e, mean %.2e",
        *(made.number, space.number),
        *(error.cosine_error_max, error.cosine_error_mean),
    )
    return _report(made, new=True)


def _refuse(space: Space) -> None:
    if space.state in ("retiring", "retired"):
        raise LedgerConflict(
            f"Space {space.number} is {space.state}: its encoder goes, or is gone. Quantise a "
            "space that is kept (`palate spaces list`)."
        )
    if QUANTISED_FACT in space.facts:
        raise DataFault(
            f"Space {space.number} is int8 already, made from encoder version "
            f"{space.facts[QUANTISED_FACT]!r}. Quantise a float32 space (`palate spaces list`)."
        )


def _inputs(
    artifact: EncoderArtifact, source: RawSource, rows: int, *, progress: bool
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the encoder's inputs of some users as of the cut-off, and of as many others."""
    schema = artifact.preprocessor.schema
    users = source.count()
    share = min(0.5, rows / max(users, 1))
    parts: list[list[npt.NDArray[Any]]] = [[], []]
    with tqdm(total=users, desc="inputs", unit="row", disable=not progress) as bar:
        for batch in source.batches():
            ids = batch.column(USER_KEY).to_numpy(zero_copy_only=False)
            draw = pd.util.hash_array(ids) / 2.0**64
            for k, part in enumerate(parts):
                chosen = (draw >= k * share) & (draw < (k + 1) * share)
                raw = raw_batch(batch.filter(pa.array(chosen)), schema, USER_KEY)
                part.append(artifact.preprocessor.transform(raw))
            bar.update(batch.num_rows)
    calibration, others = map(_stacked, parts)
    if not len(calibration) or not len(others):
        raise DataFault(
            f"{users} user(s) have raw features before the cut-off {source.end.isoformat()}, too "
            "few to take ranges from and to measure with. Build the features of more users."
        )
    return calibration, others


def _stacked(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Return matrices on top of each other, filled up with zeros to the widest."""
    width = max((part.shape[1] for part in parts), default=0)
    wide = [np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in parts]
    return np.concatenate(wide) if wide else np.zeros((0, 0), np.float32)


def _bytes(artifact: EncoderArtifact) -> int:
    return sum(map(len, artifact.graphs.values()))


def _report(space: Space, *, new: bool) -> QuantisationReport:
    facts = space.facts
    return QuantisationReport(
        space.number, space.encoder_version, facts[QUANTISED_FACT], new, facts["quantisation"]
    )
