"""Schemas of the raw feature views on disk, and the rows of all but ``user_activity``."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encoder.modality import ModalityEncoders
from transforms.clean import CleanTables, IdType
from transforms.engine import arrow_table, quoted
from transforms.layout import ACTIVITY, ONBOARDING, PROFILE, TEXTS, RawLayout, field
from transforms.names import ITEM_KEY, ITEM_VECTORS, USER_KEY
from transforms.windows import list_array, onboarding_pooled

__all__ = ["CREATED", "EVENT_TIME", "ViewTables", "view_schema"]

EVENT_TIME, CREATED = "event_timestamp", "created_timestamp"

_INSTANT = pa.timestamp("us", "UTC")
_FLOATS, _TEXTS = pa.list_(pa.float32()), pa.list_(pa.string())
_TOKENS = pa.list_(pa.int32())
_BATCH = 16_384


def view_schema(view: str, layout: RawLayout, id_type: IdType) -> pa.Schema:
    """Return a view's Parquet columns.

    Parameters
    ----------
    view : str
    layout : RawLayout
    id_type : {"int64", "string"}
        Of users; of items for ``item_vectors``.
    """
    ids = pa.int64() if id_type == "int64" else pa.string()
    columns: dict[str, pa.DataType] = {ITEM_KEY if view == ITEM_VECTORS else USER_KEY: ids}
    if view == ITEM_VECTORS:
        columns |= {m.name: _FLOATS for m in layout.modalities} | {"modality_version": pa.string()}
    elif view == ACTIVITY:
        columns |= {field(view, n): _FLOATS for n in ("pooled", "histogram", "counts")}
        columns |= {field(view, "context"): _TEXTS} if layout.context else {}
    elif view == PROFILE:
        columns |= {field(view, "categories"): _TEXTS} if layout.categories else {}
        columns |= {field(view, "numbers"): _FLOATS} if layout.numbers else {}
    elif view == ONBOARDING:
        columns[field(view, "pooled")] = _FLOATS
    elif view == TEXTS:
        columns |= {field(view, "tokens"): _TOKENS, field(view, "count"): _FLOATS}
    if view != ITEM_VECTORS:
        columns[field(view, "as_of")] = pa.int64()
    if view in (ACTIVITY, ONBOARDING, TEXTS):
        columns[field(view, "modality")] = pa.string()
    return pa.schema([*columns.items(), (EVENT_TIME, _INSTANT), (CREATED, _INSTANT)])


class ViewTables:
    """Reads users and items and yields the rows of their views, 16,384 at a time.

    Parameters
    ----------
    connection : duckdb connection
        One result is read at a time.
    clean : CleanTables
    layout : RawLayout
    published : Path or None
        Folder of the views whose rows need not be made again; None: all rows are wanted.
    users : str, optional
        What to select the users from, in place of all clean users.

    Notes
    -----
    A published row is repeated only when it changed: earlier rows keep their created timestamp, so
    that what was known at some time stays reproducible.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        clean: CleanTables,
        layout: RawLayout,
        published: Path | None,
        users: str | None = None,
    ) -> None:
        self._connection, self._layout, self._published = connection, layout, published
        self._users = users or f"read_parquet({quoted(clean.users)})"

    def profiles(self) -> Iterator[pa.Table]:
        """Yield rows of ``user_profile``, one a user, valid from the sign-up on."""
        wanted = {
            "categories": ("VARCHAR[]", self._layout.categories),
            "numbers": ("FLOAT[]", self._layout.numbers),
        }
        columns = [
            f"{name}::{kind} AS {field(PROFILE, name)}"
            for name, (kind, names) in wanted.items()
            if names
        ]
        columns.append(f"epoch_us(signed_up_at) AS {field(PROFILE, 'as_of')}")
        source = f"SELECT user_id, {', '.join(columns)} FROM {self._users}"
        names = [c.rpartition(" AS ")[2] for c in columns]
        for table in self._stream(self._unpublished(PROFILE, source, names)):
            yield _with_event_time(table, field(PROFILE, "as_of"))

    def onboarding(self, encoders: ModalityEncoders) -> Iterator[pa.Table]:
        """Yield rows of ``user_onboarding``, one a user with picks, valid from the sign-up on."""
        pooled, as_of = field(ONBOARDING, "pooled"), field(ONBOARDING, "as_of")
        source = (
            f"SELECT user_id, onboarding, [len(onboarding)] AS {pooled}, "
            f"epoch_us(signed_up_at) AS {as_of} FROM {self._users} WHERE len(onboarding) > 0"
        )
        # Picks are made once: the same user, time and number of picks is the same row.
        query = self._unpublished(ONBOARDING, source, [f"{pooled}[-1]::INTEGER", as_of])
        for table in self._stream(query):
            vectors = onboarding_pooled(table["onboarding"].combine_chunks(), encoders)
            rows = table.select(["user_id", as_of]).append_column(pooled, list_array(vectors))
            version = pa.repeat(encoders.version, len(rows))
            yield _with_event_time(
                rows.append_column(field(ONBOARDING, "modality"), version), as_of
            )

    def item_vectors(self, encoders: ModalityEncoders, cutoff: datetime) -> Iterator[pa.Table]:
        """Yield rows of ``item_vectors``, one an item; a null is an item without a vector."""
        wanted = np.arange(len(encoders.item_ids))
        if self._published is not None:
            files = quoted(self._published / ITEM_VECTORS / "*.parquet")
            there = arrow_table(self._connection, f"SELECT item_id FROM read_parquet({files})")
            wanted = np.setdiff1d(wanted, encoders.index_of(there["item_id"]))
        for start in range(0, len(wanted), _BATCH):
            rows = wanted[start : start + _BATCH]
            columns = {"item_id": encoders.item_ids.take(pa.array(rows))}
            for m in encoders.modalities:
                columns[m.name] = pc.if_else(
                    pa.array(m.vectors[rows].any(axis=1)), list_array(m.vectors[rows]), None
                )
            columns["modality_version"] = pa.repeat(encoders.version, len(rows))
            columns[EVENT_TIME] = pa.repeat(pa.scalar(cutoff, _INSTANT), len(rows))
            yield pa.table(columns)

    def _unpublished(self, view: str, source: str, columns: list[str]) -> str:
        """Return a query for the rows of ``source`` whose ``columns`` are not published yet."""
        if self._published is None:
            return source
        there = f"read_parquet({quoted(self._published / view / '*.parquet')})"
        same = " AND ".join(f"new.{c} IS NOT DISTINCT FROM old.{c}" for c in ["user_id", *columns])
        return f"SELECT new.* FROM ({source}) AS new ANTI JOIN {there} AS old ON {same}"

    def _stream(self, query: str) -> Iterator[pa.Table]:
        reader: pa.RecordBatchReader = self._connection.sql(query).to_arrow_reader(_BATCH)
        for batch in reader:
            if batch.num_rows:
                yield pa.Table.from_batches([batch])


def _with_event_time(table: pa.Table, as_of: str) -> pa.Table:
    return table.append_column(EVENT_TIME, table[as_of].cast(_INSTANT))
