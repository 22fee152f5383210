"""An evaluation's figures as Markdown, for a terminal and for the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from materialize.evaluate.measurement import EMBEDDING

__all__ = ["figure_table", "markdown", "require_shown"]

_Row = Mapping[str, Any]

_PAPER_GAINS = {"cold": 0.262, "established": 0.152}
"""Largest relative gains that the GUR paper reports on future consumption, by group of users."""


def markdown(
    summary: Mapping[str, Any],
    *,
    metrics: Sequence[str] = (),
    groups: Sequence[str] = (),
    digits: int = 3,
) -> str:
    """Return an evaluation as Markdown: facts, then one table for each task, metric and group.

    Parameters
    ----------
    summary : mapping
        From ``summarise``, or read from ``summary.json``.
    metrics, groups : sequence of str
        Those to show; none: all.
    digits : int
        After the point.

    Raises
    ------
    ValueError
        A metric or group that the evaluation does not have; the choices are listed.
    """
    results = summary["results"]
    require_shown("The evaluation", results, metrics, groups)
    tables: dict[tuple[str, str, str], list[_Row]] = {}
    for row in results:
        if (not metrics or row["metric"] in metrics) and (not groups or row["group"] in groups):
            tables.setdefault((row["task"], row["metric"], row["group"]), []).append(row)
    parts = [_facts(summary)]
    parts += [figure_table(key, rows, digits) for key, rows in tables.items()]
    parts += _left_out(summary["tasks"])
    return "\n\n".join(parts) + "\n"


def require_shown(
    whose: str, results: Iterable[_Row], metrics: Sequence[str], groups: Sequence[str]
) -> None:
    """Check that rows of results have these metrics and groups.

    Raises
    ------
    ValueError
        One is not there; the choices are listed.
    """
    rows = list(results)
    for what, wanted in (("metric", metrics), ("group", groups)):
        there = dict.fromkeys(row[what] for row in rows)
        unknown = [name for name in wanted if name not in there]
        if unknown:
            raise ValueError(
                f"{whose} has no {what} {', '.join(map(repr, unknown))}. "
                f"It has: {', '.join(there)}."
            )


def _facts(summary: Mapping[str, Any]) -> str:
    cohort = summary["cohort"]
    return (
        f"`{summary['command']}` on {summary['dataset']}, encoder {summary['encoder_version']}, "
        f"{summary['embedding_dim']} numbers; cut-off {cohort['cutoff'][:10]}, next "
        f"{cohort['horizon_days']} days, {cohort['test_rows']:,} rows of test users, seeds "
        f"{', '.join(map(str, summary['seeds']))}. Mean over seeds with its 95% interval over "
        "users. Difference and relative gain are the embedding's to the model of the line, on the "
        "same users; p is two-sided and corrected for all lines of a table (Holm)."
    )


def figure_table(key: tuple[str, str, str], rows: Sequence[_Row], digits: int = 3) -> str:
    """Return the table of one task, metric and group, the embedding first.

    Parameters
    ----------
    key : (task, metric, group)
    rows : sequence of mapping
        Its rows of ``summary["results"]``, one a model.
    digits : int
        After the point.
    """
    task, metric, group = key
    first = rows[0]
    better = "" if first["higher_is_better"] else ", lower is better"
    paper = _PAPER_GAINS.get(group) if task == "future" and metric.startswith("auc") else None
    gain = "gain" if paper is None else f"gain (the paper: up to +{paper:.1%})"
    lines = [
        f"**{task}: {metric}, {group}** ({first['n_users']:,} users{better})",
        "",
        f"| model | {metric} | over seeds | embedding's difference | {gain} | p |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: row["model"] != EMBEDDING):
        spread, against = row["seed_spread"], row["embedding_against"]
        cells = [
            row["model"],
            _interval(row, f".{digits}f"),
            "" if spread is None else f"±{spread:.{digits}f}",
            *(
                ("", "", "")
                if against is None
                else (
                    _interval(against["difference"], f"+.{digits}f"),
                    _interval(against["gain"], "+.1%"),
                    "" if against["p_holm"] is None else f"{against['p_holm']:.3f}",
                )
            ),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(figure: Mapping[str, Any], form: str) -> str:
    if figure["value"] is None:
        return "not defined"
    if figure["low"] is None:
        return format(figure["value"], form)
    low, high = (format(figure[end], form) for end in ("low", "high"))
    return f"{figure['value']:{form}} [{low}, {high}]"


def _left_out(tasks: Mapping[str, Any]) -> Iterable[str]:
    lines = [
        f"- task {name}: {task['left_out']}" for name, task in tasks.items() if "left_out" in task
    ]
    lines += [
        f"- {name}, {model}: {why}"
        for name, task in tasks.items()
        for model, why in task.get("skipped", {}).items()
    ]
    if lines:
        yield "Left out:\n\n" + "\n".join(lines)
