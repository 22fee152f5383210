"""Colours and frame of the page's plots; what depends on light or dark is a style variable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

__all__ = [
    "GREY",
    "INK",
    "PALETTE",
    "Figure",
    "axis",
    "figure",
    "label",
    "rows_axis",
    "scale",
]

Figure = dict[str, Any]

PALETTE = (
    "#3d78b3", "#d9883b", "#4f9a6b", "#bf5b55", "#8a78b8",
    "#c4a537", "#45a0a6", "#b0709a", "#85934a", "#9a7d69",
)  # fmt: skip
"""Distinct on white and on black and, for the first five, with common kinds of colour blindness."""

# The page's script puts the style's values in place of these, again when the scheme changes.
INK = "var(--ink)"
GREY = "var(--grey)"

_LONGEST_LABEL = 40


def scale(n: int) -> list[str]:
    """Return ``n`` colours from low to high, none of them close to white or black."""
    # Here and not above: importing plotly costs what `palate --help` should not wait for.
    from plotly.colors import sample_colorscale

    if n == 1:
        return [PALETTE[0]]
    return [
        str(c) for c in sample_colorscale("Viridis", [0.1 + 0.8 * k / (n - 1) for k in range(n)])
    ]


def label(text: str) -> str:
    """Return text for a plot, cut to 40 characters.

    Plotly reads a subset of HTML in labels: a tag called <b> must be shown, not obeyed.
    """
    short = text if len(text) <= _LONGEST_LABEL else text[: _LONGEST_LABEL - 1] + "…"
    return escape(short, quote=False)


def axis(title: str | None, **more: Any) -> dict[str, Any]:
    """Return an axis with the page's grid."""
    found = {"gridcolor": "var(--grid)", "linecolor": "var(--line)", "zeroline": False, **more}
    named = {"text": title, "standoff": 12, "font": {"size": 13}}
    return found if title is None else {**found, "title": named}


def rows_axis(names: Sequence[str]) -> dict[str, Any]:
    """Return an axis with a named row at 0, 1, 2, ...; names are shown as they are."""
    # By position: a category axis would merge two long names that are cut to the same text.
    ticks = {"tickmode": "array", "tickvals": list(range(len(names))), "ticktext": list(names)}
    return {**axis(None), **ticks, "automargin": True}


def figure(traces: list[Figure], layout: Mapping[str, Any], *, height: int) -> Figure:
    """Return a Plotly figure in the page's frame."""
    return {
        "data": traces,
        "layout": {
            "height": height,
            "margin": {"l": 56, "r": 16, "t": 40, "b": 52},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": "system-ui, sans-serif", "size": 13, "color": "var(--soft)"},
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
            "hoverlabel": {"font": {"family": "system-ui, sans-serif"}},
            **layout,
        },
    }
