"""A page with the curves of all runs, the laws, and the table of batches, beside the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from encoder.scaling_law import PowerLaw
from materialize.scaling.fit import PAPER_LOSS, PF_DAY
from materialize.scaling.tables import PAPER_BATCHES, by_size

__all__ = ["figures", "write_page"]

_COLOURS = "Viridis"


def write_page(runs: Sequence[Mapping[str, Any]], fit: Mapping[str, Any], path: Path) -> None:
    """Write the page in one step; nothing in it is fetched from elsewhere."""
    parts = []
    for place, (title, figure) in enumerate(figures(runs, fit).items()):
        shown = figure.to_html(full_html=False, include_plotlyjs=place == 0)
        parts.append(f"<h2>{escape(title)}</h2>{shown}")
    page = (
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>Scaling</title>"
        "<style>body{font:15px sans-serif;max-width:1000px;margin:2em auto}</style>"
        f"<h1>Loss against compute</h1>{''.join(parts)}</html>"
    )
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)


def figures(runs: Sequence[Mapping[str, Any]], fit: Mapping[str, Any]) -> dict[str, go.Figure]:
    """Return the figures by title."""
    return {
        "Held-out loss against operations": _curves(runs, fit),
        "Which batch suits which size": _batches(fit),
        "Mean reciprocal rank against loss": _points(
            [(run, run["best_mrr"]) for run in runs], "mean reciprocal rank among held-out users"
        ),
        "Downstream loss against held-out loss": _points(
            [(run, run["downstream"]["loss"]) for run in runs if run.get("downstream")],
            "cross entropy of a linear head on other users, nats a target",
        ),
    }


def _curves(runs: Sequence[Mapping[str, Any]], fit: Mapping[str, Any]) -> go.Figure:
    figure = go.Figure()
    sizes = sorted({run["parameters_beside_tokens"] for run in runs})
    colours = dict(zip(sizes, _scale(len(sizes)), strict=True))
    shown: set[int] = set()
    for run in runs:
        size = run["parameters_beside_tokens"]
        figure.add_scatter(
            x=[epoch["model_flops"] for epoch in run["history"]],
            y=[epoch["validation_loss"] for epoch in run["history"]],
            mode="lines",
            line={"width": 1, "color": colours[size]},
            name=f"{size:,} parameters",
            legendgroup=str(size),
            showlegend=size not in shown,
            hovertext=run["name"],
        )
        shown.add(size)
    figure.add_scatter(
        x=fit["frontier"]["operations"], y=fit["frontier"]["loss"], mode="markers",
        marker={"color": "black", "size": 6}, name="frontier",
    )  # fmt: skip
    ends = np.array(fit["frontier"]["operations"], np.float64)
    grid = np.geomspace(ends.min(), ends.max() * 10, 100)
    for name, told in fit["laws"].items():
        if told is not None:
            law = PowerLaw(
                told["scale"], told["exponent"]["value"], told["constant"]["value"], told["unit"]
            )
            figure.add_scatter(
                x=grid, y=law(grid), mode="lines", name=name.replace("_", " "),
                line={"dash": "dash" if name == "power" else "dot", "color": "black"},
            )  # fmt: skip
    days, loss = zip(*PAPER_LOSS, strict=True)
    figure.add_scatter(
        x=[day * PF_DAY for day in days], y=loss, mode="lines+markers", name="the paper's",
        line={"color": "#c2410c"},
    )  # fmt: skip
    figure.update_xaxes(type="log", title="operations (forward and backward)")
    figure.update_yaxes(type="log", title="loss, nats")
    return figure


def _batches(fit: Mapping[str, Any]) -> go.Figure:
    figure = go.Figure()
    colours = _scale(len(fit["batches"]) + 1)
    for (name, size), colour in zip(by_size(fit["batches"]), colours, strict=False):
        figure.add_scatter(
            x=[v["batch_size"] for v in size["values"]],
            y=[v["relative_mrr"] for v in size["values"]],
            mode="lines+markers",
            line={"color": colour},
            name=f"{name}, {size['parameters_beside_tokens']:,}",
        )
    for parameters, (small, large) in PAPER_BATCHES.items():
        figure.add_scatter(
            x=[32, 512], y=[small, large], mode="lines", name=f"the paper's, {parameters / 1e6:g}M",
            line={"color": "#c2410c", "dash": "dot"},
        )  # fmt: skip
    figure.update_xaxes(type="log", title="users a batch")
    figure.update_yaxes(title="mean reciprocal rank, relative to the best")
    return figure


def _points(told: Sequence[tuple[Mapping[str, Any], float]], title: str) -> go.Figure:
    figure = go.Figure()
    figure.add_scatter(
        x=[run["best_loss"] for run, _ in told], y=[value for _, value in told], mode="markers",
        text=[run["name"] for run, _ in told],
        marker={
            "color": [np.log10(run["parameters_beside_tokens"]) for run, _ in told],
            "colorscale": _COLOURS, "colorbar": {"title": "log10 parameters"},
        },
    )  # fmt: skip
    figure.update_xaxes(title="best held-out loss, nats")
    figure.update_yaxes(title=title)
    return figure


def _scale(n: int) -> list[str]:
    places = [k / max(n - 1, 1) for k in range(n)]
    colours: list[str] = sample_colorscale(_COLOURS, places)
    return colours
