"""What a cohort's users did before and after their moments, read in pieces of users."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse
from tqdm import tqdm

from encoder.modality import ModalityEncoders
from materialize.evaluate.cohort import MOST_EVENTS, Histories
from materialize.evaluate.moments import sampled_events, user_hash
from transforms.clean import CleanTables, IdType
from transforms.engine import DAY_US, arrow_table, quoted
from transforms.layout import ACTIVITY, ONBOARDING, PROFILE, TEXTS, RawLayout
from transforms.names import USER_KEY
from transforms.stream.facts import first_after, first_at_or_after, ranges
from transforms.stream.rows import activity_rows
from transforms.stream.state import UserStates
from transforms.stream.text_rows import texts_beside
from transforms.tables import CREATED, EVENT_TIME, ViewTables, view_schema

__all__ = ["CohortEvents", "Interactions", "Past", "daily_counts", "read_past"]

Ints = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]

_EVENTS_AT_ONCE = 1_000_000
_PAST_USERS, _PAST_EVENTS = 50_000, 5_000_000
_NEVER = int(np.iinfo(np.int64).max)


@dataclass(frozen=True, eq=False)
class Interactions:
    """What the rows' users did; see ``Cohort`` for each.

    ``folded``: columns ``view__field`` of the raw features that are made of events.
    """

    folded: pa.Table
    history: sparse.csr_array
    future: sparse.csr_array
    history_tags: sparse.csr_array
    future_tags: sparse.csr_array
    future_events: Ints
    future_outside: Ints
    sequences: Histories


@dataclass(frozen=True, eq=False)
class Past:
    """Everybody's events before the cut-off, or a sample's; see ``Cohort``."""

    matrix: sparse.csr_array
    users: npt.NDArray[Any]
    events: int
    sequences: pa.Table


def daily_counts(db: duckdb.DuckDBPyConnection, encoders: ModalityEncoders) -> sparse.csr_array:
    """Return each item's events by UTC day before test rows begin, float64 (n_days, n_all_items).

    Parameters
    ----------
    db : connection of ``moments.open_events``
    encoders : ModalityEncoders
        Of all items that events name; their order is that of the columns.

    Notes
    -----
    The last line is the day before ``test_from``, the first one the day of the first event. Held in
    memory: a cell for each item and day with an event, whatever the number of users.
    """
    counted = arrow_table(
        db,
        f"SELECT item_id, getvariable('test_from') // {DAY_US} - day AS age, count(*) AS n "
        "FROM every_event WHERE us < getvariable('test_from') GROUP BY item_id, age",
    )
    age = counted["age"].to_numpy()
    item = encoders.index_of(counted["item_id"])
    n_days = int(age.max())
    cells = (counted["n"].to_numpy().astype(np.float64), (n_days - age, item))
    return sparse.csr_array(cells, shape=(n_days, len(encoders.item_ids)))


class CohortEvents:
    """Reads the events of some rows' users.

    State: temporary tables ``row_user`` (number, user_id) and ``row_event`` of the connection.

    Parameters
    ----------
    db : connection of ``moments.open_events``
    rows : pyarrow.Table
        Of ``moments.choose_rows``.
    encoders : ModalityEncoders
        Of all items that the events name.
    layout : RawLayout
    progress : bool
    """

    def __init__(
        self,
        db: duckdb.DuckDBPyConnection,
        rows: pa.Table,
        encoders: ModalityEncoders,
        layout: RawLayout,
        *,
        progress: bool,
    ) -> None:
        self._db, self._encoders, self._layout = db, encoders, layout
        self._progress = progress
        ((self._horizon,),) = db.execute("SELECT getvariable('horizon')").fetchall()
        self._moments = rows["us"].to_numpy()
        users = rows[USER_KEY].combine_chunks().dictionary_encode()
        # Rows are ordered by user: a user's number in the dictionary ascends with the id.
        self._number = users.indices.to_numpy().astype(np.int64)
        self._users = users.dictionary
        numbers = pa.array(np.arange(len(self._users)))
        db.register("given_users", pa.table({"number": numbers, USER_KEY: self._users}))
        db.execute("CREATE OR REPLACE TEMP TABLE row_user AS SELECT * FROM given_users")
        db.unregister("given_users")
        latest = int(self._moments.max())
        db.execute(
            "CREATE OR REPLACE TEMP TABLE row_event AS SELECT number, user_id, item_id, ts, us, "
            "weight, context, service FROM every_event JOIN row_user USING (user_id) "
            f"WHERE us < {latest} + getvariable('horizon')"
        )

    def read(self, kinds: sparse.csr_array, known: Ints) -> Interactions:
        """Return raw features of events, histories and futures of all rows.

        Parameters
        ----------
        kinds : csr_array (n_all_items, n_kinds)
        known : int64 (n_items,)
            Positions of the catalogue's items, ascending.
        """
        parts = [
            self._part(first, end, kinds, known)
            for first, end in tqdm(
                self._parts(), desc="cohort", unit="part", disable=not self._progress
            )
        ]
        stacked = {
            name: sparse.csr_array(sparse.vstack([getattr(p, name) for p in parts], "csr"))
            for name in ("history", "future", "history_tags", "future_tags")
        }
        joined = {
            name: np.concatenate([getattr(p, name) for p in parts])
            for name in ("future_events", "future_outside")
        }
        length = np.concatenate([np.diff(p.sequences.offsets) for p in parts])
        sequences = Histories(
            np.concatenate([[0], np.cumsum(length)]),
            np.concatenate([p.sequences.item for p in parts]),
            np.concatenate([p.sequences.ts for p in parts]),
        )
        folded = pa.concat_tables([p.folded for p in parts])
        return Interactions(folded=folded, sequences=sequences, **stacked, **joined)

    def user_views(self, clean: CleanTables) -> dict[str, pa.ChunkedArray]:
        """Return the columns ``view__field`` of profile and onboarding, as known at the moments."""
        users = f"(FROM read_parquet({quoted(clean.users)}) SEMI JOIN row_user USING (user_id))"
        tables = ViewTables(self._db, clean, self._layout, None, users=users)
        columns: dict[str, pa.ChunkedArray] = {}
        if PROFILE in self._layout.views:
            columns |= self._as_known(PROFILE, list(tables.profiles()))
        if ONBOARDING in self._layout.views:
            columns |= self._as_known(ONBOARDING, list(tables.onboarding(self._encoders)))
        return columns

    def _as_known(self, view: str, tables: list[pa.Table]) -> dict[str, pa.ChunkedArray]:
        """Return the fields of one row a user, null at moments before the row's time."""
        if not tables:
            kind: IdType = "int64" if pa.types.is_integer(self._users.type) else "string"
            tables = [view_schema(view, self._layout, kind).empty_table()]
        table = pa.concat_tables(tables).combine_chunks()
        found = pc.fill_null(
            pc.index_in(self._users, value_set=table[USER_KEY].combine_chunks()), -1
        )
        place = found.to_numpy()[self._number]
        since = np.append(
            pc.fill_null(table[EVENT_TIME].cast(pa.int64()), _NEVER).to_numpy(), _NEVER
        )
        unknown = (place < 0) | (since[place] > self._moments)
        row = pa.array(place, pa.int64(), mask=unknown)
        names = [n for n in table.column_names if n not in (USER_KEY, EVENT_TIME, CREATED)]
        return {f"{view}__{name}": table[name].take(row) for name in names}

    def _parts(self) -> list[tuple[int, int]]:
        """Return ranges of users [first, end) with about a million events each, or one user."""
        counted = arrow_table(
            self._db, "SELECT number, count(*) AS n FROM row_event GROUP BY number ORDER BY number"
        )
        events = np.zeros(len(self._users), np.int64)
        events[counted["number"].to_numpy()] = counted["n"].to_numpy()
        part = (np.cumsum(events) - events) // _EVENTS_AT_ONCE
        first = np.flatnonzero(np.diff(part, prepend=-1))
        return list(zip(first.tolist(), [*first[1:].tolist(), len(events)], strict=True))

    def _part(self, first: int, end: int, kinds: sparse.csr_array, known: Ints) -> Interactions:
        """Return what the rows of the users [first, end) need."""
        events = arrow_table(
            self._db,
            "SELECT number, user_id, item_id, ts, us, weight, context, service FROM row_event "
            f"WHERE number >= {first} AND number < {end} ORDER BY number, us, item_id",
        )
        row = slice(*np.searchsorted(self._number, [first, end]).tolist())
        user, moment = self._number[row] - first, self._moments[row]
        start = np.searchsorted(events["number"].to_numpy(), np.arange(first, end + 1))
        us = events["us"].to_numpy()
        begin, stop = start[user], start[user + 1]
        now = first_after(us, begin, stop, moment)
        until = first_at_or_after(us, now, stop, moment + self._horizon)
        items = events["item_id"].combine_chunks().dictionary_encode()
        item = self._encoders.index_of(items.dictionary)[items.indices.to_numpy()]
        n_all = len(self._encoders.item_ids)
        weight = events["weight"].to_numpy()
        history = _by_item(begin, now, item, weight, n_all)
        future = _by_item(now, until, item, np.ones(len(item), np.float32), n_all)
        inside = sparse.csr_array(future[:, known])
        return Interactions(
            folded=self._folded(events, user, moment, first, end),
            history=sparse.csr_array(history[:, known]),
            future=inside.astype(np.bool_),
            history_tags=sparse.csr_array(history @ kinds),
            future_tags=sparse.csr_array(future @ kinds).astype(np.bool_),
            future_events=until - now,
            future_outside=np.diff(future.indptr) - np.diff(inside.indptr),
            sequences=_newest(begin, now, item, us, known, n_all),
        )

    def _folded(self, events: pa.Table, user: Ints, moment: Ints, first: int, end: int) -> pa.Table:
        """Return the columns ``view__field`` of activity and texts, up to each moment."""
        users = self._users.slice(first, end - first).to_pylist()
        states = UserStates.of(users, events, services=self._layout.texts is not None)
        activity = activity_rows(states, user, self._encoders, self._layout, cuts=moment)
        views = {ACTIVITY: activity}
        if self._layout.texts is not None:
            views[TEXTS] = texts_beside(activity, states, self._encoders, self._layout)
        return pa.table(
            {
                f"{view}__{name}": table[name]
                for view, table in views.items()
                for name in table.column_names
                if name not in (USER_KEY, EVENT_TIME, CREATED)
            }
        )


