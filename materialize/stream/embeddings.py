"""Embeddings of the raw rows as they will be stored, for every live view."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
import pyarrow as pa

from encoder.errors import SpaceMismatch, TerminalError
from materialize.embedding_rows import bridge_rows, encoded_rows
from materialize.stores.compact import compact_form
from materialize.stores.stored_columns import StoredColumns
from materialize.stores.wire import Stored
from materialize.stream.read_users import Ints, User
from materialize.stream.targets import EmbeddingTarget, StoredView, StreamTargets
from transforms.names import vector_form
from transforms.runtime import Encoded, encode

__all__ = ["encode_views"]

_log = logging.getLogger(__name__)
_INSTANT = pa.timestamp("us", "UTC")


def encode_views(
    targets: StreamTargets,
    artifacts: str,
    columns: Mapping[str, Stored],
    users: Sequence[User],
    created_us: Ints,
) -> tuple[list[tuple[StoredView, Ints, pa.RecordBatch]], dict[int, TerminalError]]:
    """Encode some users for each live view.

    Parameters
    ----------
    targets : StreamTargets
    artifacts : str
        Folder or URL of the artifact store.
    columns : mapping of str to sequence of bytes or None
        Raw features ``view__field`` as they will be stored.
    users : sequence of int or str (n_users,)
    created_us : int64 (n_users,)

    Returns
    -------
    list of (StoredView, int64 (n_rows,), RecordBatch)
        A view, the positions of the users that have a row, and the rows. Who has raw rows of other
        item vectors has none: no vector of the space can be made of them.
    dict of int to TerminalError
        Position of a user -> why no view's row is right: a value cannot be read, or does not fit.
    """
    if not users:
        return [], {}
    ids = pa.int64() if targets.user_type == "int64" else pa.string()
    stored = StoredColumns(columns, [str(user) for user in users])
    names = pa.array(users, ids)
    created = pa.array(created_us).cast(_INSTANT)
    made: list[tuple[StoredView, Ints, pa.RecordBatch]] = []
    faults: dict[int, TerminalError] = {}
    for _, group in groupby(targets.embeddings, key=lambda target: target.space.number):
        own = list(group)
        space = own[0].space
        batch = stored.batch(artifacts, space.encoder_version)
        encoded = encode(batch, space.encoder_version, artifacts, on_error="row")
        rows = np.array([k for k in range(len(users)) if k not in encoded.errors], np.int64)
        others = 0
        for row, error in encoded.errors.items():
            if isinstance(error, SpaceMismatch):
                others += 1
            else:
                faults.setdefault(row, error)
        if others:
            _log.info("%s users have no row of space %s: other item vectors", others, space.number)
        if not len(rows):
            continue
        if len(rows) < len(users):
            at = pa.array(rows)
            table = names.take(at), _some(encoded, rows), created.take(at)
        else:
            table = names, encoded, created
        source = encoded_rows(*table[:2], space, table[2], vector_form(space.facts))
        made += [(target.stored, rows, _rows(target, artifacts, source)) for target in own]
    return made, {**faults, **stored.faults}


def _rows(target: EmbeddingTarget, artifacts: str, source: pa.RecordBatch) -> pa.RecordBatch:
    if target.bridge is None:
        return source
    return bridge_rows(source, target.bridge, artifacts, compact_form(target.stored.view))


def _some(encoded: Encoded, rows: Ints) -> Encoded:
    return Encoded(
        encoded.embedding[rows], encoded.as_of[rows], encoded.n_events[rows], encoded.status[rows]
    )
