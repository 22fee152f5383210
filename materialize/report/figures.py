"""Plots of a report as plain Plotly figures (dicts of JSON types)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from materialize.evaluate.probe import BASELINES, EMBEDDING
from materialize.report.theme import GREY, INK, PALETTE, Figure, axis, figure, label, rows_axis
from materialize.report.words import group_title, model_title

__all__ = [
    "blocks_figure",
    "loss_figure",
    "model_name",
    "probe_figure",
    "targets_figure",
]

_MODEL_NAMES = {
    EMBEDDING: "embedding",
    BASELINES[0]: "raw pooled features",
    "raw_inputs": "raw inputs",
    "raw": "network on raw features",
    BASELINES[1]: "popularity",
}
"""In the order in which they are drawn; others follow."""

_GROUP_NAMES = {"all": "all", "established": "20+ events", "cold": "up to 10 events"}

_MIN_USERS_SHOWN = 50
"""The interval of a smaller group is so long that it would squeeze the others' bars."""


def model_name(model: str) -> str:
    """Return what a model of the probe is called in this report."""
    return _MODEL_NAMES.get(model, model_title(model))


def _model_colours(models: Iterable[str]) -> dict[str, str]:
    """Return the models in drawing order with their colours; popularity is grey."""
    known = set(models)
    order = [m for m in _MODEL_NAMES if m in known] + sorted(known - set(_MODEL_NAMES))
    palette = iter([*PALETTE, *[GREY] * len(order)])
    return {m: GREY if m == BASELINES[1] else next(palette) for m in order}


def loss_figure(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Return training and validation loss by epoch, the best epoch marked.

    Parameters
    ----------
    history : sequence of mapping
        ``encoder.training.EpochRecord`` as dicts.
    """
    epochs = [record["epoch"] for record in history]
    best = min(history, key=lambda record: record["validation_loss"])
    lines = [
        _line(epochs, [record[field] for record in history], name, colour)
        for field, name, colour in (
            ("train_loss", "training", GREY),
            ("validation_loss", "validation", PALETTE[0]),
        )
    ]
    mark = {
        "type": "scatter",
        "x": [best["epoch"]],
        "y": [best["validation_loss"]],
        "mode": "markers",
        "name": f"best: epoch {best['epoch']}",
        "marker": {"color": PALETTE[0], "size": 10, "symbol": "circle-open", "line": {"width": 2}},
    }
    axes = {"xaxis": axis("epoch"), "yaxis": axis("loss")}
    return figure([*lines, mark], axes, height=340)


def blocks_figure(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Return each block's reconstruction error after the first and after the best epoch."""
    first = history[0]["block_errors"]
    best = min(history, key=lambda record: record["validation_loss"])
    names = sorted(best["block_errors"], key=lambda name: best["block_errors"][name], reverse=True)
    traces = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": name,
            "x": [errors.get(block) for block in names],
            "y": list(range(len(names))),
            "marker": {"color": colour, "size": 9},
        }
        for name, errors, colour in (
            (f"epoch {history[0]['epoch']}", first, GREY),
            (f"best (epoch {best['epoch']})", best["block_errors"], PALETTE[0]),
        )
    ]
    axes = {
        "xaxis": axis("share of variance lost", rangemode="tozero"),
        "yaxis": rows_axis([label(block) for block in names]),
    }
    return figure(traces, axes, height=max(340, 110 + 22 * len(names)))


def probe_figure(probe: Mapping[str, Any], metric: str) -> Figure:
    """Return bars of AUC by model and group of at least 50 users, from chance upwards.

    Parameters
    ----------
    probe : mapping
        ``materialize.evaluate.probe.ProbeReport.to_dict()``.
    metric : {"auc_micro", "auc_macro"}
    """
    groups = {
        name: group
        for name, group in probe["groups"].items()
        if name == "all" or group["n_users"] >= _MIN_USERS_SHOWN
    }
    labels = [
        f"{_GROUP_NAMES.get(name, group_title(name))}<br>{group['n_users']:,} users"
        for name, group in groups.items()
    ]
    traces, ends, starts = [], [0.55], [0.5]
    for model, colour in _model_colours(groups["all"]["models"]).items():
        figures = [group["models"][model][metric] for group in groups.values()]
        ends += [f["high"] for f in figures if f["high"] is not None]
        starts += [f["low"] for f in figures if f["low"] is not None]
        traces.append(
            {
                "type": "bar",
                "name": model_name(model),
                "x": labels,
                # Bars start at chance: their length is what a model knows.
                "base": 0.5,
                "y": [None if f["value"] is None else f["value"] - 0.5 for f in figures],
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [_distance(f["high"], f["value"]) for f in figures],
                    "arrayminus": [_distance(f["value"], f["low"]) for f in figures],
                    "color": INK,
                    "thickness": 1.3,
                    "width": 4,
                },
                "marker": {"color": colour},
                "customdata": [
                    [_shown(f["value"]), _shown(f["low"]), _shown(f["high"])] for f in figures
                ],
                "hovertemplate": "%{customdata[0]} [%{customdata[1]}, %{customdata[2]}]",
            }
        )
    axes = {
        "xaxis": {**axis(None), "type": "category"},
        "yaxis": {
            **axis("AUC (0.5: chance)"),
            "range": [min(starts) - 0.02, min(1.0, max(ends) + 0.03)],
        },
        "barmode": "group",
        "bargap": 0.3,
        "bargroupgap": 0.08,
    }
    return figure(traces, axes, height=340)


def targets_figure(probe: Mapping[str, Any]) -> Figure:
    """Return each target's AUC with the embedding and with raw features, best on top."""
    rows = [row for row in probe["per_target"] if row[EMBEDDING] is not None]
    rows.sort(key=lambda row: row[EMBEDDING])
    colours = _model_colours((EMBEDDING, BASELINES[0]))
    traces = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": model_name(model),
            "x": [row[model] for row in rows],
            "y": list(range(len(rows))),
            "marker": {"color": colours[model], "size": 9, "symbol": symbol},
        }
        for model, symbol in ((BASELINES[0], "diamond-open"), (EMBEDDING, "circle"))
        if all(model in row for row in rows)
    ]
    axes = {
        "xaxis": axis("AUC (0.5: chance)"),
        "yaxis": rows_axis([f"{label(row['target'])} ({row['base_rate']:.0%})" for row in rows]),
    }
    return figure(traces, axes, height=max(260, 110 + 22 * len(rows)))


def _line(x: Sequence[Any], y: Sequence[Any], name: str, colour: str) -> Figure:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": list(x),
        "y": list(y),
        "name": name,
        "line": {"color": colour, "width": 2},
        "marker": {"size": 4},
    }


def _distance(upper: float | None, lower: float | None) -> float | None:
    return None if upper is None or lower is None else upper - lower


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
