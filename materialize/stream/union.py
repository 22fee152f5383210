"""What the batch knows into the states that lie online, beside whoever streams at that moment."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from encoder.errors import CorruptState, StreamConflict, TransientError
from materialize.config import RepoSettings
from materialize.ledger import Ledger
from materialize.stream.atomic import REVISION_FIELD, STATE_FIELD, UserHashes
from materialize.stream.history import Block
from materialize.stream.offline import OfflineRows
from materialize.stream.steps import UserSteps
from materialize.stream.targets import TargetWatch
from transforms.layout import RawLayout
from transforms.stream.circumstances import kept_circumstances
from transforms.stream.state import Applied, UserStates

if TYPE_CHECKING:
    from feast import FeatureStore

__all__ = ["StateUnion", "UnionCounts"]

_log = logging.getLogger(__name__)

_ATTEMPTS = 20
_FIELDS = (STATE_FIELD, REVISION_FIELD)
_NAMED = 5
_NEVER = np.iinfo(np.int64).min


@dataclass
class UnionCounts:
    """What was done to states.

    Attributes
    ----------
    written : int
        Users whose state gained something.
    rows_made : int
        Of these, users who had a state before: what was made of it was made anew.
    state_bytes : int
        Of the states that are new.
    failed : Counter of str
        Kind of fault -> users whose state stays as it was.
    """

    written: int = 0
    rows_made: int = 0
    state_bytes: int = 0
    failed: Counter[str] = field(default_factory=Counter)


class StateUnion:
    """Adds blocks of history to users' states; safe beside workers and to repeat.

    A user without a state gets one, and nothing else: the batch's rows are online. A user whose
    state gains something has rows that were made from less: state, rows and embeddings move in
    one step, as when events are streamed. Where the newest row would need events from before the
    floor, the batch's row stays.

    Parameters
    ----------
    store : FeatureStore
    settings : RepoSettings
    ledger : Ledger
    floor_day : int
        Day since 1970 from which on the blocks hold every event.
    replace_corrupt : bool
        A state that cannot be read is replaced by what the block knows; else it is an error. And
        events that a state keeps by another dataset.yaml (`UserStates.misfits`) are left out; else
        only those that the block knows, too, and a state with others stays as it is.

    Notes
    -----
    State: ``counts``, and rows for the offline store until `flush`.
    """

    def __init__(
        self,
        store: FeatureStore,
        settings: RepoSettings,
        ledger: Ledger,
        *,
        floor_day: int,
        replace_corrupt: bool,
    ) -> None:
        stream = settings.file.stream
        self._longest = max(settings.dataset.windows)
        self._max_events = stream.max_events_per_user
        self._floor_day, self._replace_corrupt = floor_day, replace_corrupt
        self._circumstances = kept_circumstances(RawLayout.of(settings.dataset))
        self._hashes = UserHashes(store)
        self._watch = TargetWatch(store, settings, ledger)
        self._steps = UserSteps(self._hashes, settings.artifacts_url)
        self._offline = OfflineRows(
            store, flush_seconds=stream.flush_seconds, flush_rows=stream.flush_rows
        )
        self.counts = UnionCounts()
        self._full: set[int | str] = set()

    def add(self, block: Block) -> None:
        """Unite what a block knows with the states of its users.

        Raises
        ------
        StreamConflict
            A state cannot be read, and is not to be replaced.
        TransientError
            Redis does not answer, or others kept changing the same users.
        """
        for _ in range(_ATTEMPTS):
            left = self._attempt(block)
            if not left:
                return
            block = block.take(left)
        raise TransientError(
            f"The states of {len(block.users)} users were changed by others {_ATTEMPTS} times in a "
            "row, each time before they could be written. Run the seed again: it resumes."
        )

    def flush(self) -> None:
        """Append the rows that were made to the offline store."""
        self._offline.set_off()
        self._offline.flush()

    def refresh(self) -> None:
        """Take up what changed meanwhile: live spaces, item vectors, the registry."""
        self._watch.refresh()

    def _attempt(self, block: Block) -> list[int]:
        """Unite once; return the rows of users who had no state, and had one a moment later."""
        keys = self._hashes.keys(block.users)
        read = self._hashes.read(keys, _FIELDS)
        faults: dict[int, CorruptState] = {}
        states = UserStates.decode(block.users, [row[0] for row in read], faults)
        if faults and not self._replace_corrupt:
            raise _unreadable(block.users, faults)
        united = self._united(states, block)
        changed = united.changed.nonzero()[0].tolist()
        known = [row for row in changed if read[row][0] and row not in faults]
        self._extend(block.take(known))
        new = sorted(set(changed) - set(known))
        return self._begin(keys, [row[1] for row in read], united, new) if new else []

    def _begin(
        self,
        keys: Sequence[bytes],
        revisions: Sequence[bytes | None],
        united: Applied,
        rows: Sequence[int],
    ) -> list[int]:
        """Write states where there are none; return the rows for which another came first."""
        blobs = united.states.encode()
        now = time.time_ns() // 1000
        done = self._hashes.commit(
            [keys[row] for row in rows],
            [REVISION_FIELD],
            [[revisions[row]] for row in rows],
            [_FIELDS],
            [[[blobs[row], b"%d" % max(now, int(revisions[row] or 0) + 1)]] for row in rows],
        )
        lost = []
        for row, written in zip(rows, done.tolist(), strict=True):
            if written:
                self.counts.written += 1
                self.counts.state_bytes += len(blobs[row])
            else:
                lost.append(row)
        return lost

    def _extend(self, block: Block) -> None:
        """Unite with states that are there; rows follow where something is new."""
        if not block.users:
            return

        def change(states: UserStates, rows: Sequence[int]) -> Applied:
            return self._united(states, block.take(rows))

        taken = self._steps.take(self._watch.targets, block.users, change)
        self.counts.written += len(taken.written)
        self.counts.rows_made += len(taken.written)
        for row, fault in taken.faults.items():
            _log.warning("the state of user %r stays as it was: %s", block.users[row], fault)
            self.counts.failed[type(fault).__name__] += 1
        now = time.monotonic()
        for view, tables in taken.tables.items():
            for table in tables:
                self._offline.add(view, table, now)
        if self._offline.due(now):
            self.flush()

    def _united(self, states: UserStates, block: Block) -> Applied:
        # A row may not go back in time, or the one that is stored would stay: picks that are new
        # to a state are as of its newest pick at least.
        shown = np.full(len(block.users), _NEVER, np.int64)
        np.maximum.at(shown, states.picks.user, states.picks.ts)
        other = block.not_before(shown).states()
        known_to = None if self._replace_corrupt else other
        united = states.fitted(self._circumstances, known_to).union(
            other,
            longest_window=self._longest,
            floor=self._floor_day,
            max_events=self._max_events,
        )
        for row in np.flatnonzero(united.full).tolist():
            _log.warning(
                "user %r has more than max_events_per_user=%s events: the batch's row stays until "
                "no window reaches them",
                *(block.users[row], self._max_events),
            )
            self._full.add(block.users[row])
        if self._full:
            self.counts.failed["too_many_events"] = len(self._full)
        return united


def _unreadable(users: Sequence[int | str], faults: dict[int, CorruptState]) -> StreamConflict:
    named = ", ".join(repr(users[row]) for row in sorted(faults)[:_NAMED])
    return StreamConflict(
        f"The states of {len(faults)} user(s) cannot be read, among them {named}: "
        f"{next(iter(faults.values()))} `palate stream seed --force` puts what the clean tables "
        "hold in their place; then replay their dead letters."
    )
