"""``encode``: the one function that turns raw features into embeddings, on every path.

On-demand view, batch job, training-set back-fill and evaluation call it, so that a difference
between training and serving would be a fault in one place. Needs no torch and no Feast.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from transforms.columns import batch_from_feast

if TYPE_CHECKING:
    from encoder.artifact import EncoderArtifact
    from encoder.columns import RawBatch

__all__ = ["Encoded", "encode", "encode_on_demand", "load_encoder"]

_KEEP = 4  # encoders held in memory: the live spaces of a serving process, with one to spare
_loaded: OrderedDict[tuple[str, str], EncoderArtifact] = OrderedDict()
_lock = threading.Lock()


@dataclass(frozen=True)
class Encoded:
    """What ``encode`` returns, in row order.

    Attributes
    ----------
    embedding : float32 (n_rows, embedding_dim)
    as_of : int64 (n_rows,)
        Event time of the newest raw feature, microseconds since the epoch (UTC); 0 for a user
        without any.
    n_events : int64 (n_rows,)
        Events in the longest window.
    status : object (n_rows,) of str
        ``warm`` (has events), ``onboarded`` (only onboarding picks) or ``cold`` (neither).
    """

    embedding: npt.NDArray[np.float32]
    as_of: npt.NDArray[np.int64]
    n_events: npt.NDArray[np.int64]
    status: npt.NDArray[np.object_]


def load_encoder(store: str, encoder_version: str) -> EncoderArtifact:
    """Return an encoder, kept in memory after the first call (the last four used); thread-safe.

    Parameters
    ----------
    store : str
        Folder or fsspec URL of the artifact store.
    encoder_version : str
        12 hex digits.

    Raises
    ------
    ArtifactError
        Unknown version, or a damaged artifact.
    """
    from encoder.store import ArtifactStore

    key = (store, encoder_version)
    with _lock:
        artifact = _loaded.get(key)
        if artifact is None:
            artifact = ArtifactStore(store).load(encoder_version)
            artifact.session()  # made once here, not by every first request at the same moment
            _loaded[key] = artifact
        _loaded.move_to_end(key)
        while len(_loaded) > _KEEP:
            _loaded.popitem(last=False)
    return artifact


def encode(batch: RawBatch, encoder_version: str, store: str) -> Encoded:
    """Encode raw features with one encoder version.

    Parameters
    ----------
    batch : RawBatch
        Columns of the encoder's schema; a user without raw features is a row of nulls.
    encoder_version : str
    store : str
        Folder or fsspec URL of the artifact store.

    Returns
    -------
    Encoded
        One row for each row of ``batch``, in its order.

    Raises
    ------
    MalformedInput
        A row does not fit the schema; user, column and expectation are named.
    SpaceMismatch
        Raw features of another modality version.
    ArtifactError
        Unknown version, or a damaged artifact.
    """
    artifact = load_encoder(store, encoder_version)
    inputs = artifact.preprocessor.transform(batch)  # (n_rows, n_inputs)
    as_of, n_events, status = artifact.preprocessor.summary(batch)
    return Encoded(artifact.encode_inputs(inputs), as_of, n_events, status)


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
    """
    artifact = load_encoder(store, encoder_version)
    batch = batch_from_feast(inputs, artifact.preprocessor.schema)
    encoded = encode(batch, encoder_version, store)
    features: dict[str, list[Any]] = {
        "embedding": list(encoded.embedding),
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
