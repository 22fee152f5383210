"""A run of one view, from its entry in the ledger to its commit; a space's or a raw view's."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from encoder.errors import LedgerConflict, VerificationFailed
from materialize.config import RepoSettings
from materialize.exchange import Exchange
from materialize.ledger import Ledger, Run, Space
from materialize.metrics import RunMetrics
from materialize.partition import PartitionTask, partition_numbers
from materialize.source import RawSource
from materialize.stores.append import locked
from materialize.verify import row_count, verify_count, verify_online
from materialize.workers import run_partitions

if TYPE_CHECKING:
    from feast import FeatureStore

__all__ = ["RunReport", "ViewRun"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunReport:
    """What a run did, or (dry run) would do.

    Attributes
    ----------
    run_id, view : str
    space : int or None
        None: a raw view.
    outcome : str
        ``committed``, ``unchanged`` (the same run was committed before) or ``planned``.
    rows, partitions : int
    online_rows : int
        Rows handed to the online store; 0 for a run over history.
    stale_rows : int
        Of these, rows that were older than what the online store holds.
    seconds : float
        Of this call; earlier attempts of the run are not in it.
    stage_seconds : dict of str to float
        Seconds of all workers together, by `materialize.metrics.STAGES`.
    """

    run_id: str
    view: str
    space: int | None
    outcome: str
    rows: int
    partitions: int
    online_rows: int = 0
    stale_rows: int = 0
    seconds: float = 0.0
    stage_seconds: Mapping[str, float] = field(default_factory=dict)


class ViewRun:
    """One run over a source.

    Parameters
    ----------
    store : FeatureStore
    settings : RepoSettings
    ledger : Ledger
    view : str
        Applied.
    source : RawSource
        As a run that begins now would see it.
    what : str
        Names, with the source's fingerprint, everything that decides which rows are written.
    space : Space or None
        None: a raw view.
    online : bool
        False: offline only.
    """

    def __init__(
        self,
        store: FeatureStore,
        settings: RepoSettings,
        ledger: Ledger,
        view: str,
        source: RawSource,
        what: str,
        *,
        space: Space | None = None,
        online: bool = True,
    ) -> None:
        self._store, self._settings, self._ledger = store, settings, ledger
        self._view, self._source, self._space, self._online = view, source, space, online
        # Equal only for runs that would write the same rows.
        content = json.dumps([what, source.fingerprint])
        self._key = hashlib.sha256(content.encode()).hexdigest()
        self.run_id = self._key[:16]

    def plan(self) -> RunReport:
        """Count rows and partitions; writes nothing."""
        rows = self._source.count()
        return self._report("planned", {"rows": rows}, self._partitions(rows))

    def execute(self, *, force: bool = False, progress: bool = True) -> RunReport:
        """Begin the run, resume it, or find it committed.

        Parameters
        ----------
        force : bool
            Write also when the run is committed.
        progress : bool
            Show bars on stderr.

        Raises
        ------
        LedgerConflict
            Another process works on this run.
        """
        began = time.perf_counter()
        rows = self._source.count()
        plan = self._plan(rows)
        space = None if self._space is None else self._space.number
        run = self._ledger.begin_run(
            self.run_id, self._view, self._key, plan, space=space, again=force
        )
        partitions = int(run.plan["partitions"])
        if run.state == "committed":
            _log.info("run %s of %s is committed already", self.run_id, self._view)
            metrics = RunMetrics(self._view, self.run_id)
            metrics.set_total(int(run.counts.get("rows", 0)), partitions, partitions)
            self._leave(metrics, "unchanged")
            return self._report("unchanged", run.counts, partitions)
        # A run that resumes or is forced must see the rows that it was begun with.
        since = run.plan["created_since"]
        self._source.created_since = None if since is None else datetime.fromisoformat(since)
        staging = self._staging(self.run_id)
        with _alone(staging, self.run_id), self._recorded(), self._measured() as metrics:
            counts = self._write(run, staging, metrics, progress=progress)
            self._ledger.commit_run(self.run_id, counts)
            shutil.rmtree(staging)
        self._drop_abandoned(run)
        return self._report(
            "committed",
            counts,
            partitions,
            seconds=round(time.perf_counter() - began, 3),
            stages=metrics.stage_seconds,
        )

    def _write(
        self, run: Run, staging: Path, metrics: RunMetrics, *, progress: bool
    ) -> dict[str, int]:
        published = self._settings.offline_dir / self._view / f"run-{self.run_id}"
        folder, exchange = published, None
        if published.exists():  # everything is encoded; the online store or the ledger lacks it
            numbers = partition_numbers(published)
        else:
            folder = staging / "encoded"
            exchange = Exchange(
                self._source,
                staging / "raw",
                int(run.plan["partitions"]),
                self._settings.file.materialize.workers,
            )
            began = time.perf_counter()
            exchange.build(progress=progress)
            metrics.spent("exchange", time.perf_counter() - began)
            numbers = list(range(exchange.partitions))
        task = PartitionTask(
            self.run_id,
            self._view,
            exchange,
            self._space,
            self._settings.artifacts_url,
            folder,
            self._online,
        )
        counts = self._do_partitions(task, numbers, run, metrics, progress=progress)
        verify_count(f"Run {self.run_id}", counts["rows"], int(run.plan["rows"]))
        if self._space is not None:
            folder.mkdir(parents=True, exist_ok=True)  # a run without rows is published, too
            verify_count(str(folder), row_count(folder), int(run.plan["rows"]))
            if self._online:
                verify_online(self._store, self._view, folder)
            if folder != published:
                for unfinished in folder.glob("*.tmp"):  # of workers that were killed
                    unfinished.unlink()
                published.parent.mkdir(parents=True, exist_ok=True)
                os.replace(folder, published)
        return counts

    def _do_partitions(
        self,
        task: PartitionTask,
        numbers: list[int],
        run: Run,
        metrics: RunMetrics,
        *,
        progress: bool,
    ) -> dict[str, int]:
        """Do the partitions that no earlier attempt has done; return counts of all."""
        known = self._ledger.partitions_done(self.run_id)
        todo = [number for number in numbers if number not in known]
        if known:
            _log.info("run %s resumes: %s partitions are done", self.run_id, len(known))
        counts = Counter({"rows": 0, "online_rows": 0, "stale_rows": 0})
        for earlier in known.values():
            counts.update(earlier)
        metrics.set_total(int(run.plan["rows"]), len(numbers), len(known))
        with tqdm(
            total=int(run.plan["rows"]),
            initial=counts["rows"],
            desc=self._view,
            unit="row",
            unit_scale=True,
            disable=not progress,
        ) as bar:
            for part in run_partitions(task, todo, self._store, self._settings, self._ledger):
                counts.update(part.counts)
                bar.update(part.rows)
                offline_rows = 0 if task.space is None else part.rows
                metrics.partition_done(
                    offline_rows, part.online_rows, part.stale_rows, part.seconds
                )
        return dict(counts)

    def _partitions(self, rows: int) -> int:
        return max(1, -(-rows // self._settings.file.materialize.rows_per_partition))

    def _plan(self, rows: int) -> dict[str, Any]:
        """Return what the run is asked to do, for the ledger."""
        source = self._source
        since = source.created_since
        return {
            "start": None if source.start is None else source.start.isoformat(),
            "end": source.end.isoformat(),
            "created_since": None if since is None else since.isoformat(),
            "from_history": source.history,
            "rows": rows,
            "partitions": self._partitions(rows),
        }

    def _staging(self, run_id: str) -> Path:
        return self._settings.offline_dir / "_staging" / run_id

    @contextmanager
    def _measured(self) -> Iterator[RunMetrics]:
        """Answer Prometheus meanwhile, and leave the metrics in a file, as the settings say."""
        metrics = RunMetrics(self._view, self.run_id)
        outcome = "failed"
        try:
            with metrics.serve(self._settings.file.materialize.metrics_port):
                yield metrics
            outcome = "committed"
        finally:
            self._leave(metrics, outcome)

    def _leave(self, metrics: RunMetrics, outcome: str) -> None:
        metrics.finished(outcome)
        if self._settings.metrics_folder is not None:
            metrics.write_textfile(self._settings.metrics_folder)

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """Record in the ledger why the run failed; the job's outermost edge, so it goes on."""
        try:
            yield
        except BaseException as exc:
            if isinstance(exc, VerificationFailed):
                # What was counted as done is not there: the next attempt writes it again.
                self._ledger.forget_partitions(self.run_id)
            self._ledger.fail_run(self.run_id, f"{type(exc).__name__}: {exc}")
            raise

    def _drop_abandoned(self, run: Run) -> None:
        """Remove what earlier runs of the same range left half done: this one has their rows."""
        for other in self._ledger.runs():
            staging = self._staging(other.run_id)
            if other.view != run.view or not staging.exists():
                continue
            same_range = all(
                other.plan[name] == run.plan[name] for name in ("start", "from_history")
            )
            superseded = same_range and other.started_at <= run.started_at
            if other.state == "committed" or superseded:
                try:
                    with locked(staging, fcntl.LOCK_EX | fcntl.LOCK_NB):
                        shutil.rmtree(staging)
                except BlockingIOError:
                    continue  # it is not abandoned

    def _report(
        self,
        outcome: str,
        counts: Mapping[str, int],
        partitions: int,
        *,
        seconds: float = 0.0,
        stages: Mapping[str, float] | None = None,
    ) -> RunReport:
        report = RunReport(
            self.run_id,
            self._view,
            None if self._space is None else self._space.number,
            outcome,
            counts["rows"],
            partitions,
            counts.get("online_rows", 0),
            counts.get("stale_rows", 0),
            seconds,
            {name: round(spent, 3) for name, spent in (stages or {}).items()},
        )
        _log.info("%s", report)
        return report


@contextmanager
def _alone(staging: Path, run_id: str) -> Iterator[None]:
    """Hold the run's folder; its lock ends with the process, however that ends.

    Raises
    ------
    LedgerConflict
        Another process holds it.
    """
    staging.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(locked(staging, fcntl.LOCK_EX | fcntl.LOCK_NB))
        except BlockingIOError:
            raise LedgerConflict(
                f"Run {run_id} is being worked on by another process, which holds {staging}. "
                "Wait for it to end."
            ) from None
        yield
