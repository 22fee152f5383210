"""The tasks of ``palate evaluate`` by name; a task's module is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from materialize.config import RepoSettings
    from materialize.evaluate.task import Task

__all__ = ["TASKS", "TaskEntry", "load_task"]


_EXTRAS = {"fairlearn": "evaluate", "torch": "train"}
"""Package -> the extra that brings it."""


@dataclass(frozen=True)
class TaskEntry:
    """Where a task is and what it needs.

    Attributes
    ----------
    module, attribute : str
        A class whose objects are tasks, or a function that returns one.
    question : str
        What it asks, one line for ``--help`` and tables.
    packages : tuple of str
        That must be importable.
    takes_settings : bool
        It is called with the repository's settings instead of without arguments.
    on_request : bool
        Runs only where it is asked for by name: it takes hours.
    """

    module: str
    attribute: str
    question: str
    packages: tuple[str, ...] = ("torch",)
    takes_settings: bool = False
    on_request: bool = False

    def unavailable(self) -> str | None:
        """Return what to install before the task can run, or None: it can."""
        missing = [name for name in self.packages if find_spec(name) is None]
        if not missing:
            return None
        extras = ",".join(dict.fromkeys(_EXTRAS[name] for name in missing))
        return f"{', '.join(missing)} not installed: pip install 'palate[{extras}]'"


TASKS: Mapping[str, TaskEntry] = {
    "probe": TaskEntry(
        "materialize.evaluate.probe_task",
        "ProbeTask",
        "Which kinds of item will the user consume? A linear probe.",
    ),
    "future": TaskEntry(
        "materialize.evaluate.future",
        "FutureTask",
        "Will the user consume the item in the next days? AUC and accuracy against all baselines.",
    ),
    "clusters": TaskEntry(
        "materialize.evaluate.clusters",
        "ClustersTask",
        "Do a user's neighbours share taste, country, onboarding? nDCG@50.",
    ),
    "universal": TaskEntry(
        "materialize.evaluate.universal",
        "UniversalTask",
        "The RecSys Challenge 2025 probe: churn, category and item propensity.",
    ),
    "universal_full": TaskEntry(
        "materialize.evaluate.universal",
        "full_width",
        "The RecSys Challenge 2025 probe at its original width and number of steps.",
        on_request=True,
    ),
    "ranking": TaskEntry(
        "materialize.evaluate.ranking",
        "RankingTask",
        "Which items come next? Recall and nDCG over the whole catalogue.",
    ),
    "beyond": TaskEntry(
        "materialize.evaluate.beyond",
        "BeyondTask",
        "Calibration, diversity, novelty, coverage, fairness.",
    ),
    "cost": TaskEntry(
        "materialize.evaluate.cost",
        "CostTask",
        "What a downstream task pays with raw features and with the embedding.",
        takes_settings=True,
    ),
}


def load_task(name: str, settings: RepoSettings) -> Task:
    """Return a task.

    Raises
    ------
    ValueError
        Unknown name.
    ModuleNotFoundError
        A package that it needs is missing; see ``TaskEntry.unavailable``.
    """
    if name not in TASKS:
        raise ValueError(f"Unknown task {name!r}. Known: {', '.join(sorted(TASKS))}.")
    entry = TASKS[name]
    made = getattr(import_module(entry.module), entry.attribute)
    task: Task = made(settings) if entry.takes_settings else made()
    return task
