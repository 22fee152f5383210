"""One partition of a pass: read once -> encode for each target -> offline -> online -> ledger."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from materialize.embedding_rows import bridge_rows, encode_rows
from materialize.exchange import Exchange
from materialize.ledger import Bridge, Ledger, Space
from materialize.online import OnlineWriter
from materialize.verify import check_embeddings, verify_file

if TYPE_CHECKING:
    from feast import FeatureStore

__all__ = [
    "PartitionDone",
    "PartitionTask",
    "PartitionWork",
    "PartitionWorker",
    "Target",
    "Throttle",
    "partition_numbers",
]

_ENCODE_ROWS = 8_192
_ONLINE_ROWS = 25_000  # a transaction of the SQL stores; Redis cuts it smaller itself


@dataclass(frozen=True)
class Target:
    """One view that a pass over raw rows writes, and the run that it belongs to.

    Attributes
    ----------
    run_id, view : str
    space : Space or None
        Whose encoder makes the rows; None: a raw view, whose rows go online as they are.
    bridge : Bridge or None
        From that space to the one in which the rows lie; None: they stay as they are encoded.
    vectors : str
        Form in which the view keeps vectors online.
    folder : Path
        Where the encoded partitions lie.
    online : bool
        False: offline only.
    """

    run_id: str
    view: str
    space: Space | None
    bridge: Bridge | None
    vectors: str
    folder: Path
    online: bool

    @property
    def mark(self) -> tuple[int, str]:
        """The space and the encoder version that each row of the view must carry."""
        assert self.space is not None  # noqa: S101 - raw rows carry neither
        if self.bridge is not None:
            return self.bridge.target, self.bridge.version
        return self.space.number, self.space.encoder_version


@dataclass(frozen=True)
class PartitionTask:
    """What every partition of a pass has in common; small, and may travel to another process.

    Attributes
    ----------
    exchange : Exchange or None
        Built; None: every partition is encoded already.
    artifacts_url : str
    targets : tuple of Target
        One raw view, or any number of views of spaces.
    """

    exchange: Exchange | None
    artifacts_url: str
    targets: tuple[Target, ...]


@dataclass(frozen=True)
class PartitionWork:
    """A partition, and for which targets (places in ``PartitionTask.targets``) it is to be done."""

    number: int
    targets: tuple[int, ...]


@dataclass(frozen=True)
class PartitionDone:
    """What was done for one partition and one target.

    Attributes
    ----------
    number, target : int
    rows : int
    online_rows : int
        Rows handed to the online store, stale ones included.
    stale_rows : int
        Of these, rows that were older than what the online store holds.
    seconds : dict of str to float
        By stage: ``read``, ``encode``, ``offline``, ``online``. What several targets share is the
        first one's.
    """

    number: int
    target: int
    rows: int = 0
    online_rows: int = 0
    stale_rows: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """What the ledger keeps."""
        return {
            "rows": self.rows,
            "online_rows": self.online_rows,
            "stale_rows": self.stale_rows,
        }


class Throttle:
    """Spaces out rows so that no more than a rate are handed over; shared by threads.

    Parameters
    ----------
    rows_per_second : float or None
        None: no bound.
    """

    def __init__(self, rows_per_second: float | None) -> None:
        self._rate = rows_per_second
        self._free_at = 0.0
        self._lock = threading.Lock()

    def take(self, rows: int) -> None:
        """Sleep until ``rows`` more rows keep within the rate."""
        if self._rate is None:
            return
        with self._lock:
            now = time.monotonic()
            begin = max(now, self._free_at)
            self._free_at = begin + rows / self._rate
        time.sleep(begin - now)


class PartitionWorker:
    """Does partitions one after the other, with online connections of its own.

    Parameters
    ----------
    task : PartitionTask
    store : FeatureStore
    ledger : Ledger
    throttle : Throttle

    Notes
    -----
    A call is safe to kill and to repeat: an encoded partition appears by a rename, after it was
    read back; online writes are idempotent; the ledger hears of each target last.
    """

    def __init__(
        self, task: PartitionTask, store: FeatureStore, ledger: Ledger, throttle: Throttle
    ) -> None:
        self._task, self._ledger, self._throttle = task, ledger, throttle
        self._writers = [
            OnlineWriter(store, target.view) if target.online else None for target in task.targets
        ]

    def __call__(self, work: PartitionWork) -> list[PartitionDone]:
        """Do one partition, and return what was done for each of its targets.

        Raises
        ------
        MalformedInput, SpaceMismatch
            A raw row does not fit the encoder.
        VerificationFailed
            The encoder gave NaN, or the disk answers other rows than were written.
        """
        clocks = {place: _Clock() for place in work.targets}
        targets = self._task.targets
        if any(targets[place].space is None for place in work.targets):
            (place,) = work.targets
            rows = _raw_rows(self._task, targets[place].view, work.number, clocks[place])
            return [self._write(work.number, place, rows, clocks[place])]
        tables = self._encoded(work, clocks)
        return [
            self._write(work.number, place, tables[place].to_batches(), clocks[place])
            for place in work.targets
        ]

    def _write(
        self, number: int, place: int, batches: Iterable[pa.RecordBatch], clock: _Clock
    ) -> PartitionDone:
        """Hand a target's rows to the online store, and tell the ledger."""
        writer = self._writers[place]
        rows, online_rows, stale = 0, 0, 0
        for batch in batches:
            rows += batch.num_rows
            for start in range(0, batch.num_rows if writer else 0, _ONLINE_ROWS):
                part = batch.slice(start, _ONLINE_ROWS)
                with clock.stage("online"):
                    self._throttle.take(part.num_rows)
                    stale += writer.write(part) if writer else 0
                online_rows += part.num_rows
        done = PartitionDone(number, place, rows, online_rows, stale, clock.seconds)
        self._ledger.partition_done(self._task.targets[place].run_id, number, done.counts)
        return done

    def _encoded(self, work: PartitionWork, clocks: Mapping[int, _Clock]) -> dict[int, pa.Table]:
        """Return the rows of each target, which are offline by then; raw rows are read once."""
        tables = {}
        for place in work.targets:
            path = _file(self._task.targets[place].folder, work.number)
            if path.exists():  # of an earlier attempt
                with clocks[place].stage("read"):
                    tables[place] = pq.read_table(path)
        missing = [place for place in work.targets if place not in tables]
        if missing:
            for place, table in self._encode(work.number, missing, clocks).items():
                with clocks[place].stage("offline"):
                    _stage(_file(self._task.targets[place].folder, work.number), table)
                tables[place] = table
        return tables

    def _encode(
        self, number: int, places: Sequence[int], clocks: Mapping[int, _Clock]
    ) -> dict[int, pa.Table]:
        encoded: dict[int, list[pa.RecordBatch]] = {place: [] for place in places}
        for batch in _read(self._task, number, _ENCODE_ROWS, clocks[places[0]]):
            by_space: dict[int, pa.RecordBatch] = {}  # a space and the bridges from it share it
            for place in places:
                target = self._task.targets[place]
                with clocks[place].stage("encode"):
                    rows = self._rows(batch, target, by_space)
                    where = f"Partition {number} of run {target.run_id}"
                    check_embeddings(rows, target.mark, where)  # before any store sees it
                encoded[place].append(rows)
        return {
            place: pa.Table.from_batches(batches) if batches else pa.table({})
            for place, batches in encoded.items()
        }

    def _rows(
        self, batch: pa.RecordBatch, target: Target, by_space: dict[int, pa.RecordBatch]
    ) -> pa.RecordBatch:
        space, url = target.space, self._task.artifacts_url
        assert space is not None  # noqa: S101 - raw views are not encoded
        if space.number not in by_space:
            by_space[space.number] = encode_rows(batch, space, url)
        rows = by_space[space.number]
        if target.bridge is None:
            return rows
        return bridge_rows(rows, target.bridge, url, target.vectors)


