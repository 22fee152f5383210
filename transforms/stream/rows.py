"""Raw rows made of states, by the functions that make the batch's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from encoder.errors import DataFault
from encoder.modality import ModalityEncoders
from transforms.buckets import UserDays
from transforms.clean import IdType
from transforms.engine import DAY_US
from transforms.layout import ACTIVITY, ONBOARDING, PROFILE, RawLayout, field
from transforms.stream.circumstances import context_lists
from transforms.stream.facts import (
    Bools,
    Ints,
    first_after,
    first_at_or_after,
    ranges,
    run_starts,
)
from transforms.stream.item_keys import ItemKeys, item_keys
from transforms.stream.merge import NONE, window_start
from transforms.stream.state import UserStates
from transforms.tables import CREATED, EVENT_TIME, view_schema
from transforms.windows import Emission, activity_tables, list_array, picks_pooled

__all__ = ["activity_rows", "onboarding_rows", "profile_rows", "row_schema"]

_EVER = np.array([2**31], np.int64)
"""A snapshot after every day: the last active day of each user becomes a row."""
_EVENTS_AT_ONCE = 32_768
"""Bounds the memory of the wide arrays, and keeps them near the processor (a sixth faster than
75,000 at once, measured)."""


def activity_rows(
    states: UserStates,
    rows: Ints,
    encoders: ModalityEncoders,
    layout: RawLayout,
    cuts: Ints | None = None,
) -> pa.Table:
    """Return rows of ``user_activity`` as ``view_schema`` has them, without the created timestamp.

    Parameters
    ----------
    states : UserStates
    rows : int64 (n_rows,)
        Positions of users; with ``cuts`` a user may stand there several times.
    encoders : ModalityEncoders
    layout : RawLayout
    cuts : int64 (n_rows,), optional
        Microseconds: the row as it was when nothing later was known. Rows that cannot be known
        (nothing up to the cut, or what they need is no longer kept) are left out; the others are in
        the order of ``rows``.

    Raises
    ------
    ValueError
        Without cuts: a user whose newest row cannot be made, see ``UserStates.known``.
    DataFault
        The states hold other circumstances than the layout (`circumstances.context_lists`).
    """
    facts = states.facts
    end = facts.start[rows + 1]
    if cuts is not None:
        end = first_after(facts.ts, facts.start[rows], end, cuts)
    some = end > facts.start[rows]
    newest = np.zeros(len(rows), np.int64)
    newest[some] = facts.ts[end[some] - 1]
    window = window_start(newest, max(layout.windows))
    known = some & (states.gone[rows] < window)
    rows, end, window = _those(states, rows, known, cuts, end, window)
    start = first_at_or_after(facts.ts, facts.start[rows], end, window)
    schema = row_schema(ACTIVITY, layout, states)
    if not len(rows):
        return schema.empty_table()
    tables: list[pa.Table] = []
    keys, emission = item_keys(encoders), Emission(_EVER)
    part = np.cumsum(end - start) // _EVENTS_AT_ONCE
    for of in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(part)) + 1):
        data, position = _days(states, rows[of], start[of], end[of], keys, layout)
        tables += activity_tables(data, encoders, layout, emission, known=position)
    return pa.concat_tables(tables).combine_chunks().cast(schema)


def onboarding_rows(
    states: UserStates,
    rows: Ints,
    encoders: ModalityEncoders,
    layout: RawLayout,
    cuts: Ints | None = None,
) -> pa.Table:
    """Return rows of ``user_onboarding``, without the created timestamp, in the order of ``rows``.

    ``as_of`` is the time of the newest pick. ``cuts`` as in ``activity_rows``.

    Raises
    ------
    ValueError
        Without cuts: a user without picks.
    """
    picks = states.picks
    start, end = picks.start[rows], picks.start[rows + 1]
    at = ranges(start, end)
    row = np.repeat(np.arange(len(rows)), end - start)
    if cuts is not None:
        seen = picks.ts[at] <= cuts[row]
        at, row = at[seen], row[seen]
    length = np.bincount(row, minlength=len(rows))
    some = length > 0
    rows, length = _those(states, rows, some, cuts, length)
    schema = row_schema(ONBOARDING, layout, states)
    if not len(rows):
        return schema.empty_table()
    keys = pa.array(picks.item[at]).dictionary_encode()
    position, _ = item_keys(encoders).locate(keys.dictionary.to_numpy())
    pooled = picks_pooled(length, position[keys.indices.to_numpy()], encoders)
    as_of = np.maximum.reduceat(picks.ts[at], np.cumsum(length) - length)
    columns = {
        field(ONBOARDING, "pooled"): list_array(pooled),
        field(ONBOARDING, "modality"): pa.repeat(encoders.version, len(rows)),
    }
    return _table(schema, states, rows, as_of, field(ONBOARDING, "as_of"), columns)


def profile_rows(
    states: UserStates, rows: Ints, layout: RawLayout, stored: pa.Table | None
) -> pa.Table:
    """Return rows of ``user_profile``, without the created timestamp, in the order of ``rows``.

    Parameters
    ----------
    states : UserStates
    rows : int64 (n_rows,)
    layout : RawLayout
    stored : pyarrow.Table or None
        The rows as they are stored, one each of ``rows``; nulls where there is none. Columns that
        the stream has set stand in place of the stored ones. ``as_of`` is the newest of the stored
        row's time, the changes' and the sign-up's.

    Raises
    ------
    ValueError
        A user of whom neither the stream nor the stored row says anything.
    """
    categories, numbers, as_of = (field(PROFILE, n) for n in ("categories", "numbers", "as_of"))
    there = _stored_rows(stored, len(rows), categories, numbers, as_of)
    columns: dict[str, list[Any]] = {categories: [], numbers: []}
    moments: list[int] = []
    for row, (old_categories, old_numbers, old_time) in zip(rows.tolist(), there, strict=True):
        profile, signed_up = states.profiles[row], int(states.sign_up[row])
        times = [old_time, profile.newest, None if signed_up == NONE else signed_up]
        if not any(t is not None for t in times):
            raise ValueError(
                f"User {states.users[row]!r} has no profile, neither streamed nor stored. "
                "Ask for rows that Applied.profile marks."
            )
        moments.append(max(t for t in times if t is not None))
        columns[categories].append(
            _overlaid(layout.categories, old_categories, profile.categories, "")
        )
        columns[numbers].append(_overlaid(layout.numbers, old_numbers, profile.numbers, math.nan))
    schema = row_schema(PROFILE, layout, states)
    times_us = np.array(moments, np.int64)
    return _table(schema, states, rows, times_us, as_of, columns)


def row_schema(view: str, layout: RawLayout, states: UserStates) -> pa.Schema:
    """Return the columns of rows made of states: ``view_schema`` without the created timestamp."""
    kind: IdType = "string" if any(isinstance(u, str) for u in states.users[:1]) else "int64"
    schema = view_schema(view, layout, kind)
    return schema.remove(schema.get_field_index(CREATED))


def _those(
    states: UserStates, rows: Ints, wanted: Bools, cuts: Ints | None, *arrays: Ints
) -> tuple[Ints, ...]:
    """Return the wanted rows and their part of each array; without cuts all must be wanted."""
    if cuts is None and not wanted.all():
        user = states.users[int(rows[np.argmin(wanted)])]
        raise ValueError(
            f"A row of user {user!r} cannot be made of the state. Ask for rows that Applied marks."
        )
    return rows[wanted], *(array[wanted] for array in arrays)


def _days(
    states: UserStates, rows: Ints, start: Ints, end: Ints, keys: ItemKeys, layout: RawLayout
) -> tuple[UserDays, Ints]:
    """Return events as days, one user a row, and the position of each distinct item.

    Items of a day stand in the order of their ids, as in the batch: sums then agree to the bit.
    """
    facts = states.facts
    at = ranges(start, end)
    row = np.repeat(np.arange(len(rows)), end - start)
    ts, context = facts.ts[at], facts.context[at]
    day = ts // DAY_US
    first = np.flatnonzero(run_starts(row, day))  # of each active day
    last = np.append(first[1:], len(at)) - 1
    items = pa.array(facts.item[at]).dictionary_encode()
    position, rank = keys.locate(items.dictionary.to_numpy())
    local = items.indices.to_numpy().astype(np.int64)
    number = np.repeat(np.arange(len(first)), last - first + 1)  # day of each event
    order = np.argsort(number * (len(keys.keys) + len(rank)) + rank[local], kind="stable")
    entry = np.flatnonzero(run_starts(number[order], local[order]))  # a day's events of one item
    codes = local[order][entry]
    return UserDays(
        users=_users(states, rows).take(pa.array(row[first])),
        user=row[first],
        day=day[first],
        as_of=ts[last],
        context=context_lists(facts, _newest_context(number, ts, context), layout),
        start=np.append(np.searchsorted(number[order][entry], np.arange(len(first))), len(entry)),
        items=pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), items.dictionary),
        weight=np.add.reduceat(facts.weight[at][order].astype(np.float64), entry),
        events=np.diff(np.append(entry, len(order))),
    ), position


def _newest_context(day: Ints, ts: Ints, context: Ints) -> Ints:
    """Return the largest context of each day's newest events; all arrays (n_events,)."""
    moment = np.flatnonzero(run_starts(day, ts))
    largest = np.maximum.reduceat(context, moment)
    newest: Ints = largest[np.append(np.diff(day[moment]) != 0, True)]
    return newest


