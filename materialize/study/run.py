"""A study: each variant trained on the same rows and judged on the same cohort."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from encoder.errors import EvaluationFault
from materialize.config import RepoSettings
from materialize.evaluate.cohort_build import build_cohort
from materialize.evaluate.leaks import check_leaks
from materialize.evaluate.run import cohort_facts, measure_units
from materialize.evaluate.tasks import load_task
from materialize.evaluate.units import read_unit
from materialize.study.drift import drift_since
from materialize.study.fit import Unit, discard_training, fit_unit, training_facts
from materialize.study.plan import StudyPlan
from materialize.study.summary import VariantResult, summarise

if TYPE_CHECKING:
    from encoder.artifact import EncoderArtifact
    from materialize.evaluate.cohort import Cohort
    from materialize.evaluate.measurement import Measurement
    from materialize.evaluate.task import Task

__all__ = ["read_study", "run_study", "study_path"]

_log = logging.getLogger(__name__)


def run_study(
    settings: RepoSettings, plan: StudyPlan, *, resume: bool = True, progress: bool = True
) -> dict[str, Any]:
    """Do what is left of a study, and return its summary.

    Parameters
    ----------
    settings : RepoSettings
    plan : StudyPlan
        From `plan_study`.
    resume : bool
        False: train and judge all units again.
    progress : bool
        Show a bar over the units on stderr.

    Returns
    -------
    dict
        See `summarise`: every judged unit of the same data and settings is in it, also those of
        earlier calls with other variants, seeds or tasks.

    Raises
    ------
    DataFault
        No validated data, no raw row before the cut-off, or too few users.
    EvaluationFault
        A check for leaks refuses, or a task cannot run on these data.
    TrainingFault
        A variant's loss is not finite.

    Notes
    -----
    Safe to kill and to repeat: a unit's training goes on from its checkpoint, a task that was
    measured is not measured again, and the summary comes last, in one step. No space, no ledger
    entry and no artifact is made: an encoder is dropped when it has been judged.
    """
    if not resume:
        for folder in (plan.folder, plan.shared_folder):
            shutil.rmtree(folder, ignore_errors=True)
    judging = plan.judging
    cohort = build_cohort(settings, max_rows=judging.max_rows, progress=progress)
    tasks = [_runnable(name, settings, cohort) for name in judging.tasks]
    if plan.to_do():
        plan.rows.file(progress=progress)
    with tqdm(
        total=len(plan.units), desc=f"study {plan.study.name}", unit="unit", disable=not progress
    ) as bar:
        for unit in plan.units:
            missing = plan.missing(unit)
            if missing:
                bar.set_postfix_str(f"{unit.variant.title}, seed {unit.seed}")
                _do(plan, unit, cohort, [task for task in tasks if task.name in missing])
            bar.update()
    shutil.rmtree(plan.rows.folder, ignore_errors=True)
    summary = _summary(plan, cohort)
    _write_json(study_path(settings, plan.study.name), summary)
    _log.info("study %s: %d units, in %s", plan.study.name, len(plan.units), plan.folder)
    return summary


def study_path(settings: RepoSettings, study: str) -> Path:
    """Return where the newest summary of a study is kept, see `summarise`."""
    return settings.data_dir / "studies" / f"{study}.json"


def read_study(settings: RepoSettings, study: str) -> dict[str, Any] | None:
    """Return the newest summary of a study, or None: it was not run, or not to its end."""
    path = study_path(settings, study)
    if not path.exists():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _runnable(name: str, settings: RepoSettings, cohort: Cohort) -> Task:
    task = load_task(name, settings)
    why = task.unavailable(cohort)
    if why is not None:
        raise EvaluationFault(
            f"Task {name!r} cannot run on data set {cohort.name!r}: {why}. Leave it out (--task)."
        )
    return task


def _do(plan: StudyPlan, unit: Unit, cohort: Cohort, tasks: Sequence[Task]) -> None:
    """Train a unit, judge it, and keep both; the file that tells of the training comes last."""
    began = time.perf_counter()
    artifact = fit_unit(unit, plan.rows, plan.config)
    check_leaks(cohort, artifact)
    measure_units(
        cohort,
        artifact,
        tasks,
        [unit.seed],
        folder=plan.unit_folder(unit),
        models=(),
        n_resamples=plan.judging.n_resamples,
        progress=False,
    )
    facts = training_facts(artifact) | {"drift": _drift(plan, unit, artifact)}
    facts["unit_seconds"] = round(time.perf_counter() - began, 3)
    _write_json(plan.facts_path(unit), facts)
    discard_training(unit, plan.rows)


def _drift(plan: StudyPlan, unit: Unit, artifact: EncoderArtifact) -> dict[str, Any] | None:
    days = unit.variant.age_days
    if not days:
        return None
    found = drift_since(
        artifact,
        plan.rows.file(),
        plan.rows.end(days),
        n_resamples=plan.judging.n_resamples,
    )
    return None if found is None else {"days": days, **found}


def _summary(plan: StudyPlan, cohort: Cohort) -> dict[str, Any]:
    results: list[VariantResult] = []
    drift: list[dict[str, Any]] = []
    tasks: dict[str, None] = {}
    for variant in plan.study.variants(plan.rows.schema, plan.config):
        training: dict[int, Mapping[str, Any]] = {}
        measurements: list[Measurement] = []
        for unit in plan.finished(variant):
            facts = plan.read_facts(unit)
            training[unit.seed] = facts
            if facts["drift"] is not None:
                drift.append({"variant": variant.name, "seed": unit.seed, **facts["drift"]})
            for task in plan.judged_by(unit):
                tasks.setdefault(task)
                found = read_unit(plan.unit_folder(unit), task, unit.seed)
                measurements += [] if found is None else found.measurements
        results.append(VariantResult(variant, training, measurements))
    facts = {
        "study": plan.study.name,
        "question": plan.study.question,
        "axis": plan.study.axis,
        "command": f"palate study run {plan.study.name}",
        "dataset": cohort.name,
        "cohort": cohort_facts(cohort),
        "tasks": list(tasks),
        "n_resamples": plan.judging.n_resamples,
        "left_out": dict(plan.left_out),
    }
    return {**summarise(facts, results), "drift": drift}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON under a name at which it appears whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")
    os.replace(temporary, path)
