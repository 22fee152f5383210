"""The way from data to consumers as a picture: parts that spaces share are drawn once."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from encoder.manifest import NETWORKS
from materialize.space_record import bridge_figures

__all__ = ["COLUMNS", "MOST_SPACES", "Arc", "Edge", "Node", "Picture", "draw_lineage"]

MOST_SPACES = 6
"""Spaces of one picture that can be read at a glance."""
MOST_ARCS = 8

COLUMNS = (
    "data",
    "modality encoders",
    "preprocessing",
    "encoder",
    "space",
    "runs",
    "consumers",
)
_SPACE = COLUMNS.index("space")

_WIDTH, _GAP, _SPACING = 126.0, 21.0, 14.0
_PADDING, _LINE, _HEADER = 8.0, 15.0, 26.0
_ARC_STEP = 20.0
_MOST_NAMES = 5
_SHORT, _SHORT_BOLD = 6.4, 7.6
"""Average width of a small letter (pixels), of lines and of titles; what is wider is clipped."""

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Node:
    """A box.

    Attributes
    ----------
    key : str
        Unique in the picture.
    column : int
    title : str
    lines : tuple of str
        Below the title; both are cut to the box's width.
    tooltip : str
        The same, uncut.
    state : str
        Class of its style: a space's state, ``part`` or ``list``.
    chosen : bool
        Belongs to the space that is reported on.
    x, y, width, height : float
        Pixels.
    """

    key: str
    column: int
    title: str
    lines: tuple[str, ...]
    tooltip: str
    state: str
    chosen: bool
    x: float = 0.0
    y: float = 0.0
    width: float = _WIDTH

    @property
    def height(self) -> float:
        """Height of title and lines with their margin."""
        return 2 * _PADDING + _LINE * (1 + len(self.lines))

    @property
    def middle(self) -> float:
        """Vertical centre."""
        return self.y + self.height / 2

    @property
    def rows(self) -> Iterator[tuple[str, float]]:
        """Yield each line's text and baseline, the title first."""
        for k, text in enumerate((self.title, *self.lines)):
            yield text, self.y + _PADDING + _LINE * k + 11


@dataclass(frozen=True)
class Edge:
    """A line from one box to another, as an SVG path."""

    path: str
    chosen: bool


@dataclass(frozen=True)
class Arc:
    """A bridge between two spaces: an SVG path, and where its number stands."""

    number: int
    path: str
    x: float
    y: float
    state: str


@dataclass(frozen=True)
class Picture:
    """Boxes and lines of one picture, and the tables beside it.

    Attributes
    ----------
    width, height : float
        Pixels.
    titles : tuple of (text, x)
        Of the columns.
    nodes, edges, arcs : tuple
    bridges : tuple of mapping
        Every bridge between the spaces that are drawn, with the texts of its figures (``told``);
        those with a ``number`` have an arc.
    parts : tuple of mapping
        ``part``, ``version`` and ``settings`` of the space that is reported on.
    left_out : int
        Spaces that are not drawn.
    """

    width: float
    height: float
    titles: tuple[tuple[str, float], ...]
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    arcs: tuple[Arc, ...]
    bridges: tuple[Mapping[str, Any], ...]
    parts: tuple[Mapping[str, Any], ...]
    left_out: int


def draw_lineage(records: Sequence[Record], chosen: int, *, left_out: int = 0) -> Picture:
    """Return the picture of some spaces, the newest at the top.

    Parameters
    ----------
    records : sequence of mapping
        Of `materialize.space_record.space_record`; about `MOST_SPACES` are readable.
    chosen : int
        Number of the space that the report is about; it is among the records.
    left_out : int
        Spaces that there are besides.
    """
    drawn = sorted(records, key=lambda record: -int(record["space"]))
    nodes: dict[str, Node] = {}
    edges: dict[tuple[str, str], bool] = {}
    owners: dict[str, list[int]] = {}
    for row, record in enumerate(drawn):
        here = record["space"] == chosen
        levels = list(_levels(record, chosen=here))
        for before, after in pairwise(level for level in levels if level):
            for a in before:
                for b in after:
                    edges[a.key, b.key] = edges.get((a.key, b.key), False) or here
        for node in (node for level in levels for node in level):
            if node.key not in nodes or here:
                nodes[node.key] = node
            owners.setdefault(node.key, []).append(row)
    bridges = _bridges(drawn)
    placed = _placed(nodes, owners, len(drawn), sum("number" in b for b in bridges))
    last = max(placed.values(), key=lambda node: node.x + node.width)
    return Picture(
        width=last.x + last.width + 2,
        height=max(node.y + node.height for node in placed.values()) + 4,
        titles=tuple((name, _left(k, bridges)) for k, name in enumerate(COLUMNS)),
        nodes=tuple(placed.values()),
        edges=tuple(_edge(placed[a], placed[b], here) for (a, b), here in edges.items()),
        arcs=tuple(_arc(placed, bridge) for bridge in bridges if "number" in bridge),
        bridges=tuple(bridges),
        parts=tuple(_parts(next(r for r in drawn if r["space"] == chosen))),
        left_out=left_out,
    )


