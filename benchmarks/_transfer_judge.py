"""The probe of `palate evaluate` for the benchmark `transfer`, and of CoLES' vectors beside it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._transfer_plan import METRIC
from benchmarks._transfer_repo import Trained, note
from encoder.artifact import EncoderArtifact
from encoder.resampling import Replicates, user_draws
from materialize.context import Context
from materialize.evaluate.cohort_build import build_cohort
from materialize.evaluate.measurement import EMBEDDING, Measurement
from materialize.evaluate.models.registry import missing, of_space, user_model
from materialize.evaluate.probe import ProbeScores, judge_groups, probe_scores
from materialize.evaluate.probe_task import cohort_labels
from materialize.evaluate.run import evaluate, space_folder
from materialize.evaluate.units import Unit, read_unit, write_unit
from transforms.runtime import load_encoder

__all__ = ["Judged", "judge"]

_TASK, _GROUP, _COLES = "probe", "all", "coles"


@dataclass(frozen=True, eq=False)
class Judged:
    """What the probe found on one data set.

    Attributes
    ----------
    measurements : list of Measurement
        Micro AUC on all test rows: one a model and seed of the heads, ``space_N`` for the space of
        that number.
    cohort : dict
        Facts of the cohort, as of an evaluation's summary.
    seconds : float
        Wall time of the measuring, CoLES' included; what an earlier run measured counts.
    skipped : dict of str to str
        Model -> why it was left out.
    """

    measurements: list[Measurement]
    cohort: dict[str, Any]
    seconds: float
    skipped: dict[str, str]


def judge(
    repo: Path,
    trained: Sequence[Trained],
    *,
    head_seeds: int,
    max_rows: int,
    n_resamples: int,
) -> Judged:
    """Judge spaces and baselines on the same users, as ``palate evaluate --task probe`` does.

    The first space is that of ``--space``, the others stand ``--beside`` it, and what is measured
    lies where that command looks for it. The probe has no CoLES: its vectors are judged here under
    the same head, on the same resamples of the users.

    Raises
    ------
    DataFault, EvaluationFault
        As of ``materialize.evaluate.run.evaluate``.
    """
    context = Context(repo)
    settings = context.settings
    folder = space_folder(settings, context.ledger.space(trained[0].space))
    encoders = {
        of_space(one.space): load_encoder(settings.artifacts_url, one.encoder_version)
        for one in trained
    }
    first, *others = encoders
    words = [f"palate evaluate --space {trained[0].space} --task {_TASK}"]
    words += [f"--beside {one.space}" for one in trained[1:]]
    words += [f"--seeds {head_seeds} --max-rows {max_rows} --resamples {n_resamples}"]
    command = " ".join(words)
    found = evaluate(
        settings,
        encoders[first],
        folder=folder,
        tasks=[_TASK],
        beside={name: encoders[name] for name in others},
        seeds=range(head_seeds),
        max_rows=max_rows,
        n_resamples=n_resamples,
        facts={"space": trained[0].space, "command": command},
    )
    units = list(found.units)
    skipped: dict[str, str] = {}
    why = missing(_COLES)
    if why is None:
        units += [
            _coles(repo, found.folder, encoders[first], seed, max_rows, n_resamples)
            for seed in range(head_seeds)
        ]
    else:
        skipped[_COLES] = why
    measured = [
        _renamed(m, first)
        for unit in units
        for m in unit.measurements
        if m.metric == METRIC and m.group == _GROUP
    ]
    seconds = round(sum(unit.seconds for unit in units), 1)
    return Judged(measured, found.summary["cohort"], seconds, skipped)


def _renamed(measurement: Measurement, first: str) -> Measurement:
    """Return the measurement of a space under the space's name, whichever was judged first."""
    if measurement.model != EMBEDDING:
        return measurement
    return Measurement(**{**vars(measurement), "model": first})


def _coles(
    repo: Path,
    folder: Path,
    encoder: EncoderArtifact,
    seed: int,
    max_rows: int,
    n_resamples: int,
) -> Unit:
    """Return what a linear model reads off CoLES' vectors; kept as a unit beside the others."""
    kept = folder / _COLES
    unit = read_unit(kept, _TASK, seed)
    if unit is None:
        note(f"CoLES, head seed {seed}")
        started = time.perf_counter()
        cohort = build_cohort(Context(repo).settings, max_rows=max_rows)
        labels = cohort_labels(cohort)
        vectors = user_model(_COLES).vectors(cohort, encoder, seed)
        fitted = probe_scores(
            labels, {EMBEDDING: vectors}, as_of=cohort.as_of, seed=seed, n_bootstrap=n_resamples
        )
        alone = ProbeScores(
            fitted.training,
            {_COLES: fitted.scores[EMBEDDING]},
            fitted.l2,
            fitted.missing,
            fitted.control,
        )
        rows = {_GROUP: cohort.groups[_GROUP][~fitted.training]}
        auc = judge_groups(labels, alone, rows, n_resamples=n_resamples)[_GROUP][_COLES]
        measurement = Measurement.of(
            Replicates(auc.micro, auc.micro_replicates),
            user_draws(cohort.user_id[~fitted.training], n_resamples),
            task=_TASK,
            metric=METRIC,
            group=_GROUP,
            model=_COLES,
            seed=seed,
        )
        unit = Unit(_TASK, seed, [measurement], {}, {}, time.perf_counter() - started)
        write_unit(kept, unit)
    return unit
