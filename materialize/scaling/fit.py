"""What a grid's runs say: laws of loss against compute, and which batch suits which size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from encoder.scaling_law import LawFit, PowerLaw, Run, fit_law, fit_runs, frontier

__all__ = [
    "PAPER_BATCHES",
    "PAPER_LOSS",
    "PF_DAY",
    "by_size",
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

PAPER_BATCHES = {
    "4M": (0.954, 0.930),
    "15M": (0.970, 0.956),
    "65M": (0.969, 0.977),
    "110M": (0.971, 0.985),
    "160M": (0.968, 1.000),
}
"""CLUE: parameters -> downstream MRR relative to the best, with batches of 32 and of 512 users."""

_LEAST_JUDGED = 4

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
        - ``batches``: for each size ``parameters_beside_tokens`` and, by batch size, ``loss``,
          ``mrr`` and ``relative_mrr`` (to the best of the table).
        - ``large_batches_help``: for each size the MRR of its largest over its smallest batch.
        - ``lengths``, ``shares``: likewise, by events and by share of users.
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
    batches = _table(runs, "batch_size")
    return {
        "runs": len(runs),
        "frontier": {"operations": x.tolist(), "loss": y.tolist()},
        "laws": laws,
        "better": min(known, key=lambda name: known[name]["aic"]) if known else None,
        "paper": _paper(),
        "batches": batches,
        "large_batches_help": {
            size: found["values"][-1]["mrr"] / found["values"][0]["mrr"]
            for size, found in batches.items()
            if len(found["values"]) > 1
        },
        "lengths": _table(runs, "max_events"),
        "shares": _table(runs, "user_share"),
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


def _table(runs: Sequence[Mapping[str, Any]], axis: str) -> dict[str, Any]:
    """Return, by size, the runs that differ from the most usual ones along one axis only."""
    others = [name for name in ("batch_size", "max_events", "user_share") if name != axis]
    shared = _most_frequent(runs, axis, others)
    mine = [run for run in runs if tuple(run[name] for name in others) == shared]
    best = max((run["best_mrr"] for run in mine), default=1.0)
    table: dict[str, Any] = {}
    for size in dict.fromkeys((run["width"], run["layers"]) for run in mine):
        of_size = [run for run in mine if (run["width"], run["layers"]) == size]
        values = []
        for value in sorted({run[axis] for run in of_size}):
            seeds = [run for run in of_size if run[axis] == value]
            mrr = float(np.mean([run["best_mrr"] for run in seeds]))
            values.append(
                {
                    axis: value,
                    "loss": float(np.mean([run["best_loss"] for run in seeds])),
                    "mrr": mrr,
                    "relative_mrr": mrr / best,
                    "seeds": len(seeds),
                }
            )
        table[f"w{size[0]}l{size[1]}"] = {
            "parameters_beside_tokens": of_size[0]["parameters_beside_tokens"],
            "values": values,
        }
    return table


def _most_frequent(
    runs: Sequence[Mapping[str, Any]], axis: str, others: Sequence[str]
) -> tuple[Any, ...]:
    """Return the values of the other axes for which most values of this one were tried."""
    tried: dict[tuple[Any, ...], set[Any]] = {}
    for run in runs:
        tried.setdefault(tuple(run[name] for name in others), set()).add(run[axis])
    return max(tried, key=lambda key: len(tried[key]), default=())


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
    for axis, title in (("batches", "users a batch"), ("lengths", "events"), ("shares", "users")):
        if any(len(size["values"]) > 1 for size in fit[axis].values()):
            lines += ["", *_markdown_table(fit[axis], title)]
    return "\n".join(lines) + "\n"


def _markdown_table(table: Mapping[str, Any], title: str) -> list[str]:
    axis = [key for key in _axes(table) if key not in ("loss", "mrr", "relative_mrr", "seeds")]
    values = sorted({v[axis[0]] for size in table.values() for v in size["values"]})
    heads = " | ".join(f"{value:g}" for value in values)
    lines = [
        f"| size | parameters | MRR by {title}: {heads} |",
        "|---" * (2 + len(values)) + "|",
    ]
    for name, size in by_size(table):
        by_value = {v[axis[0]]: f"{v['mrr']:.4f}" for v in size["values"]}
        cells = " | ".join(by_value.get(value, "") for value in values)
        lines.append(f"| {name} | {size['parameters_beside_tokens']:,} | {cells} |")
    return lines


def by_size(table: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the rows of a table of `fit_scaling`, small networks first."""
    return sorted(table.items(), key=lambda row: row[1]["parameters_beside_tokens"])


def _axes(table: Mapping[str, Any]) -> list[str]:
    return [key for size in table.values() for value in size["values"][:1] for key in value]


def _interval(figure: Mapping[str, float | None]) -> str:
    if figure["low"] is None or figure["high"] is None:
        return f"{figure['value']:.3f}"
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
