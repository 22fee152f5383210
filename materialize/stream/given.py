"""What is known of some users: clean tables and event streams in one, as the batch would see it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from materialize.stream.history import event_columns, sign_ups_given
from materialize.stream.keys import PAYLOAD, events_key
from transforms.clean import CleanTables
from transforms.dataset import Dataset
from transforms.engine import arrow_table, bounded_connection, quoted
from transforms.stream.events import BadEvent, EventParser, StreamEvent

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["Given", "Streamed", "first_by_hash", "gather", "read_stream", "redis_payloads"]

_PER_CALL = 5_000
_MEMORY_MB = 512
_INSTANT = pa.timestamp("us", "UTC")
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

Streamed = Mapping[int | str, Sequence[StreamEvent]]
"""User -> events, in any order."""


@dataclass(frozen=True)
class Given:
    """Everything that happened to some users, from whichever source.

    Attributes
    ----------
    events : pyarrow.Table
        Columns of the clean events (`history.event_columns`); each user, item and time once, none
        before a sign-up.
    profiles, onboarding : pyarrow.Table
        Columns of the clean users, for users with a profile, with picks; ``signed_up_at`` is the
        time of the row that they make.
    picked_last : dict of id to int
        Latest time (us) at which some source says that the user picked something. A pick keeps its
        first time, but the batch has it as of the sign-up and the stream as it came: a row that
        was made before the earlier one was known is as of the later one, and stays.
    """

    events: pa.Table
    profiles: pa.Table
    onboarding: pa.Table
    picked_last: dict[int | str, int]


def read_stream(payloads: Iterable[bytes], parser: EventParser) -> Iterator[StreamEvent]:
    """Yield the sound events among those that a stream holds."""
    for payload in payloads:
        try:
            yield parser.parse(payload)
        except BadEvent:
            continue  # a dead letter: it changes no row


def redis_payloads(client: Redis, project: str, partitions: int) -> Iterator[bytes]:
    """Yield the events that the streams hold at this moment, by partition, oldest first.

    What no longer than the retention was acknowledged is among them. Redis is read a few thousand
    entries at a time.
    """
    for partition in range(partitions):
        key, after = events_key(project, partition), "-"
        newest: Any = client.xrevrange(key, count=1)
        end = newest[0][0] if newest else None
        while end is not None:
            part: Any = client.xrange(key, min=after, max=end, count=_PER_CALL)
            for _, fields in part:
                yield fields.get(PAYLOAD, b"")
            if len(part) < _PER_CALL:
                break
            after = "(" + part[-1][0].decode()


def first_by_hash(clean: CleanTables, n: int) -> list[int | str]:
    """Return the ``n`` users of the clean tables whose ids have the smallest MD5."""
    with bounded_connection(_MEMORY_MB) as connection:
        rows = connection.execute(
            f"SELECT user_id FROM read_parquet({quoted(clean.users)}) "
            f"ORDER BY md5(user_id::VARCHAR) LIMIT {n}"
        ).fetchall()
    return [user for (user,) in rows]


def gather(
    clean: CleanTables,
    dataset: Dataset,
    users: Sequence[int | str],
    streamed: Streamed,
    consumed: pa.Table | None = None,
) -> Given:
    """Return what is known of some users.

    Parameters
    ----------
    clean : CleanTables
    dataset : Dataset
    users : sequence of ids
        Distinct.
    streamed : mapping
        Events of the stream.
    consumed : pyarrow.Table, optional
        More consumed items, in the columns of the clean events.
    """
    text = clean.user_type() == "string"
    ids = pa.array(users, pa.string() if text else pa.int64())
    events, known = _clean(clean, dataset, ids)
    mine = {user: streamed.get(user, ()) for user in users}
    signed_up = {
        row["user_id"]: row["given"] for row in known.to_pylist() if row["given"] is not None
    }
    for user, own in mine.items():
        times = [event.timestamp_us for event in own if event.type == "sign_up"]
        if times:
            signed_up[user] = min([*times, *([signed_up[user]] if user in signed_up else [])])
    parts = [events, _consumed(mine, events.schema)]
    if consumed is not None:
        more = consumed.select(events.column_names).cast(events.schema)
        parts.append(more.filter(pc.is_in(more["user_id"], ids)))
    rows = {row["user_id"]: row for row in known.to_pylist()}
    return Given(
        _distinct(pa.concat_tables(parts), signed_up),
        _profiles(dataset, rows, mine, known.schema),
        _onboarding(rows, mine, known.schema),
        {
            user: max(times)
            for user, own in mine.items()
            if (times := [e.timestamp_us for e in own if e.type == "onboarding_pick"])
        },
    )


def _clean(clean: CleanTables, dataset: Dataset, ids: pa.Array) -> tuple[pa.Table, pa.Table]:
    """Return the clean events of some users, and their rows of the clean users."""
    with bounded_connection(_MEMORY_MB) as connection:
        connection.register("wanted", pa.table({"user_id": ids}))
        events = arrow_table(
            connection,
            f"SELECT {', '.join(event_columns(dataset))} "
            f"FROM read_parquet({quoted(clean.events)}) SEMI JOIN wanted USING (user_id)",
        )
        given = sign_ups_given(clean, dataset)
        known = arrow_table(
            connection,
            "SELECT user_id, signed_up_at, categories, numbers, onboarding, given FROM "
            f"(SELECT * FROM read_parquet({quoted(clean.users)}) SEMI JOIN wanted USING (user_id)) "
            f"LEFT JOIN ({given}) USING (user_id)",
        )
    return events, known


def _consumed(streamed: Streamed, schema: pa.Schema) -> pa.Table:
    events = [e for own in streamed.values() for e in own if e.type == "consume"]
    columns: dict[str, list[Any]] = {
        "user_id": [e.user_id for e in events],
        "item_id": [e.item_id for e in events],
        "ts": [e.timestamp_us for e in events],
        "weight": [e.weight for e in events],
        "context": [list(e.context or ()) for e in events],
        "service": [e.service for e in events],
    }
    arrays = [
        pa.array(columns[field.name], pa.int64()).cast(_INSTANT).cast(field.type)
        if field.name == "ts"
        else pa.array(columns[field.name], field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _distinct(events: pa.Table, signed_up: Mapping[int | str, int]) -> pa.Table:
    """Return each user, item and time once, the first of each, and none before a sign-up."""
    numbered = events.append_column("place", pa.array(np.arange(events.num_rows)))
    keys = ["user_id", "item_id", "ts"]
    first = numbered.group_by(keys).aggregate([("place", "min")])["place_min"].to_numpy()
    kept = events.take(pa.array(np.sort(first)))
    users = kept["user_id"].to_pylist()
    times = kept["ts"].cast(_INSTANT).cast(pa.int64()).to_pylist()
    sound = [at >= signed_up.get(user, at) for user, at in zip(users, times, strict=True)]
    return kept.filter(pa.array(sound, pa.bool_()))


def _profiles(
    dataset: Dataset, rows: Mapping[Any, Any], streamed: Streamed, schema: pa.Schema
) -> pa.Table:
    """Return the profile of each user who has one: as stored, overlaid with what was streamed."""
    table = dataset.users
    categories = table.categories if table else ()
    numbers = table.numbers if table else ()
    found: list[dict[str, Any]] = []
    for user, own in streamed.items():
        newest: dict[str, tuple[int, Any]] = {}
        for event in own:
            for name, value in (*event.categories.items(), *event.numbers.items()):
                given = (event.timestamp_us, value)
                newest[name] = max(newest.get(name, given), given, key=_later)
        row = rows.get(user)
        if row is None and not newest:
            continue
        before = row or {
            "categories": [""] * len(categories),
            "numbers": [math.nan] * len(numbers),
            "signed_up_at": None,
        }
        values = {
            "categories": [
                newest.get(name, (0, value))[1]
                for name, value in zip(categories, before["categories"], strict=True)
            ],
            "numbers": [
                newest.get(name, (0, value))[1]
                for name, value in zip(numbers, before["numbers"], strict=True)
            ],
        }
        times = [at for at, _ in newest.values()]
        if before["signed_up_at"] is not None:
            times.append(_us(before["signed_up_at"]))
        found.append(values | {"user_id": user, "onboarding": [], "at": max(times)})
    return _users_table(found, schema)


def _onboarding(rows: Mapping[Any, Any], streamed: Streamed, schema: pa.Schema) -> pa.Table:
    """Return the picks of each user who has some, each item once, as of the newest pick."""
    found: list[dict[str, Any]] = []
    for user, own in streamed.items():
        row = rows.get(user)
        picks = dict.fromkeys(row["onboarding"], _us(row["signed_up_at"])) if row else {}
        for event in own:
            if event.type == "onboarding_pick":
                at = picks.get(event.item_id, event.timestamp_us)
                picks[event.item_id] = min(at, event.timestamp_us)
        if picks:
            found.append(
                {
                    **{"user_id": user, "categories": [], "numbers": []},
                    **{"onboarding": list(picks), "at": max(picks.values())},
                }
            )
    return _users_table(found, schema)


def _users_table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    own = schema.remove(schema.get_field_index("given"))
    times = pa.array([row["at"] for row in rows], pa.int64()).cast(_INSTANT)
    arrays = [
        times.cast(field.type)
        if field.name == "signed_up_at"
        else pa.array([row[field.name] for row in rows], field.type)
        for field in own
    ]
    return pa.Table.from_arrays(arrays, schema=own)


def _later(given: tuple[int, Any]) -> tuple[int, bool, Any]:
    """Order by time, then value; a number that is missing comes last."""
    at, value = given
    missing = isinstance(value, float) and math.isnan(value)
    return at, missing, "" if missing else value


def _us(moment: Any) -> int:
    return int((moment - _EPOCH) // timedelta(microseconds=1))
