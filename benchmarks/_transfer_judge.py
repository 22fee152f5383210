"""The probe of `palate evaluate` for the benchmark `transfer`, and of CoLES' vectors beside it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._transfer_mlp import Vectors, under_a_network
from benchmarks._transfer_plan import METRIC
from benchmarks._transfer_repo import Trained, note
from encoder.artifact import EncoderArtifact
from encoder.resampling import Replicates, user_draws
from materialize.adopt import OTHER_USERS
from materialize.context import Context
from materialize.evaluate.cohort import Cohort
from materialize.evaluate.cohort_build import build_cohort
from materialize.evaluate.measurement import EMBEDDING, Measurement
from materialize.evaluate.models.registry import missing, of_space, user_model
from materialize.evaluate.probe import ProbeScores, judge_groups, probe_scores
from materialize.evaluate.probe_task import (
    NETWORK,
    RAW_POOLED,
    cohort_labels,
    pooled_vectors,
)
from materialize.evaluate.run import evaluate, space_folder
from materialize.evaluate.units import Unit, read_unit, write_unit
from transforms.runtime import load_encoder

__all__ = ["Judged", "judge", "together"]

_TASK, _GROUP, _COLES, _POPULARITY = "probe", "all", "coles", "popularity"


@dataclass(frozen=True, eq=False)
class Judged:
    """What the probe found on one data set.

    Attributes
    ----------
    measurements : list of Measurement
        Micro AUC on all test rows: one a model and seed of the heads, `Trained.model` for a space.
    network : list of Measurement
        Of `_transfer_mlp.under_a_network`, under the same names.
    cohort : dict
        Facts of the cohort, as of an evaluation's summary.
    seconds : float
        Wall time of the measuring, CoLES' included; what an earlier run measured counts.
    skipped : dict of str to str
        Model -> why it was left out.
    """

    measurements: list[Measurement]
    network: list[Measurement]
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
    baselines: bool = True,
) -> Judged:
    """Judge spaces and baselines on the same users, as ``palate evaluate --task probe`` does.

    The first space is that of ``--space``, the others stand ``--beside`` it, and what is measured
    lies where that command looks for it. The probe has no CoLES: its vectors are judged here under
    the same head, on the same resamples of the users. Without ``baselines``, popularity is the only
    one.

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
    spaces = [context.ledger.space(one.space) for one in trained]
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
        models=None if baselines else [_POPULARITY],
        other_users={s.encoder_version for s in spaces if s.facts.get(OTHER_USERS)},
        beside={name: encoders[name] for name in others},
        seeds=range(head_seeds),
        max_rows=max_rows,
        n_resamples=n_resamples,
        facts={"space": trained[0].space, "command": command},
    )
    units = list(found.units)
    skipped: dict[str, str] = {}
    why = missing(_COLES) if baselines else "told with the first repository"
    if why is None:
        units += [
            _coles(repo, found.folder, encoders[first], seed, max_rows, n_resamples)
            for seed in range(head_seeds)
        ]
    else:
        skipped[_COLES] = why
    names = {of_space(one.space): one.model for one in trained} | {EMBEDDING: trained[0].model}
    measured = [
        Measurement(**{**vars(m), "model": names.get(m.model, m.model)})
        for unit in units
        for m in unit.measurements
        if m.metric == METRIC and m.group == _GROUP
    ]
    seconds = round(sum(unit.seconds for unit in units), 1)
    vectors: dict[str, Vectors] = {
        one.model: partial(Cohort.encode, encoder=encoders[of_space(one.space)]) for one in trained
    }
    if baselines:
        vectors |= {
            RAW_POOLED: pooled_vectors,
            NETWORK: partial(Cohort.inputs, encoder=encoders[first]),
        }
    if not skipped:
        coles = user_model(_COLES)
        vectors |= {_COLES: lambda cohort: coles.vectors(cohort, encoders[first], 0)}
    network = under_a_network(
        settings,
        lambda: build_cohort(settings, max_rows=max_rows),
        found.folder,
        vectors,
        n_resamples=n_resamples,
    )
    return Judged(measured, network, found.summary["cohort"], seconds, skipped)


def together(own: Judged, adopted: Judged) -> Judged:
    """Return what was found of one data set's users in two repositories.

    The second one's texts are of another tokenizer; users, labels and resamples must be the same,
    which popularity tells: it reads none of the features.

    Raises
    ------
    ValueError
        They are not.
    """
    for seed in {m.seed for m in own.measurements}:
        one, other = (
            next(m for m in each.measurements if (m.model, m.seed) == (_POPULARITY, seed))
            for each in (own, adopted)
        )
        if not np.array_equal(one.replicates, other.replicates):
            raise ValueError("The two repositories judge on other users. Use a new work folder.")
    further = [m for m in adopted.measurements if m.model != _POPULARITY]
    seconds = own.seconds + adopted.seconds
    network = [*own.network, *adopted.network]
    return Judged([*own.measurements, *further], network, own.cohort, seconds, own.skipped)


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
