"""Seconds and peak memory of a job's steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil

__all__ = ["Step", "StepMeter"]

_INTERVAL_S = 0.1


@dataclass
class Step:
    """One measured step; ``counts`` is filled by the step itself."""

    name: str
    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    counts: dict[str, Any] = field(default_factory=dict)


class StepMeter:
    """Measures steps of this process and the processes that it starts.

    State: ``steps``, in the order in which they began.

    Notes
    -----
    Peak memory is the largest resident size of process and children together that a sampler saw,
    every 0.1 s; a shorter spike can be missed.
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Measure the body; the step is recorded also when the body raises."""
        step = Step(name)
        self.steps.append(step)
        done = threading.Event()
        sampler = threading.Thread(target=_sample, args=(step, done), daemon=True)
        began = time.perf_counter()
        sampler.start()
        try:
            yield step
        finally:
            step.seconds = round(time.perf_counter() - began, 2)
            done.set()
            sampler.join()

    def to_list(self) -> list[dict[str, Any]]:
        """Return the steps as plain JSON types."""
        return [asdict(step) for step in self.steps]


def _sample(step: Step, done: threading.Event) -> None:
    process = psutil.Process()
    while True:
        total = 0
        for member in (process, *process.children(recursive=True)):
            try:
                total += member.memory_info().rss
            except psutil.NoSuchProcess:
                continue  # it ended between the listing and the reading
        step.peak_memory_mb = max(step.peak_memory_mb, round(total / 2**20, 1))
        if done.wait(_INTERVAL_S):
            return
