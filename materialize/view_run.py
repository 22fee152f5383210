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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoder.errors import LedgerConflict, VerificationFailed
from materialize.config import RepoSettings
from materialize.ledger import Bridge, Ledger, Run, Space
from materialize.metrics import RunMetrics
from materialize.partition import PartitionDone, Target, partition_numbers
from materialize.stores.append import locked
from materialize.verify import row_count, verify_count, verify_online
from transforms.names import FLOAT32

if TYPE_CHECKING:
    from feast import FeatureStore

__all__ = ["RunReport", "ViewRun", "run_folder"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunReport:
    """What a run did, or (dry run) would do.

    Attributes
    ----------
    run_id, view : str
    space : int or None
        In which the rows lie; None: a raw view.
    outcome : str
        ``committed``, ``unchanged`` (the same run was committed before) or ``planned``.
    rows, partitions : int
    online_rows : int
        Rows handed to the online store; 0 for a run over history.
    stale_rows : int
        Of these, rows that were older than what the online store holds.
    seconds : float
        Of this call, up to this run's commit; earlier attempts of the run are not in it.
    stage_seconds : dict of str to float
        Seconds of all workers together, by `materialize.metrics.STAGES`. What runs of one pass
        share is the first one's.
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
    """One run: opened by `begin`, worked on by a pass (`materialize.raw_pass`), ended by `finish`.

    Parameters
    ----------
    store : FeatureStore
    settings : RepoSettings
    ledger : Ledger
    view : str
        Applied.
    what : sequence of str
        Equal only for runs that would write the same rows: everything that decides which.
    space : Space or None
        Whose encoder makes the rows; None: a raw view.
    bridge : Bridge or None
        From that space to the one in which the rows lie.
    vectors : str
        Form in which the view keeps vectors online, one of ``VECTOR_FORMS``.
    online : bool
        False: offline only.

    State: ``run`` from `begin` on; ``numbers``, the partitions that it consists of, from `open` on;
    counts and metrics of this attempt.
    """

    def __init__(
        self,
        store: FeatureStore,
        settings: RepoSettings,
        ledger: Ledger,
        view: str,
        what: Sequence[str],
        *,
        space: Space | None = None,
        bridge: Bridge | None = None,
        vectors: str = FLOAT32,
        online: bool = True,
    ) -> None:
        self._store, self._settings, self._ledger = store, settings, ledger
        self.view, self.space, self.bridge = view, space, bridge
        self.vectors, self.online = vectors, online
        self._key = hashlib.sha256(json.dumps(list(what)).encode()).hexdigest()
        self.run_id = self._key[:16]
        self.metrics = RunMetrics(view, self.run_id)
        self._counts = Counter({"rows": 0, "online_rows": 0, "stale_rows": 0})
        self._committed = False

    @property
    def staging(self) -> Path:
        """The run's own folder, until it is committed."""
        return self._staging(self.run_id)

    @property
    def published(self) -> bool:
        """Whether every partition is encoded: the online store or the ledger may lack it."""
        return self._published.exists()

    def planned(self, rows: int, partitions: int) -> RunReport:
        """Return what the run would do."""
        return self._report("planned", {"rows": rows}, partitions)

    def begin(self, plan: Mapping[str, Any], *, force: bool) -> Run:
        """Open the run in the ledger, or return the one to resume; ``force``: also a committed one.

        The plan that the run was first opened with is kept.
        """
        # A bridged view needs its source alone: its target may be retired.
        space = None if self.space is None else self.space.number
        self.run = self._ledger.begin_run(
            self.run_id, self.view, self._key, plan, space=space, again=force
        )
        return self.run

    def unchanged(self) -> RunReport:
        """Return the report of a run that is committed already."""
        _log.info("run %s of %s is committed already", self.run_id, self.view)
        partitions = int(self.run.plan["partitions"])
        self.metrics.set_total(int(self.run.counts.get("rows", 0)), partitions, partitions)
        self._leave("unchanged")
        return self._report("unchanged", self.run.counts, partitions)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Hold the run alone; record in the ledger and the metrics how it ended.

        Raises
        ------
        LedgerConflict
            Another process works on this run.
        """
        with _alone(self.staging, self.run_id), self._recorded():
            self._begun = time.perf_counter()
            self.numbers = list(range(int(self.run.plan["partitions"])))
            if self.published:
                self.numbers = partition_numbers(self._published)
            yield

    def target(self) -> Target:
        """Return what the workers write."""
        folder = self._published if self.published else self.staging / "encoded"
        return Target(
            self.run_id, self.view, self.space, self.bridge, self.vectors, folder, self.online
        )

    def todo(self) -> list[int]:
        """Return the partitions that no earlier attempt has done, and count the others."""
        known = self._ledger.partitions_done(self.run_id)
        if known:
            _log.info("run %s resumes: %s partitions are done", self.run_id, len(known))
        for earlier in known.values():
            self._counts.update(earlier)
        self.metrics.set_total(int(self.run.plan["rows"]), len(self.numbers), len(known))
        return [number for number in self.numbers if number not in known]

    @property
    def rows_done(self) -> int:
        """Rows that are in every store."""
        return self._counts["rows"]

    def add(self, part: PartitionDone) -> None:
        """Count a partition that is done."""
        self._counts.update(part.counts)
        offline_rows = 0 if self.space is None else part.rows
        self.metrics.partition_done(offline_rows, part.online_rows, part.stale_rows, part.seconds)

    def finish(self) -> RunReport:
        """Verify what was written, publish it, commit the run.

        Raises
        ------
        VerificationFailed
            A store answers other rows than were written.
        """
        rows = int(self.run.plan["rows"])
        verify_count(f"Run {self.run_id}", self._counts["rows"], rows)
        if self.space is not None:
            folder = self.target().folder
            folder.mkdir(parents=True, exist_ok=True)  # a run without rows is published, too
            verify_count(str(folder), row_count(folder), rows)
            if self.online:
                verify_online(self._store, self.view, folder)
            if folder != self._published:
                for unfinished in folder.glob("*.tmp"):  # of workers that were killed
                    unfinished.unlink()
                self._published.parent.mkdir(parents=True, exist_ok=True)
                os.replace(folder, self._published)
        self._ledger.commit_run(self.run_id, dict(self._counts))
        self._committed = True
        return self._report(
            "committed",
            self._counts,
            int(self.run.plan["partitions"]),
            seconds=round(time.perf_counter() - self._begun, 3),
            stages=self.metrics.stage_seconds,
        )

    def drop_staging(self) -> None:
        """Remove what committed runs of the view left, and those that this one supersedes.

        A run that another process works on keeps its folder.
        """
        for other in self._ledger.runs():
            staging = self._staging(other.run_id)
            if other.view != self.view or not staging.exists():
                continue
            same_range = all(
                other.plan[name] == self.run.plan[name] for name in ("start", "from_history")
            )
            superseded = same_range and other.started_at <= self.run.started_at
            if other.state == "committed" or superseded:
                try:
                    with locked(staging, fcntl.LOCK_EX | fcntl.LOCK_NB):
                        shutil.rmtree(staging)
                except BlockingIOError:
                    continue  # it is not abandoned

    @property
    def _published(self) -> Path:
        return run_folder(self._settings, self.view, self.run_id)

    def _staging(self, run_id: str) -> Path:
        return self._settings.offline_dir / "_staging" / run_id

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """Record why the run failed; the job's outermost edge, so it goes on."""
        try:
            yield
        except BaseException as exc:
            if not self._committed:
                if isinstance(exc, VerificationFailed):
                    # What was counted as done is not there: the next attempt writes it again.
                    self._ledger.forget_partitions(self.run_id)
                self._ledger.fail_run(self.run_id, f"{type(exc).__name__}: {exc}")
            raise
        finally:
            self._leave("committed" if self._committed else "failed")

    def _leave(self, outcome: str) -> None:
        """Leave the metrics in a file, as the settings say."""
        self.metrics.finished(outcome)
        if self._settings.metrics_folder is not None:
            self.metrics.write_textfile(self._settings.metrics_folder)

    def _report(
        self,
        outcome: str,
        counts: Mapping[str, int],
        partitions: int,
        *,
        seconds: float = 0.0,
        stages: Mapping[str, float] | None = None,
    ) -> RunReport:
        space = None if self.space is None else self.space.number
        report = RunReport(
            self.run_id,
            self.view,
            space if self.bridge is None else self.bridge.target,
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


def run_folder(settings: RepoSettings, view: str, run_id: str) -> Path:
    """Return where the rows of a committed run lie."""
    return settings.offline_dir / view / f"run-{run_id}"


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