def _file(folder: Path, number: int) -> Path:
    """Return the file of an encoded partition; a partition without rows has none."""
    return folder / f"part-{number:05d}.parquet"


def partition_numbers(folder: Path) -> list[int]:
    """Return the numbers of a folder's encoded partitions."""
    return sorted(int(path.stem.removeprefix("part-")) for path in folder.glob("part-*.parquet"))


def _stage(path: Path, table: pa.Table) -> None:
    if not table.num_rows:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two workers may do one partition (a lost one is done again while it still runs): each has
    # its own file, and the last rename wins with equal rows.
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        pq.write_table(table, temporary, compression="zstd", row_group_size=_ENCODE_ROWS)
        verify_file(temporary, table)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _raw_rows(
    task: PartitionTask, view: str, number: int, clock: _Clock
) -> Iterator[pa.RecordBatch]:
    """Yield the newest raw row of each user under the view's own column names."""
    prefix = f"{view}__"
    for batch in _read(task, number, _ONLINE_ROWS, clock):
        created = pa.array(
            [datetime.now(timezone.utc)] * batch.num_rows, pa.timestamp("us", tz="UTC")
        )
        names = [name.removeprefix(prefix) for name in batch.schema.names]
        yield batch.rename_columns(names).append_column("created_timestamp", created)


class _Clock:
    """Adds up seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - began
            self.seconds[name] = self.seconds.get(name, 0.0) + spent


def _read(
    task: PartitionTask, number: int, batch_rows: int, clock: _Clock
) -> Iterator[pa.RecordBatch]:
    """Yield a partition's raw rows."""
    assert task.exchange is not None  # noqa: S101 - narrows; without it all files are there
    batches = task.exchange.partition(number).batches(batch_rows=batch_rows)
    while True:
        with clock.stage("read"):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch
