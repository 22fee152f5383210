"""The picture from data to consumers: complete, shared parts once, no box on another."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from materialize.report.lineage import MOST_SPACES, Node, Picture, draw_lineage
from tests.unit.materialize.lineage_records import bridge, record

NAMES = st.text(min_size=1, max_size=60)


def column(picture: Picture, number: int) -> list[Node]:
    return [node for node in picture.nodes if node.column == number]


def test_every_station_is_a_box_and_they_are_joined() -> None:
    picture = draw_lineage([record(1, consumers=["home"])], 1)
    assert [len(column(picture, k)) for k in range(7)] == [1] * 7
    assert len(picture.edges) == 6
    (space,) = column(picture, 4)
    assert (space.title, space.lines[0], space.state) == ("space 1", "ready", "ready")
    assert [part["part"] for part in picture.parts][:2] == [
        "data tiny",
        "modality encoder collaborative",
    ]


def test_what_spaces_share_is_drawn_once() -> None:
    other = {"collaborative": "9" * 12}
    picture = draw_lineage([record(1), record(2), record(3, modalities=other)], 3)
    assert [len(column(picture, k)) for k in range(5)] == [1, 2, 1, 3, 3]
    assert [node.title for node in column(picture, 4)] == ["space 3", "space 2", "space 1"]


def test_the_chosen_spaces_way_is_marked() -> None:
    picture = draw_lineage([record(1), record(2)], 1)
    assert sum(edge.chosen for edge in picture.edges) == 5
    assert [node.title for node in column(picture, 4) if node.chosen] == ["space 1"]
    assert all(node.chosen for node in column(picture, 0)), "shared with the chosen space"


def test_a_space_whose_artifact_is_lost_stands_alone() -> None:
    lost = record(2) | {"chain": None}
    picture = draw_lineage([record(1), lost], 2)
    assert [node.title for node in column(picture, 4)] == ["space 2", "space 1"]
    assert picture.parts == ()


def test_long_lists_are_cut_and_told_in_the_tooltip() -> None:
    names = [f"consumer_{k}" for k in range(9)]
    (box,) = column(draw_lineage([record(1, consumers=names)], 1), 6)
    assert box.lines == (*names[:5], "and 4 more")
    assert box.tooltip.splitlines()[1:] == names


def test_a_consumer_that_reads_through_a_bridge_says_from_where() -> None:
    through = bridge(2, 1)
    old = record(1, bridges=[through])
    old["consumers"] = [{"name": "home", "bridge": through["version"]}]
    (box,) = column(draw_lineage([old, record(2, bridges=[through])], 2), 6)
    assert box.lines == ("from 2: home",)


def test_bridges_are_numbered_arcs_and_retired_ones_rows_alone() -> None:
    far, near, gone = bridge(3, 1), bridge(3, 2, "measured"), bridge(2, 1, "retired")
    records = [
        record(1, bridges=[far, gone]), record(2, bridges=[near, gone]),
        record(3, bridges=[far, near]),
    ]  # fmt: skip
    picture = draw_lineage(records, 3)
    assert [(b["source"], b["target"], b.get("number")) for b in picture.bridges] == [
        (3, 2, 1),
        (3, 1, 2),
        (2, 1, None),
    ]
    assert [arc.state for arc in picture.arcs] == ["measured", "serving"]
    assert picture.arcs[0].x < picture.arcs[1].x, "the longer one stands farther out"
    assert picture.bridges[0]["told"] == ["-", "0.930", "-", "-", "-"]


def test_a_bridge_to_a_space_that_is_not_drawn_is_left_out() -> None:
    picture = draw_lineage([record(2, bridges=[bridge(2, 1)])], 2, left_out=1)
    assert (picture.bridges, picture.arcs, picture.left_out) == ((), (), 1)


@st.composite
def histories(draw: st.DrawFn) -> list[dict[str, Any]]:
    hashes = st.sampled_from(["0" * 12, "1" * 12, "2" * 12])
    names = ["collaborative", draw(NAMES.filter(lambda name: name != "collaborative"))]
    records = []
    numbers = range(1, draw(st.integers(1, MOST_SPACES)) + 1)
    pairs = draw(st.lists(st.sampled_from(list(itertools.product(numbers, numbers))), unique=True))
    arcs = [
        bridge(a, b, draw(st.sampled_from(["measured", "serving", "retired"])))
        for a, b in pairs
        if a != b
    ]
    for number in numbers:
        made = record(
            number,
            modalities={name: draw(hashes) for name in names[: draw(st.integers(1, 2))]},
            preprocessing=draw(hashes),
            data=draw(st.sampled_from(["tiny", "large"])),
            consumers=draw(st.lists(NAMES, max_size=8)),
            runs=draw(st.integers(0, 3)),
            state=draw(st.sampled_from(["trained", "ready", "retiring"])),
            bridges=[one for one in arcs if number in (one["source"], one["target"])],
        )
        records.append(made)
    return records


@given(histories())
def test_no_box_lies_on_another_and_all_is_inside_the_picture(
    records: list[dict[str, Any]],
) -> None:
    picture = draw_lineage(records, records[-1]["space"])
    assert len({node.key for node in picture.nodes}) == len(picture.nodes)
    for node in picture.nodes:
        assert 0 <= node.x <= node.x + node.width <= picture.width
        assert 26 <= node.y <= node.y + node.height <= picture.height
        assert len(node.title) <= 18
    for a, b in itertools.combinations(picture.nodes, 2):
        beside = a.x + a.width <= b.x or b.x + b.width <= a.x
        apart = a.y + a.height < b.y or b.y + b.height < a.y
        assert beside or apart, (a.key, b.key)
    runs = [node.x for node in picture.nodes if node.column > 4]
    assert all(arc.x + 8 < min(runs) for arc in picture.arcs if runs)
    for a, b in itertools.combinations(picture.arcs, 2):
        assert abs(a.x - b.x) >= 16, "two numbers on each other"


@given(histories())
def test_every_line_ends_at_boxes(records: list[dict[str, Any]]) -> None:
    picture = draw_lineage(records, 1)
    right = {(round(n.x + n.width, 1), round(n.middle, 1)) for n in picture.nodes}
    left = {(round(n.x, 1), round(n.middle, 1)) for n in picture.nodes}
    for edge in picture.edges:
        numbers = [float(text) for text in re.findall(r"[\d.]+", edge.path)]
        assert tuple(numbers[:2]) in right
        assert tuple(numbers[-2:]) in left


@pytest.mark.parametrize("count", [1, 3, MOST_SPACES])
def test_the_picture_of_a_few_spaces_is_as_wide_as_the_page(count: int) -> None:
    assert draw_lineage([record(k + 1) for k in range(count)], 1).width < 1082


def test_the_runs_tell_the_newest_drift_that_was_measured() -> None:
    drifts = [{"two_sample_auc": {"value": 0.51}}, {"two_sample_auc": {"value": 0.625}}]
    measured = record(1, drift=[*drifts, {"against": "e" * 16, "not_measured": "files are gone"}])
    (box,) = column(draw_lineage([measured], 1), 5)
    assert box.lines[-1] == "drift AUC 0.625"
