"""The summary of an evaluation: JSON that tables, the report and the documentation are made of."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from encoder.resampling import Interval, Replicates
from materialize.evaluate.measurement import EMBEDDING, Measurement
from materialize.evaluate.statistics import compare_all, over_seeds
from materialize.evaluate.units import Unit

__all__ = [
    "SUMMARY_FILE",
    "read_summary",
    "summarise",
    "with_earlier_tasks",
    "write_summary",
]

SUMMARY_FILE = "summary.json"

_Key = tuple[str, str, str]


def summarise(
    units: Sequence[Unit],
    facts: Mapping[str, Any],
    *,
    left_out: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return what an evaluation found, over its seeds.

    Parameters
    ----------
    units : sequence of Unit
        Of one encoder on one cohort.
    facts : mapping
        Put first: data set, space, encoder version, cohort, seeds, command (JSON types).
    left_out : mapping of str to str, optional
        Task -> why it did not run.

    Returns
    -------
    dict
        ``facts``, and:

        - ``tasks``: by name ``seeds``, ``seconds`` (of all seeds), ``skipped`` (model -> reason),
          ``details`` (of the first seed, see the task), or for a task that did not run
          ``left_out``.
        - ``results``: a list, in the order in which tasks tell their figures, of ``task``,
          ``metric``, ``group``, ``model``, ``higher_is_better``, ``n_users``, ``n_rows``, the mean
          over seeds ``value`` with its 95% interval over users ``low`` and ``high``, ``by_seed``
          and ``seed_spread`` (standard deviation over seeds, None for one seed); and
          ``embedding_against``, None for the embedding itself: ``difference`` and relative
          ``gain`` of the embedding to this model, each ``value``, ``low``, ``high``, paired; ``p``
          two-sided, and ``p_holm`` corrected for all models of this task, metric and group.

        What is not defined is None.
    """
    results: list[dict[str, Any]] = []
    for (task, metric, group), models in _grouped(m for u in units for m in u.measurements).items():
        figures = {model: over_seeds(found) for model, found in models.items()}
        against: dict[str, Any] = {}
        if EMBEDDING in figures:
            others = {m: f for m, f in figures.items() if m != EMBEDDING}
            compared = compare_all(figures[EMBEDDING], others)
            against = {model: found.to_dict() for model, found in compared.items()}
        results += [
            {
                "task": task,
                "metric": metric,
                "group": group,
                "model": model,
                **_estimate(found, figures[model]),
                "embedding_against": against.get(model),
            }
            for model, found in models.items()
        ]
    return {
        **facts,
        "tasks": _tasks(units)
        | {name: {"left_out": why} for name, why in (left_out or {}).items()},
        "results": results,
    }


def with_earlier_tasks(
    summary: Mapping[str, Any], earlier: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return a summary with what an earlier one of the same key found in tasks not run now.

    Parameters
    ----------
    summary : mapping
        Of ``summarise``.
    earlier : mapping or None
        As ``summary``: the same encoder, cohort, models and resamples.
    """
    if earlier is None:
        return dict(summary)
    kept = {
        name: task
        for name, task in earlier["tasks"].items()
        if "left_out" not in task and "left_out" in summary["tasks"].get(name, {"left_out": ""})
    }
    results = [one for one in earlier["results"] if one["task"] in kept]
    return {
        **summary,
        "tasks": summary["tasks"] | kept,
        "results": [*summary["results"], *results],
    }


def write_summary(folder: Path, summary: Mapping[str, Any]) -> Path:
    """Write a summary under a name at which it appears whole.

    Raises
    ------
    ValueError
        It holds NaN or something else that JSON does not know.
    """
    text = json.dumps(summary, indent=1, allow_nan=False)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SUMMARY_FILE
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Return the newest summary among the evaluations in a folder's folders, or None.

    Parameters
    ----------
    folder : Path
        ``run.space_folder(settings, space)``: one folder for each cohort and setting; or one of
        these.
    """
    found = [*folder.glob(SUMMARY_FILE), *folder.glob(f"*/{SUMMARY_FILE}")]
    if not found:
        return None
    newest = max(found, key=lambda path: path.stat().st_mtime_ns)
    content: dict[str, Any] = json.loads(newest.read_text(encoding="utf-8"))
    return content


def _grouped(measurements: Iterable[Measurement]) -> dict[_Key, dict[str, list[Measurement]]]:
    """Return measurements by (task, metric, group), then by model: one a seed."""
    found: dict[_Key, dict[str, list[Measurement]]] = {}
    for m in measurements:
        found.setdefault((m.task, m.metric, m.group), {}).setdefault(m.model, []).append(m)
    return found


def _estimate(measurements: Sequence[Measurement], figure: Replicates) -> dict[str, Any]:
    values = [m.value for m in measurements]
    first = measurements[0]
    return {
        "higher_is_better": first.higher_is_better,
        "n_users": first.n_users,
        "n_rows": first.n_rows,
        **Interval.of(figure.value, figure.replicates).to_dict(),
        "by_seed": [None if np.isnan(value) else value for value in values],
        "seed_spread": None
        if len(values) < 2 or np.isnan(values).any()
        else float(np.std(values, ddof=1)),
    }


def _tasks(units: Sequence[Unit]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for unit in units:
        task = found.setdefault(
            unit.task, {"seeds": [], "seconds": 0.0, "skipped": {}, "details": unit.details}
        )
        task["seeds"].append(unit.seed)
        task["seconds"] = round(task["seconds"] + unit.seconds, 1)
        task["skipped"] |= unit.skipped
    return found
