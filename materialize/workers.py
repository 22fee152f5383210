"""Partitions of a pass on several workers: threads of this process, or Ray."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING

from materialize.config import RepoSettings
from materialize.ledger import Ledger
from materialize.partition import (
    PartitionDone,
    PartitionTask,
    PartitionWork,
    PartitionWorker,
    Throttle,
)

if TYPE_CHECKING:
    from feast import FeatureStore

__all__ = ["run_partitions"]


def run_partitions(
    task: PartitionTask,
    todo: Sequence[PartitionWork],
    store: FeatureStore,
    settings: RepoSettings,
    ledger: Ledger,
) -> Iterator[PartitionDone]:
    """Do partitions on the engine that the settings name, and yield each target's as it is done.

    Raises
    ------
    Exception
        What the first partition that failed raised; partitions under way are finished, and those
        that have not begun are left for the next attempt.
    """
    if settings.file.materialize.engine == "ray":
        from materialize.ray_engine import on_ray

        return on_ray(task, todo, settings)
    return _on_threads(task, todo, store, settings, ledger)


def _on_threads(
    task: PartitionTask,
    todo: Sequence[PartitionWork],
    store: FeatureStore,
    settings: RepoSettings,
    ledger: Ledger,
) -> Iterator[PartitionDone]:
    """Do partitions on threads of this process.

    Encoding, Parquet, DuckDB and sockets let go of the interpreter, and a process costs seconds and
    a copy of Feast (docs/adr/0016).
    """
    throttle = Throttle(settings.file.materialize.online_rows_per_second)
    own = threading.local()

    def work(one: PartitionWork) -> list[PartitionDone]:
        if not hasattr(own, "worker"):
            own.worker = PartitionWorker(task, store, ledger, throttle)
        done: list[PartitionDone] = own.worker(one)
        return done

    with ThreadPoolExecutor(settings.file.materialize.workers) as pool:
        futures = [pool.submit(work, one) for one in todo]
        try:
            for future in as_completed(futures):
                yield from future.result()
        finally:
            pool.shutdown(cancel_futures=True)