def _levels(record: Record, *, chosen: bool) -> Iterator[list[Node]]:
    """Yield the boxes of one space, column by column; parts are keyed by content."""
    came_from = record["chain"]
    by_kind: dict[str, list[Mapping[str, Any]]] = {}
    for part in came_from["parts"] if came_from else ():
        by_kind.setdefault(part["kind"], []).append(part)

    def box(column: int, key: str, title: str, lines: Sequence[str], state: str = "part") -> Node:
        told = "\n".join((title, *lines))
        cut = tuple(_cut(line) for line in lines)
        return Node(f"{column} {key}", column, _cut(title, _SHORT_BOLD), cut, told, state, chosen)

    if came_from:
        yield [
            box(
                0,
                repr(sorted(data.items(), key=lambda item: item[0])),
                data["name"] or "data",
                [f"before {data['settings']['cutoff'][:10]}", _hash(data)],
            )
            for data in by_kind["data"]
        ]
        yield [
            box(
                1,
                f"{part['name']} {part['version']}",
                part["name"],
                [
                    _hash(part),
                    f"{part['settings'].get('dim')}-d, {part['settings'].get('clusters')} clusters",
                ],
            )
            for part in by_kind["modality encoder"]
        ]
        (schema,), (state,) = by_kind["input schema"], by_kind["preprocessing"]
        yield [
            box(
                2,
                f"{schema['version']} {state['version']}",
                "preprocessing",
                [_hash(state), f"{len(schema['settings'])} blocks"],
            )
        ]
        (model,) = (part for kind in NETWORKS.values() for part in by_kind.get(kind, ()))
        loss = came_from["figures"].get("validation_loss")
        told = [] if loss is None else [f"loss {loss:.4g}"]
        width = model["settings"].get("model.embedding_dim")
        yield [
            box(3, model["version"], model["kind"], [_hash(model), f"{width} dimensions", *told])
        ]
    number = record["space"]
    marks = ["default"] if record["default"] else []
    words = ", ".join([record["state"], *marks])
    yield [
        box(4, str(number), f"space {number}", [words, record["encoder_version"]], record["state"])
    ]
    runs = record["runs"]
    if runs:
        last = max(runs, key=lambda run: str(run["started_at"]))
        rows = f"{last['counts']['rows']:,} rows" if "rows" in last["counts"] else last["state"]
        many = f"{len(runs)} run" + ("s" if len(runs) > 1 else "")
        lines = [f"last {last['started_at'][:10]}", rows, *_drift(record)]
        yield [box(5, str(number), many, lines, "list")]
    consumers = [_consumer(record, consumer) for consumer in record["consumers"]]
    if consumers:
        more = len(consumers) - _MOST_NAMES
        names = [*consumers[:_MOST_NAMES], *([f"and {more} more"] if more > 0 else [])]
        many = f"{len(consumers)} consumer" + ("s" if len(consumers) > 1 else "")
        node = box(6, str(number), many, names, "list")
        if more > 0:
            node = replace(node, tooltip="\n".join((many, *consumers)))
        yield [node]


def _drift(record: Record) -> Iterator[str]:
    """Yield how far the newest run that was compared lies from the one before it."""
    measured = [drift for drift in record["drift"] if "not_measured" not in drift]
    if measured:
        yield f"drift AUC {measured[-1]['two_sample_auc']['value']:.3f}"


def _consumer(record: Record, consumer: Mapping[str, Any]) -> str:
    if not consumer["bridge"]:
        return str(consumer["name"])
    sources = {bridge["version"]: bridge["source"] for bridge in record["bridges"]}
    return f"from {sources.get(consumer['bridge'], '?')}: {consumer['name']}"


def _hash(part: Mapping[str, Any]) -> str:
    return part["version"] or "no fingerprint"


def _cut(text: str, short: float = _SHORT) -> str:
    """Return the text, shortened to a box's width; ``short``: average width of a small letter."""
    room, used = _WIDTH - 2 * _PADDING, 0.0
    for k, letter in enumerate(text):
        wide = unicodedata.east_asian_width(letter) in "WF" or unicodedata.category(letter) == "So"
        used += short * (2 if wide else 1.3 if letter.isupper() else 1)
        if used > room:
            return text[: max(1, k - 1)].rstrip() + "…"
    return text


