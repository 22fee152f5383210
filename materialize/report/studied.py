"""Studies as tables and plots: what one change of the encoder at a time does to its quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from materialize.report import theme
from materialize.report.tables import (
    Cell,
    MetricView,
    Row,
    Series,
    by_group,
    by_metric,
    colours,
    distance,
    dots_figure,
    shown_groups,
    told_against,
    verdict,
)
from materialize.report.theme import GREY, PALETTE, Figure, axis
from materialize.report.words import group_title, metric_title, number
from materialize.study.variant import DEFAULT

__all__ = ["StudyView", "study_views"]

Result = Mapping[str, Any]


@dataclass(frozen=True)
class StudyView:
    """What the page shows of a study.

    Attributes
    ----------
    name, question, command : str
    facts : str
        Users, seeds and resamples.
    metrics : sequence of MetricView
        A row for each variant.
    trainings : sequence of (title, dimensions, inputs, parameters, epochs, seconds)
        Of each variant, means over seeds; texts.
    drift : Figure or None
        How far embeddings moved while the encoder aged.
    """

    name: str
    question: str
    command: str
    facts: str
    metrics: Sequence[MetricView]
    trainings: Sequence[tuple[str, ...]]
    drift: Figure | None


def study_views(summaries: Sequence[Mapping[str, Any]]) -> list[StudyView]:
    """Return the studies.

    Parameters
    ----------
    summaries : sequence of mapping
        ``materialize.study.summary.summarise``.
    """
    return [_study_view(summary) for summary in summaries]


def _study_view(summary: Mapping[str, Any]) -> StudyView:
    name, results = summary["study"], summary["results"]
    variants = {variant["name"]: variant for variant in summary["variants"]}
    metrics = []
    for task in dict.fromkeys(r["task"] for r in results):
        of_task = [r for r in results if r["task"] == task]
        metrics += [
            _metric_view(name, task, metric, rows, variants, summary["axis"])
            for metric, rows in by_metric(of_task)
        ]
    seeds = max((len(variant["seeds"]) for variant in variants.values()), default=0)
    cohort = summary["cohort"]
    return StudyView(
        name,
        summary["question"],
        summary["command"],
        f"{cohort['rows']:,} rows of {summary['dataset']}, cut-off {cohort['cutoff'][:10]}, up to "
        f"{seeds} seed{'s' if seeds != 1 else ''}",
        metrics,
        [_training(variant) for variant in variants.values()],
        _drift_figure(summary.get("drift", ())),
    )


def _metric_view(
    study: str,
    task: str,
    metric: str,
    results: Sequence[Result],
    variants: Mapping[str, Mapping[str, Any]],
    x_title: str | None,
) -> MetricView:
    grouped = by_group(results, "variant")
    rows = []
    for name, variant in variants.items():
        found = [grouped[group].get(name) for group in grouped]
        cells = [None if r is None else _cell(r) for r in found]
        rows.append(Row(variant["title"], "own" if name == DEFAULT else "", cells))
    higher = results[0]["higher_is_better"]
    figure, caption = (
        (_effects_figure(grouped, variants), "Variant minus default, paired, with 95% intervals")
        if x_title is None
        else (_axis_figure(grouped, variants, x_title), "With 95% intervals over users")
    )
    return MetricView(
        f"study-{study}-{task}-{metric}",
        f"{task}: {metric_title(metric)}" + ("" if higher else " (lower is better)"),
        [(group_title(group), "") for group in grouped],
        rows,
        figure,
        caption,
    )


def _cell(result: Result) -> Cell:
    against = result["against_default"]
    if against is None:
        return Cell.of(result)
    return Cell.of(
        result,
        note=number(against["difference"]["value"], sign=True),
        verdict=verdict(against, result["higher_is_better"]),
        tooltip=told_against(against, "This variant minus the default"),
    )


def _effects_figure(
    grouped: Mapping[str, Mapping[str, Result]], variants: Mapping[str, Mapping[str, Any]]
) -> Figure | None:
    names = [name for name in variants if name != DEFAULT]
    groups = shown_groups(grouped)
    series = []
    for group, colour in zip(groups, colours(len(groups)), strict=True):
        against = [grouped[group].get(name, {}).get("against_default") for name in names]
        points = [None if a is None else a["difference"] for a in against]
        if any(points):
            series.append(Series(group_title(group), colour, points))
    if not series:
        return None
    titles = [variants[name]["title"] for name in names]
    return dots_figure(titles, series, "difference to the default")


def _axis_figure(
    grouped: Mapping[str, Mapping[str, Result]],
    variants: Mapping[str, Mapping[str, Any]],
    title: str,
) -> Figure | None:
    placed = sorted(
        (variant["x"], name) for name, variant in variants.items() if variant["x"] is not None
    )
    groups = shown_groups(grouped)
    series = [
        (group_title(group), colour, [(x, grouped[group].get(name)) for x, name in placed])
        for group, colour in zip(groups, colours(len(groups)), strict=True)
    ]
    return _lines(series, title, None) if placed else None


def _drift_figure(drift: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Return cosine and two-sample AUC by age, a dot for each seed's encoder."""
    if not drift:
        return None
    placed = sorted(drift, key=lambda row: (row["days"], row["seed"]))
    series = [
        (name, colour, [(row["days"], row[field]) for row in placed])
        for name, field, colour in (
            ("cosine of a user's two embeddings", "cosine", PALETTE[0]),
            ("AUC with which old and new are told apart (0.5: not at all)", "two_sample_auc", GREY),
        )
    ]
    return _lines(series, "days", None, mode="markers")


def _lines(
    series: Sequence[tuple[str, str, Sequence[tuple[float, Result | None]]]],
    x_title: str,
    y_title: str | None,
    *,
    mode: str = "lines+markers",
) -> Figure:
    traces = []
    for name, colour, points in series:
        there = [(x, p) for x, p in points if p is not None and p["value"] is not None]
        traces.append(
            {
                "type": "scatter",
                "mode": mode,
                "name": name,
                "x": [x for x, _ in there],
                "y": [p["value"] for _, p in there],
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [distance(p["high"], p["value"]) for _, p in there],
                    "arrayminus": [distance(p["value"], p["low"]) for _, p in there],
                    "thickness": 1.5,
                    "width": 3,
                },
                "line": {"color": colour, "width": 2},
                "marker": {"color": colour, "size": 7},
                "hovertemplate": "%{y:.4f}",
            }
        )
    ticks = sorted({x for trace in traces for x in trace["x"]})
    layout = {
        "xaxis": axis(x_title, tickmode="array", tickvals=ticks),
        "yaxis": axis(y_title),
    }
    return theme.figure(traces, layout, height=360)


def _training(variant: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        variant["title"],
        f"{variant['embedding_dim']:,}",
        f"{variant['n_inputs']:,}",
        f"{variant['n_parameters']:,}",
        f"{variant['epochs']:.1f}",
        f"{variant['seconds']:.1f}",
    )