def _stored_rows(
    stored: pa.Table | None, n_rows: int, *names: str
) -> list[tuple[list[Any] | None, list[Any] | None, int | None]]:
    empty = [None] * n_rows
    columns = [
        stored[name].to_pylist() if stored is not None and name in stored.column_names else empty
        for name in names
    ]
    return list(zip(*columns, strict=True))


def _overlaid(
    names: tuple[str, ...],
    stored: list[Any] | None,
    changes: Mapping[str, tuple[int, Any]],
    missing: Any,
) -> list[Any]:
    if stored is not None and len(stored) != len(names):
        raise DataFault(
            f"A stored profile has {len(stored)} value(s), {len(names)} expected "
            f"({', '.join(names)}). Run `palate features build` and materialise again."
        )
    base = stored or [missing] * len(names)
    return [changes[n][1] if n in changes else base[k] for k, n in enumerate(names)]


def _users(states: UserStates, rows: Ints) -> pa.Array:
    return pa.array([states.users[row] for row in rows.tolist()])


def _table(
    schema: pa.Schema,
    states: UserStates,
    rows: Ints,
    as_of: Ints,
    as_of_name: str,
    columns: Mapping[str, Any],
) -> pa.Table:
    moments = pa.array(as_of)
    whole = {
        schema.names[0]: _users(states, rows),
        as_of_name: moments,
        EVENT_TIME: moments.cast(pa.timestamp("us", "UTC")),
        **columns,
    }
    arrays = [
        pa.array(whole[n], t) if isinstance(whole[n], list) else whole[n]
        for n, t in zip(schema.names, schema.types, strict=True)
    ]
    return pa.table(arrays, schema=schema)
