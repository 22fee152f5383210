"""Events summed up by user, day and item, in partitions of users that fit into memory.

Days are bucketed once. A build holds the days that were new or changed when it was made. When a
day's events change (late ones, or more of a day that was not over), its fingerprint differs, that
day alone is bucketed again, and the older build no longer answers for it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from transforms.clean import CleanTables
from transforms.engine import DAY_US, arrow_table, bounded_connection, quoted

__all__ = ["DayBuckets", "DaySurvey", "UserDays", "changes", "survey_days"]

logger = logging.getLogger(__name__)

Ints = npt.NDArray[np.int64]

_STATE = "buckets.json"
_FORMAT = 1
_MOST_BUILDS = 32
"""With more builds, reading a partition would open too many files: all days are bucketed anew."""
_RANKS = 2**32
"""More than there are different contexts."""
_ENTRY_BYTES = 120
"""Peak memory of one (user, day, item) row while its partition is computed (measured)."""
_EVENT_BYTES = 100
"""The same of one event with its service: four columns, ordered twice (an estimate)."""


@dataclass(frozen=True)
class UserDays:
    """One partition: users' active days in order, and what they did on each.

    Attributes
    ----------
    users : pyarrow array (n_days,)
        User id of each active day; days are ordered by user, then date.
    user, day, as_of : int64 (n_days,)
        Dense number of the user; days since 1970-01-01; newest event, microseconds since the epoch.
    context : pyarrow list<string> array (n_days,)
        Circumstances of the day's newest event.
    start : int64 (n_days + 1,)
        Where each day's entries begin.
    items : pyarrow dictionary array (n_entries,)
        Item id of each entry; items of a day are distinct.
    weight : float64 (n_entries,)
    events : int64 (n_entries,)
    """

    users: pa.Array
    user: Ints
    day: Ints
    as_of: Ints
    context: pa.Array
    start: Ints
    items: pa.DictionaryArray
    weight: npt.NDArray[np.float64]
    events: Ints


@dataclass(frozen=True)
class DaySurvey:
    """What the events' days hold.

    Attributes
    ----------
    prints : dict of str to tuple (events, checksum, users)
        By day number, ascending; the number of users is an estimate.
    """

    prints: dict[str, tuple[int, str, int]]

    @property
    def days(self) -> tuple[int, ...]:
        """Days with events, ascending."""
        return tuple(map(int, self.prints))

    @property
    def n_events(self) -> int:
        """Events in all."""
        return sum(p[0] for p in self.prints.values())

    @property
    def n_user_days(self) -> int:
        """Active days of all users, an estimate."""
        return sum(p[2] for p in self.prints.values())

    def stale_in(self, other: Mapping[str, Sequence[int | str]]) -> set[int]:
        """Return the days that ``other`` (prints, also from JSON) lacks or has other events for."""
        return {
            int(d)
            for d, p in self.prints.items()
            if d not in other or list(other[d])[:2] != [*p[:2]]
        }


def survey_days(
    clean: CleanTables, memory_limit_mb: int, spill: Path | None = None, *, services: bool = False
) -> DaySurvey:
    """Read all events once, and return each day's fingerprint.

    ``services``: the fingerprint changes with the service of an event, too.
    """
    hashed = "user_id, item_id, ts, weight, context" + (", service" if services else "")
    with bounded_connection(memory_limit_mb, spill) as connection:
        rows = connection.execute(
            f"SELECT epoch_us(ts) // {DAY_US} AS day, count(*), sum(hash({hashed})::HUGEINT), "
            f"approx_count_distinct(user_id) FROM read_parquet({quoted(clean.events)}) "
            "GROUP BY day ORDER BY day"
        ).fetchall()
    return DaySurvey({str(day): (n, str(checksum), users) for day, n, checksum, users in rows})


class DayBuckets:
    """The buckets under one folder.

    State: ``buckets.json`` (written last) names the builds and each day's fingerprint; a folder
    that it does not name is what a killed run left, and goes with the next update.

    Parameters
    ----------
    folder : Path
        Made by the first update.
    clean : CleanTables
    memory_limit_mb : int
        For everything this class holds at a time.
    bytes_per_day : int
        What the caller will hold for each active day of a user while it computes a partition.
    events : bool
        Keep each event with its service, too, for `load_events`.
    """

    def __init__(
        self,
        folder: Path,
        clean: CleanTables,
        *,
        memory_limit_mb: int,
        bytes_per_day: int,
        events: bool = False,
    ) -> None:
        self.folder = folder
        self._clean = clean
        self._events = f"read_parquet({quoted(clean.events)})"
        self._memory_mb = memory_limit_mb
        self._bytes_per_day = bytes_per_day
        self._with_events = events
        path = folder / _STATE
        self._state: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        # Another DuckDB release may hash differently: every day would look changed, one by one.
        known = (self._state.get("format"), self._state.get("duckdb"))
        if self._state and known != (_FORMAT, duckdb.__version__):
            logger.info("buckets were made by %s, all days are bucketed anew", known)
            self._state = {}
        elif events and not self._state.get("events"):
            self._state = {}

    @property
    def partitions(self) -> int:
        """Number of user partitions; 0 before the first update."""
        return int(self._state.get("partitions", 0))

    def partition_of(self, user: str) -> str:
        """Return SQL of the partition that holds a user, for SQL of the user's id."""
        return _partition(user, self.partitions)

    def update(self) -> DaySurvey:
        """Bucket the days that are new or changed, and return what all days hold.

        Safe to kill: an unfinished build is not named by the state, and a later update removes it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        found = survey_days(
            self._clean, self._memory_mb // 2, self.folder, services=self._with_events
        )
        wanted = self._partitions_for(found)
        builds = [dict(b) for b in self._state.get("builds", [])]
        everything = wanted > self.partitions or len(builds) >= _MOST_BUILDS
        old = {} if everything else self._state["days"]
        stale = found.stale_in(old)
        gone = set(map(int, old)) - set(found.days)
        if stale or gone:
            partitions = wanted if everything else self.partitions
            number = 1 + max((b["number"] for b in builds), default=0)
            builds = [] if everything else builds
            for build in builds:
                build["days"] = sorted(set(build["days"]) - stale - gone)
            if stale:
                self._build(number, sorted(stale), partitions, everything)
                builds.append({"number": number, "days": sorted(stale)})
            self._state = {
                "format": _FORMAT,
                "duckdb": duckdb.__version__,
                "events": self._with_events,
                "partitions": partitions,
                "days": found.prints,
                "builds": [b for b in builds if b["days"]],
            }
            temporary = self.folder / f"{_STATE}.tmp"
            temporary.write_text(json.dumps(self._state))
            os.replace(temporary, self.folder / _STATE)
        named = {_name(b["number"]) for b in self._state["builds"]}
        for path in self.folder.iterdir():
            if path.is_dir() and path.name not in named:
                shutil.rmtree(path)
        return found

    def load(self, partition: int, first_day: int) -> UserDays | None:
        """Return one partition's users with their days from ``first_day`` on; None: no rows."""
        with bounded_connection(max(self._memory_mb // 4, 64), self.folder) as connection:
            days = self._read(connection, "days", partition, first_day, "user_id, day")
            entries = self._read(
                connection, "entries", partition, first_day, "user_id, day, item_id"
            )
        if days is None or entries is None or not days.num_rows:
            return None
        users = days["user_id"].combine_chunks()
        user = np.concatenate([[0], np.cumsum(changes(users))])
        day = days["day"].to_numpy().astype(np.int64)
        changed = changes(entries["user_id"].combine_chunks())
        changed |= np.diff(entries["day"].to_numpy()) != 0
        start = np.concatenate([[0], np.flatnonzero(changed) + 1, [entries.num_rows]])
        return UserDays(
            users=users,
            user=user.astype(np.int64),
            day=day,
            as_of=days["as_of"].to_numpy(),
            context=days["context"].combine_chunks(),
            start=start.astype(np.int64),
            items=entries["item_id"].combine_chunks().dictionary_encode(),
            weight=entries["weight"].to_numpy(),
            events=entries["events"].to_numpy().astype(np.int64),
        )

    def load_events(self, partition: int, first_day: int) -> pa.Table | None:
        """Return one partition's events from ``first_day`` on; None: there is none.

        Returns
        -------
        pyarrow.Table
            user_id, ts (int64, microseconds), item_id and service (null: none), ordered by these.
        """
        with bounded_connection(max(self._memory_mb // 4, 64), self.folder) as connection:
            found = self._read(connection, "events", partition, first_day, "user_id, ts, item_id")
        return None if found is None or not found.num_rows else found

    def _partitions_for(self, found: DaySurvey) -> int:
        of_event = _ENTRY_BYTES + (_EVENT_BYTES if self._with_events else 0)
        needed = found.n_events * of_event + found.n_user_days * self._bytes_per_day
        wanted = max(1, -(-needed // (self._memory_mb * 2**20 // 4)))
        # A power of two leaves room to grow before everything is partitioned anew.
        return int(2 ** int(np.ceil(np.log2(wanted))))

    def _build(self, number: int, days: list[int], partitions: int, everything: bool) -> None:
        temporary = self.folder / f"{_name(number)}.tmp"
        final = self.folder / _name(number)
        for leftover in (temporary, final):
            shutil.rmtree(leftover, ignore_errors=True)
        chosen = f"ts >= make_timestamptz({days[0] * DAY_US}) AND " \
                 f"ts < make_timestamptz({(days[-1] + 1) * DAY_US})"  # fmt: skip
        if not everything:
            chosen += f" AND epoch_us(ts) // {DAY_US} IN ({', '.join(map(str, days))})"
        part = _partition("user_id", partitions)
        events = (
            f"(SELECT *, (epoch_us(ts) // {DAY_US})::INTEGER AS day FROM {self._events} "
            f"WHERE {chosen})"
        )
        # DuckDB spills aggregates of a fixed size only, so the newest event's context is carried as
        # a number: 2**32 * time + rank of the context. Of several newest events the largest context
        # counts; any rule will do, chance will not.
        tables = {
            "entries": "SELECT user_id, day, item_id, sum(weight::DOUBLE) AS weight, "
            f"count(*)::INTEGER AS events, {part} AS part FROM {events} "
            "GROUP BY user_id, day, item_id",
            "days": f"SELECT user_id, day, (newest // {_RANKS})::BIGINT AS as_of, context, "
            f"{part} AS part FROM (SELECT user_id, day, "
            f"max(epoch_us(ts)::HUGEINT * {_RANKS} + rank) AS newest FROM {events} "
            "AS e JOIN contexts AS c ON e.context IS NOT DISTINCT FROM c.context "
            "GROUP BY user_id, day) "
            f"JOIN contexts ON rank = newest % {_RANKS}",
        }
        if self._with_events:
            tables["events"] = (
                f"SELECT user_id, day, epoch_us(ts) AS ts, item_id, service, {part} AS part "
                f"FROM {events}"
            )
        with bounded_connection(self._memory_mb // 2, self.folder) as connection:
            # Readers sort for themselves; keeping the order of the events would cost memory.
            connection.execute("SET preserve_insertion_order = false")
            connection.execute(
                "CREATE TEMP TABLE contexts AS SELECT context, "
                "row_number() OVER (ORDER BY context) AS rank "
                f"FROM (SELECT DISTINCT context FROM {events})"
            )
            for name, query in tables.items():
                (target := temporary / name).mkdir(parents=True)
                connection.execute(
                    f"COPY ({query}) TO {quoted(target)} "
                    "(FORMAT parquet, COMPRESSION zstd, PARTITION_BY (part))"
                )
        os.replace(temporary, final)
        logger.info("bucketed %d days into %d partitions", len(days), partitions)

    def _read(
        self,
        connection: duckdb.DuckDBPyConnection,
        table: str,
        partition: int,
        first_day: int,
        order: str,
    ) -> pa.Table | None:
        parts = []
        for build in self._state["builds"]:
            pattern = f"{table}/part={partition}/*.parquet"
            files = sorted((self.folder / _name(build["number"])).glob(pattern))
            days = [d for d in build["days"] if d >= first_day]
            if files and days:
                listed = ", ".join(map(quoted, files))
                parts.append(
                    f"SELECT * EXCLUDE (part) FROM read_parquet([{listed}]) "
                    f"WHERE day IN ({', '.join(map(str, days))})"
                )
        if not parts:
            return None
        query = f"SELECT * FROM ({' UNION ALL '.join(parts)}) ORDER BY {order}"
        return arrow_table(connection, query)


def _partition(user: str, partitions: int) -> str:
    # md5, unlike hash(), is the same in every release: a user's partition never moves.
    return f"(md5_number_lower({user}::VARCHAR) % {partitions})::INTEGER"


def _name(number: int) -> str:
    return f"build-{number:06d}"


def changes(ids: pa.Array) -> npt.NDArray[np.bool_]:
    """Return bool (n - 1,): where an id differs from the one before it."""
    differs = pc.not_equal(ids.slice(1), ids.slice(0, len(ids) - 1))
    return np.asarray(differs.to_numpy(zero_copy_only=False), np.bool_)
