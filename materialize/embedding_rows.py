"""Rows of a stored embedding view: their Arrow schema, and how raw rows become them."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from encoder.bridge import BridgeArtifact, BridgeStore
from encoder.columns import raw_batch
from encoder.errors import VerificationFailed
from materialize.ledger import Bridge, Space
from materialize.stores.compact import list_column, round_trip
from transforms.names import FLOAT32, USER_KEY, vector_form
from transforms.runtime import Encoded, encode, load_encoder

__all__ = [
    "bridge_rows",
    "embedding_matrix",
    "embedding_schema",
    "encode_rows",
    "encoded_rows",
    "ensure_readable",
]

_INSTANT = pa.timestamp("us", tz="UTC")


def embedding_schema(user_type: pa.DataType) -> pa.Schema:
    """Return the columns of a stored embedding view's Parquet files."""
    return pa.schema(
        [
            (USER_KEY, user_type),
            ("embedding", pa.list_(pa.float32())),
            ("as_of", pa.int64()),
            ("space", pa.int64()),
            ("encoder_version", pa.string()),
            ("status", pa.string()),
            ("n_events", pa.int64()),
            ("event_timestamp", _INSTANT),
            ("created_timestamp", _INSTANT),
        ]
    )


def encode_rows(batch: pa.RecordBatch, space: Space, store_url: str) -> pa.RecordBatch:
    """Encode one batch of raw rows into rows of the space's stored view.

    Parameters
    ----------
    batch : RecordBatch
        ``user_id`` and the raw columns ``view__field``.
    space : Space
    store_url : str
        Folder or URL of the artifact store.

    Returns
    -------
    RecordBatch
        In ``embedding_schema``; ``event_timestamp`` is the row's ``as_of``. Vectors are those that
        are read back from the space's form, so that offline and online answer alike.

    Raises
    ------
    ValueError
        An embedding does not fit the space's form (`materialize.stores.compact.round_trip`).
    """
    schema = load_encoder(store_url, space.encoder_version).preprocessor.schema
    raw = raw_batch(batch, schema, USER_KEY)
    encoded = encode(raw, space.encoder_version, store_url)
    created = pa.array([datetime.now(timezone.utc)] * batch.num_rows, _INSTANT)
    form = vector_form(space.facts)
    return encoded_rows(batch.column(USER_KEY), encoded, space, created, form)


def encoded_rows(
    users: pa.Array, encoded: Encoded, space: Space, created: pa.Array, form: str
) -> pa.RecordBatch:
    """Return what was encoded as rows of the space's stored view.

    Parameters
    ----------
    users : pyarrow array (n_rows,)
    encoded : Encoded
        Without errors.
    space : Space
    created : pyarrow timestamp array (n_rows,)
    form : str
        In which the view keeps vectors online.

    Raises
    ------
    ValueError
        An embedding does not fit the form (`materialize.stores.compact.round_trip`).
    """
    embedding = round_trip(encoded.embedding, form)
    n_rows = len(embedding)
    return pa.RecordBatch.from_arrays(
        [
            users,
            list_column(embedding),
            pa.array(encoded.as_of, pa.int64()),
            pa.array(np.full(n_rows, space.number), pa.int64()),
            pa.array([space.encoder_version] * n_rows, pa.string()),
            pa.array(encoded.status.tolist(), pa.string()),
            pa.array(encoded.n_events, pa.int64()),
            pa.array(encoded.as_of, pa.int64()).cast(_INSTANT),
            created,
        ],
        schema=embedding_schema(users.type),
    )


def bridge_rows(
    rows: pa.RecordBatch, bridge: Bridge, store_url: str, form: str = FLOAT32
) -> pa.RecordBatch:
    """Return rows of a bridge's source space as rows of its target space.

    Parameters
    ----------
    rows : RecordBatch
        As `encode_rows` gives them; not modified.
    bridge : Bridge
    store_url : str
        Folder or URL of the artifact store.
    form : str
        Form in which the bridged view keeps vectors online, one of ``VECTOR_FORMS``.

    Raises
    ------
    ArtifactError
        The bridge is not there, or damaged.
    ValueError
        A vector does not fit the form.
    """
    mapped = _load_bridge(store_url, bridge.version).apply(embedding_matrix(rows["embedding"]))
    vectors = round_trip(mapped, form)
    n_rows = rows.num_rows
    changed = {
        "embedding": list_column(vectors),
        "space": pa.array(np.full(n_rows, bridge.target), pa.int64()),
        "encoder_version": pa.array([bridge.version] * n_rows, pa.string()),
    }
    columns = [changed.get(name, rows[name]) for name in rows.schema.names]
    return pa.RecordBatch.from_arrays(columns, schema=rows.schema)


@lru_cache(maxsize=8)
def _load_bridge(store_url: str, version: str) -> BridgeArtifact:
    return BridgeStore(store_url).load(version)


def embedding_matrix(column: pa.Array) -> npt.NDArray[np.float32]:
    """Return a list column without nulls, all of one width, as float32 (n_rows, width).

    Raises
    ------
    VerificationFailed
        Widths differ, or a row is null.
    """
    widths = pc.list_value_length(column).unique().to_pylist()
    if len(widths) != 1 or column.null_count:
        raise VerificationFailed(
            f"Embeddings of widths {widths} with {column.null_count} null(s) were found; one width "
            "and no null are expected."
        )
    flat: npt.NDArray[np.float32] = column.flatten().to_numpy()
    return flat.reshape(len(column), widths[0])


def ensure_readable(folder: Path, user_type: pa.DataType) -> None:
    """Give a view's folder a Parquet file without rows: Feast cannot read an empty folder."""
    path = folder / "empty.parquet"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".parquet.tmp")
        pq.write_table(embedding_schema(user_type).empty_table(), temporary)
        os.replace(temporary, path)
