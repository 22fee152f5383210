"""Running tasks with seeds, one file for each that is done; a killed evaluation goes on."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from encoder.errors import EvaluationFault
from materialize.evaluate.summary import (
    read_summary,
    summarise,
    with_earlier_tasks,
    write_summary,
)
from materialize.evaluate.task import MAX_ROWS, RESAMPLES, SEEDS, Progress, Task
from materialize.evaluate.tasks import TASKS, load_task
from materialize.evaluate.units import MEASURES, Unit, read_unit, write_unit

if TYPE_CHECKING:
    from encoder.artifact import EncoderArtifact
    from materialize.config import RepoSettings
    from materialize.evaluate.cohort import Cohort
    from materialize.ledger import Space

__all__ = [
    "EvaluationResult",
    "chosen_tasks",
    "cohort_facts",
    "evaluate",
    "measure_units",
    "space_folder",
]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """What an evaluation found and where it lies.

    Attributes
    ----------
    folder : Path
        The units' files and ``summary.json``.
    units : list of Unit
        Ordered by seed, then task.
    summary : dict
        See ``summary.summarise``.
    measured : int
        Units of them that were measured now; the others were there.
    """

    folder: Path
    units: list[Unit]
    summary: dict[str, Any]
    measured: int


def space_folder(settings: RepoSettings, space: Space) -> Path:
    """Return where the evaluations of a space are kept: a folder for each cohort and setting."""
    return settings.data_dir / "evaluations" / f"space-{space.number}"


def chosen_tasks(names: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """Return the tasks to run, and the others with the reason: an extra that is not installed.

    Parameters
    ----------
    names : sequence of str or None
        None: all but those that run on request only.

    Raises
    ------
    ValueError
        An unknown name.
    EvaluationFault
        A task that was asked for by name needs a package that is missing.
    """
    usual = [name for name, entry in TASKS.items() if not entry.on_request]
    wanted = usual if names is None else list(dict.fromkeys(names))
    for name in wanted:
        if name not in TASKS:
            raise ValueError(f"Unknown task {name!r}. Known: {', '.join(sorted(TASKS))}.")
    reasons = {name: why for name in wanted if (why := TASKS[name].unavailable()) is not None}
    if names is not None and reasons:
        name, why = next(iter(reasons.items()))
        raise EvaluationFault(f"Task {name!r} cannot run: {why}.")
    return [name for name in wanted if name not in reasons], reasons


def evaluate(
    settings: RepoSettings,
    encoder: EncoderArtifact,
    *,
    folder: Path,
    tasks: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
    beside: Mapping[str, EncoderArtifact] | None = None,
    other_users: Collection[str] = (),
    seeds: Sequence[int] = tuple(range(SEEDS)),
    max_rows: int = MAX_ROWS,
    n_resamples: int = RESAMPLES,
    resume: bool = True,
    progress: bool = True,
    facts: Mapping[str, Any] | None = None,
) -> EvaluationResult:
    """Judge an encoder on the repository's data set by tasks, each with each seed.

    Parameters
    ----------
    settings : RepoSettings
        With validated data and built features.
    encoder : EncoderArtifact
    folder : Path
        Takes a folder for this encoder, cohort and these settings, with a file for each finished
        (task, seed) and, when all are there, ``summary.json``; it keeps what an earlier run into
        the same folder found in tasks that are not run now.
    tasks : sequence of str, optional
        Default: all that the installed extras and the data allow; the others are told in the
        summary with their reason.
    models : sequence of str, optional
        Baselines to run; default: all.
    beside : mapping of str to EncoderArtifact, optional
        Encoders of other spaces, under the names of `models.registry.of_space`: judged on the same
        users, under the same heads. Tasks ``beyond`` and ``cost`` leave them out.
    other_users : collection of str
        Versions of the encoders that were trained on none of the repository's users: their cut-offs
        are not compared with the cohort's.
    seeds : sequence of int
    max_rows, n_resamples : int
        Of the cohort, see ``build_cohort``; of the users, for intervals.
    resume : bool
        Use the units that are there; False: measure all anew.
    progress : bool
        Show bars on stderr.
    facts : mapping, optional
        Further facts for the summary (JSON types).

    Raises
    ------
    DataFault
        No validated data or features.
    EvaluationFault
        A check for leaks refuses, or a task that was asked for cannot run on these data.
    """
    from materialize.evaluate.cohort_build import build_cohort
    from materialize.evaluate.leaks import check_leaks

    names, left_out = chosen_tasks(tasks)
    cohort = build_cohort(settings, max_rows=max_rows, progress=progress)
    others = dict(beside or {})
    cohort = replace(cohort, others=others)
    leaks, *_ = (
        check_leaks(cohort, each, other_users=each.encoder_version in other_users)
        for each in (encoder, *others.values())
    )
    runnable: list[Task] = []
    for name in names:
        task = load_task(name, settings)
        why = task.unavailable(cohort)
        if why is None:
            runnable.append(task)
        elif tasks is not None:
            raise EvaluationFault(f"Task {name!r} cannot run on data set {cohort.name!r}: {why}")
        else:
            left_out[name] = why
    wanted = folder / _key(encoder, cohort, models, n_resamples)
    told = {name: other.encoder_version for name, other in others.items()}
    units, measured = measure_units(
        cohort,
        encoder,
        runnable,
        seeds,
        folder=wanted,
        models=models,
        n_resamples=n_resamples,
        resume=resume,
        progress=progress,
    )
    summary = summarise(
        units,
        {
            "dataset": cohort.name,
            "encoder_version": encoder.encoder_version,
            "embedding_dim": encoder.manifest.embedding_dim,
            **(facts or {}),
            **({"beside": told} if told else {}),
            "cohort": cohort_facts(cohort),
            "leaks": leaks.to_dict(),
            "seeds": list(seeds),
            "n_resamples": n_resamples,
            "created_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        },
        left_out=left_out,
    )
    write_summary(wanted, with_earlier_tasks(summary, read_summary(wanted)))
    _log.info(
        "evaluated encoder %s on %s: %d units, %d measured now, in %s",
        encoder.encoder_version,
        cohort.name,
        len(units),
        measured,
        wanted,
    )
    return EvaluationResult(wanted, units, summary, measured)


def measure_units(
    cohort: Cohort,
    encoder: EncoderArtifact,
    tasks: Sequence[Task],
    seeds: Sequence[int],
    *,
    folder: Path,
    models: Sequence[str] | None = None,
    n_resamples: int = RESAMPLES,
    resume: bool = True,
    progress: bool = True,
) -> tuple[list[Unit], int]:
    """Measure each task with each seed, and return the units and how many were measured now.

    All tasks of one seed come before the next seed, so that a first seed is there soon and tells
    how long the others take. A unit is written as soon as it is measured.

    Parameters
    ----------
    cohort : Cohort
        Already checked for leaks, see ``leaks.check_leaks``.
    encoder : EncoderArtifact
    tasks : sequence of Task
    seeds : sequence of int
    folder : Path
        Of this encoder, cohort, models and number of resamples, and of nothing else.
    models : sequence of str or None
        As of ``Task.measure``.
    n_resamples : int
    resume, progress : bool

    Raises
    ------
    EvaluationFault
        A task refuses.
    """
    plan = [(task, seed) for seed in seeds for task in tasks]
    there = [read_unit(folder, task.name, seed) if resume else None for task, seed in plan]
    units: list[Unit] = []
    missing = sum(unit is None for unit in there)
    # Units that are there count as done from the start: the time left is that of the others.
    with tqdm(
        total=len(plan),
        initial=len(plan) - missing,
        desc="evaluate",
        unit="unit",
        disable=not progress,
    ) as bar:
        for (task, seed), found in zip(plan, there, strict=True):
            unit = found
            if unit is None:
                bar.set_postfix_str(f"{task.name}, seed {seed}")
                unit = _measured(cohort, encoder, task, seed, models, n_resamples, bar)
                write_unit(folder, unit)
                bar.update()
            units.append(unit)
    return units, missing


def cohort_facts(cohort: Cohort) -> dict[str, Any]:
    """Return what a summary says of its cohort, JSON types."""
    test = ~cohort.training
    return {
        "fingerprint": cohort.fingerprint,
        "cutoff": str(cohort.cutoff),
        "horizon_days": cohort.horizon_days,
        "rows": len(cohort),
        "users": len(np.unique(cohort.user_id)),
        "test_rows": int(test.sum()),
        "items": len(cohort.catalogue.item_ids),
        "test_rows_of_groups": {
            name: int((member & test).sum()) for name, member in cohort.groups.items()
        },
    }


def _measured(
    cohort: Cohort,
    encoder: EncoderArtifact,
    task: Task,
    seed: int,
    models: Sequence[str] | None,
    n_resamples: int,
    bar: Any,
) -> Unit:
    told = _Told(bar, f"seed {seed}")
    started = time.perf_counter()
    found = task.measure(
        cohort, encoder, seed, models=models, n_resamples=n_resamples, progress=told
    )
    seconds = time.perf_counter() - started
    _log.info("%s, seed %d: %d figures in %.1f s", task.name, seed, len(found), seconds)
    return Unit(task.name, seed, found, told.skipped, told.details, seconds)


class _Told(Progress):
    """Shows a task's steps beside the bar."""

    def __init__(self, bar: Any, where: str) -> None:
        super().__init__()
        self._bar, self._where = bar, where

    def step(self, done: str) -> None:
        """Show the step."""
        self._bar.set_postfix_str(f"{done}, {self._where}")


def _versions(cohort: Cohort) -> list[list[str]]:
    return sorted([name, other.encoder_version] for name, other in cohort.others.items())


def _key(
    encoder: EncoderArtifact, cohort: Cohort, models: Sequence[str] | None, n_resamples: int
) -> str:
    """Return 12 hex digits of everything that a unit's figures depend on, beside task and seed."""
    content = json.dumps(
        [
            MEASURES,
            version("palate"),
            encoder.encoder_version,
            cohort.fingerprint,
            n_resamples,
            None if models is None else sorted(models),
            # Only where there are some, so that figures without keep their names.
            *([versions] if (versions := _versions(cohort)) else []),
        ]
    )
    return hashlib.blake2b(content.encode(), digest_size=6).hexdigest()
