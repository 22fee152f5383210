"""Newest raw rows and embeddings of given events, by the batch's own functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from encoder.modality import ModalityEncoders
from materialize.embedding_rows import bridge_rows, encode_rows
from materialize.ledger import Bridge, Space
from transforms.buckets import DayBuckets
from transforms.clean import CleanTables, IdType
from transforms.engine import bounded_connection
from transforms.layout import ACTIVITY, ONBOARDING, PROFILE, TEXTS, RawLayout
from transforms.names import USER_KEY, vector_form
from transforms.runtime import load_encoder
from transforms.tables import CREATED, ViewTables, view_schema
from transforms.texts import text_tables
from transforms.windows import Emission, activity_tables, bytes_per_day

__all__ = ["embeddings_of", "raw_rows_of"]

_MEMORY_MB = 256


def raw_rows_of(
    events: pa.Table,
    profiles: pa.Table,
    onboarding: pa.Table,
    encoders: ModalityEncoders,
    layout: RawLayout,
) -> dict[str, pa.Table]:
    """Return the newest raw row of each user who has one, by raw view, in the view's columns.

    Parameters
    ----------
    events : pyarrow.Table
        Columns of the clean events that count here: ``user_id``, ``item_id``, ``ts``, ``weight``,
        ``context``, with texts ``service``; each user, item and time once.
    profiles, onboarding : pyarrow.Table
        Columns of the clean users; ``signed_up_at`` is the time of the row that is made.
    encoders : ModalityEncoders
    layout : RawLayout
    """
    raw: dict[str, pa.Table] = {}
    with TemporaryDirectory(prefix="recompute-") as name:
        root = Path(name)
        clean = {view: CleanTables(root / view) for view in layout.views}
        kind: IdType = "int64" if pa.types.is_integer(events["user_id"].type) else "string"
        schemas = {view: view_schema(view, layout, kind) for view in layout.views}
        _write(clean[ACTIVITY], "events", events)
        made: dict[str, list[pa.Table]] = {ACTIVITY: [], TEXTS: []}
        if events.num_rows:
            made = _activity_and_texts(clean[ACTIVITY], root, encoders, layout)
        for view in (ACTIVITY, TEXTS):
            if view in layout.views:
                raw[view] = _one(made[view], schemas[view])
        with bounded_connection(_MEMORY_MB, root) as connection:
            if PROFILE in layout.views:
                _write(clean[PROFILE], "users", profiles)
                tables = ViewTables(connection, clean[PROFILE], layout, None)
                raw[PROFILE] = _one(tables.profiles(), schemas[PROFILE])
            if ONBOARDING in layout.views:
                _write(clean[ONBOARDING], "users", onboarding)
                tables = ViewTables(connection, clean[ONBOARDING], layout, None)
                raw[ONBOARDING] = _one(tables.onboarding(encoders), schemas[ONBOARDING])
    return raw


def embeddings_of(
    users: Sequence[Any],
    raw: Mapping[str, pa.Table],
    layout: RawLayout,
    space: Space,
    bridge: Bridge | None,
    store_url: str,
    user_type: pa.DataType,
) -> pa.Table:
    """Return rows of a space's stored view, or of a bridged one, for users with any raw row.

    Parameters
    ----------
    users : sequence of ids
    raw : mapping of str to pyarrow.Table
        By view, at most one row a user.
    layout : RawLayout
    space : Space
        Whose encoder makes the rows.
    bridge : Bridge or None
    store_url : str
        Folder or URL of the artifact store.
    user_type : pyarrow.DataType
    """
    ids = pa.array(users, user_type)
    schema = load_encoder(store_url, space.encoder_version).preprocessor.schema
    columns: dict[str, pa.Array] = {USER_KEY: ids}
    known = np.zeros(len(ids), np.bool_)
    for view in layout.views:
        place = pc.index_in(ids, raw[view][USER_KEY].combine_chunks())
        known |= place.is_valid().to_numpy(zero_copy_only=False)
        for name in raw[view].column_names:
            if f"{view}__{name}" in schema.columns:
                columns[f"{view}__{name}"] = raw[view][name].combine_chunks().take(place)
    rows = pa.RecordBatch.from_pydict(columns).filter(pa.array(known))
    found = encode_rows(rows, space, store_url)
    if bridge is not None:
        found = bridge_rows(found, bridge, store_url, vector_form(space.facts))
    return pa.Table.from_batches([found])


def _activity_and_texts(
    clean: CleanTables, root: Path, encoders: ModalityEncoders, layout: RawLayout
) -> dict[str, list[pa.Table]]:
    """Return the rows of activity, and with texts those beside them, of all events there are."""
    buckets = DayBuckets(
        root / "buckets",
        clean,
        memory_limit_mb=_MEMORY_MB,
        bytes_per_day=bytes_per_day(layout),
        events=layout.texts is not None,
    )
    last = buckets.update().days[-1]
    emission = Emission(np.array([last + 1], np.int64))
    first_day = emission.first_day(max(layout.windows))
    made: dict[str, list[pa.Table]] = {ACTIVITY: [], TEXTS: []}
    for partition in range(buckets.partitions):
        data = buckets.load(partition, first_day)
        if data is None:
            continue
        rows = list(activity_tables(data, encoders, layout, emission))
        made[ACTIVITY] += rows
        if layout.texts is not None:
            found = buckets.load_events(partition, first_day)
            made[TEXTS] += text_tables(rows, found, encoders, layout)
    return made


def _write(clean: CleanTables, table: str, rows: pa.Table) -> None:
    folder = clean.folder / table
    folder.mkdir(parents=True)
    pq.write_table(rows, folder / "part-0.parquet")


def _one(tables: Iterable[pa.Table], schema: pa.Schema) -> pa.Table:
    """Return the rows as one table in the view's columns, but for the created time."""
    own = schema.remove(schema.get_field_index(CREATED))
    parts = [table.select(own.names).cast(own) for table in tables]
    return pa.concat_tables(parts).combine_chunks() if parts else own.empty_table()
