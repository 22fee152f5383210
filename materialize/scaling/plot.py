"""A page with the curves of all runs, the laws, and the table of batches, beside the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from encoder.scaling_law import PowerLaw
from materialize.scaling.fit import PAPER_LOSS, PF_DAY
from materialize.scaling.tables import PAPER_BATCHES, by_size

__all__ = ["figures", "write_page"]

_COLOURS = "Viridis"
_PAPER = "#c2410c"


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
    """Draw the runs beside the paper's points, whose range would leave them a corner."""
    figure = make_subplots(
        cols=2, column_widths=[0.68, 0.32], subplot_titles=["these runs", "the paper's"]
    )
    sizes = sorted({(run["width"], run["layers"]) for run in runs})
    colours = dict(zip(sizes, _scale(len(sizes)), strict=True))
    shown: set[tuple[int, int]] = set()
    for run in runs:
        size = (run["width"], run["layers"])
        figure.add_scatter(
            x=[epoch["model_flops"] for epoch in run["history"]],
            y=[epoch["validation_loss"] for epoch in run["history"]],
            mode="lines",
            line={"width": 1, "color": colours[size]},
            name=f"width {size[0]}, layers {size[1]}",
            legendgroup=str(size),
            showlegend=size not in shown,
            hovertext=run["name"],
            row=1,
            col=1,
        )
        shown.add(size)
    figure.add_scatter(
        x=fit["frontier"]["operations"], y=fit["frontier"]["loss"], mode="markers",
        marker={"color": "black", "size": 6}, name="frontier", row=1, col=1,
    )  # fmt: skip
    ends = np.array(fit["frontier"]["operations"], np.float64)
    grid = np.geomspace(ends.min(), ends.max() * 10, 100)
    for name, told in fit["laws"].items():
        if told is not None:
            law = PowerLaw(
                told["scale"], told["exponent"]["value"], told["constant"]["value"], told["unit"]
            )
            figure.add_scatter(
                x=grid, y=law(grid), mode="lines", name=name.replace("_", " "), row=1, col=1,
                line={"dash": "dash" if name == "power" else "dot", "color": "black"},
            )  # fmt: skip
    days, loss = zip(*PAPER_LOSS, strict=True)
    figure.add_scatter(
        x=[day * PF_DAY for day in days], y=loss, mode="lines+markers", name="the paper's",
        line={"color": _PAPER}, row=1, col=2,
    )  # fmt: skip
    figure.update_xaxes(
        type="log", dtick=1, exponentformat="power", title="operations (forward and backward)"
    )
    figure.update_yaxes(type="log", title="loss, nats", dtick="D2", col=2)
    figure.update_yaxes(title="held-out loss, nats", col=1)
    figure.update_layout(legend_tracegroupgap=0)
    return figure


def _batches(fit: Mapping[str, Any]) -> go.Figure:
    """Draw held-out loss, and mean reciprocal rank beside the paper's, by users a batch."""
    figure = make_subplots(cols=2, horizontal_spacing=0.12)
    tried = sorted({v["batch_size"] for s in fit["batches"].values() for v in s["values"]})
    colours = _scale(len(fit["batches"]))
    for (name, size), colour in zip(by_size(fit["batches"]), colours, strict=True):
        for column, measure in enumerate(("loss", "relative_mrr"), 1):
            figure.add_scatter(
                x=[v["batch_size"] for v in size["values"]],
                y=[v[measure] for v in size["values"]],
                mode="lines+markers",
                line={"color": colour},
                name=f"{name}, {size['parameters_beside_tokens']:,}",
                legendgroup=name,
                showlegend=column == 1,
                row=1,
                col=column,
            )
    for parameters, (small, large) in PAPER_BATCHES.items():
        figure.add_scatter(
            x=[32, 512], y=[small, large], mode="lines", name=f"the paper's, {parameters / 1e6:g}M",
            line={"color": _PAPER, "dash": "dot"}, row=1, col=2,
        )  # fmt: skip
    figure.update_xaxes(
        type="log", title="users a batch", tickvals=tried, ticktext=[f"{n:,}" for n in tried]
    )
    figure.update_yaxes(title="held-out loss, nats", col=1)
    figure.update_yaxes(title="mean reciprocal rank, relative to the best", col=2)
    figure.update_layout(legend_tracegroupgap=0)
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
