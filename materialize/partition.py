"""One partition of a run: read -> encode -> offline -> online -> ledger, on every engine."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from materialize.embedding_rows import encode_rows
from materialize.exchange import Exchange
from materialize.ledger import Ledger, Space
from materialize.online import OnlineWriter
from materialize.verify import check_embeddings, verify_file

if TYPE_CHECKING:
    from feast import FeatureStore

__all__ = ["PartitionDone", "PartitionTask", "PartitionWorker", "Throttle", "partition_numbers"]

_ENCODE_ROWS = 8_192
_ONLINE_ROWS = 25_000  # a transaction of the SQL stores; Redis cuts it smaller itself


@dataclass(frozen=True)
class PartitionTask:
    """What every partition of a run has in common; small, and may travel to another process.

    Attributes
    ----------
    run_id, view : str
    exchange : Exchange or None
        Built; None: every partition is encoded already.
    space : Space or None
        None: a raw view, whose rows go online as they are.
    artifacts_url : str
    folder : Path
        Where the encoded partitions lie.
    online : bool
        False: offline only.
    """

    run_id: str
    view: str
    exchange: Exchange | None
    space: Space | None
    artifacts_url: str
    folder: Path
    online: bool


@dataclass(frozen=True)
class PartitionDone:
    """What was done for one partition.

    Attributes
    ----------
    number : int
    rows : int
    online_rows : int
        Rows handed to the online store, stale ones included.
    stale_rows : int
        Of these, rows that were older than what the online store holds.
    seconds : dict of str to float
        By stage: ``read``, ``encode``, ``offline``, ``online``.
    """

    number: int
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
    """Does partitions one after the other, with an online connection of its own.

    Parameters
    ----------
    task : PartitionTask
    store : FeatureStore
    ledger : Ledger
    throttle : Throttle

    Notes
    -----
    A call is safe to kill and to repeat: an encoded partition appears by a rename, after it was
    read back; online writes are idempotent; the ledger hears of the partition last.
    """

    def __init__(
        self, task: PartitionTask, store: FeatureStore, ledger: Ledger, throttle: Throttle
    ) -> None:
        self._task, self._ledger, self._throttle = task, ledger, throttle
        self._writer = OnlineWriter(store, task.view) if task.online else None

    def __call__(self, number: int) -> PartitionDone:
        """Do one partition.

        Raises
        ------
        MalformedInput, SpaceMismatch
            A raw row does not fit the encoder.
        VerificationFailed
            The encoder gave NaN, or the disk answers other rows than were written.
        """
        clock = _Clock()
        rows, online_rows, stale = 0, 0, 0
        for batch in self._batches(number, clock):
            rows += batch.num_rows
            for start in range(0, batch.num_rows if self._writer else 0, _ONLINE_ROWS):
                part = batch.slice(start, _ONLINE_ROWS)
                with clock.stage("online"):
                    self._throttle.take(part.num_rows)
                    stale += self._writer.write(part) if self._writer else 0
                online_rows += part.num_rows
        done = PartitionDone(number, rows, online_rows, stale, clock.seconds)
        self._ledger.partition_done(self._task.run_id, number, done.counts)
        return done

    def _batches(self, number: int, clock: _Clock) -> Iterator[pa.RecordBatch]:
        """Yield the rows that go online; a space's are offline before the first one comes."""
        task = self._task
        if task.space is None:
            yield from _raw_rows(task, number, clock)
            return
        path = _file(task.folder, number)
        if path.exists():  # of an earlier attempt
            with clock.stage("read"):
                table = pq.read_table(path)
        else:
            table = self._encode(number, task.space, clock)
            with clock.stage("offline"):
                _stage(path, table)
        yield from table.to_batches()

    def _encode(self, number: int, space: Space, clock: _Clock) -> pa.Table:
        where = f"Partition {number} of run {self._task.run_id}"
        encoded = []
        for batch in _read(self._task, number, _ENCODE_ROWS, clock):
            with clock.stage("encode"):
                rows = encode_rows(batch, space, self._task.artifacts_url)
                check_embeddings(rows, space, where)  # before any store sees it
            encoded.append(rows)
        return pa.Table.from_batches(encoded) if encoded else pa.table({})


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


def _raw_rows(task: PartitionTask, number: int, clock: _Clock) -> Iterator[pa.RecordBatch]:
    """Yield the newest raw row of each user under the view's own column names."""
    prefix = f"{task.view}__"
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
