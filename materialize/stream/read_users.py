"""What was read of some users' hashes in one round trip: states, raw rows, and times of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from encoder.errors import CorruptValue
from materialize.stores.wire import Faults, Place, Stored, row_times
from materialize.stream.atomic import REVISION_FIELD, STATE_FIELD, UserHashes
from materialize.stream.targets import StoredView, StreamTargets

__all__ = ["ReadUsers", "RowTimes", "User"]

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

User = int | str


@dataclass(frozen=True)
class RowTimes:
    """Times of the stored rows of one view.

    Attributes
    ----------
    event_us, created_us : int64 (n_users,)
        Microseconds since 1970; 0 where there is none.
    present : bool (n_users,)
        Whether the user has a row.
    """

    event_us: Ints
    created_us: Ints
    present: Bools

    @classmethod
    def of(cls, stamps: Stored, view: str, users: Sequence[User], faults: Faults) -> RowTimes:
        """Return what is stored as the rows' times; ``faults`` is filled."""
        return cls(*row_times(stamps, Place(view, "event time", users), faults=faults))


class ReadUsers:
    """Hashes of n users as they were at one moment each.

    Parameters
    ----------
    hashes : UserHashes
    targets : StreamTargets
    users : sequence of int or str, n, distinct

    Attributes
    ----------
    users : sequence of int or str
    keys : list of bytes
    states : sequence of bytes or None
    stamps : tuple of bytes
        Hash fields of the event times of all views.
    guarded : list of lists of bytes or None
        By user: the revision and the event times of all views, which a step must find again.
    times : dict of str to RowTimes
        By view.
    faults : dict of int to CorruptValue
        By position of the user: a time or a revision that nobody can have written.

    Raises
    ------
    TransientError
        Redis does not answer.
    """

    def __init__(self, hashes: UserHashes, targets: StreamTargets, users: Sequence[User]) -> None:
        self.users = users
        self.keys = hashes.keys(users)
        answers = hashes.read(self.keys, (STATE_FIELD, REVISION_FIELD, *targets.read_fields))
        columns: list[Stored] = list(zip(*answers, strict=True))
        self.states = columns[0]
        self.stamps = targets.stamps
        n_stamps = len(self.stamps)
        self.guarded = [[row[1], *row[-n_stamps:]] for row in answers]
        self.faults: Faults = {}
        values, stamps = iter(columns[2:-n_stamps]), iter(columns[-n_stamps:])
        self._values = {one.name: [next(values) for _ in one.features] for one in targets.raw}
        self.times: dict[str, RowTimes] = {}
        for one in (*targets.raw, *(target.stored for target in targets.embeddings)):
            self.times[one.name] = RowTimes.of(next(stamps), one.name, users, self.faults)
        self._newest = self._revisions(columns[1])
        for times in self.times.values():
            np.maximum(self._newest, times.created_us, out=self._newest)

    def created(self, now_us: int) -> Ints:
        """Return a created time of each user that is newer than all that is stored, int64 (n,)."""
        return np.maximum(now_us, self.just_after())

    def just_after(self) -> Ints:
        """Return the first such time, int64 (n,).

        Of two readings of a user that of the later state is later, whatever the clocks and pauses
        of those who read.
        """
        return self._newest + 1

    def column(self, stored: StoredView, feature: str) -> Stored:
        """Return the stored values of a raw feature; None where the user has no row."""
        values = self._values[stored.name][stored.features.index(feature)]
        present = self.times[stored.name].present
        if present.all():
            return values
        pairs = zip(values, present.tolist(), strict=True)
        return [value if there else None for value, there in pairs]

    def _revisions(self, values: Stored) -> Ints:
        numbers = np.zeros(len(values), np.int64)
        for row, value in enumerate(values):
            if value is None:
                continue
            if not value.isdigit() or len(value) > 18:
                self.faults[row] = _no_revision(self.users[row], row, value)
                continue
            numbers[row] = int(value)
        return numbers


def _no_revision(user: User, row: int, value: bytes) -> CorruptValue:
    return CorruptValue(
        f"The revision of user {user}'s state is {value[:40]!r}; microseconds since 1970 are "
        "expected. Find out which program wrote it, and seed the user's state again.",
        view="",
        field=REVISION_FIELD.decode(),
        row=row,
        user=str(user),
    )
