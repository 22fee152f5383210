"""Plots of what a task keeps beside its figures: calibration, exposure, groups of users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from materialize.evaluate.measurement import EMBEDDING
from materialize.report import theme
from materialize.report.tables import Series, colours, dots_figure
from materialize.report.theme import GREY, Figure, axis
from materialize.report.words import model_title

__all__ = ["exposure_figure", "group_figures", "reliability_figures"]

_BEYOND = "beyond"
_LARGEST_DOT, _SMALLEST_DOT = 22.0, 5.0


def reliability_figures(summary: Mapping[str, Any]) -> dict[str, Figure]:
    """Return by sampling of the negatives how often happens what was predicted, {} if not measured.

    Parameters
    ----------
    summary : mapping
        ``materialize.evaluate.summary.summarise``; its task ``beyond`` holds the bins.
    """
    by_model = _details(summary).get("reliability", {})
    samplings = dict.fromkeys(sampling for bins in by_model.values() for sampling in bins)
    return {
        sampling: _reliability({model: bins.get(sampling, ()) for model, bins in by_model.items()})
        for sampling in samplings
    }


def exposure_figure(summary: Mapping[str, Any]) -> Figure | None:
    """Return the share of places in lists that each tenth of the items by popularity gets."""
    by_model = _details(summary).get("exposure_by_tenth", {})
    if not by_model:
        return None
    tenths = [f"{10 * k} to {10 * k + 10}%" for k in range(10)]
    lines = [(model_title(m, _BEYOND), shares["exposed"]) for m, shares in by_model.items()]
    traces = [
        _line(name, tenths, shares, colour)
        for (name, shares), colour in zip(lines, colours(len(lines)), strict=True)
    ]
    consumed = next(iter(by_model.values()))["consumed"]
    traces.append(_line("what users consume", tenths, consumed, "var(--ink)", dash="dash"))
    layout = {
        "xaxis": {**axis("items from the least to the most popular"), "type": "category"},
        "yaxis": axis("share", tickformat=".0%", rangemode="tozero"),
    }
    return theme.figure(traces, layout, height=360)


def group_figures(summary: Mapping[str, Any]) -> dict[str, Figure]:
    """Return by column of the profile the nDCG of its groups of users, with intervals."""
    by_model = _details(summary).get("ndcg_by_group", {})
    found = {}
    for column, groups in by_model.get(EMBEDDING, {}).items():
        shown = [m for m in by_model if column in by_model[m]]
        points = {m: [by_model[m][column].get(group) for group in groups] for m in shown}
        series = [
            Series(model_title(model, _BEYOND), colour, points[model])
            for model, colour in zip(shown, colours(len(shown)), strict=True)
        ]
        found[column] = dots_figure(list(groups), series, "nDCG@10", zero=False)
    return found


def _details(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = summary["tasks"].get(_BEYOND, {}).get("details", {})
    return found


def _reliability(by_model: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    traces: list[Figure] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "predicted = observed",
            "x": [0, 1],
            "y": [0, 1],
            "line": {"color": GREY, "width": 1.5, "dash": "dash"},
            "hoverinfo": "skip",
        }
    ]
    for (model, bins), colour in zip(by_model.items(), colours(len(by_model)), strict=True):
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": model_title(model, _BEYOND),
                "x": [b["predicted"] for b in bins],
                "y": [b["observed"] for b in bins],
                "customdata": [b["share"] for b in bins],
                "hovertemplate": "predicted %{x:.3f}, observed %{y:.3f}, %{customdata:.1%}",
                "line": {"color": colour, "width": 2 if model == EMBEDDING else 1.25},
                "marker": {
                    "color": colour,
                    # Areas, so that a bin of few pairs does not look like one of many.
                    "size": [max(_SMALLEST_DOT, _LARGEST_DOT * b["share"] ** 0.5) for b in bins],
                    "opacity": 0.85,
                },
                "visible": True if model == EMBEDDING else "legendonly",
            }
        )
    layout = {
        "xaxis": axis("predicted probability", range=[-0.03, 1.03]),
        "yaxis": axis("share consumed", range=[-0.03, 1.03]),
    }
    return theme.figure(traces, layout, height=400)


def _line(
    name: str, x: Sequence[str], y: Sequence[float], colour: str, *, dash: str = "solid"
) -> Figure:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": list(x),
        "y": list(y),
        "line": {"color": colour, "width": 2, "dash": dash},
        "marker": {"color": colour, "size": 6},
        "hovertemplate": "%{y:.1%}",
    }
