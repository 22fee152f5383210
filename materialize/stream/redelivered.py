"""Offline rows of events that were applied before: a crash may have come before they were kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import pyarrow as pa

from materialize.stores.base import stored_values
from materialize.stores.values import microseconds
from materialize.stores.wire import Faults, Stored
from materialize.stream.atomic import UserHashes
from materialize.stream.embeddings import encode_views
from materialize.stream.raw_rows import basis_of, made_rows
from materialize.stream.read_users import Bools, Ints, ReadUsers, RowTimes, User
from materialize.stream.stored_rows import stored_table
from materialize.stream.targets import StoredView, StreamTargets
from transforms.layout import ACTIVITY, PROFILE
from transforms.names import USER_KEY
from transforms.stream.merge import NONE
from transforms.stream.state import UserStates
from transforms.tables import CREATED, EVENT_TIME

__all__ = ["Moment", "rows_again"]

_INSTANT = pa.timestamp("us", "UTC")


@dataclass(frozen=True, order=True)
class Moment:
    """A redelivered event: the raw view that it changes (`basis_of`), and its time."""

    view: str
    event_us: int


def rows_again(
    hashes: UserHashes,
    targets: StreamTargets,
    artifacts: str,
    moments: Mapping[User, Sequence[Moment]],
) -> list[tuple[str, pa.Table]]:
    """Return the rows of some users that may not be offline yet: they are there twice, then.

    What is online at this moment, with its own times; and the rows as of each moment, created just
    after the user's last step: events that came late until then are in them, so an earlier time
    would let a training set see what nobody knew, and this worker's time, that of reading or of
    writing, could be later than that of a row which another one has made of more.

    Parameters
    ----------
    hashes : UserHashes
    targets : StreamTargets
    artifacts : str
        Folder or URL of the artifact store.
    moments : mapping of user to sequence of Moment

    Raises
    ------
    TransientError
        Redis does not answer.
    """
    read = ReadUsers(hashes, targets, list(moments))
    found: list[tuple[str, pa.Table]] = []
    for stored in targets.raw:
        values = [read.column(stored, feature) for feature in stored.features]
        found.append((stored.name, _online(targets, stored, read, values, read.times[stored.name])))
    views = [target.stored for target in targets.embeddings]
    answers = hashes.read(read.keys, [f for stored in views for f in stored.fields])
    columns = iter(zip(*answers, strict=True))
    for stored in views:
        values = [next(columns) for _ in stored.features]
        # Of the same moment as the values, which is later than that of the raw rows.
        times = RowTimes.of(next(columns), stored.name, read.users, read.faults)
        found.append((stored.name, _online(targets, stored, read, values, times)))
    found += _as_of(targets, artifacts, read, moments)
    return [(view, table) for view, table in found if len(table)]


def _online(
    targets: StreamTargets,
    stored: StoredView,
    read: ReadUsers,
    values: Sequence[Stored],
    times: RowTimes,
) -> pa.Table:
    """Return the rows of a view that are online and can be read."""
    faults: Faults = {}
    table = stored_table(targets, stored, values, read.users, faults)
    kept = times.present.copy()
    kept[[*faults, *read.faults]] = False
    for name, moments in ((EVENT_TIME, times.event_us), (CREATED, times.created_us)):
        table = table.append_column(name, pa.array(moments).cast(_INSTANT))
    return table.filter(pa.array(kept))


def _as_of(
    targets: StreamTargets,
    artifacts: str,
    read: ReadUsers,
    moments: Mapping[User, Sequence[Moment]],
) -> Iterator[tuple[str, pa.Table]]:
    """Yield raw rows and embeddings as they were at moments before those that are online."""
    states = UserStates.decode(read.users, read.states, {})
    created = read.just_after()
    newest = {
        view: np.max([t.event_us for name, t in read.times.items() if basis_of(name) == view], 0)
        for view in set(map(basis_of, targets.layout.views))
    }  # by basis: int64 (n_users,)
    earlier = [
        sorted({one for one in moments[user] if one.event_us < newest[one.view][row]})
        for row, user in enumerate(read.users)
    ]
    for turn in zip_longest(*earlier):  # one moment a user, so that rows are told by their users
        at = [row for row, one in enumerate(turn) if one is not None]
        own = [one for one in turn if one is not None]
        rows = np.array(at, np.int64)
        yield from _Turn(targets, read, rows, own, created[rows]).rows(states, artifacts)


class _Turn:
    """One moment each of some users."""

    def __init__(
        self,
        targets: StreamTargets,
        read: ReadUsers,
        rows: Ints,
        moments: Sequence[Moment],
        created: Ints,
    ) -> None:
        self._targets, self._read, self._at = targets, read, rows
        self._users = [read.users[row] for row in rows.tolist()]
        self._views = np.array([one.view for one in moments], object)
        self._cuts = np.array([one.event_us for one in moments], np.int64)
        self._created = created

    def rows(self, states: UserStates, artifacts: str) -> Iterator[tuple[str, pa.Table]]:
        """Yield the row of each moment's event, and the embeddings of what was known then.

        Where a view had a row then that cannot be made any more, there is no embedding: one without
        it would be right for another user.
        """
        columns: dict[str, Stored] = {}
        tables = made_rows(self._targets, states, self._at, self._cuts)
        known = np.zeros(len(self._at), np.bool_)
        missing = np.zeros(len(self._at), np.bool_)
        for stored in self._targets.raw:
            values = self._stored(stored)
            unmade = self._moved_on(stored)
            if stored.name == PROFILE:
                missing |= unmade
            else:
                table = tables[stored.name]
                rows = self._owners(table)
                batch = table.combine_chunks().to_batches()[0] if len(rows) else None
                made = [] if batch is None else stored_values(stored.view, batch)
                for column, new in zip(values, made, strict=False):
                    for row, value in zip(rows.tolist(), new, strict=True):
                        column[row] = value
                exact = microseconds(table.column(EVENT_TIME)) == self._cuts[rows]
                exact &= self._views[rows] == basis_of(stored.name)
                known[rows[exact]] = True
                unmade[rows] = False
                # All picks are in the state, events may be gone.
                if basis_of(stored.name) == ACTIVITY:
                    missing |= unmade & (states.gone[self._at] != NONE)
                table = table.append_column(
                    CREATED, pa.array(self._created[rows]).cast(_INSTANT)
                ).filter(pa.array(exact))
                if len(table):
                    yield stored.name, table
            for feature, column in zip(stored.features, values, strict=True):
                columns[f"{stored.name}__{feature}"] = column
        kept = np.flatnonzero(known & ~missing)
        if len(kept):
            embedded, unfit = encode_views(
                self._targets,
                artifacts,
                {name: [column[row] for row in kept.tolist()] for name, column in columns.items()},
                [self._users[row] for row in kept.tolist()],
                self._created[kept],
            )
            for view, at, batch in embedded:
                fit = pa.array([row not in unfit for row in at.tolist()], pa.bool_())
                yield view.name, pa.Table.from_batches([batch]).filter(fit)

    def _stored(self, stored: StoredView) -> list[list[bytes | None]]:
        """Return the stored row of each user whose event is not after the moment, by feature."""
        there = self._read.times[stored.name].present[self._at] & ~self._moved_on(stored)
        pairs = list(zip(self._at.tolist(), there.tolist(), strict=True))
        columns = [self._read.column(stored, feature) for feature in stored.features]
        return [[column[row] if ok else None for row, ok in pairs] for column in columns]

    def _moved_on(self, stored: StoredView) -> Bools:
        """Return of whom a view has a row that is newer than the moment."""
        times = self._read.times[stored.name]
        newer: Bools = times.present[self._at] & (times.event_us[self._at] > self._cuts)
        return newer

    def _owners(self, table: pa.Table) -> Ints:
        """Return whose rows are in a table, as positions among the users of the moments."""
        position = {user: row for row, user in enumerate(self._users)}
        found = [position[user] for user in table.column(USER_KEY).to_pylist()]
        return np.array(found, np.int64)