def read_past(db: duckdb.DuckDBPyConnection, encoders: ModalityEncoders, known: Ints) -> Past:
    """Return a sample of users' events before the cut-off.

    Users come in the order of ``moments.user_hash``, at most 50,000 with 5 million events.

    Parameters
    ----------
    db : connection of ``moments.open_events``
        Leaves ``event`` at a share of the users.
    encoders : ModalityEncoders
    known : int64 (n_items,)
        Positions of the catalogue's items, ascending.
    """
    ((users,),) = db.execute("SELECT approx_count_distinct(user_id) FROM every_event").fetchall()
    # Four users to choose from for each one wanted: some have no event before the cut-off.
    sampled_events(db, min(1.0, 4 * _PAST_USERS / max(users, 1)))
    db.execute(_PAST_TABLE.format(user_hash("user_id")))
    ids = arrow_table(db, "SELECT user_id FROM past_user ORDER BY number")["user_id"]
    events = arrow_table(
        db,
        "SELECT number, item_id, us, weight FROM event JOIN past_user USING (user_id) "
        "WHERE us < getvariable('cutoff') ORDER BY number, us, item_id",
    )
    number, us = events["number"].to_numpy(), events["us"].to_numpy()
    start = np.searchsorted(number, np.arange(len(ids) + 1))
    items = events["item_id"].combine_chunks().dictionary_encode()
    item = encoders.index_of(items.dictionary)[items.indices.to_numpy()]
    n_all = len(encoders.item_ids)
    matrix = _by_item(start[:-1], start[1:], item, events["weight"].to_numpy(), n_all)
    newest = _newest(start[:-1], start[1:], item, us, known, n_all)
    owner = np.repeat(np.arange(len(ids)), np.diff(newest.offsets))
    sequences = pa.table(
        {
            USER_KEY: ids.combine_chunks().take(pa.array(owner)),
            "item": newest.item,
            "ts": pa.array(newest.ts).cast(pa.timestamp("us", "UTC")),
        }
    )
    ((n_events,),) = db.execute(
        "SELECT count(*) FROM every_event WHERE us < getvariable('cutoff')"
    ).fetchall()
    past = sparse.csr_array(matrix[:, known])
    return Past(past, ids.to_numpy(), int(n_events), sequences)


