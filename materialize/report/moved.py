"""How far embeddings lie apart: between a space and others, and between the runs of one space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from materialize.report.tables import Cell, Series, dots_figure
from materialize.report.theme import GREY, PALETTE, Figure

__all__ = ["DriftView", "drift_view"]

Interval = Mapping[str, float | None]


@dataclass(frozen=True)
class DriftView:
    """Distances to other spaces and between runs.

    Attributes
    ----------
    between_spaces : Figure or None
        A row for each bridge and figure, before and after the bridge's map.
    old_heads : sequence of (title, Cell or None, Cell)
        Macro AUC that a head of the target space loses on the other space's vectors: as they are
        (None where the widths differ), and through the bridge.
    between_runs : Figure or None
        A row for each run: cosine of a user's two vectors, and two-sample AUC.
    not_measured : sequence of str
        Runs without figures, and why.
    """

    between_spaces: Figure | None
    old_heads: Sequence[tuple[str, Cell | None, Cell]]
    between_runs: Figure | None
    not_measured: Sequence[str]


def drift_view(record: Mapping[str, Any]) -> DriftView:
    """Return what is known of a space's drift.

    Parameters
    ----------
    record : mapping
        ``materialize.space_record.space_record``.
    """
    bridges = [bridge for bridge in record["bridges"] if bridge["state"] != "retired"]
    runs = [run for run in record["drift"] if "not_measured" not in run]
    return DriftView(
        _spaces_figure(bridges),
        [row for row in map(_old_head, bridges) if row is not None],
        _runs_figure(runs),
        [
            f"{run['run_id']}: {run['not_measured']}"
            for run in record["drift"]
            if "not_measured" in run
        ],
    )


def _spaces_figure(bridges: Sequence[Mapping[str, Any]]) -> Figure | None:
    names: list[str] = []
    before: list[Interval | None] = []
    after: list[Interval | None] = []
    for bridge in bridges:
        for field, what in (("cosine", "cosine"), ("overlap", "neighbours kept")):
            figures = bridge["figures"].get(field)
            if figures is not None:
                names.append(f"{_title(bridge)}: {what}")
                before.append(figures["before"])
                after.append(figures["after"])
    if not names:
        return None
    series = (
        Series("as they are", GREY, before),
        Series("through the bridge", PALETTE[0], after),
    )
    return dots_figure(names, series, "1: the same", zero=False)


def _old_head(bridge: Mapping[str, Any]) -> tuple[str, Cell | None, Cell] | None:
    probe = bridge["figures"].get("probe")
    if probe is None:
        return None
    loss = probe["loss"]
    raw = Cell.of(loss["unbridged"]) if "unbridged" in loss else None
    return _title(bridge), raw, Cell.of(loss["bridged"])


def _runs_figure(runs: Sequence[Mapping[str, Any]]) -> Figure | None:
    if not runs:
        return None
    names = [f"{run['run_id'][:10]}, {run['as_of_gap_days']['median']:.1f} days on" for run in runs]
    series = (
        Series("cosine of a user's two vectors", PALETTE[0], [r["cosine"]["mean"] for r in runs]),
        Series("two-sample AUC (0.5: cannot be told apart)", PALETTE[1],
               [r["two_sample_auc"] for r in runs]),
    )  # fmt: skip
    return dots_figure(names, series, "between two runs", zero=False)


def _title(bridge: Mapping[str, Any]) -> str:
    return f"space {bridge['source']} read as {bridge['target']}"
