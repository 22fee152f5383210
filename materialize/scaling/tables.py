"""Tables of a grid: what batches, lengths and shares of users do to networks of each size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["PAPER_BATCHES", "by_size", "large_batches", "markdown_tables", "table_of"]

_Floats = npt.NDArray[np.float64]

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

    Compared are a grid's smallest and largest batch, for each size and seed that has both.

    Returns
    -------
    dict
        - ``mrr``: ``by_size``, the MRR of the largest over that of the smallest batch, one a seed;
          ``trend``, by what that ratio is multiplied with ten times the parameters (beside the
          token table).
        - ``loss``: ``by_size``, the loss of the largest less that of the smallest batch, nats;
          ``trend``, what is added to that difference with ten times the parameters.
        - ``paper``: the trend of the paper's MRR.

        A trend is that of a straight line, ``value``, ``low``, ``high`` (95%, resampled pairs of
        size and seed); None for fewer than four pairs, or one size. The larger the model, the more
        a large batch helps, where that of ``mrr`` is more than 1, that of ``loss`` less than 0.
    """
    ratios: dict[str, list[float]] = {}
    differences: dict[str, list[float]] = {}
    decades: list[float] = []
    tried = {run["batch_size"] for run in runs}
    for name, values in _sizes(runs, "batch_size") if len(tried) > 1 else ():
        small, large = values.get(min(tried), {}), values.get(max(tried), {})
        for seed in sorted(set(small) & set(large)):
            a, b = small[seed], large[seed]
            ratios.setdefault(name, []).append(b["best_mrr"] / a["best_mrr"])
            differences.setdefault(name, []).append(b["best_loss"] - a["best_loss"])
            decades.append(math.log10(a["parameters_beside_tokens"]))
    x = np.array(decades)
    logs = np.log10(list(chain.from_iterable(ratios.values())))
    less = np.array(list(chain.from_iterable(differences.values())))
    factor = _trend(x, logs, n_resamples)
    paper = [(math.log10(n), math.log10(b / a)) for n, (a, b) in PAPER_BATCHES.items()]
    return {
        "mrr": {
            "by_size": ratios,
            "trend": None if factor is None else {k: 10**v for k, v in factor.items()},
        },
        "loss": {
            "by_size": differences,
            "trend": _trend(x, less, n_resamples),
        },
        "paper": 10 ** _slope(np.array(paper)),
    }


def _trend(x: _Floats, y: _Floats, n_resamples: int) -> dict[str, float] | None:
    if len(x) < _LEAST_PAIRS or np.ptp(x) == 0:
        return None
    points, rng = np.stack([x, y], 1), np.random.default_rng(0)
    drawn = (points[rng.integers(0, len(points), len(points))] for _ in range(n_resamples))
    found = [_slope(some) for some in drawn if np.ptp(some[:, 0]) > 0]
    low, high = np.percentile(found, (2.5, 97.5))
    return {"value": _slope(points), "low": float(low), "high": float(high)}


def _slope(points: _Floats) -> float:
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
