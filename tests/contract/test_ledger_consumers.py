"""How consumers move and bridges serve them: what is refused, with which words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from encoder.errors import LedgerConflict
from materialize.ledger import Ledger, Pin
from tests.contract.ledger_steps import BRIDGE, serve, story

# --- consumers


def test_a_pin_says_what_a_consumer_reads(three: Ledger) -> None:
    assert three.pin("home") == Pin("home", 1, f"{1:012x}", "user_embedding_s1", 1)
    three.move_consumer("home", 2, expected_revision=1, who="a", why="")
    assert three.pin("home") == Pin("home", 2, f"{2:012x}", "user_embedding_s2", 2)
    serve(three, source=3, target=2)
    three.move_consumer("home", 2, bridge=BRIDGE, expected_revision=2, who="a", why="")
    assert three.pin("home") == Pin("home", 2, BRIDGE, "user_embedding_s2_from_s3", 3)


def test_unknown_consumers_are_told_the_known_ones(three: Ledger) -> None:
    three.add_consumer("ads", 2, who="a", why="")
    for call in (three.pin, three.consumer):
        with pytest.raises(LedgerConflict, match=r"Unknown consumer 'hom'\. Known: 'ads', 'home'"):
            call("hom")
    three.remove_consumer("ads", who="bob", why="switched off")
    with pytest.raises(LedgerConflict, match=r"Known: 'home' \(by bob on .*: switched off\)"):
        three.pin("ads")


def test_consumers_move_one_at_a_time_and_are_rolled_back_move_by_move(three: Ledger) -> None:
    three.add_consumer("ads", 1, who="a", why="")
    three.move_consumer("home", 2, expected_revision=1, who="alice", why="retrained")
    three.move_consumer("home", 3, expected_revision=2, who="alice", why="retrained")
    assert three.pin("ads").space == 1
    assert three.roll_back_consumer("home", expected_revision=3, who="b", why="").space == 2
    back = three.roll_back_consumer("home", expected_revision=4, who="b", why="")
    assert (back.space, back.revision) == (1, 5)
    assert back.moved_at > back.created_at
    with pytest.raises(LedgerConflict, match="no earlier pin to roll back to"):
        three.roll_back_consumer("home", expected_revision=5, who="b", why="")
    assert [(b, a) for b, a, _ in story(three, "consumer", "home")] == [
        (None, "1"), ("1", "2"), ("2", "3"), ("3", "2"), ("2", "1"),
    ]  # fmt: skip
    assert [c.name for c in three.consumers()] == ["ads", "home"]
    assert three.consumers(space=3) == []


def test_a_move_that_somebody_else_was_faster_with_is_refused(three: Ledger) -> None:
    three.move_consumer("home", 2, expected_revision=1, who="alice", why="retrained")
    stale = (
        r"'home' was moved by somebody else: it is at revision 2 and reads space 2 "
        r"\(by alice on .*: retrained\); revision 1 was expected"
    )
    with pytest.raises(LedgerConflict, match=stale):
        three.move_consumer("home", 3, expected_revision=1, who="bob", why="")
    with pytest.raises(LedgerConflict, match=stale):
        three.roll_back_consumer("home", expected_revision=1, who="bob", why="")


def test_a_move_to_where_the_consumer_is_changes_nothing(three: Ledger) -> None:
    before = three.transitions()
    assert three.move_consumer("home", 1, expected_revision=1, who="a", why="").revision == 1
    assert three.add_consumer("home", 1, who="a", why="").revision == 1
    assert three.transitions() == before
    with pytest.raises(LedgerConflict, match="'home' is there already and reads space 1 "):
        three.add_consumer("home", 2, who="a", why="")


def test_a_space_that_is_not_ready_takes_consumers_by_force_only(three: Ledger) -> None:
    three.register("e" * 12, "/a", {})
    move: dict[str, Any] = {"expected_revision": 1, "who": "a"}
    with pytest.raises(LedgerConflict, match=r"space 4: it is trained .*palate materialize"):
        three.move_consumer("home", 4, why="", **move)
    with pytest.raises(LedgerConflict, match="space 4: it is trained"):
        three.add_consumer("ads", 4, who="a", why="")
    with pytest.raises(ValueError, match="`why` is empty"):
        three.move_consumer("home", 4, why=" ", forced=True, **move)
    assert three.consumer("home").revision == 1
    assert three.move_consumer("home", 4, why="a trial", forced=True, **move).space == 4
    assert [t.forced for t in three.transitions("consumer", "home")] == [False, True]


def test_a_retiring_space_takes_no_consumer_even_by_force(three: Ledger) -> None:
    three.move_consumer("home", 2, expected_revision=1, who="a", why="")
    three.move_consumer("home", 1, expected_revision=2, who="a", why="")
    three.start_retiring(2, who="bob", why="old")
    gone = r"space 2: it is retiring \(by bob on .*: old\), not ready\. Choose another space"
    with pytest.raises(LedgerConflict, match=gone):
        three.move_consumer("home", 2, expected_revision=3, who="a", why="please", forced=True)
    with pytest.raises(LedgerConflict, match=gone):
        three.roll_back_consumer("home", expected_revision=3, who="a", why="")
    with pytest.raises(LedgerConflict, match=gone):
        three.add_consumer("ads", 2, who="a", why="")


def test_a_name_that_comes_back_goes_on_counting_revisions(three: Ledger) -> None:
    three.move_consumer("home", 2, expected_revision=1, who="a", why="")
    three.remove_consumer("home", who="a", why="")
    back = three.add_consumer("home", 3, who="a", why="")
    assert back.revision == 3
    with pytest.raises(LedgerConflict, match="no earlier pin"):
        three.roll_back_consumer("home", expected_revision=3, who="a", why="")


def test_who_changes_something_is_named(three: Ledger) -> None:
    with pytest.raises(ValueError, match="`who` is empty"):
        three.remove_consumer("home", who="", why="")
    assert three.consumer("home").space == 1


# --- bridges


def test_a_bridge_is_measured_served_and_retired(three: Ledger) -> None:
    serve(three, source=3, target=1)
    (bridge,) = three.bridges(source=3)
    assert (bridge.version, bridge.state, bridge.figures) == (BRIDGE, "serving", {"cosine": 0.9})
    assert three.bridges(target=1) == [bridge] == three.bridges()
    assert three.bridges(source=1) == [] == three.bridges(target=3)
    newer = {"cosine": 0.8}
    again = three.record_bridge(BRIDGE, source=3, target=1, url="/x", figures=newer, who="x")
    assert again == replace(bridge, figures=newer) == three.serve_bridge(BRIDGE, who="x", why="")
    assert three.retire_bridge(BRIDGE, who="a", why="").state == "retired"
    assert three.retire_bridge(BRIDGE, who="a", why="").state == "retired"
    with pytest.raises(LedgerConflict, match=r"is retired .* cannot become serving"):
        three.serve_bridge(BRIDGE, who="a", why="")
    assert [(b, a) for b, a, _ in story(three, "bridge", BRIDGE)] == [
        (None, "measured"), ("measured", "serving"), ("serving", "retired"),
    ]  # fmt: skip


def test_a_bridge_joins_two_known_spaces(three: Ledger) -> None:
    new: dict[str, Any] = {"url": "/b", "figures": {}, "who": "a"}
    with pytest.raises(ValueError, match="both 1"):
        three.record_bridge(BRIDGE, source=1, target=1, **new)
    with pytest.raises(LedgerConflict, match="Unknown space 9"):
        three.record_bridge(BRIDGE, source=9, target=1, **new)
    three.record_bridge(BRIDGE, source=3, target=1, **new)
    with pytest.raises(LedgerConflict, match="from space 3 to space 1, not from 3 to 2"):
        three.record_bridge(BRIDGE, source=3, target=2, **new)
    with pytest.raises(LedgerConflict, match=f"Unknown bridge 'x'. Known: '{BRIDGE}'"):
        three.bridge("x")
    three.start_retiring(2, who="a", why="")
    with pytest.raises(LedgerConflict, match="cannot join space 2: it is retiring"):
        three.record_bridge("c" * 12, source=3, target=2, **new)


def test_a_bridge_serves_from_a_ready_space_only(three: Ledger) -> None:
    three.register("e" * 12, "/a", {})
    three.record_bridge(BRIDGE, source=4, target=1, url="/b", figures={}, who="a")
    with pytest.raises(LedgerConflict, match="cannot serve: space 4 is trained"):
        three.serve_bridge(BRIDGE, who="a", why="")


def test_two_bridges_of_one_pair_never_serve_at_once(three: Ledger) -> None:
    serve(three, source=3, target=1)
    with pytest.raises(LedgerConflict, match=f"beside bridge {BRIDGE}, which leads from space 3"):
        serve(three, source=3, target=1, version="c" * 12)
    three.retire_bridge(BRIDGE, who="a", why="")
    assert three.serve_bridge("c" * 12, who="a", why="").state == "serving"


def test_consumers_read_through_a_serving_bridge_into_their_space_only(three: Ledger) -> None:
    three.record_bridge(BRIDGE, source=3, target=1, url="/b", figures={}, who="a")
    move: dict[str, Any] = {"bridge": BRIDGE, "expected_revision": 1, "who": "a", "why": "x"}
    with pytest.raises(LedgerConflict, match=f"through bridge {BRIDGE}: it is measured"):
        three.move_consumer("home", 1, forced=True, **move)
    three.serve_bridge(BRIDGE, who="a", why="")
    with pytest.raises(LedgerConflict, match="leads to space 1, not to space 2"):
        three.move_consumer("home", 2, **move)
    three.move_consumer("home", 1, **move)
    assert story(three, "consumer", "home")[-1][:2] == ("1", f"1 through {BRIDGE}")
    with pytest.raises(LedgerConflict, match=r"'home' read space 1 through it\. Move them first"):
        three.retire_bridge(BRIDGE, who="a", why="")
    three.roll_back_consumer("home", expected_revision=2, who="a", why="")
    three.retire_bridge(BRIDGE, who="a", why="")
    assert three.pin("home").view == "user_embedding_s1"
