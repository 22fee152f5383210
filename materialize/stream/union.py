"""What the batch knows into the states that lie online, beside whoever streams at that moment."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from encoder.errors import CorruptState, StreamConflict, TransientError
from materialize.config import RepoSettings
from materialize.ledger import Ledger
from materialize.stream.apply import Applier
from materialize.stream.atomic import REVISION_FIELD, STATE_FIELD, UserHashes
from materialize.stream.history import Block
from materialize.stream.offline import OfflineRows
from materialize.stream.source import Delivery
from transforms.stream.events import StreamEvent, event_payload
from transforms.stream.state import UserStates

if TYPE_CHECKING:
    from feast import FeatureStore

__all__ = ["StateUnion", "UnionCounts"]

_log = logging.getLogger(__name__)

_ATTEMPTS = 20
_FIELDS = (STATE_FIELD, REVISION_FIELD)
_NAMED = 5


@dataclass
class UnionCounts:
    """What was done to states.

    Attributes
    ----------
    written : int
        Users whose state gained something.
    rows_made : int
        Of these, users whose rows were made anew.
    state_bytes : int
        Of the states that were written alone.
    refused : Counter of str
        Why the applier left an event out -> events.
    """

    written: int = 0
    rows_made: int = 0
    state_bytes: int = 0
    refused: Counter[str] = field(default_factory=Counter)


class StateUnion:
    """Adds blocks of history to users' states; safe beside workers and to repeat.

    A user without a state gets one, and nothing else: the batch's rows are online. A user whose
    state gains something has rows that were made from less. Where the states know the new row
    whole, the user's events go through `Applier` as if they were streamed, which makes it.

    Parameters
    ----------
    store : FeatureStore
    settings : RepoSettings
    ledger : Ledger
    floor_day : int
        Day since 1970 from which on the blocks hold every event.
    replace_corrupt : bool
        A state that cannot be read is replaced by what the block knows; else it is an error.

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
        self._store, self._settings, self._ledger = store, settings, ledger
        self._floor_day, self._replace_corrupt = floor_day, replace_corrupt
        self._hashes = UserHashes(store)
        self._applier: Applier | None = None
        stream = settings.file.stream
        self._offline = OfflineRows(
            store, flush_seconds=stream.flush_seconds, flush_rows=stream.flush_rows
        )
        self.counts = UnionCounts()

    def add(self, block: Block) -> None:
        """Unite what a block knows with the states of its users.

        Raises
        ------
        StreamConflict
            A state cannot be read, and is not to be replaced.
        TransientError
            Redis does not answer, or others kept changing the same users.
        """
        streamed: set[int | str] = set()
        for _ in range(_ATTEMPTS):
            left = self._attempt(block, streamed)
            if not left:
                self.counts.written += len(streamed)
                self.counts.rows_made += len(streamed)
                return
            block = block.take(left)
        raise TransientError(
            f"The states of {len(block.users)} users were changed by others {_ATTEMPTS} times in a "
            "row, each time before they could be written. Run the seed again: it resumes."
        )

    def flush(self) -> None:
        """Append the rows that were made to the offline store."""
        if len(self._offline):
            self._offline.flush()

    def _attempt(self, block: Block, streamed: set[int | str]) -> list[int]:
        """Unite once; return the rows that have to be looked at again.

        ``streamed`` is extended by the users whose events went through the applier.
        """
        keys = self._hashes.keys(block.users)  # type: ignore[arg-type] # all of one type
        read = self._hashes.read(keys, _FIELDS)
        stored = [row[0] for row in read]
        faults: dict[int, CorruptState] = {}
        states = UserStates.decode(block.users, stored, faults)
        if faults and not self._replace_corrupt:
            raise _corrupt(block.users, faults)
        stream = self._settings.file.stream
        united = states.union(
            block.states(),
            longest_window=max(self._settings.dataset.windows),
            floor=self._floor_day,
            max_events=stream.max_events_per_user,
        )
        changed = united.changed.nonzero()[0].tolist()
        made = united.activity | united.onboarding | united.profile
        again = [
            row
            for row in changed
            if made[row]
            and stored[row] is not None
            and row not in faults
            and block.users[row] not in streamed
        ]
        alone = sorted(set(changed) - set(again))
        lost = self._write(block, keys, read, united.states.encode(), alone, streamed)
        whole = [row for row in again if united.activity[row]]
        self._stream(block.take(whole), consumed=True)
        # Their newest row would need events from before the floor: the batch has it.
        self._stream(block.take(sorted(set(again) - set(whole))), consumed=False)
        streamed.update(block.users[row] for row in again)
        return sorted({*lost, *again})

    def _write(
        self,
        block: Block,
        keys: Sequence[bytes],
        read: Sequence[Sequence[bytes | None]],
        blobs: Sequence[bytes],
        rows: Sequence[int],
        streamed: set[int | str],
    ) -> list[int]:
        """Write states alone; return the rows for which another writer came first."""
        if not rows:
            return []
        now = time.time_ns() // 1000
        revisions = [max(now, int(read[row][1] or 0) + 1) for row in rows]
        set_ = self._hashes.commit(
            [keys[row] for row in rows],
            [REVISION_FIELD],
            [[read[row][1]] for row in rows],
            [list(_FIELDS)],
            [
                [[blobs[row], str(revision).encode()]]
                for row, revision in zip(rows, revisions, strict=True)
            ],
        )
        for row, done in zip(rows, set_.tolist(), strict=True):
            if done:
                self.counts.written += block.users[row] not in streamed
                self.counts.state_bytes += len(blobs[row])
        return [row for row, done in zip(rows, set_.tolist(), strict=True) if not done]

    def _stream(self, block: Block, *, consumed: bool) -> None:
        """Apply a block's events as if they were streamed."""
        if not block.users:
            return
        if self._applier is None:
            self._applier = Applier(self._store, self._settings, self._ledger)
        names = self._settings.dataset.events.context
        events = block.stream_events(context=bool(names), consumed=consumed)
        size = self._settings.file.stream.batch_events
        for start in range(0, len(events), size):
            deliveries = [_delivery(event, names) for event in events[start : start + size]]
            report = self._applier.apply(deliveries)
            self.counts.refused.update(rejected.reason for rejected in report.rejected)
            for view, table in report.offline.items():
                self._offline.add(view, table, time.monotonic())
            if self._offline.due(time.monotonic()):
                self._offline.flush()


def _delivery(event: StreamEvent, context: tuple[str, ...]) -> Delivery:
    payload = event_payload(event, context)
    return Delivery(0, b"seed", payload, redelivered=False, appended_ms=time.time_ns() // 1_000_000)


def _corrupt(users: Sequence[int | str], faults: dict[int, CorruptState]) -> StreamConflict:
    named = ", ".join(repr(users[row]) for row in sorted(faults)[:_NAMED])
    return StreamConflict(
        f"The states of {len(faults)} user(s) cannot be read, among them {named}: "
        f"{next(iter(faults.values()))} `palate stream seed --force` puts what the clean tables "
        "hold in their place; then replay their dead letters."
    )
