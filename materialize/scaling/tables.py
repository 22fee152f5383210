"""Tables of a grid: what batches, lengths and shares of users do to networks of each size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["PAPER_BATCHES", "by_size", "large_batches", "markdown_tables", "table_of"]

PAPER_BATCHES = {
    4e6: (0.954, 0.930),
    15e6: (0.970, 0.956),
    65e6: (0.969, 0.977),
    110e6: (0.971, 0.985),
    160e6: (0.968, 1.000),
}
"""CLUE (arXiv 2111.11294): parameters -> downstream MRR relative to the best, with batches of 32
and of 512 users; digitised from the figure."""

_MEASURES = {
    "mrr": ("MRR", 4),
    "loss": ("Held-out loss", 3),
    "downstream_auc": ("Downstream micro AUC", 3),
}
_AXES = ("batch_size", "max_events", "user_share")
_LEAST_PAIRS = 4


def table_of(runs: Sequence[Mapping[str, Any]], axis: str) -> dict[str, Any]:
    """Return, by size, the runs that differ from the most usual ones along one axis only.

    Parameters
    ----------
    runs : sequence of mapping
        See `materialize.scaling.run.read_runs`.
    axis : str
        ``batch_size``, ``max_events`` or ``user_share``.

    Returns
    -------
    dict
        By name of a size ``parameters_beside_tokens`` and ``values``: along the axis, the value,
        means over ``seeds`` of ``loss``, ``mrr`` and ``downstream_auc`` (None where a run was not
        judged), and ``relative_mrr``, to the best of the table. A size's means are over the seeds
        that all its values have, where there are such.
    """
    table: dict[str, Any] = {}
    for name, values in _sizes(runs, axis):
        common = set.intersection(*(set(seeds) for seeds in values.values()))
        first = next(run for seeds in values.values() for run in seeds.values())
        table[name] = {
            "parameters_beside_tokens": first["parameters_beside_tokens"],
            "values": [
                {axis: value}
                | _means([run for seed, run in seeds.items() if not common or seed in common])
                for value, seeds in sorted(values.items())
            ],
        }
    cells = [cell for size in table.values() for cell in size["values"]]
    best = max((cell["mrr"] for cell in cells), default=1.0)
    for cell in cells:
        cell["relative_mrr"] = cell["mrr"] / best
    return table


def large_batches(runs: Sequence[Mapping[str, Any]], *, n_resamples: int = 500) -> dict[str, Any]:
    """Return whether large batches help large models more than small ones.

    Returns
    -------
    dict
        - ``ratios``: for each size and seed the MRR of the largest over that of the smallest batch
          of the grid, where both are there.
        - ``trend``: by what that ratio is multiplied with ten times the parameters (beside the
          token table), of a straight line through the logarithms; ``value``, ``low``, ``high``
          (95%, resampled pairs of size and seed). More than 1: the larger the model, the more a
          large batch helps. None for fewer than four pairs, or one size.
        - ``paper``: the same through the paper's points.
    """
    ratios: dict[str, list[float]] = {}
    points: list[tuple[float, float]] = []
    tried = {run["batch_size"] for run in runs}
    for name, values in _sizes(runs, "batch_size") if len(tried) > 1 else ():
        small, large = values.get(min(tried), {}), values.get(max(tried), {})
        for seed in sorted(set(small) & set(large)):
            ratio = large[seed]["best_mrr"] / small[seed]["best_mrr"]
            ratios.setdefault(name, []).append(ratio)
            points.append((math.log10(small[seed]["parameters_beside_tokens"]), math.log10(ratio)))
    paper = [(math.log10(n), math.log10(b / a)) for n, (a, b) in PAPER_BATCHES.items()]
    return {
        "ratios": ratios,
        "trend": _trend(np.array(points).reshape(-1, 2), n_resamples),
        "paper": 10 ** _slope(np.array(paper)),
    }


def _trend(points: npt.NDArray[np.float64], n_resamples: int) -> dict[str, float] | None:
    if len(points) < _LEAST_PAIRS or np.ptp(points[:, 0]) == 0:
        return None
    rng = np.random.default_rng(0)
    drawn = (points[rng.integers(0, len(points), len(points))] for _ in range(n_resamples))
    found = [_slope(some) for some in drawn if np.ptp(some[:, 0]) > 0]
    low, high = 10 ** np.percentile(found, (2.5, 97.5))
    return {"value": 10 ** _slope(points), "low": float(low), "high": float(high)}


def _slope(points: npt.NDArray[np.float64]) -> float:
    return float(np.polyfit(points[:, 0], points[:, 1], 1)[0])


def _sizes(
    runs: Sequence[Mapping[str, Any]], axis: str
) -> Iterator[tuple[str, dict[Any, dict[int, Mapping[str, Any]]]]]:
    """Yield each size's name and its runs by value along the axis, then seed.

    Of the other axes, the values are those for which most values of this one were tried.
    """
    others = [name for name in _AXES if name != axis]
    tried: dict[tuple[Any, ...], set[Any]] = {}
    for run in runs:
        tried.setdefault(tuple(run[name] for name in others), set()).add(run[axis])
    shared = max(tried, key=lambda key: len(tried[key]), default=())
    sizes: dict[str, dict[Any, dict[int, Mapping[str, Any]]]] = {}
    for run in runs:
        if tuple(run[name] for name in others) == shared:
            values = sizes.setdefault(f"w{run['width']}l{run['layers']}", {})
            values.setdefault(run[axis], {})[run["seed"]] = run
    yield from sizes.items()


def _means(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    judged = [run["downstream"]["auc_micro"]["value"] for run in runs if run.get("downstream")]
    return {
        "loss": float(np.mean([run["best_loss"] for run in runs])),
        "mrr": float(np.mean([run["best_mrr"] for run in runs])),
        "downstream_auc": float(np.mean(judged)) if len(judged) == len(runs) else None,
        "seeds": len(runs),
    }


def markdown_tables(table: Mapping[str, Any], title: str) -> list[str]:
    """Return lines of Markdown, a table a measure; none where one value was tried only."""
    columns: dict[Any, None] = {}
    rows = []
    for name, size in by_size(table):
        cells = {cell[_axis(cell)]: cell for cell in size["values"]}
        columns |= dict.fromkeys(cells)
        rows.append((name, size["parameters_beside_tokens"], cells))
    if len(columns) < 2:
        return []
    lines: list[str] = []
    for measure, (heading, digits) in _MEASURES.items():
        if all(cell[measure] is None for _, _, cells in rows for cell in cells.values()):
            continue
        values = sorted(columns)
        heads = " | ".join(f"{value:g}" for value in values)
        lines += [
            "",
            f"| size | parameters | seeds | {heading} by {title}: {heads} |",
            "|---" * (3 + len(values)) + "|",
        ]
        for name, parameters, cells in rows:
            shown = " | ".join(_cell(cells.get(value), measure, digits) for value in values)
            seeds = min(cell["seeds"] for cell in cells.values())
            lines.append(f"| {name} | {parameters:,} | {seeds} | {shown} |")
    return lines


def _axis(cell: Mapping[str, Any]) -> str:
    return next(name for name in _AXES if name in cell)


def _cell(cell: Mapping[str, Any] | None, measure: str, digits: int) -> str:
    return "" if cell is None or cell[measure] is None else f"{cell[measure]:.{digits}f}"


def by_size(table: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the rows of a table, small networks first."""
    return sorted(table.items(), key=lambda row: row[1]["parameters_beside_tokens"])