def _by_item(start: Ints, end: Ints, item: Ints, weight: Float32, n_items: int) -> sparse.csr_array:
    """Return csr float32 (n_rows, n_items): the weights of each row's events [start, end)."""
    at = ranges(start, end)
    offsets = np.concatenate([[0], np.cumsum(end - start)])
    matrix = sparse.csr_array((weight[at], item[at], offsets), shape=(len(start), n_items))
    matrix.sum_duplicates()
    return matrix


def _newest(start: Ints, end: Ints, item: Ints, us: Ints, known: Ints, n_all: int) -> Histories:
    """Return the newest events [start, end) of each row whose items are in the catalogue."""
    place = np.full(n_all, -1, np.int32)
    place[known] = np.arange(len(known))
    at = ranges(start, end)
    row = np.repeat(np.arange(len(start)), end - start)
    inside = place[item[at]] >= 0
    at, row = at[inside], row[inside]
    length = np.bincount(row, minlength=len(start))
    # From the last: how many of the row's entries come after this one.
    after = np.repeat(np.cumsum(length), length) - 1 - np.arange(len(at))
    at, length = at[after < MOST_EVENTS], np.minimum(length, MOST_EVENTS)
    offsets = np.concatenate([[0], np.cumsum(length)])
    return Histories(offsets, place[item[at]], us[at].astype("datetime64[us]"))


_PAST_TABLE = f"""
CREATE OR REPLACE TEMP TABLE past_user AS
WITH per_user AS (
    SELECT user_id, {{}} AS place, count(*) AS n FROM event
    WHERE us < getvariable('cutoff') GROUP BY user_id
), running AS (
    SELECT user_id, n, row_number() OVER (ORDER BY place, user_id) AS rank,
        sum(n) OVER (ORDER BY place, user_id) AS total
    FROM per_user
)
SELECT user_id, row_number() OVER (ORDER BY user_id) - 1 AS number
FROM running WHERE rank <= {_PAST_USERS} AND (total <= {_PAST_EVENTS} OR rank = 1)
"""
