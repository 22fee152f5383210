"""What a study has before it: variants, seeds, tasks, what is done already, and about how long."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from materialize.config import RepoSettings
from materialize.evaluate.tasks import TASKS
from materialize.evaluate.units import MEASURES, unit_path
from materialize.features import current_modalities
from materialize.recipes import training_config
from materialize.study.fit import Unit
from materialize.study.rows import StudyRows
from materialize.study.studies import Study, find_study
from materialize.study.variant import DEFAULT, Variant
from materialize.training_rows import raw_schema
from transforms.clean import CleanTables

if TYPE_CHECKING:
    from feast import FeatureStore

    from encoder.training_config import TrainingConfig

__all__ = ["DEFAULT_TASKS", "Judging", "StudyPlan", "plan_study"]

DEFAULT_TASKS = ("probe", "clusters")

_LEAST_SHARE = 0.1
"""Of the training rows that an aged variant must still have."""
_SPEED_TEST_ROWS = 512
_STEP_OVERHEAD = 1.6
"""Corruption, optimiser and validation beside the matrix products; measured on ml1m."""


@dataclass(frozen=True)
class Judging:
    """How variants are judged.

    Attributes
    ----------
    tasks : tuple of str
        Of ``palate evaluate``; with the embedding alone.
    max_rows : int
        Rows of the cohort at most.
    n_resamples : int
        Of each interval.
    """

    tasks: tuple[str, ...] = DEFAULT_TASKS
    max_rows: int = 20_000
    n_resamples: int = 500

    def __post_init__(self) -> None:
        unknown = sorted(set(self.tasks) - set(TASKS))
        if unknown or not self.tasks:
            raise ValueError(
                f"Tasks {', '.join(map(repr, self.tasks)) or 'none'} given; "
                f"known: {', '.join(sorted(TASKS))}."
            )
        of_spaces = [name for name in self.tasks if TASKS[name].takes_settings]
        if of_spaces:
            raise ValueError(
                f"Task {', '.join(of_spaces)} judges a space that is served, and a variant is "
                "none. Leave it out here; `palate evaluate` runs it."
            )


@dataclass(frozen=True)
class StudyPlan:
    """Units of a study, done and to do.

    Attributes
    ----------
    study : Study
    units : tuple of Unit
        All of them, the default variant first.
    judging : Judging
    rows : StudyRows
    config : TrainingConfig
        Of the default variant.
    folder : Path
        Takes what is found, but of the default; the same data and settings have the same folder.
    left_out : mapping of str to str
        Variant -> why these data cannot train it.
    """

    study: Study
    units: tuple[Unit, ...]
    judging: Judging
    rows: StudyRows
    config: TrainingConfig
    folder: Path
    left_out: Mapping[str, str]

    def unit_folder(self, unit: Unit) -> Path:
        """Return where a unit's results lie: one folder for all seeds of a variant."""
        return self._variant_folder(unit.variant)

    def facts_path(self, unit: Unit) -> Path:
        """Return the file that tells of a unit's training."""
        return self.unit_folder(unit) / f"training-{unit.seed}.json"

    def missing(self, unit: Unit) -> list[str]:
        """Return the tasks that a unit has still to do; all of them while it is not trained."""
        if not self.facts_path(unit).exists():
            return list(self.judging.tasks)
        folder = self.unit_folder(unit)
        return [t for t in self.judging.tasks if not unit_path(folder, t, unit.seed).exists()]

    def finished(self, variant: Variant) -> list[Unit]:
        """Return the judged units of a variant, also those of other calls, ordered by seed."""
        seeds = sorted(
            int(path.stem.removeprefix("training-"))
            for path in self._variant_folder(variant).glob("training-*.json")
        )
        return [Unit(variant, seed) for seed in seeds]

    @property
    def shared_folder(self) -> Path:
        """Return where the default's results lie: every study of these data compares with it."""
        return self.folder.parent.parent / DEFAULT / self.folder.name

    def _variant_folder(self, variant: Variant) -> Path:
        return (self.shared_folder if variant.name == DEFAULT else self.folder) / variant.name

    def judged_by(self, unit: Unit) -> list[str]:
        """Return the tasks that a unit was judged by, also in other calls."""
        folder = self.unit_folder(unit)
        return [name for name in TASKS if unit_path(folder, name, unit.seed).exists()]

    def read_facts(self, unit: Unit) -> dict[str, Any]:
        """Return what a finished unit's training took and gave."""
        facts: dict[str, Any] = json.loads(self.facts_path(unit).read_text(encoding="utf-8"))
        return facts

    def to_do(self) -> list[Unit]:
        """Return the units that are not finished."""
        return [unit for unit in self.units if self.missing(unit)]

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON types; counts the training rows."""
        n_rows = min(self.rows.max_rows, self.rows.source().count())
        units = self.to_do()
        seconds = self.seconds_per_unit(n_rows)
        return {
            "study": self.study.name,
            "question": self.study.question,
            "variants": {u.variant.name: u.variant.title for u in self.units},
            "left_out": dict(self.left_out),
            "seeds": sorted({u.seed for u in self.units}),
            "tasks": list(self.judging.tasks),
            "training_rows": n_rows,
            "units": len(self.units),
            "units_to_do": len(units),
            "estimated_minutes": round(len(units) * seconds / 60, 1),
            "folder": str(self.folder),
        }

    def seconds_per_unit(self, n_rows: int) -> float:
        """Return about how long a unit takes here.

        From finished units of this study and of the default, whatever their settings; where there
        is none, from the multiplications of the training and the speed of this machine, judging
        left out.
        """
        known = [
            json.loads(path.read_text(encoding="utf-8"))["unit_seconds"]
            for folder in (self.folder.parent, self.shared_folder.parent)
            for path in folder.glob("*/*/training-*.json")
        ]
        if known:
            return float(np.median(known))
        n_inputs = sum(b.width for b in self.rows.schema.blocks) + len(self.rows.schema.blocks)
        widths = [n_inputs, *self.config.model.hidden, self.config.model.embedding_dim]
        weights = 2 * sum(a * b for a, b in pairwise(widths))
        epochs = self.config.epochs(n_rows)
        # Forward, and two products backward, a multiplication and an addition each.
        return _STEP_OVERHEAD * 6 * weights * n_rows * epochs / _flops_per_second(n_inputs)


def plan_study(
    store: FeatureStore,
    settings: RepoSettings,
    name: str,
    *,
    variants: Sequence[str] = (),
    seeds: Sequence[int] = (),
    judging: Judging,
    max_training_rows: int = 500_000,
) -> StudyPlan:
    """Return what a study would do; writes nothing.

    Parameters
    ----------
    store : FeatureStore
        With the raw views applied.
    settings : RepoSettings
    name : str
        Of `STUDIES`.
    variants : sequence of str
        Those to train, the default beside them; none: all.
    seeds : sequence of int
        None: the study's.
    judging : Judging
    max_training_rows : int
        Users are drawn until about so many rows come together.

    Raises
    ------
    ValueError
        Unknown study, variant or task, and the choices are listed; or a named variant that these
        data cannot train.
    DataFault
        Raw features are not applied or not built, or the settings have a fault.
    """
    study = find_study(name)
    modalities = current_modalities(settings.features_dir)
    config = training_config(settings)
    schema = raw_schema(settings, modalities)
    chosen = study.choose(schema, config, variants)
    folder = settings.data_dir / "studies" / name
    # A variant may predict where the default does not: the rows must say what came next then.
    predicting = max(
        (variant.config(config, 0) for variant in chosen), key=lambda c: c.prediction_weight
    )
    rows = StudyRows(
        store, settings, schema, modalities, predicting, folder / "rows", max_training_rows
    )
    content = [
        version("palate"),
        MEASURES,
        rows.source().fingerprint,
        CleanTables(settings.data_dir).fingerprint(),
        schema.to_dict(),
        asdict(config),
        settings.dataset.evaluation.model_dump(mode="json"),
        [judging.max_rows, judging.n_resamples, max_training_rows],
    ]
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    left_out = _too_old(rows, chosen)
    refused = [name for name in variants if name in left_out]
    if refused:
        raise ValueError(f"Variant {refused[0]!r} cannot be trained here: {left_out[refused[0]]}")
    wanted = [variant for variant in chosen if variant.name not in left_out]
    units = [Unit(variant, seed) for seed in seeds or study.seeds for variant in wanted]
    return StudyPlan(
        study,
        tuple(units),
        judging,
        replace(rows, folder=folder / key / "rows"),
        config,
        folder / key,
        left_out,
    )


def _too_old(rows: StudyRows, variants: Sequence[Variant]) -> dict[str, str]:
    """Return the variants whose rows end where the data have hardly begun, with the reason."""
    aged = [variant for variant in variants if variant.age_days]
    if not aged:
        return {}
    whole = rows.source().count()
    found = {variant.name: rows.source(variant.age_days).count() for variant in aged}
    return {
        name: f"{n} of {whole} training rows are so old, at least a tenth expected: the encoder "
        "would not be older, but hardly trained."
        for name, n in found.items()
        if n < _LEAST_SHARE * whole
    }


def _flops_per_second(n_inputs: int) -> float:
    rows = np.ones((_SPEED_TEST_ROWS, n_inputs), np.float32)
    weights = np.ones((n_inputs, 512), np.float32)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        rows @ weights
        times.append(time.perf_counter() - began)
    return 2 * rows.size * weights.shape[1] / min(times)
