"""Partitions of a run on several workers: threads of this process, or Ray."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING

from materialize.config import RepoSettings
from materialize.ledger import Ledger
from materialize.partition import PartitionDone, PartitionTask, PartitionWorker, Throttle

if TYPE_CHECKING:
    from feast import FeatureStore

__all__ = ["run_partitions"]


def run_partitions(
    task: PartitionTask,
    numbers: Sequence[int],
    store: FeatureStore,
    settings: RepoSettings,
    ledger: Ledger,
) -> Iterator[PartitionDone]:
    """Do partitions on the engine that the settings name, and yield each as it is done.

    Raises
    ------
    Exception
        What the first partition that failed raised; partitions under way are finished, and those
        that have not begun are left for the next attempt.
    """
    if settings.file.materialize.engine == "ray":
        from materialize.ray_engine import on_ray

        return on_ray(task, numbers, settings)
    return _on_threads(task, numbers, store, settings, ledger)


def _on_threads(
    task: PartitionTask,
    numbers: Sequence[int],
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

    def work(number: int) -> PartitionDone:
        if not hasattr(own, "worker"):
            own.worker = PartitionWorker(task, store, ledger, throttle)
        done: PartitionDone = own.worker(number)
        return done

    with ThreadPoolExecutor(settings.file.materialize.workers) as pool:
        futures = [pool.submit(work, number) for number in numbers]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)
