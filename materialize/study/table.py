"""Tables of studies in Markdown, for a terminal and for the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from materialize.evaluate.table import require_shown
from materialize.study.variant import DEFAULT

__all__ = ["markdown"]

_MANY_SEEDS = 3
"""Fewer give no useful standard deviation."""


def markdown(
    summary: Mapping[str, Any],
    *,
    metrics: Sequence[str] = (),
    groups: Sequence[str] = (),
    digits: int = 3,
) -> str:
    """Return a study as Markdown: a line of facts, then one table for each task, metric and group.

    Parameters
    ----------
    summary : mapping
        From `summarise` or `read_study`.
    metrics, groups : sequence of str
        Those to show; none: all.
    digits : int
        After the point.

    Raises
    ------
    ValueError
        A metric or group that the study does not have; the choices are listed.
    """
    results = summary["results"]
    require_shown(f"Study {summary['study']!r}", results, metrics, groups)
    parts = [_facts(summary)]
    keys = dict.fromkeys(
        (row["task"], row["metric"], row["group"])
        for row in results
        if (not metrics or row["metric"] in metrics) and (not groups or row["group"] in groups)
    )
    for key in keys:
        rows = {
            row["variant"]: row
            for row in results
            if (row["task"], row["metric"], row["group"]) == key
        }
        parts.append(_table(key, summary["variants"], rows, digits))
    if summary["drift"]:
        parts.append(_drift(summary))
    parts += [f"Left out: {name}. {reason}" for name, reason in summary["left_out"].items()]
    return "\n\n".join(parts) + "\n"


def _facts(summary: Mapping[str, Any]) -> str:
    cohort = summary["cohort"]
    seeds = sorted({seed for variant in summary["variants"] for seed in variant["seeds"]})
    return (
        f"{summary['question']}\n\n`{summary['command']}` on {summary['dataset']}, cut-off "
        f"{cohort['cutoff'][:10]}, next {cohort['horizon_days']} days, "
        f"{summary['variants'][0]['training_rows']:,} training rows, seeds "
        f"{', '.join(map(str, seeds))}. Mean over seeds with its 95% interval over users; "
        "differences to the default are of the same users and seeds, p is two-sided and corrected "
        "for all variants of a table (Holm)."
    )


def _table(
    key: tuple[str, str, str],
    variants: Iterable[Mapping[str, Any]],
    rows: Mapping[str, Mapping[str, Any]],
    digits: int,
) -> str:
    task, metric, group = key
    shown = [variant for variant in variants if variant["name"] in rows]
    seeds = max(len(rows[variant["name"]]["by_seed"]) for variant in shown)
    spread = seeds >= _MANY_SEEDS
    first = rows[shown[0]["name"]]
    better = "" if first["higher_is_better"] else ", lower is better"
    lines = [
        f"**{task}: {metric}, {group}** ({first['n_users']:,} users{better})",
        "",
        f"| variant | inputs | {metric} | against the default | p |" + " over seeds |" * spread,
        "|---|---|---|---|---|" + "---|" * spread,
    ]
    for variant in shown:
        row = rows[variant["name"]]
        cells = [variant["title"], str(variant["n_inputs"]), _interval(row, digits)]
        compared = row["against_default"]
        if compared is None:
            cells += ["" if variant["name"] == DEFAULT else "not compared", ""]
        else:
            cells += [_interval(compared["difference"], digits, sign=True), _p(compared["p_holm"])]
        if spread:
            deviation = row["seed_spread"]
            cells.append("" if deviation is None else f"±{deviation:.{digits}f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _drift(summary: Mapping[str, Any]) -> str:
    titles = {variant["name"]: variant["title"] for variant in summary["variants"]}
    lines = [
        "**Drift of users' embeddings over the same days, under the same encoder**",
        "",
        "| age | seed | users | unchanged | two-sample AUC | cosine |",
        "|---|---|---|---|---|---|",
    ]
    for row in summary["drift"]:
        cells = [
            titles[row["variant"]],
            str(row["seed"]),
            f"{row['users']:,}",
            f"{row['unchanged']:.0%}",
            _interval(row["two_sample_auc"], 3),
            _interval(row["cosine"], 3),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(figure: Mapping[str, Any], digits: int, *, sign: bool = False) -> str:
    form = f"{'+' if sign else ''}.{digits}f"
    if figure["value"] is None:
        return "not defined"
    if figure["low"] is None:
        return format(figure["value"], form)
    low, high = (format(figure[end], form) for end in ("low", "high"))
    return f"{figure['value']:{form}} [{low}, {high}]"


def _p(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
