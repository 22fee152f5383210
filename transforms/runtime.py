"""``encode``: the one function that turns raw features into embeddings, on every path.

On-demand view, batch job, training-set back-fill and evaluation call it, so that a difference
between training and serving would be a fault in one place. Needs no torch and no Feast.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from encoder.errors import ArtifactError, MalformedInput, SpaceMismatch
from transforms.columns import batch_from_feast
from transforms.encoders import load_encoder
from transforms.faults import (
    RowError,
    blank_rows,
    count_faults,
    row_error_counts,
    rows_at_fault,
)
from transforms.serving import OnError, configure, serving_settings

if TYPE_CHECKING:
    from feast import FeatureStore

    from encoder.columns import RawBatch

__all__ = [
    "Encoded",
    "OnError",
    "RowError",
    "configure",
    "encode",
    "encode_on_demand",
    "encode_request",
    "load_encoder",
    "prewarm",
    "row_error_counts",
]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoded:
    """What ``encode`` returns, in row order.

    Attributes
    ----------
    embedding : float32 (n_rows, embedding_dim)
        NaN in the rows of ``errors``.
    as_of : int64 (n_rows,)
        Event time of the newest raw feature, microseconds since the epoch (UTC); 0 for a user
        without any.
    n_events : int64 (n_rows,)
        Events in the longest window.
    status : object (n_rows,) of str
        ``warm`` (has events), ``onboarded`` (only onboarding picks), ``cold`` (neither) or
        ``error``.
    errors : dict of int to MalformedInput or SpaceMismatch
        Row -> why it has no embedding; empty unless the caller asked for ``on_error="row"``.
    """

    embedding: npt.NDArray[np.float32]
    as_of: npt.NDArray[np.int64]
    n_events: npt.NDArray[np.int64]
    status: npt.NDArray[np.object_]
    errors: Mapping[int, RowError] = field(default_factory=dict)


def encode(
    batch: RawBatch, encoder_version: str, store: str, on_error: OnError = "raise"
) -> Encoded:
    """Encode raw features with one encoder version.

    Parameters
    ----------
    batch : RawBatch
        Columns of the encoder's schema; a user without raw features is a row of nulls.
    encoder_version : str
    store : str
        Folder or fsspec URL of the artifact store.
    on_error : {"raise", "row"}
        ``row``: rows that do not fit are told in ``errors``, and the others are encoded.

    Returns
    -------
    Encoded
        One row for each row of ``batch``, in its order.

    Raises
    ------
    MalformedInput
        A row does not fit the schema; user, column and expectation are named. With
        ``on_error="row"`` only when it is no row's fault: a column is missing.
    SpaceMismatch
        Raw features of another modality version.
    ArtifactError
        Unknown version, or a damaged artifact.
    """
    return _encode(batch, encoder_version, store, None if on_error == "raise" else {})


def _encode(
    batch: RawBatch, encoder_version: str, store: str, errors: dict[int, RowError] | None
) -> Encoded:
    """Encode; ``errors`` holds rows that are known to be at fault and blank, None: raise."""
    artifact = load_encoder(store, encoder_version)
    preprocessor = artifact.preprocessor
    try:
        inputs = preprocessor.transform(batch)  # (n_rows, n_inputs)
    except (MalformedInput, SpaceMismatch):
        if errors is None:
            raise
        errors = errors | rows_at_fault(batch, preprocessor.transform)
        batch = blank_rows(batch, errors)
        inputs = preprocessor.transform(batch)
    as_of, n_events, status = preprocessor.summary(batch)
    embedding = artifact.encode_inputs(inputs)
    if not errors:
        return Encoded(embedding, as_of, n_events, status)
    # No believable answer: a blank row's would be that of an unknown user.
    rows = sorted(errors)
    embedding[rows] = np.nan
    status[rows] = "error"
    count_faults(errors, encoder_version)
    return Encoded(embedding, as_of, n_events, status, errors)


def encode_request(
    batch: RawBatch,
    encoder_version: str,
    store: str,
    errors: dict[int, RowError] | None = None,
) -> Encoded:
    """Encode what a request asks for, with rows at fault treated as `configure` says.

    Parameters
    ----------
    batch : RawBatch
    encoder_version, store : str
    errors : dict, optional
        Rows that were found to be at fault before, blank in ``batch``.

    Raises
    ------
    MalformedInput, SpaceMismatch, ArtifactError
        As `encode`.
    """
    if serving_settings().on_error == "row":
        return _encode(batch, encoder_version, store, errors or {})
    return _encode(batch, encoder_version, store, None)


def encode_on_demand(
    inputs: Mapping[str, Sequence[Any]],
    *,
    view: str,
    space: int,
    encoder_version: str,
    store: str,
    request_context: Sequence[str] = (),
) -> dict[str, list[Any]]:
    """Answer an on-demand view: Feast's columns in, the embedding's features out.

    Parameters
    ----------
    inputs : mapping of str to sequence
        What Feast hands to a list-form python-mode view.
    view : str
        Name of the on-demand view.
    space : int
    encoder_version : str
    store : str
        Folder or fsspec URL of the artifact store.
    request_context : sequence of str
        Columns of ``inputs`` that the request gives, see `transforms.columns.batch_from_feast`.

    Returns
    -------
    dict of str to list
        Online each feature twice, under its short and its full name: Feast 0.67 looks among these
        keys for ``view__feature`` when full names are asked for, and silently drops what it does
        not find. In historical retrieval under its short name only: there Feast renames the keys
        itself, and both of them would become one name twice.

    Raises
    ------
    MalformedInput, SpaceMismatch, ArtifactError
        As `encode`. When the process is configured for ``on_error="row"`` (`configure`), rows at
        fault have the embedding None and the status ``error`` instead.
    """
    artifact = load_encoder(store, encoder_version)
    errors: dict[int, RowError] | None = {} if serving_settings().on_error == "row" else None
    batch = batch_from_feast(inputs, artifact.preprocessor.schema, errors, request_context)
    encoded = encode_request(batch, encoder_version, store, errors)
    embedding: list[Any] = list(encoded.embedding)
    for row in encoded.errors:
        embedding[row] = None
    features: dict[str, list[Any]] = {
        "embedding": embedding,
        "as_of": encoded.as_of.tolist(),
        "space": [space] * batch.n_rows,
        "encoder_version": [encoder_version] * batch.n_rows,
        "status": encoded.status.tolist(),
        "n_events": encoded.n_events.tolist(),
    }
    if _is_historical(inputs):
        return features
    return features | {f"{view}__{name}": values for name, values in features.items()}


def prewarm(
    store: FeatureStore, views: Sequence[str] | None = None, *, freeze: bool = False
) -> dict[str, float]:
    """Load the encoders of on-demand views and run a row through each; safe to repeat.

    The first requests then find everything in memory. Called again, from a thread for example, it
    loads what new spaces have brought, while requests of the other spaces go on undisturbed.

    Parameters
    ----------
    store : FeatureStore
    views : sequence of str, optional
        Names of on-demand views; default: all of Palate's in the registry.
    freeze : bool
        Take all objects that are alive out of the garbage collector's sight. A collection then no
        longer walks through the modules of Feast and of what it imports, which is most of the time
        of the slowest requests. Once, when the process starts: what is garbage by then and
        refers to itself is collected before, what becomes garbage later is never freed.

    Returns
    -------
    dict of str to float
        View -> seconds.

    Raises
    ------
    ValueError
        A name is none of Palate's on-demand views.
    ArtifactError
        An encoder cannot be loaded; those of the other views are in memory nevertheless.
    """
    from transforms.on_demand import spec_of

    found = {}
    for view in store.list_on_demand_feature_views():
        spec = spec_of(view)
        if spec is not None:
            found[view.name] = spec
    unknown = sorted(set(views or ()) - set(found))
    if unknown:
        raise ValueError(
            f"View(s) {', '.join(map(repr, unknown))} given; on-demand views of Palate in the "
            f"registry: {', '.join(sorted(found)) or 'none'}."
        )
    wanted = [found[name] for name in (found if views is None else views)]
    keep = serving_settings().keep
    if len({(spec.store, spec.encoder_version) for spec in wanted}) > keep:
        _log.warning(
            "%s views are warmed and %s encoders are kept: set PALATE_KEEP_ENCODERS=%s",
            *(len(wanted), keep, len(wanted)),
        )
    seconds: dict[str, float] = {}
    failed: list[ArtifactError] = []
    for spec in wanted:
        start = time.perf_counter()
        try:
            schema = load_encoder(spec.store, spec.encoder_version).preprocessor.schema
            nobody = dict.fromkeys((*schema.columns, *spec.request_context), (None,))
            encode_on_demand(nobody, **asdict(spec))
        except ArtifactError as exc:
            failed.append(exc)
            continue
        seconds[spec.view] = time.perf_counter() - start
        _log.info("view %s is warm, encoder %s", spec.view, spec.encoder_version)
    if freeze:
        gc.collect()
        gc.freeze()
    if failed:
        raise failed[0]
    return seconds


def _is_historical(inputs: Mapping[str, Sequence[Any]]) -> bool:
    """Return whether Feast asks for past moments: only then a column holds datetimes."""
    return any(isinstance(value, datetime) for values in inputs.values() for value in values[:1])
