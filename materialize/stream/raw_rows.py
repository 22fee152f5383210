"""Raw rows that a step writes: made of states, beside what is stored and stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from materialize.stores.base import stored_values
from materialize.stores.values import microseconds
from materialize.stores.wire import Faults, Place, Stored, texts
from materialize.stream.read_users import Bools, Ints, ReadUsers
from materialize.stream.stored_rows import stored_table
from materialize.stream.targets import StoredView, StreamTargets
from transforms.layout import ACTIVITY, ONBOARDING, PROFILE, TEXTS, field
from transforms.names import USER_KEY
from transforms.stream.rows import activity_rows, onboarding_rows, profile_rows
from transforms.stream.state import Applied, UserStates
from transforms.stream.text_rows import texts_beside
from transforms.tables import EVENT_TIME

__all__ = ["NewRows", "RawRows", "basis_of", "made_rows"]

_FOREVER = np.iinfo(np.int64).max
_MAKE = {ACTIVITY: activity_rows, ONBOARDING: onboarding_rows}


@dataclass(frozen=True)
class NewRows:
    """Rows of one view that are to be written.

    Attributes
    ----------
    stored : StoredView
    rows : int64 (n_rows,), ascending
        Positions of their users.
    table : pyarrow.Table
        Without the created timestamp.
    values : list of lists of bytes
        By feature, as the online store keeps them.
    event_us : int64 (n_rows,)
    """

    stored: StoredView
    rows: Ints
    table: pa.Table
    values: Sequence[Sequence[bytes]]
    event_us: Ints

    @classmethod
    def of(cls, stored: StoredView, rows: Ints, table: pa.Table) -> NewRows:
        """Return rows with what the online store keeps of them."""
        batch = table.combine_chunks().to_batches()[0] if len(rows) else None
        values = [] if batch is None else stored_values(stored.view, batch)
        return cls(stored, rows, table, values, microseconds(table.column(EVENT_TIME)))

    def take(self, kept: Bools) -> NewRows:
        """Return some of the rows."""
        if kept.all():
            return self
        at = np.flatnonzero(kept)
        return NewRows(
            self.stored,
            self.rows[at],
            self.table.take(pa.array(at)),
            [[column[k] for k in at.tolist()] for column in self.values],
            self.event_us[at],
        )


class RawRows:
    """Raw rows of n users after a step: new ones, and stored ones that stay.

    Attributes
    ----------
    new : list of NewRows
        One a raw view.
    faults : dict of int to CorruptValue
        By position of the user: a stored profile that cannot be read and would be overlaid.
    """

    def __init__(
        self, targets: StreamTargets, read: ReadUsers, applied: Applied, usable: Bools
    ) -> None:
        self.faults: Faults = {}
        self._targets, self._read = targets, read
        self.new = self._all(applied, usable)

    def columns(self, users: Ints) -> dict[str, Stored]:
        """Return ``view__field`` -> the values of some users as they will be stored."""
        columns: dict[str, Stored] = {}
        for new in self.new:
            stored = new.stored
            at = new.rows.tolist()
            for k, feature in enumerate(stored.features):
                if len(at) == len(self._read.users):
                    whole: Stored = new.values[k]
                else:
                    mixed = list(self._read.column(stored, feature))
                    if at:
                        for row, value in zip(at, new.values[k], strict=True):
                            mixed[row] = value
                    whole = mixed
                if len(users) < len(self._read.users):
                    whole = [whole[row] for row in users.tolist()]
                columns[f"{stored.name}__{feature}"] = whole
        return columns

    def present(self) -> Bools:
        """Return which users have a raw row at all."""
        there = np.zeros(len(self._read.users), np.bool_)
        for new in self.new:
            there |= self._read.times[new.stored.name].present
            there[new.rows] = True
        return there

    def _all(self, applied: Applied, usable: Bools) -> list[NewRows]:
        made: dict[str, tuple[Ints, pa.Table]] = {}
        for stored in self._targets.raw:
            if stored.name == PROFILE:
                made[PROFILE] = self._profiles(stored, applied, usable)
            elif stored.name == TEXTS:
                made[TEXTS] = self._texts(*made[ACTIVITY], applied.states)
            else:
                made[stored.name] = self._made(stored.name, applied, usable)
        new = []
        for stored in self._targets.raw:
            rows, table = made[stored.name]
            times = self._read.times[stored.name]
            one = NewRows.of(stored, rows, table)
            new.append(one.take(~times.present[rows] | (one.event_us >= times.event_us[rows])))
        return new

    def _profiles(
        self, stored: StoredView, applied: Applied, usable: Bools
    ) -> tuple[Ints, pa.Table]:
        rows = np.flatnonzero(applied.profile & usable)
        before = self._stored_profiles(stored, rows)
        return rows, profile_rows(applied.states, rows, self._targets.layout, before)

    def _texts(self, rows: Ints, activity: pa.Table, states: UserStates) -> tuple[Ints, pa.Table]:
        encoders, layout = self._targets.encoders, self._targets.layout
        return rows, texts_beside(activity, states, encoders, layout)

    def _made(self, view: str, applied: Applied, usable: Bools) -> tuple[Ints, pa.Table]:
        """Return the rows that are due, and outdated ones that the states can make."""
        states, make = applied.states, _MAKE[view]
        encoders, layout = self._targets.encoders, self._targets.layout
        due = {ACTIVITY: applied.activity, ONBOARDING: applied.onboarding}[view] & usable
        start = {ACTIVITY: states.facts.start, ONBOARDING: states.picks.start}[view]
        maybe = usable & applied.changed & ~due & (np.diff(start) > 0)
        if maybe.any():
            maybe &= self._outdated(view)
        rows = np.flatnonzero(due)
        table = make(states, rows, encoders, layout)
        others = np.flatnonzero(maybe)
        if not len(others):
            return rows, table
        added = make(states, others, encoders, layout, np.full_like(others, _FOREVER))
        position = {user: row for row, user in enumerate(self._read.users)}
        at = np.array([position[user] for user in added.column(USER_KEY).to_pylist()], np.int64)
        both = np.concatenate([rows, at])
        order = np.argsort(both)
        return both[order], pa.concat_tables([table, added]).take(pa.array(order))

    def _outdated(self, view: str) -> Bools:
        """Return who has no row of a view or of what is made of it, or one made with others."""
        outdated = np.zeros(len(self._read.users), np.bool_)
        for stored in self._targets.raw:
            if basis_of(stored.name) == view:
                values = self._read.column(stored, field(stored.name, "modality"))
                faults: Faults = {}
                versions, valid = texts(values, Place(stored.name, "modality"), faults=faults)
                encoders = self._targets.encoders
                made = encoders.texts_version if stored.name == TEXTS else encoders.version
                outdated |= ~valid | (versions != made)
        return outdated

    def _stored_profiles(self, stored: StoredView, rows: Ints) -> pa.Table | None:
        """Return the stored profiles of some users, null rows where there is none."""
        if not len(rows):
            return None
        at = rows.tolist()
        values = [
            [column[row] for row in at]
            for column in (self._read.column(stored, feature) for feature in stored.features)
        ]
        faults: Faults = {}
        users = [self._read.users[row] for row in at]
        table = stored_table(self._targets, stored, values, users, faults)
        for row, fault in faults.items():
            self.faults[at[row]] = fault
        times = self._read.times[stored.name]
        moments = pa.array(times.event_us[rows], mask=~times.present[rows])
        return table.append_column(EVENT_TIME, moments.cast(pa.timestamp("us", "UTC")))


def basis_of(view: str) -> str:
    """Return the raw view that a view's rows are made of, beside each of its rows; else itself."""
    return ACTIVITY if view == TEXTS else view


def made_rows(
    targets: StreamTargets, states: UserStates, rows: Ints, cuts: Ints
) -> dict[str, pa.Table]:
    """Return rows of users at moments, those that can be known, by raw view; see `activity_rows`.

    Profiles are not among them: a state does not know what they were.
    """
    encoders, layout = targets.encoders, targets.layout
    made = {
        view: make(states, rows, encoders, layout, cuts)
        for view, make in _MAKE.items()
        if view in layout.views
    }
    if TEXTS in layout.views:
        made[TEXTS] = texts_beside(made[ACTIVITY], states, encoders, layout)
    return made
