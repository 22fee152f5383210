"""The hand-over from batch to stream: what the clean tables hold, into the states of their users.

Both are united, so a seed may run before, while and after events are streamed, and any number of
times (ADR 0030).
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from materialize.config import RepoSettings
from materialize.ledger import Ledger
from materialize.stream.atomic import UserHashes
from materialize.stream.history import History, open_history
from materialize.stream.marker import StreamMarker, delete_marker, read_marker, write_marker
from materialize.stream.union import StateUnion
from transforms.clean import CleanTables
from transforms.layout import RawLayout
from transforms.stream.circumstances import kept_circumstances
from transforms.stream.state import UserStates

if TYPE_CHECKING:
    from feast import FeatureStore
    from redis import Redis
    from redis.cluster import RedisCluster

__all__ = ["SeedReport", "seed_states"]

_log = logging.getLogger(__name__)

_EVENT_BYTES = 200
"""Peak memory of one event while its partition is read and applied."""
_SAMPLE_USERS = 5_000
_USER_BYTES, _ALLOCATED = 256, 1.25
"""What a state takes in Redis: so much for two fields' names, the revision and the hash's table,
and its own bytes as they are allocated (measured, Redis 7)."""


@dataclass(frozen=True)
class SeedReport:
    """What a seed did, or (dry run) would do.

    Attributes
    ----------
    outcome : str
        ``seeded``, ``unchanged`` (the same data were seeded before) or ``planned``.
    floor_day : str
        Every event from this date (00:00 UTC) on is in the states.
    users, events, picks, sign_ups : int
        That the clean tables hold for states.
    written : int
        Users whose state gained something.
    rows_made : int
        Of these, users who had a state before: their rows, made from less, were made anew.
    state_bytes : int
        Of the states that are new; in a dry run what all of them would take in Redis, estimated
        from some.
    failed : dict of str to int
        Kind of fault -> users whose state stays as it was.
    seconds : float
    """

    outcome: str
    floor_day: str
    users: int = 0
    events: int = 0
    picks: int = 0
    sign_ups: int = 0
    written: int = 0
    rows_made: int = 0
    state_bytes: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


def seed_states(
    store: FeatureStore,
    settings: RepoSettings,
    ledger: Ledger,
    *,
    until: datetime | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: bool = True,
) -> SeedReport:
    """Put what the clean tables hold into the states, as the union of both.

    Parameters
    ----------
    store : FeatureStore
        Its online store is Palate's for Redis.
    settings : RepoSettings
    ledger : Ledger
    until : datetime or None
        Only what happened before this instant; None: everything. A replay of the rest then stands
        for the stream.
    force : bool
        Read everything again although the same data were seeded before (states were lost), and
        replace states that cannot be read; and drop events that the states keep by another
        dataset.yaml and that the clean tables do not hold.
    dry_run : bool
        Count, and estimate the bytes in Redis; writes nothing.
    progress : bool
        A bar on standard error.

    Returns
    -------
    SeedReport

    Raises
    ------
    DataFault
        No clean tables, no event in them, or an online store that cannot hold states.
    StreamConflict
        A state cannot be read, and ``force`` is not given.
    TransientError
        Redis does not answer; what was done stays done.

    Notes
    -----
    Side effects: writes states, and for users whose rows were made from less also rows, online and
    offline. Safe to kill and to repeat, and to run beside workers: finished partitions are noted in
    the online Redis itself, so that the note is lost together with the states. The mark that lets
    `palate stream run` start is written last. Where the states were made with another dataset.yaml
    (context columns, texts), it is taken away first, so that nobody makes rows of half of each.
    """
    began = time.perf_counter()
    clean, stream = CleanTables(settings.data_dir), settings.file.stream
    client, project = UserHashes(store).client, store.project
    memory = settings.file.memory_limit_mb
    with open_history(
        clean,
        settings.dataset,
        late_days=stream.late_days,
        until=until,
        memory_limit_mb=memory // 2,
        spill=settings.data_dir,
    ) as history:
        report = SeedReport("planned", _date(history.floor_day), **asdict(history.counts()))
        partitions = max(1, -(-report.events * _EVENT_BYTES // (memory * 2**20 // 4)))
        if dry_run:
            return _timed(replace(report, state_bytes=_estimate(history, report, settings)), began)
        marker = _marker(settings, clean, history.floor_day, until)
        before = read_marker(client, project)
        if not force and before is not None and replace(before, at_us=0) == marker:
            _log.info("data %s are seeded already", marker.fingerprint)
            return _timed(replace(report, outcome="unchanged"), began)
        if before is not None and not before.fits(RawLayout.of(settings.dataset)):
            _log.warning("the states were made with another dataset.yaml: workers stop until done")
            delete_marker(client, project)
        notes = _Notes(client, project, _work(marker, partitions))
        if force:
            notes.forget()
        union = StateUnion(
            store, settings, ledger, floor_day=history.floor_day, replace_corrupt=force
        )
        _add_partitions(history, union, notes, partitions, progress=progress)
        write_marker(client, project, replace(marker, at_us=time.time_ns() // 1000))
        notes.forget()
    counts = union.counts
    report = replace(
        report,
        outcome="seeded",
        written=counts.written,
        rows_made=counts.rows_made,
        state_bytes=counts.state_bytes,
        failed=dict(counts.failed),
    )
    _log.info("%s", report)
    return _timed(report, began)


def _add_partitions(
    history: History, union: StateUnion, notes: _Notes, partitions: int, *, progress: bool
) -> None:
    done = notes.done()
    if done:
        _log.info("the seed resumes: %s of %s partitions are done", len(done), partitions)
    history.split(partitions)
    for number in tqdm(range(partitions), desc="seed", unit="partition", disable=not progress):
        if number in done:
            continue
        union.refresh()
        for block in history.partition(number):
            union.add(block)
        union.flush()
        notes.add(number)


class _Notes:
    """Which partitions of one piece of work are done; kept where the states are."""

    def __init__(self, client: Redis | RedisCluster, project: str, work: str) -> None:
        self._client, self._key = client, f"palate:{project}:stream-seed"
        self._work = work

    def done(self) -> set[int]:
        """Return the finished partitions; notes of other work are dropped."""
        found: Any = self._client.hgetall(self._key)
        if found.pop(b"work", None) != self._work.encode():
            self.forget()
            self._client.hset(self._key, "work", self._work)
            return set()
        return {int(name) for name in found}

    def add(self, number: int) -> None:
        """Note that a partition is in the states."""
        self._client.hset(self._key, str(number), "done")

    def forget(self) -> None:
        """Drop all notes."""
        self._client.delete(self._key)


def _marker(
    settings: RepoSettings, clean: CleanTables, floor_day: int, until: datetime | None
) -> StreamMarker:
    """Return the mark that the seed leaves, but for its time."""
    fingerprint = clean.fingerprint() + ("" if until is None else f" until {until.isoformat()}")
    names = kept_circumstances(RawLayout.of(settings.dataset))
    return StreamMarker(floor_day, max(settings.dataset.windows), fingerprint, 0, names)


def _work(marker: StreamMarker, partitions: int) -> str:
    """Return what tells one piece of work from another; a partition of other work is not done."""
    return f"{marker.fingerprint} {marker.floor_day} {partitions} {marker.circumstances}"


def _estimate(history: History, planned: SeedReport, settings: RepoSettings) -> int:
    """Return about how many bytes the states take in Redis, from those of some users."""
    partitions = max(1, planned.users // _SAMPLE_USERS)
    users = total = 0
    for block in history.sample(0, partitions):
        nothing: list[bytes | None] = [None] * len(block.users)
        united = UserStates.decode(block.users, nothing, {}).union(
            block.states(),
            longest_window=max(settings.dataset.windows),
            floor=history.floor_day,
            max_events=settings.file.stream.max_events_per_user,
        )
        users += len(block.users)
        total += sum(map(len, united.states.encode()))
    return round(planned.users * (_USER_BYTES + _ALLOCATED * total / max(users, 1)))


def _timed(report: SeedReport, began: float) -> SeedReport:
    return replace(report, seconds=round(time.perf_counter() - began, 3))


def _date(day: int) -> str:
    return (date(1970, 1, 1) + timedelta(days=day)).isoformat()
