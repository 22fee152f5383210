"""Deliveries into users' states, raw rows and embeddings: one micro-batch, one step a user."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from encoder.errors import CorruptState, CorruptValue, TerminalError, TransientError
from materialize.config import RepoSettings
from materialize.ledger import Ledger
from materialize.stream.atomic import UserHashes, transient
from materialize.stream.marker import read_marker
from materialize.stream.read_users import User
from materialize.stream.redelivered import Moment, rows_again
from materialize.stream.source import Delivery
from materialize.stream.steps import StepsTaken, UserSteps
from materialize.stream.targets import TargetWatch
from transforms.layout import ACTIVITY, ONBOARDING
from transforms.stream.events import BadEvent, EventParser, StreamEvent
from transforms.stream.state import Applied, UserStates

if TYPE_CHECKING:
    from feast import FeatureStore

__all__ = ["Applier", "ApplyReport", "Rejected"]

_UNKNOWN = "unknown"
"""Type of what could not be parsed."""
_HARMLESS = {"applied", "duplicate", "outside"}
_VIEWS = {"consume": ACTIVITY, "onboarding_pick": ONBOARDING}
"""Type of an event -> the raw view of which it makes a row of its own time; others may be made of
that row (`raw_rows.basis_of`)."""

_Received = tuple[Delivery, StreamEvent]


@dataclass(frozen=True)
class Rejected:
    """A delivery that cannot be applied.

    Attributes
    ----------
    delivery : Delivery
    reason : str
        A reason code (docs/guides/stream.md).
    detail : str
        What was given, what was expected, what to do.
    """

    delivery: Delivery
    reason: str
    detail: str


@dataclass(frozen=True)
class ApplyReport:
    """What a micro-batch did.

    Attributes
    ----------
    outcomes : dict of (str, str) to int
        (type of the event, outcome) -> deliveries. Outcomes: ``applied``, ``duplicate``,
        ``outside``, or the reason of a rejected one; what could not be parsed has type ``unknown``.
    rejected : tuple of Rejected
        For the caller to hand to the source.
    offline : dict of str to pyarrow.Table
        View -> rows that are in the online store now and have to be kept offline too, before the
        deliveries are acknowledged.
    users : int
        Users of the deliveries.
    written : int
        Users whose hash was changed.
    conflicts : int
        Steps that were taken again, because another writer had come first.
    newest_event_us : int
        Largest event time of the applied events; 0 without any.
    seconds : dict of str to float
        By stage: ``parse``, ``read``, ``state``, ``rows``, ``encode``, ``write``, ``report``.
    """

    outcomes: Mapping[tuple[str, str], int]
    rejected: tuple[Rejected, ...]
    offline: Mapping[str, pa.Table]
    users: int
    written: int
    conflicts: int
    newest_event_us: int
    seconds: Mapping[str, float]


class Applier:
    """Applies deliveries to one repository; not safe for threads.

    Parameters
    ----------
    store : FeatureStore
        With Palate's Redis online store.
    settings : RepoSettings
    ledger : Ledger

    Raises
    ------
    DataFault
        Another online store, no raw features, or a raw view is not applied.
    TransientError
        Redis does not answer.

    Notes
    -----
    State: what is written (`TargetWatch`), a connection, and which deliveries were in hand when
    Redis stopped answering: nobody knows then whose steps were taken, so these count as redelivered
    when they come again.
    """

    def __init__(self, store: FeatureStore, settings: RepoSettings, ledger: Ledger) -> None:
        self._settings, self._project = settings, store.project
        self._hashes = UserHashes(store)
        self._steps = UserSteps(self._hashes, settings.artifacts_url)
        self._watch = TargetWatch(store, settings, ledger)
        self._in_doubt: set[tuple[int, bytes]] = set()
        self._take_up()

    def apply(self, deliveries: Sequence[Delivery]) -> ApplyReport:
        """Apply a micro-batch: state, raw rows and embeddings of each user move in one step.

        Raises
        ------
        TransientError
            The online store does not answer, or others kept changing the same users; nothing is
            half done, and the same deliveries may be applied again.
        """
        began, report = time.perf_counter(), _Report()
        by_user: dict[User, list[_Received]] = {}
        for delivery in deliveries:
            try:
                event = self._parser.parse(delivery.payload)
            except BadEvent as bad:
                report.reject(_UNKNOWN, delivery, bad.reason, bad.detail)
            else:
                by_user.setdefault(event.user_id, []).append((delivery, event))
        parsed = time.perf_counter() - began
        hand = {(one.partition, one.id) for one in deliveries}
        try:
            taken = self._take(by_user, report) if by_user else StepsTaken()
        except TransientError:
            self._in_doubt |= hand
            raise
        self._in_doubt -= hand
        taken.seconds["parse"] = parsed
        return report.finish(len(by_user), taken)

    def refresh(self) -> None:
        """Take up what changed: live spaces, bridges, item vectors, the registry, the floor.

        Cheap when nothing did.

        Raises
        ------
        DataFault
            The raw features are gone, or a raw view is not applied any more.
        TransientError
            Redis does not answer.
        """
        if self._watch.refresh():
            self._take_up()
        else:
            self._floor = self._read_floor()

    def _take_up(self) -> None:
        dataset, targets = self._settings.dataset, self._watch.targets
        self._parser = EventParser(
            dataset,
            targets.user_type,
            targets.item_type,
            future_seconds=self._settings.file.stream.future_seconds,
            known_items=targets.encoders if dataset.items else None,
        )
        self._floor = self._read_floor()

    def _read_floor(self) -> int | None:
        with transient():
            marker = read_marker(self._hashes.client, self._project)
        return None if marker is None else marker.floor_day

    def _take(self, by_user: Mapping[User, list[_Received]], report: _Report) -> StepsTaken:
        """Take the steps of the users, and note what became of their events."""
        users, received = list(by_user), list(by_user.values())
        targets, stream = self._watch.targets, self._settings.file.stream

        def change(states: UserStates, at: Sequence[int]) -> Applied:
            return states.apply(
                [[event for _, event in received[row]] for row in at],
                longest_window=max(targets.layout.windows),
                floor=self._floor,
                max_events=stream.max_events_per_user,
                services=targets.layout.texts is not None,
            )

        taken = self._steps.take(targets, users, change)
        with taken.stage("report"):
            again: dict[User, list[Moment]] = {}
            for row, (user, own) in enumerate(by_user.items()):
                fault = taken.faults.get(row)
                if fault is not None:
                    report.refuse(own, _reason(fault), str(fault))
                    continue
                outcomes = taken.outcomes[row]
                doubted = [
                    one
                    for one, outcome in zip(own, outcomes, strict=True)
                    if outcome == "duplicate"
                    and (row in taken.conflicted or self._came_before(one[0]))
                ]
                if doubted:
                    again[user] = _moments(doubted)
                report.judge(own, outcomes)
            if again:
                artifacts = self._settings.artifacts_url
                for view, table in rows_again(self._hashes, targets, artifacts, again):
                    taken.tables.setdefault(view, []).append(table)
        return taken

    def _came_before(self, delivery: Delivery) -> bool:
        return delivery.redelivered or (delivery.partition, delivery.id) in self._in_doubt


class _Report:
    """Collects what becomes of each delivery."""

    def __init__(self) -> None:
        self._outcomes: Counter[tuple[str, str]] = Counter()
        self._rejected: list[Rejected] = []
        self._newest_us = 0

    def reject(self, kind: str, delivery: Delivery, reason: str, detail: str) -> None:
        """Note a delivery that cannot be applied."""
        self._outcomes[kind, reason] += 1
        self._rejected.append(Rejected(delivery, reason, detail))

    def refuse(self, received: Sequence[_Received], reason: str, detail: str) -> None:
        """Note a user of whom nothing can be applied."""
        for delivery, event in received:
            self.reject(event.type, delivery, reason, detail)

    def judge(self, received: Sequence[_Received], outcomes: Sequence[str]) -> None:
        """Note the outcome of each event of a user."""
        for (delivery, event), outcome in zip(received, outcomes, strict=True):
            if outcome in _HARMLESS:
                self._outcomes[event.type, outcome] += 1
                if outcome == "applied" and event.timestamp_us > self._newest_us:
                    self._newest_us = event.timestamp_us
            else:
                self.reject(event.type, delivery, outcome, _detail(event, outcome))

    def finish(self, users: int, taken: StepsTaken) -> ApplyReport:
        """Return the report."""
        return ApplyReport(
            outcomes=dict(self._outcomes),
            rejected=tuple(self._rejected),
            offline={view: pa.concat_tables(parts) for view, parts in taken.tables.items()},
            users=users,
            written=len(taken.written),
            conflicts=taken.conflicts,
            newest_event_us=self._newest_us,
            seconds=dict(taken.seconds),
        )


def _moments(received: Sequence[_Received]) -> list[Moment]:
    return [
        Moment(_VIEWS[event.type], event.timestamp_us)
        for _, event in received
        if event.type in _VIEWS
    ]


def _reason(fault: TerminalError) -> str:
    if isinstance(fault, CorruptState):
        return "corrupt_state"
    return "corrupt_value" if isinstance(fault, CorruptValue) else "malformed_input"


def _detail(event: StreamEvent, reason: str) -> str:
    """Return why a state does not take an event."""
    when = f"{event.timestamp_us} ({_iso(event.timestamp_us)})"
    return {
        "too_late": f"timestamp {when} given; no row can be made of it, because events around it "
        "are older than what the states were seeded with. The next batch build carries it.",
        "event_before_sign_up": f"timestamp {when} given, which is before the user's sign-up; an "
        "event at or after it is expected. Correct the event, or the sign-up.",
        "too_many_events": f"the user's state holds as many events as max_events_per_user allows; "
        f"timestamp {when} is not added. Raise it, or look for a program behind this user.",
    }[reason]


def _iso(moment_us: int) -> str:
    seconds, rest = divmod(moment_us, 1_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest:06d}Z"
