"""``encode``: the one function that turns raw features into embeddings, on every path.

On-demand view, batch job, training-set back-fill and evaluation call it, so that a difference
between training and serving would be a fault in one place. Needs no torch and no Feast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from encoder.errors import MalformedInput, SpaceMismatch
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
    "row_error_counts",
]


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
    batch = batch_from_feast(inputs, artifact.preprocessor.schema, errors)
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


def _is_historical(inputs: Mapping[str, Sequence[Any]]) -> bool:
    """Return whether Feast asks for past moments: only then a column holds datetimes."""
    return any(isinstance(value, datetime) for values in inputs.values() for value in values[:1])
