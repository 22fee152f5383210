"""One pass over the raw features for any number of views: read once, encode for each space."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from materialize.config import RepoSettings
from materialize.exchange import Exchange
from materialize.ledger import Ledger
from materialize.metrics import serve_metrics
from materialize.partition import PartitionTask, PartitionWork
from materialize.source import RawSource
from materialize.view_run import RunReport, ViewRun
from materialize.workers import run_partitions

if TYPE_CHECKING:
    from feast import FeatureStore

__all__ = ["RawPass"]


class RawPass:
    """Runs of several views over one source.

    Parameters
    ----------
    store : FeatureStore
    settings : RepoSettings
    ledger : Ledger
    source : RawSource
        As a run that begins now would see it.
    runs : sequence of ViewRun
        One raw view, or views of spaces whose encoders read the source's views.

    Notes
    -----
    Each run has its own entry in the ledger, its own checkpoints and its own commit: a pass that
    died resumes with the runs that lack something, together with others or alone.
    """

    def __init__(
        self,
        store: FeatureStore,
        settings: RepoSettings,
        ledger: Ledger,
        source: RawSource,
        runs: Sequence[ViewRun],
    ) -> None:
        self._store, self._settings, self._ledger = store, settings, ledger
        self._source, self._runs = source, runs

    def plan(self) -> list[RunReport]:
        """Count rows and partitions; writes nothing."""
        rows = self._source.count()
        return [run.planned(rows, self._partitions(rows)) for run in self._runs]

    def execute(self, *, force: bool = False, progress: bool = True) -> list[RunReport]:
        """Begin the runs, resume them, or find them committed; return a report of each.

        Parameters
        ----------
        force : bool
            Write also when a run is committed.
        progress : bool
            Show bars on stderr.

        Raises
        ------
        LedgerConflict
            Another process works on one of the runs.
        """
        plan = self._plan(self._source.count())
        reports: dict[str, RunReport] = {}
        todo = []
        for run in self._runs:
            if run.begin(plan, force=force).state == "committed":
                reports[run.run_id] = run.unchanged()
            else:
                todo.append(run)
        # A run that resumes keeps the rows and the partitions that it was begun with.
        for _, together in groupby(sorted(todo, key=_begun_with), key=_begun_with):
            for report in self._do(list(together), progress=progress):
                reports[report.run_id] = report
        for run in self._runs:
            run.drop_staging()
        return [reports[run.run_id] for run in self._runs]

    def _do(self, runs: Sequence[ViewRun], *, progress: bool) -> list[RunReport]:
        since = runs[0].run.plan["created_since"]
        self._source.created_since = None if since is None else datetime.fromisoformat(since)
        metrics = [run.metrics for run in runs]
        with ExitStack() as opened:
            opened.enter_context(
                serve_metrics(self._settings.file.materialize.metrics_port, metrics)
            )
            for run in runs:
                opened.enter_context(run.open())
            exchange = None
            if not all(run.published for run in runs):
                exchange = self._exchange(runs, progress=progress)
            self._do_partitions(runs, exchange, progress=progress)
            return [run.finish() for run in runs]

    def _exchange(self, runs: Sequence[ViewRun], *, progress: bool) -> Exchange:
        """Cut the raw rows into partitions, in the staging folder of the first run that has them.

        Which of the runs that is does not matter, as long as a pass that resumes finds it again.
        """
        folders = [run.staging / "raw" for run in runs]
        folder = next((f for f in folders if f.exists()), folders[0])
        exchange = Exchange(
            self._source,
            folder,
            int(runs[0].run.plan["partitions"]),
            self._settings.file.materialize.workers,
        )
        began = time.perf_counter()
        exchange.build(progress=progress)
        runs[0].metrics.spent("exchange", time.perf_counter() - began)
        return exchange

    def _do_partitions(
        self, runs: Sequence[ViewRun], exchange: Exchange | None, *, progress: bool
    ) -> None:
        """Do the partitions that each run lacks; one that several lack is read once."""
        task = PartitionTask(
            exchange, self._settings.artifacts_url, tuple(run.target() for run in runs)
        )
        lacking: dict[int, list[int]] = {}
        for place, run in enumerate(runs):
            for number in run.todo():
                lacking.setdefault(number, []).append(place)
        work = [PartitionWork(number, tuple(lacking[number])) for number in sorted(lacking)]
        with tqdm(
            total=sum(int(run.run.plan["rows"]) for run in runs),
            initial=sum(run.rows_done for run in runs),
            desc=runs[0].view if len(runs) == 1 else f"{len(runs)} views",
            unit="row",
            unit_scale=True,
            disable=not progress,
        ) as bar:
            for part in run_partitions(task, work, self._store, self._settings, self._ledger):
                runs[part.target].add(part)
                bar.update(part.rows)

    def _partitions(self, rows: int) -> int:
        return max(1, -(-rows // self._settings.file.materialize.rows_per_partition))

    def _plan(self, rows: int) -> dict[str, Any]:
        """Return what each run is asked to do, for the ledger."""
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


def _begun_with(run: ViewRun) -> tuple[str, int, int]:
    plan = run.run.plan
    return str(plan["created_since"]), int(plan["rows"]), int(plan["partitions"])
