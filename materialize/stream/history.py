"""Clean events, picks and sign-ups as states of users, in partitions of users."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from encoder.errors import DataFault
from transforms.clean import CleanTables
from transforms.dataset import Dataset
from transforms.engine import DAY_US, arrow_table, bounded_connection, quoted
from transforms.stream.state import UserStates

__all__ = [
    "Block",
    "History",
    "HistoryCounts",
    "event_columns",
    "open_history",
    "sign_ups_given",
]

_BLOCK_USERS = 2_000
_NEVER = -1


@dataclass(frozen=True)
class HistoryCounts:
    """What the clean tables hold for states."""

    users: int
    events: int
    picks: int
    sign_ups: int


@dataclass(frozen=True)
class Block:
    """What some users did.

    Attributes
    ----------
    users : list of ids
        Distinct.
    events : pyarrow.Table
        Columns of the clean events, in the order of the users; ``service`` where states keep it.
    picks : pyarrow list array (n_users,)
        Item ids.
    pick_times, signed_up : int64 (n_users,)
        Microseconds; -1 where there is none.
    """

    users: list[int | str]
    events: pa.Table
    picks: pa.Array
    pick_times: npt.NDArray[np.int64]
    signed_up: npt.NDArray[np.int64]

    def states(self) -> UserStates:
        """Return what the block knows of each user."""
        return UserStates.of(
            self.users,
            self.events,
            self.picks,
            self.signed_up,
            pick_times=self.pick_times,
            services="service" in self.events.column_names,
        )

    def not_before(self, moments: npt.NDArray[np.int64]) -> Block:
        """Return the same with picks made at these moments (us), or later, as they are."""
        picked = self.pick_times != _NEVER
        return replace(
            self, pick_times=np.where(picked, np.maximum(self.pick_times, moments), _NEVER)
        )

    def take(self, rows: Sequence[int]) -> Block:
        """Return some of the users."""
        users = [self.users[row] for row in rows]
        wanted = pc.is_in(self.events["user_id"], pa.array(users, self.events["user_id"].type))
        place = np.asarray(rows, np.int64)
        return Block(
            users,
            self.events.filter(wanted),
            self.picks.take(pa.array(place)),
            self.pick_times[place],
            self.signed_up[place],
        )


@contextmanager
def open_history(
    clean: CleanTables,
    dataset: Dataset,
    *,
    late_days: int,
    until: datetime | None,
    memory_limit_mb: int,
    spill: Path,
) -> Iterator[History]:
    """Yield what states are seeded with; its temporary files go with it.

    Parameters
    ----------
    clean : CleanTables
    dataset : Dataset
    late_days : int
        For so many days after the newest event the longest window of a late one is known whole.
    until : datetime or None
        What happened before it counts; None: everything.
    memory_limit_mb : int
        Of DuckDB's buffers.
    spill : Path
        Existing folder for temporary files.

    Raises
    ------
    DataFault
        No clean tables, or no event in them.
    """
    clean.require()
    until_us = None if until is None else int(until.timestamp() * 1_000_000)
    with (
        TemporaryDirectory(prefix="seed-", dir=spill) as folder,
        bounded_connection(memory_limit_mb, Path(folder)) as connection,
    ):
        ((last,),) = connection.execute(
            f"SELECT max(epoch_us(ts)) FROM read_parquet({quoted(clean.events)}) "
            f"WHERE {_before('ts', until_us)}"
        ).fetchall()
        if last is None:
            raise DataFault(
                f"{clean.folder} holds no event{'' if until is None else f' before {until}'}. "
                "Begin without history: `palate stream run --from-nothing`."
            )
        floor_day = int(last) // DAY_US - max(dataset.windows) - late_days + 1
        yield History(connection, Path(folder), clean, dataset, floor_day, until_us)


def event_columns(dataset: Dataset) -> tuple[str, ...]:
    """Return the columns of the clean events that states and rows are made of."""
    return ("user_id", "item_id", "ts", "weight", "context", *(("service",) * bool(dataset.texts)))


def sign_ups_given(clean: CleanTables, dataset: Dataset) -> str:
    """Return SQL for the sign-ups that the users table gave: ``user_id``, ``given`` (microseconds).

    The clean tables put the first event in the place of a missing one, so a sign-up at the very
    time of the first event is none: it would forbid earlier events that the batch accepts.
    """
    users = f"read_parquet({quoted(clean.users)})"
    if dataset.users is None or dataset.users.signed_up_at is None:
        return f"SELECT user_id, NULL::BIGINT AS given FROM {users} WHERE false"
    first = (
        f"SELECT user_id, min(ts) AS first FROM read_parquet({quoted(clean.events)}) "
        "GROUP BY user_id"
    )
    return (
        f"SELECT user_id, epoch_us(signed_up_at) AS given FROM {users} "
        f"LEFT JOIN ({first}) USING (user_id) WHERE signed_up_at IS DISTINCT FROM first"
    )


class History:
    """What states are seeded with.

    Parameters
    ----------
    connection : duckdb connection
        In UTC (`transforms.engine.bounded_connection`).
    folder : Path
        Existing, for partitions.
    clean : CleanTables
    dataset : Dataset
    floor_day : int
        First day (since 1970) of the events.
    until_us : int or None
        Events, picks and sign-ups before it count; None: all.

    Notes
    -----
    Picks have the time of the sign-up, as their batch row has. A sign-up before the floor day
    forbids no event that a state could take, and is left out.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        folder: Path,
        clean: CleanTables,
        dataset: Dataset,
        floor_day: int,
        until_us: int | None,
    ) -> None:
        self.floor_day = floor_day
        self._connection, self._folder = connection, folder
        floor = f"make_timestamptz({floor_day * DAY_US})"
        events = f"read_parquet({quoted(clean.events)})"
        users = f"read_parquet({quoted(clean.users)})"
        self._columns = ", ".join(event_columns(dataset))
        self._events = (
            f"SELECT {self._columns} FROM {events} "
            f"WHERE ts >= {floor} AND {_before('ts', until_us)}"
        )
        self._users = (
            "SELECT * FROM (SELECT user_id, onboarding AS picks, "
            f"CASE WHEN len(onboarding) > 0 THEN epoch_us(signed_up_at) ELSE {_NEVER} END "
            "AS pick_time, "
            f"CASE WHEN given >= {floor_day * DAY_US} THEN given ELSE {_NEVER} END AS signed_up "
            f"FROM {users} LEFT JOIN ({sign_ups_given(clean, dataset)}) USING (user_id) "
            f"WHERE {_before('signed_up_at', until_us)}) "
            f"WHERE pick_time <> {_NEVER} OR signed_up <> {_NEVER}"
        )

    def counts(self) -> HistoryCounts:
        """Return how much there is of what."""
        (row,) = self._connection.execute(
            "SELECT count(DISTINCT user_id), sum(events)::BIGINT, sum(picks)::BIGINT, "
            "sum(sign_ups)::BIGINT FROM ("
            f"SELECT user_id, 1 AS events, 0 AS picks, 0 AS sign_ups FROM ({self._events}) "
            "UNION ALL SELECT user_id, 0, len(picks), (signed_up <> -1)::INTEGER "
            f"FROM ({self._users}))"
        ).fetchall()
        return HistoryCounts(*(int(n or 0) for n in row))

    def split(self, partitions: int) -> None:
        """Write everything to disk once, in partitions of users."""
        # Readers sort for themselves; keeping the order of the files would cost memory.
        self._connection.execute("SET preserve_insertion_order = false")
        for name, query in {"events": self._events, "users": self._users}.items():
            folder = self._folder / name
            folder.mkdir()
            self._connection.execute(
                f"COPY (SELECT *, {_part(partitions)} AS part FROM ({query})) "
                f"TO {quoted(folder)} (FORMAT parquet, COMPRESSION zstd, PARTITION_BY (part))"
            )

    def partition(self, number: int) -> Iterator[Block]:
        """Yield the users of one partition that `split` wrote, a block at a time."""
        sources = {"events": self._events, "users": self._users}
        for name, query in sources.items():
            files = sorted((self._folder / name / f"part={number}").glob("*.parquet"))
            listed = ", ".join(map(quoted, files))
            sources[name] = (
                f"read_parquet([{listed}], hive_partitioning = false)"
                if files
                else f"({query} LIMIT 0)"
            )
        yield from self._blocks(sources["events"], sources["users"])

    def sample(self, number: int, partitions: int) -> Iterator[Block]:
        """Yield the users of one of so many partitions, read from the clean tables."""
        where = f"WHERE {_part(partitions)} = {number}"
        yield from self._blocks(
            f"(SELECT * FROM ({self._events}) {where})", f"(SELECT * FROM ({self._users}) {where})"
        )

    def _blocks(self, events: str, users: str) -> Iterator[Block]:
        consumed = arrow_table(
            self._connection,
            f"SELECT {self._columns} FROM {events} ORDER BY user_id, ts",
        )
        known = arrow_table(
            self._connection,
            "SELECT user_id, coalesce(events, 0) AS events, picks, pick_time, signed_up FROM "
            f"(SELECT user_id, count(*) AS events FROM {events} GROUP BY user_id) "
            f"FULL JOIN {users} USING (user_id) ORDER BY user_id",
        )
        start = 0
        for at in range(0, known.num_rows, _BLOCK_USERS):
            part = known.slice(at, _BLOCK_USERS).combine_chunks()
            count = int(pc.sum(part["events"]).as_py())
            picks = part["picks"].combine_chunks()
            yield Block(
                part["user_id"].to_pylist(),
                consumed.slice(start, count),
                pc.coalesce(picks, pa.scalar([], picks.type)),
                pc.fill_null(part["pick_time"], _NEVER).to_numpy(),
                pc.fill_null(part["signed_up"], _NEVER).to_numpy(),
            )
            start += count


def _before(column: str, until_us: int | None) -> str:
    return "true" if until_us is None else f"{column} < make_timestamptz({until_us})"


def _part(partitions: int) -> str:
    # md5, unlike hash(), is the same in every release: a seed that resumes cuts as before.
    return f"(md5_number_lower(user_id::VARCHAR) % {partitions})::INTEGER"
