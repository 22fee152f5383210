"""Summaries of evaluations and studies, made of made-up measurements by the project's own code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from materialize.evaluate.measurement import Measurement
from materialize.evaluate.summary import summarise
from materialize.evaluate.units import Unit
from materialize.report.users import Neighbours, UserMap, build_user_map, nearest_users
from materialize.study.summary import VariantResult
from materialize.study.summary import summarise as summarise_study
from materialize.study.variant import DEFAULT, Variant

__all__ = ["evaluation", "people", "study"]

_RESAMPLES = 200
_COHORT = {
    "fingerprint": "0" * 12,
    "cutoff": "2000-11-20T00:00:00",
    "horizon_days": 7,
    "rows": 4_000,
    "users": 3_500,
}

# By metric: is more better, then the value of each model; groups differ by a little.
_FIGURES: dict[str, dict[str, tuple[bool, dict[str, float]]]] = {
    "future": {
        "auc@popularity": (
            True,
            {"embedding": 0.71, "mean_vectors": 0.66, "popularity": 0.5, "als": 0.712, "raw": 0.73},
        ),
        "auc@uniform": (
            True,
            {"embedding": 0.83, "mean_vectors": 0.81, "popularity": 0.79, "als": 0.82, "raw": 0.83},
        ),
    },
    "beyond": {"ece@uniform": (False, {"embedding": 0.004, "popularity": 0.05})},
    "cost": {"read_ms": (False, {"embedding": 1.2, "raw": 6.4})},
}
_GROUPS = {"all": 0.0, "established": 0.01, "cold": -0.03}


def evaluation(evil: str = "onboarding was not asked") -> dict[str, Any]:
    """Return an evaluation of three tasks with two seeds, and one task that did not run."""
    units = [
        Unit(
            task,
            seed,
            _measurements(task, seed),
            {"coles": evil} if task == "future" else {},
            _details() if task == "beyond" else {},
            12.5,
        )
        for task in _FIGURES
        for seed in (0, 1)
    ]
    facts = {
        "dataset": "ml1m",
        "space": 3,
        "command": "palate evaluate --space 3",
        "cohort": _COHORT,
        "leaks": {"rows": 4_000, "control": {"value": 0.507, "low": 0.495, "high": 0.519}},
        "seeds": [0, 1],
        "n_resamples": _RESAMPLES,
    }
    return summarise(units, facts, left_out={"ranking": evil})


def study(
    name: str = "dimensions", axis: str | None = "numbers in the embedding"
) -> dict[str, Any]:
    """Return a study of three variants with two seeds."""
    variants = (
        (Variant(DEFAULT, "120 numbers (default)", x=120.0), 0.76),
        (Variant("30d", "30 numbers", model={"embedding_dim": 30}, x=30.0), 0.70),
        (Variant("240d", "240 numbers", model={"embedding_dim": 240}, x=240.0), 0.7605),
    )
    training = {
        "embedding_dim": 120, "n_inputs": 517, "n_parameters": 300_000, "training_rows": 15_069,
        "epochs": 28, "validation_loss": 0.4, "seconds": 11.2, "encoder_version": "c0ffee123456",
    }  # fmt: skip
    results = [
        VariantResult(
            variant,
            {0: training, 1: training},
            [
                _measurement("probe", "auc_micro", group, "embedding", seed, value + shift, True)
                for group, shift in _GROUPS.items()
                for seed in (0, 1)
            ],
        )
        for variant, value in variants
    ]
    facts = {
        "study": name,
        "question": "How long must the embedding be?",
        "axis": axis,
        "dataset": "ml1m",
        "cohort": _COHORT,
        "n_resamples": _RESAMPLES,
        "command": f"palate study run {name}",
    }
    drift = [
        {
            "variant": f"age-{days}d",
            "seed": 0,
            "days": days,
            "two_sample_auc": {"value": 0.5 + days / 100, "low": 0.5, "high": 0.6 + days / 100},
            "cosine": {"value": 1 - days / 100, "low": 0.9 - days / 100, "high": 1.0},
        }
        for days in (1, 7)
    ]
    return {**summarise_study(facts, results), "drift": drift}


def _measurements(task: str, seed: int) -> list[Measurement]:
    groups = _GROUPS if task == "future" else {"all": 0.0}
    return [
        _measurement(task, metric, group, model, seed, value + shift, higher)
        for metric, (higher, models) in _FIGURES[task].items()
        for group, shift in groups.items()
        for model, value in models.items()
    ]


def _measurement(
    task: str, metric: str, group: str, model: str, seed: int, value: float, higher: bool
) -> Measurement:
    own = np.random.default_rng([seed, len(model)]).standard_normal(_RESAMPLES)
    shared = np.random.default_rng(list(group.encode())).standard_normal(_RESAMPLES)
    value += 0.001 * seed
    noise = 0.01 * shared + 0.002 * own
    return Measurement(
        task, metric, group, model, seed, value, value + value * noise, 1_200, 1_500, higher
    )


def _details() -> Mapping[str, Any]:
    def bins(shift: float) -> list[dict[str, float]]:
        return [
            {"share": 0.1, "predicted": k / 10 + 0.05, "observed": k / 10 + 0.05 + shift}
            for k in range(9)
        ]

    figures = {"F": {"value": 0.1, "low": 0.09, "high": 0.11}, "M": {"value": 0.12, "low": 0.1, "high": 0.13}}  # fmt: skip  # noqa: E501
    models = ("embedding", "popularity")
    return {
        "reliability": {
            model: {"popularity": bins(0.01), "uniform": bins(0.03)} for model in models
        },
        "exposure_by_tenth": {
            model: {"exposed": [0.1] * 10, "consumed": [k / 45 for k in range(10)]}
            for model in models
        },
        "ndcg_by_group": {model: {"gender": figures} for model in models},
    }


def people(n: int = 60) -> tuple[UserMap, Neighbours]:
    """Return users in two planted groups, who differ in taste and share no vector."""
    rng = np.random.default_rng(0)
    group = np.arange(n) % 2
    vectors = rng.standard_normal((n, 8)) + 6.0 * np.eye(8)[group]
    rows, cosine = nearest_users(vectors, 5)
    users = build_user_map(
        vectors,
        [f"u{k}" for k in range(n)],
        {
            "taste": ["jazz" if g else "rock" for g in group],
            "age": [("18", "25", "")[k % 3] for k in range(n)],
        },
    )
    items = ["song of rock", "song of jazz", "song of all"]
    return users, Neighbours(rows, cosine, items, [[g, 2] for g in group.tolist()])
