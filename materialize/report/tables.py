"""Tables of figures with intervals and plots beside them, for evaluation and studies alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from materialize.report import theme
from materialize.report.theme import GREY, INK, PALETTE, Figure, axis, label, rows_axis
from materialize.report.words import number

__all__ = [
    "SIGNIFICANT",
    "Cell",
    "MetricView",
    "Row",
    "Series",
    "by_group",
    "by_metric",
    "colours",
    "distance",
    "dots_figure",
    "shown_groups",
    "told_against",
    "verdict",
]

Result = Mapping[str, Any]

SIGNIFICANT = 0.05
"""Of the p-value after Holm's correction."""

_PLOTTED_GROUPS = ("all", "established", "cold", "newcomer")
_NEWCOMERS = ("newcomer_onboarded", "newcomer_skipped")
"""Take the place of all newcomers where it is known who did the onboarding."""

_SPREAD = 0.62
"""Share of a row's height over which its dots are spread."""


@dataclass(frozen=True)
class Cell:
    """One figure of a table.

    Attributes
    ----------
    value : float or None
        As in the JSON; None: undefined.
    text, interval, note : str
        What is shown; "" leaves a line out.
    verdict : str
        ``better``, ``worse``, ``open`` or "": style of the note.
    tooltip : str
    """

    value: float | None
    text: str
    interval: str = ""
    note: str = ""
    verdict: str = ""
    tooltip: str = ""

    @classmethod
    def of(cls, result: Mapping[str, Any], **more: str) -> Cell:
        """Return the cell of a result with ``value``, ``low`` and ``high``."""
        interval = (
            ""
            if result["low"] is None or result["high"] is None
            else f"{number(result['low'])} to {number(result['high'])}"
        )
        return cls(result["value"], number(result["value"]), interval, **more)


@dataclass(frozen=True)
class Row:
    """One row of a table: a model or a variant. ``cells`` has None where it was not measured."""

    title: str
    kind: str
    cells: Sequence[Cell | None]


@dataclass(frozen=True)
class MetricView:
    """One metric of a task: a table, and a plot beside it.

    Attributes
    ----------
    key : str
        Unique on the page.
    title : str
    columns : sequence of (str, str)
        Title and what is added in small, of the table's columns without the first.
    rows : sequence of Row
    figure : Figure or None
    caption : str
        Of the figure.
    """

    key: str
    title: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[Row]
    figure: Figure | None
    caption: str


@dataclass(frozen=True)
class Series:
    """Dots of one colour in a plot of rows: by row value, low and high, or None."""

    name: str
    colour: str
    points: Sequence[Mapping[str, float | None] | None]


def verdict(against: Mapping[str, Any], higher_is_better: bool) -> str:
    """Return whether the first of two compared is ``better`` or ``worse``, or ``open``.

    Parameters
    ----------
    against : mapping
        ``materialize.evaluate.statistics.Comparison.to_dict()``.
    higher_is_better : bool
    """
    p, value = against["p_holm"], against["difference"]["value"]
    if p is None or value is None or p >= SIGNIFICANT or value == 0.0:
        return "open"
    return "better" if (value > 0) == higher_is_better else "worse"


def dots_figure(
    names: Sequence[str],
    series: Sequence[Series],
    title: str,
    *,
    marks: Mapping[str, tuple[float, str]] | None = None,
    zero: bool = True,
    percent: bool = False,
) -> Figure:
    """Return rows of dots with intervals, the first row on top.

    Parameters
    ----------
    names : sequence of str
        Of the rows.
    series : sequence of Series
        Drawn side by side within a row.
    title : str
        Of the axis.
    marks : mapping of str to (float, str), optional
        Text -> place and colour of a vertical line, told in the legend.
    zero : bool
        Draw a line at zero.
    percent : bool
        Figures are shares: 0.1 is shown as 10%.
    """
    n = len(names)
    traces: list[Figure] = []
    for k, one in enumerate(series):
        there = [(row, p) for row, p in enumerate(one.points) if p and p["value"] is not None]
        offset = 0.0 if len(series) == 1 else _SPREAD * (k / (len(series) - 1) - 0.5)
        show = ".1%" if percent else ".4~g"
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": one.name,
                "x": [p["value"] for _, p in there],
                "y": [n - 1 - row - offset for row, _ in there],
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [distance(p["high"], p["value"]) for _, p in there],
                    "arrayminus": [distance(p["value"], p["low"]) for _, p in there],
                    "thickness": 1.5,
                    "width": 0,
                },
                "customdata": [[label(names[row]), p["low"], p["high"]] for row, p in there],
                "hovertemplate": f"%{{customdata[0]}}: %{{x:{show}}} "
                f"[%{{customdata[1]:{show}}}, %{{customdata[2]:{show}}}]",
                "marker": {"color": one.colour, "size": 8},
            }
        )
    traces += [
        {
            "type": "scatter",
            "mode": "lines",
            "name": text,
            "x": [x, x],
            "y": [-0.5, n - 0.5],
            "line": {"color": colour, "width": 1.5, "dash": "dash"},
            "hoverinfo": "skip",
        }
        for text, (x, colour) in (marks or {}).items()
    ]
    shapes = [
        {
            "type": "line",
            "x0": 0,
            "x1": 0,
            "y0": -0.5,
            "y1": n - 0.5,
            "line": {"color": INK, "width": 1},
            "layer": "below",
        }
    ]
    layout = {
        "xaxis": axis(title, **({"tickformat": "+.0%"} if percent else {})),
        "yaxis": {
            **rows_axis([label(name) for name in reversed(names)]),
            "range": [-0.6, n - 0.4],
        },
        "shapes": shapes if zero else [],
    }
    height = 120 + n * max(26, 13 * len(series))
    return theme.figure(traces, layout, height=height)


def told_against(against: Mapping[str, Any], what: str) -> str:
    """Return a comparison in words; ``what`` is subtracted from what."""
    difference, p = against["difference"], against["p_holm"]
    value, low, high = (number(difference[k], sign=True) for k in ("value", "low", "high"))
    corrected = "undefined" if p is None else f"{p:.3f}"
    return f"{what}: {value}, 95% {low} to {high}, p {corrected} after Holm's correction"


def by_metric(results: Sequence[Result]) -> Iterator[tuple[str, list[Result]]]:
    """Yield each metric with its results, in their order."""
    for metric in dict.fromkeys(r["metric"] for r in results):
        yield metric, [r for r in results if r["metric"] == metric]


def by_group(results: Sequence[Result], column: str) -> dict[str, dict[str, Result]]:
    """Return results by group, then by what stands in ``column``."""
    found: dict[str, dict[str, Result]] = {}
    for result in results:
        found.setdefault(result["group"], {})[result[column]] = result
    return found


def shown_groups(groups: Mapping[str, Any]) -> list[str]:
    """Return the groups of users that a plot has room for."""
    split = [group for group in _NEWCOMERS if group in groups]
    wanted = [*_PLOTTED_GROUPS[:-1], *split] if split else _PLOTTED_GROUPS
    return [group for group in wanted if group in groups]


def colours(n: int) -> list[str]:
    """Return ``n`` colours, grey beyond the palette."""
    return [*PALETTE[:n], *[GREY] * (n - len(PALETTE))]


def distance(upper: float | None, lower: float | None) -> float | None:
    """Return the length of an interval's arm, None where an end is undefined."""
    return None if upper is None or lower is None else upper - lower
