"""Two or more operators of one ledger, each with connections of its own, acting at one moment."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from encoder.errors import LedgerConflict
from materialize.ledger import Ledger
from tests.forks import FORKS, preload

_SECONDS = 60.0
preload(__name__)


@dataclass(frozen=True)
class Step:
    """One call of a ledger's method."""

    method: str
    arguments: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    def take(self, ledger: Ledger) -> str | None:
        """Return None when the ledger did it, else why it refused."""
        try:
            getattr(ledger, self.method)(*self.arguments, **self.options)
        except LedgerConflict as refused:
            return str(refused)
        return None


def step(method: str, *arguments: Any, **options: Any) -> Step:
    """Return a call that is made later."""
    return Step(method, arguments, options)


Round = tuple[Step, ...]
"""What each racer does in one round; racers begin a round together."""


def race_threads(url: str, rounds: Sequence[Round]) -> list[list[str | None]]:
    """Return each round's answers, one a racer, of threads with ledgers of their own."""
    barrier = threading.Barrier(len(rounds[0]))

    def run(steps: tuple[Step, ...]) -> list[str | None]:
        try:
            return _take(url, steps, barrier)
        except BaseException:
            barrier.abort()  # the others need not wait for this one
            raise

    with ThreadPoolExecutor(len(rounds[0])) as pool:
        by_racer = list(pool.map(run, zip(*rounds, strict=True)))
    return [list(one) for one in zip(*by_racer, strict=True)]


def race_processes(url: str, rounds: Sequence[Round]) -> list[list[str | None]]:
    """Return each round's answers, one a racer, of processes."""
    barrier = FORKS.Barrier(len(rounds[0]))
    results: Any = FORKS.Queue()
    processes = [
        FORKS.Process(target=_run, args=(url, racer, steps, barrier, results))
        for racer, steps in enumerate(zip(*rounds, strict=True))
    ]
    try:
        for process in processes:
            process.start()
        by_racer = dict(results.get(timeout=_SECONDS) for _ in processes)
    finally:
        for process in processes:
            process.join(_SECONDS)
            process.kill()  # one that hangs must not outlive its test
            process.join()
    assert [process.exitcode for process in processes] == [0] * len(processes)
    results.close()
    results.join_thread()
    return [list(one) for one in zip(*(by_racer[k] for k in sorted(by_racer)), strict=True)]


def _run(url: str, racer: int, steps: Sequence[Step], barrier: Any, results: Any) -> None:
    try:
        results.put((racer, _take(url, steps, barrier)))
    except BaseException:
        barrier.abort()
        raise


def _take(url: str, steps: Sequence[Step], barrier: Any) -> list[str | None]:
    ledger = Ledger(url)
    answers = []
    for one in steps:
        barrier.wait(_SECONDS)
        answers.append(one.take(ledger))
    return answers


RACES = {"threads": race_threads, "processes": race_processes}
