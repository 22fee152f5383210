"""Steps of users: what changed in their states, with rows and embeddings, all at once each."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from encoder.errors import CorruptState, TerminalError, TransientError
from materialize.stores.base import stored_values
from materialize.stores.values import microseconds, timestamps
from materialize.stream.atomic import REVISION_FIELD, STATE_FIELD, UserHashes
from materialize.stream.embeddings import encode_views
from materialize.stream.raw_rows import RawRows
from materialize.stream.read_users import Bools, Ints, ReadUsers, User
from materialize.stream.targets import StoredView, StreamTargets
from transforms.stream.circumstances import kept_circumstances
from transforms.stream.state import Applied, UserStates
from transforms.tables import CREATED, EVENT_TIME

__all__ = ["Change", "StepsTaken", "UserSteps"]

_ATTEMPTS = 20
_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.1
"""Seconds: after a conflict, at random up to so long, so that two writers part."""
_INSTANT = pa.timestamp("us", "UTC")

Change = Callable[[UserStates, Sequence[int]], Applied]
"""(states of some users, their positions in the micro-batch) -> what is to become of them."""


@dataclass
class StepsTaken:
    """What became of the users of a micro-batch.

    Attributes
    ----------
    outcomes : dict of int to list of str
        User -> what became of each event (`Applied`); none where the change was no list of events.
    faults : dict of int to TerminalError
        User -> why nothing of it was changed.
    written : set of int
        Users whose hash was changed.
    tables : dict of str to list of pyarrow.Table
        View -> rows that were written, with both timestamps.
    conflicts : int
        Steps that were taken again, because another writer had come first.
    conflicted : set of int
        Users of these.
    seconds : dict of str to float
        By stage.
    """

    outcomes: dict[int, list[str]] = field(default_factory=dict)
    faults: dict[int, TerminalError] = field(default_factory=dict)
    written: set[int] = field(default_factory=set)
    tables: dict[str, list[pa.Table]] = field(default_factory=dict)
    conflicts: int = 0
    conflicted: set[int] = field(default_factory=set)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the seconds of a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


class UserSteps:
    """Takes steps of users against one online store.

    Parameters
    ----------
    hashes : UserHashes
    artifacts : str
        Folder or URL of the artifact store.
    """

    def __init__(self, hashes: UserHashes, artifacts: str) -> None:
        self._hashes, self._artifacts = hashes, artifacts

    def take(self, targets: StreamTargets, users: Sequence[User], change: Change) -> StepsTaken:
        """Change the states of some users, and the rows that follow from them.

        Parameters
        ----------
        targets : StreamTargets
        users : sequence of int or str, distinct
        change : callable
            Called again for users of whom another writer was faster.

        Raises
        ------
        TransientError
            Redis does not answer, or others kept changing the same users.
        """
        taken = StepsTaken()
        todo = list(range(len(users)))
        pause = _FIRST_PAUSE
        for _ in range(_ATTEMPTS):
            todo = self._attempt(targets, users, todo, change, taken)
            if not todo:
                return taken
            taken.conflicts += len(todo)
            taken.conflicted.update(todo)
            time.sleep(random.uniform(0, pause))  # noqa: S311 - no secret
            pause = min(2 * pause, _LONGEST_PAUSE)
        raise TransientError(
            f"{len(todo)} users were changed by others {_ATTEMPTS} times in a row, each time "
            f"before their step was taken, among them {users[todo[0]]!r}. Is a second stream of "
            "this repository running?"
        )

    def _attempt(
        self,
        targets: StreamTargets,
        users: Sequence[User],
        todo: list[int],
        change: Change,
        taken: StepsTaken,
    ) -> list[int]:
        """Take the steps of some users once; return those whom another writer changed first."""
        own = [users[at] for at in todo]
        with taken.stage("read"):
            read = ReadUsers(self._hashes, targets, own)
        with taken.stage("state"):
            corrupt: dict[int, CorruptState] = {}
            states = UserStates.decode(own, read.states, corrupt)
            applied = change(states, todo)
            blobs = applied.states.encode()
            misfits = applied.states.misfits(kept_circumstances(targets.layout))
        faults: dict[int, TerminalError] = {**read.faults, **corrupt, **misfits}
        usable = np.ones(len(own), np.bool_)
        usable[list(faults)] = False
        with taken.stage("rows"):
            raw = RawRows(targets, read, applied, usable)
        faults |= raw.faults
        moving = applied.changed & usable
        moving[list(raw.faults)] = False
        created = read.created(time.time_ns() // 1000)
        with taken.stage("encode"):
            rows = np.flatnonzero(moving & raw.present())
            embedded, unfit = encode_views(
                targets,
                self._artifacts,
                raw.columns(rows),
                [own[row] for row in rows.tolist()],
                created[rows],
            )
        for position, error in unfit.items():
            faults[int(rows[position])] = error
            moving[rows[position]] = False
        with taken.stage("write"):
            step = _Step(read, created, moving, blobs)
            for new in raw.new:
                step.add(new.stored, new.rows, new.table, new.values, new.event_us)
            for stored, at, batch in embedded:
                step.add_embeddings(stored, rows[at], batch)
            lost = step.commit(self._hashes)
        taken.written.update(todo[row] for row in np.flatnonzero(moving & ~lost).tolist())
        for row in np.flatnonzero(~lost).tolist():
            if applied.outcomes:
                taken.outcomes[todo[row]] = applied.outcomes[row]
        for row, fault in faults.items():
            taken.faults[todo[row]] = fault
        for view, table in step.tables(~lost):
            taken.tables.setdefault(view, []).append(table)
        return [todo[row] for row in np.flatnonzero(lost).tolist()]


class _Step:
    """One call's worth of users: fields to set, and the rows that they are."""

    def __init__(
        self, read: ReadUsers, created: Ints, moving: Bools, blobs: Sequence[bytes]
    ) -> None:
        self._read, self._created, self._moving = read, created, moving
        revisions = [b"%d" % moment for moment in created.tolist()]
        self._fields: list[tuple[bytes, ...]] = [(STATE_FIELD, REVISION_FIELD)]
        self._values: list[list[Sequence[bytes] | None]] = [
            list(zip(blobs, revisions, strict=True))
        ]
        self._rows: list[tuple[StoredView, Ints, pa.Table]] = []

    def add(
        self,
        stored: StoredView,
        rows: Ints,
        table: pa.Table,
        values: Sequence[Sequence[bytes]],
        event_us: Ints,
    ) -> None:
        """Set rows of a view, for those users that move."""
        column: list[Sequence[bytes] | None] = [None] * len(self._moving)
        if len(rows):
            created = self._created[rows]
            stamps = timestamps(event_us, created, np.ones(len(rows), np.bool_))
            for row, own in zip(rows.tolist(), zip(*values, stamps, strict=True), strict=True):
                column[row] = own
            self._rows.append((stored, rows, table))
        self._fields.append(stored.fields)
        self._values.append(column)

    def add_embeddings(self, stored: StoredView, rows: Ints, batch: pa.RecordBatch) -> None:
        """Set rows of an embedding view, but none where the stored one is of a later event."""
        times = self._read.times[stored.name]
        event_us = microseconds(batch.column(EVENT_TIME))
        kept = ~times.present[rows] | (event_us >= times.event_us[rows])
        if not kept.all():
            batch = batch.take(pa.array(np.flatnonzero(kept)))
            rows, event_us = rows[kept], event_us[kept]
        table = pa.Table.from_batches([batch]).drop_columns([CREATED])
        self.add(stored, rows, table, stored_values(stored.view, batch), event_us)

    def commit(self, hashes: UserHashes) -> Bools:
        """Take the steps; return which users another writer changed first."""
        at = np.flatnonzero(self._moving).tolist()
        lost = np.zeros(len(self._moving), np.bool_)
        if at:
            by_user = list(zip(*self._values, strict=True))
            done = hashes.commit(
                [self._read.keys[row] for row in at],
                (REVISION_FIELD, *self._read.stamps),
                [self._read.guarded[row] for row in at],
                self._fields,
                [by_user[row] for row in at],
            )
            lost[[row for row, ok in zip(at, done.tolist(), strict=True) if not ok]] = True
        return lost

    def tables(self, done: Bools) -> Iterator[tuple[str, pa.Table]]:
        """Yield the rows of users whose step was taken, with their created time."""
        for stored, rows, table in self._rows:
            kept = self._moving[rows] & done[rows]
            if kept.any():
                created = pa.array(self._created[rows]).cast(_INSTANT)
                whole = table.append_column(CREATED, created)
                yield stored.name, whole if kept.all() else whole.filter(pa.array(kept))