def _placed(
    nodes: Mapping[str, Node], owners: Mapping[str, Sequence[int]], rows: int, arcs: int
) -> dict[str, Node]:
    """Return the boxes with their places: near the middle of their spaces' rows, none on another.

    The rows are as far apart as the fullest column needs.
    """
    columns: dict[int, list[Node]] = {}
    for node in nodes.values():
        columns.setdefault(node.column, []).append(node)
    tallest = max(sum(n.height + _SPACING for n in column) for column in columns.values())
    step = tallest / rows
    placed: dict[str, Node] = {}
    for column in columns.values():
        wanted = {
            n.key: step * (sum(owners[n.key]) / len(owners[n.key]) + 0.5) - n.height / 2
            for n in column
        }
        ordered = sorted(column, key=lambda n: (wanted[n.key], n.key))
        lowest = 0.0
        tops = []
        for node in ordered:
            lowest = max(wanted[node.key], lowest)
            tops.append(lowest)
            lowest += node.height + _SPACING
        # What ran over the bottom moves up, the last first; all of it fits.
        limit = tallest
        for k in range(len(ordered) - 1, -1, -1):
            tops[k] = min(tops[k], limit - ordered[k].height - _SPACING)
            limit = tops[k]
        for node, top in zip(ordered, tops, strict=True):
            placed[node.key] = replace(node, x=_x(node.column, arcs), y=max(0.0, top) + _HEADER)
    return placed


def _x(column: int, arcs: int) -> float:
    # Arcs stand to the right of the spaces.
    room = _ARC_STEP * (arcs + 0.5) if column > _SPACE and arcs else 0.0
    return 1 + column * (_WIDTH + _GAP) + room


def _left(column: int, bridges: Sequence[Mapping[str, Any]]) -> float:
    return _x(column, sum("number" in bridge for bridge in bridges))


def _edge(a: Node, b: Node, chosen: bool) -> Edge:
    x0, x1 = a.x + a.width, b.x
    bend = (x1 - x0) / 2
    path = (
        f"M{x0:.1f} {a.middle:.1f} C{x0 + bend:.1f} {a.middle:.1f} "
        f"{x1 - bend:.1f} {b.middle:.1f} {x1:.1f} {b.middle:.1f}"
    )
    return Edge(path, chosen)


def _bridges(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return the bridges between the spaces: retired ones last, else by how far they reach."""
    numbers = {record["space"] for record in records}
    found = {
        bridge["version"]: bridge
        for record in records
        for bridge in record["bridges"]
        if {bridge["source"], bridge["target"]} <= numbers
    }
    ordered = sorted(
        found.values(),
        key=lambda b: (b["state"] == "retired", abs(b["source"] - b["target"]), -b["source"]),
    )
    shown: list[dict[str, Any]] = [
        {name: bridge[name] for name in ("version", "source", "target", "state")}
        | {"told": [text for _, text in bridge_figures(bridge["figures"])]}
        for bridge in ordered
    ]
    drawn = [bridge for bridge in shown if bridge["state"] != "retired"][:MOST_ARCS]
    for number, bridge in enumerate(drawn, 1):
        bridge["number"] = number
    return shown


def _arc(placed: Mapping[str, Node], bridge: Mapping[str, Any]) -> Arc:
    a, b = (placed[f"{_SPACE} {bridge[end]}"] for end in ("source", "target"))
    out = _ARC_STEP * (bridge["number"] + 0.3)
    x = a.x + a.width
    # A cubic curve's middle lies three quarters of the way to its control points.
    bend = x + out / 0.75
    # Arcs end a little off the middle, where the line to the runs begins.
    off = 8.0 if b.middle > a.middle else -8.0
    path = (
        f"M{x:.1f} {a.middle + off:.1f} C{bend:.1f} {a.middle + off:.1f} "
        f"{bend:.1f} {b.middle - off:.1f} {x + 3:.1f} {b.middle - off:.1f}"
    )
    return Arc(bridge["number"], path, x + out, (a.middle + b.middle) / 2, bridge["state"])


def _parts(record: Record) -> Iterator[dict[str, str]]:
    for part in record["chain"]["parts"] if record["chain"] else ():
        settings = ", ".join(f"{k} {v}" for k, v in part["settings"].items() if v is not None)
        label = f"{part['kind']} {part['name']}".rstrip()
        yield {"part": label, "version": part["version"] or "-", "settings": settings}
