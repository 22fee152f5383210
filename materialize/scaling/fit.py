"""What a grid's runs say: laws of loss against compute, and the tables beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from encoder.scaling_law import LawFit, PowerLaw, Run, fit_law, fit_runs, frontier
from materialize.scaling.tables import large_batches, markdown_tables, table_of

__all__ = [
    "PAPER_LOSS",
    "PF_DAY",
    "curves",
    "fit_scaling",
    "markdown",
]

PF_DAY = 8.64e19
"""Operations of a petaflop/s-day."""

PAPER_LOSS = (
    *((1.9e-5, 5.14), (1.1e-4, 4.10), (9e-4, 2.93)),
    *((3.8e-3, 1.92), (1.5e-2, 1.01), (3.8e-2, 0.67)),
)
"""CLUE (arXiv 2111.11294): PF-days and pre-training test loss, digitised from the figure."""

_LEAST_JUDGED = 4

_TABLES = {"batches": "users a batch", "lengths": "events", "shares": "share of users"}

_LAWS = {"power": False, "power_plus_constant": True}


def curves(runs: Sequence[Mapping[str, Any]]) -> list[Run]:
    """Return the courses of runs, see `materialize.scaling.run.read_runs`."""
    return [
        Run(
            np.array([epoch["model_flops"] for epoch in run["history"]], np.float64),
            np.array([epoch["validation_loss"] for epoch in run["history"]], np.float64),
        )
        for run in runs
    ]


def fit_scaling(runs: Sequence[Mapping[str, Any]], *, n_resamples: int = 500) -> dict[str, Any]:
    """Return the laws and tables of a grid, JSON types.

    Parameters
    ----------
    runs : sequence of mapping
    n_resamples : int
        Of the runs, for the intervals.

    Returns
    -------
    dict
        - ``frontier``: ``operations`` and ``loss``, two lists.
        - ``laws``: by name (``power``, ``power_plus_constant``) ``scale``, ``unit``, ``exponent``
          and ``constant`` with ``low`` and ``high``, ``residual``, ``aic``, ``points``, ``runs``;
          None where there are too few points.
        - ``better``: the law with the smaller ``aic``.
        - ``paper``: ``exponent`` of a power law through the paper's points, and its local ones.
        - ``batches``, ``lengths``, ``shares``: by users a batch, events and share of users, see
          `materialize.scaling.tables.table_of`.
        - ``large_batches``: see `materialize.scaling.tables.large_batches`.
        - ``downstream``: ``runs`` that were judged, and Spearman's ``correlation`` of their
          pre-training loss with their downstream loss, ``value``, ``low``, ``high`` over resampled
          runs; None for fewer than four.
    """
    x, y = frontier(curves(runs))
    laws: dict[str, Any] = {}
    for name, constant in _LAWS.items():
        try:
            laws[name] = _law(fit_runs(curves(runs), constant=constant, n_resamples=n_resamples))
        except ValueError:
            laws[name] = None
    known = {name: law for name, law in laws.items() if law is not None}
    return {
        "runs": len(runs),
        "frontier": {"operations": x.tolist(), "loss": y.tolist()},
        "laws": laws,
        "better": min(known, key=lambda name: known[name]["aic"]) if known else None,
        "paper": _paper(),
        "batches": table_of(runs, "batch_size"),
        "large_batches": large_batches(runs, n_resamples=n_resamples),
        "lengths": table_of(runs, "max_events"),
        "shares": table_of(runs, "user_share"),
        "downstream": _downstream(runs, n_resamples),
    }


def _downstream(runs: Sequence[Mapping[str, Any]], n_resamples: int) -> dict[str, Any] | None:
    judged = [run for run in runs if run.get("downstream")]
    if len(judged) < _LEAST_JUDGED:
        return None
    pairs = np.array([(run["best_loss"], run["downstream"]["loss"]) for run in judged])
    rng = np.random.default_rng(0)
    found = []
    for _ in range(n_resamples):
        drawn = pairs[rng.integers(0, len(pairs), len(pairs))]
        if (np.ptp(drawn, axis=0) > 0).all():  # else there is no order to correlate
            found.append(spearmanr(drawn).statistic)
    low, high = np.percentile(found, (2.5, 97.5))
    value = float(spearmanr(pairs).statistic)
    return {
        "runs": len(judged),
        "correlation": {"value": value, "low": float(low), "high": float(high)},
    }


def _law(fit: LawFit) -> dict[str, Any]:
    return {
        "scale": fit.law.scale,
        "unit": fit.law.unit,
        "exponent": fit.exponent.to_dict(),
        "constant": fit.constant.to_dict(),
        "residual": fit.residual,
        "aic": fit.aic,
        "points": fit.n_points,
        "runs": fit.n_runs,
    }


def _paper() -> dict[str, Any]:
    days, loss = np.array(PAPER_LOSS).T
    law: PowerLaw = fit_law(days * PF_DAY, loss, constant=False)
    local = -np.diff(np.log(loss)) / np.diff(np.log(days))
    return asdict(law) | {"local_exponents": local.tolist()}


def markdown(fit: Mapping[str, Any]) -> str:
    """Return the laws and the table of batches as Markdown."""
    lines = [
        "| law | exponent | constant | residual | AIC |",
        "|---|---|---|---|---|",
        *(
            f"| {name.replace('_', ' ')} | {_interval(law['exponent'])} | "
            f"{_interval(law['constant'])} | {law['residual']:.3f} | {law['aic']:.1f} |"
            for name, law in fit["laws"].items()
            if law is not None
        ),
        f"| the paper's points, power | {fit['paper']['exponent']:.3f} | | | |",
    ]
    if fit["downstream"] is not None:
        lines += [
            "",
            f"Pre-training and downstream loss of {fit['downstream']['runs']} runs: rank "
            f"correlation {_interval(fit['downstream']['correlation'])}.",
        ]
    large = fit["large_batches"]
    if large["mrr"]["trend"] is not None:
        lines += [
            "",
            "The largest batch against the smallest, with ten times the parameters: MRR "
            f"{_interval(large['mrr']['trend'])} times as high (the paper's points: "
            f"{large['paper']:.3f}), loss {_interval(large['loss']['trend'])} nats added.",
        ]
    for axis, title in _TABLES.items():
        lines += markdown_tables(fit[axis], title)
    return "\n".join(lines) + "\n"


def _interval(figure: Mapping[str, float | None]) -> str:
    if figure["low"] is None or figure["high"] is None:
        return f"{figure['value']:.3f}"
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
