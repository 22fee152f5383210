"""Partitions of a pass on Ray Data: the same work as on threads, on as many machines as there are.

Workers share the stores, the ledger and the folders of data and artifacts, which every machine must
see under the same path. A worker that dies loses nothing: Ray gives its partition to another one.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from encoder import errors
from encoder.errors import DataFault, EmbeddingError
from materialize.config import JobSettings, RepoSettings
from materialize.context import Context
from materialize.partition import (
    PartitionDone,
    PartitionTask,
    PartitionWork,
    PartitionWorker,
    Throttle,
)

__all__ = ["on_ray"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Run:
    """What travels to the workers, with each partition; equal within one attempt of a run."""

    attempt: str
    task: PartitionTask = field(compare=False)
    repo: Path = field(compare=False)
    rows_per_second: float | None = field(compare=False)  # of one worker


@lru_cache(maxsize=1)
def _worker(run: _Run) -> PartitionWorker:
    """Return the worker of this process, with its own stores and ledger; Ray keeps the process."""
    context = Context(run.repo)
    throttle = Throttle(run.rows_per_second)
    return PartitionWorker(run.task, context.store, context.ledger, throttle)


def _do(row: dict[str, Any], run: _Run) -> dict[str, Any]:
    """Do one partition; a fault of the data is an answer, so that Ray does not repeat it."""
    try:
        done = _worker(run)(PartitionWork(int(row["number"]), tuple(map(int, row["targets"]))))
    except EmbeddingError as exc:
        return {"fault": type(exc).__name__, "message": str(exc), **_column(exc)}
    return {"fault": "", "done": [asdict(one) for one in done]}


def on_ray(
    task: PartitionTask, todo: Sequence[PartitionWork], settings: RepoSettings
) -> Iterator[PartitionDone]:
    """Do partitions on the Ray cluster that ``RAY_ADDRESS`` names, or on one started here.

    Raises
    ------
    DataFault
        Ray is not installed.
    EmbeddingError
        What the first partition that failed raised.
    """
    try:
        import ray.data
    except ModuleNotFoundError as exc:
        raise DataFault(
            "engine 'ray' needs Ray Data. Install it with pip install 'palate[ray]', or use the "
            "engine 'local'."
        ) from exc
    if not todo:
        return
    job = settings.file.materialize
    _connect(job)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # the run has its own
    partitions = ray.data.from_items(
        [{"number": one.number, "targets": list(one.targets)} for one in todo],
        override_num_blocks=len(todo),
    )
    rate = job.online_rows_per_second
    rows = partitions.map(
        _do,  # type: ignore[arg-type]  # takes fn_args too, which Ray's type does not know
        fn_args=(_Run(uuid.uuid4().hex, task, settings.repo, rate and rate / job.workers),),
        # Tasks, not actors: Ray repeats a task whose process died, on another one.
        compute=ray.data.TaskPoolStrategy(size=job.workers),
    )
    for row in rows.iter_rows():
        yield from _done(row)


def _connect(job: JobSettings) -> None:
    """Join a Ray cluster, or start one here, which the process's next runs use and its end ends."""
    import ray

    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    here: dict[str, Any] = {} if address else {"num_cpus": job.workers, "include_dashboard": False}
    ray.init(log_to_driver=False, configure_logging=False, **here)
    _log.info("ray: %s", address or f"started here with {job.workers} workers")


def _done(row: dict[str, Any]) -> Iterator[PartitionDone]:
    if row["fault"]:
        extra = {"column": row["column"]} if row.get("column") else {}
        raise getattr(errors, row["fault"])(row["message"], **extra)
    for one in row["done"]:
        known = {part.name: one[part.name] for part in fields(PartitionDone)}
        # Rows of one block share their columns: a stage that one did not need is None there.
        known["seconds"] = {stage: spent for stage, spent in one["seconds"].items() if spent}
        yield PartitionDone(**known)


def _column(fault: EmbeddingError) -> dict[str, str]:
    return {"column": fault.column} if isinstance(fault, errors.MalformedInput) else {}
