"""How spaces change, become the default and are retired: what is refused, what is remembered."""

from __future__ import annotations

import pytest

from encoder.errors import LedgerConflict
from materialize.ledger import Ledger
from tests.contract.ledger_steps import BRIDGE, make_ready, serve, story

# --- spaces


def test_a_space_goes_through_its_states_and_each_step_is_on_record(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PALATE_USER", "nightly")
    make_ready(ledger, 2)
    ledger.start_retiring(1, who="alice", why="nobody reads it")
    freed = ledger.finish_retiring(1, {"online": 10, "offline": 20}, who="alice")
    assert freed.state == "retired"
    assert freed.facts == {"freed": {"online": 10, "offline": 20}}
    assert story(ledger, "space", "1") == [
        (None, "trained", "nightly"),
        ("trained", "materialising", "nightly"),
        ("materialising", "ready", "nightly"),
        ("ready", "retiring", "alice"),
        ("retiring", "retired", "alice"),
    ]
    last = ledger.transitions("space", "1")[-1]
    assert (last.why, last.forced) == ("freed 30 bytes", False)
    assert last.at.utcoffset() is not None
    assert [t.id for t in ledger.transitions()] == sorted(t.id for t in ledger.transitions())


def test_a_run_of_a_ready_space_keeps_it_ready(ledger: Ledger) -> None:
    make_ready(ledger, 1)
    before = ledger.transitions()
    ledger.begin_run("d" * 16, "v1", "next day", {}, space=1)
    assert ledger.space(1).state == "ready"
    ledger.fail_run("d" * 16, "disk full")
    ledger.begin_run("d" * 16, "v1", "next day", {}, space=1)
    ledger.commit_run("d" * 16, {})
    assert (ledger.space(1).state, ledger.transitions()) == ("ready", before)


def test_a_run_of_a_bridged_view_says_nothing_about_its_space(ledger: Ledger) -> None:
    ledger.register("a" * 12, "/a", {})
    run = ledger.begin_run("r" * 16, "user_embedding_s1_from_s2", "key", {}, space=1)
    ledger.commit_run(run.run_id, {})
    assert ledger.space(1).state == "trained"


def test_a_retiring_space_is_not_written_any_more(ledger: Ledger) -> None:
    make_ready(ledger, 2)
    ledger.begin_run("d" * 16, "v1", "next day", {}, space=1)
    ledger.start_retiring(1, who="alice", why="old")
    gone = r"Space 1 is retiring \(by alice on .* UTC: old\): nothing is written to it any more"
    with pytest.raises(LedgerConflict, match=gone):
        ledger.begin_run("e" * 16, "v1", "another day", {}, space=1)
    with pytest.raises(LedgerConflict, match=gone):
        ledger.begin_run("d" * 16, "v1", "next day", {}, space=1)
    with pytest.raises(LedgerConflict, match=gone):
        ledger.partition_done("d" * 16, 0, {"rows": 1})
    with pytest.raises(LedgerConflict, match=gone):
        ledger.commit_run("d" * 16, {})
    ledger.fail_run("d" * 16, "retired meanwhile")
    assert [r.state for r in ledger.runs(1)] == ["committed", "failed"]
    with pytest.raises(LedgerConflict, match=r"space 1, which is retiring .* does not come back"):
        ledger.register(f"{1:012x}", "/a", {})


def test_a_run_of_an_unknown_space_is_refused(ledger: Ledger) -> None:
    with pytest.raises(LedgerConflict, match="no space yet"):
        ledger.begin_run("r" * 16, "v1", "key", {}, space=4)
    assert ledger.runs() == []


def test_facts_are_added_over_the_ones_of_the_same_name(ledger: Ledger) -> None:
    ledger.register("a" * 12, "/a", {"dataset": "x", "drift": 1})
    assert ledger.update_facts(1, {"drift": 2, "stability": {"cosine": 0.5}}).facts == {
        "dataset": "x",
        "drift": 2,
        "stability": {"cosine": 0.5},
    }
    assert ledger.space(1).facts["drift"] == 2
    with pytest.raises(LedgerConflict, match=r"Unknown space 2\. Known: 1\."):
        ledger.update_facts(2, {})


def test_live_spaces_are_those_that_somebody_reads_and_the_newest(three: Ledger) -> None:
    def live() -> list[int]:
        return [space.number for space in three.live_spaces()]

    assert live() == [1, 3]
    serve(three, source=2, target=1)
    assert live() == [1, 2, 3], "2 is mapped"
    three.move_consumer("home", 1, bridge=BRIDGE, expected_revision=1, who="a", why="")
    assert live() == [1, 2, 3], "1 is the default"
    three.promote(3, who="a", why="", expected=1)
    assert live() == [2, 3], "1 is read through a bridge only, so it need not be fresh"
    three.register("e" * 12, "/a", {})
    assert live() == [2, 3, 4]
    three.start_retiring(4, who="a", why="bad training")
    assert live() == [2, 3], "the newest that is not given up"


def test_an_empty_ledger_has_no_default_and_no_live_space(ledger: Ledger) -> None:
    assert ledger.default_space() is None
    assert ledger.live_spaces() == []


# --- the default


def test_promotions_are_undone_one_after_the_other(three: Ledger) -> None:
    three.promote(2, who="a", why="", expected=1)
    three.promote(3, who="a", why="", expected=2)
    assert three.roll_back_default(who="b", why="worse").number == 2
    assert three.roll_back_default(who="b", why="worse").number == 1
    with pytest.raises(LedgerConflict, match="no default to roll back to: space 1 alone so far"):
        three.roll_back_default(who="b", why="")
    default = three.default_space()
    assert default is not None
    assert default.number == 1
    assert [after for _, after, _ in story(three, "default", "default")] == list("12321")


def test_a_default_that_is_promoted_again_changes_nothing(three: Ledger) -> None:
    before = three.transitions()
    assert three.promote(1, who="a", why="", expected=1).number == 1
    assert three.transitions() == before


def test_promotion_names_who_was_first(three: Ledger) -> None:
    three.promote(2, who="alice", why="better", expected=1)
    with pytest.raises(
        LedgerConflict,
        match=r"Space 3 was not promoted: the default is space 2 by now "
        r"\(by alice on .*: better\), and not space 1 as expected",
    ):
        three.promote(3, who="bob", why="", expected=1)
    with pytest.raises(LedgerConflict, match="and not none as expected"):
        three.promote(3, who="bob", why="", expected=None)


def test_only_a_ready_space_becomes_the_default(three: Ledger) -> None:
    three.register("e" * 12, "/a", {})
    with pytest.raises(LedgerConflict, match=r"it is trained .* `palate materialize --space 4`"):
        three.promote(4, who="a", why="", expected=1)
    three.start_retiring(2, who="a", why="")
    with pytest.raises(LedgerConflict, match=r"Space 2 cannot be the default: it is retiring"):
        three.promote(2, who="a", why="", expected=1)


def test_a_roll_back_to_a_retired_space_is_refused(three: Ledger) -> None:
    three.promote(2, who="a", why="", expected=1)
    three.move_consumer("home", 2, expected_revision=1, who="a", why="")
    three.start_retiring(1, who="a", why="")
    with pytest.raises(LedgerConflict, match="Space 1 cannot be the default: it is retiring"):
        three.roll_back_default(who="a", why="")


def test_an_empty_ledger_has_nothing_to_roll_back(ledger: Ledger) -> None:
    with pytest.raises(LedgerConflict, match="no default to roll back to: none yet"):
        ledger.roll_back_default(who="a", why="")


# --- retirement


def test_whoever_needs_a_space_is_named_when_it_is_to_be_retired(three: Ledger) -> None:
    serve(three, source=3, target=1)
    three.add_consumer("ads", 1, bridge=BRIDGE, who="eve", why="")
    with pytest.raises(LedgerConflict) as refused:
        three.start_retiring(1, who="a", why="")
    for part in (
        f"Space 1 cannot be retired: consumer 'ads' reads it through bridge {BRIDGE} (by eve on ",
        "consumer 'home' reads it (by carol on ",
        "`palate consumers move home --space N`",
        f"bridge {BRIDGE} serves space 1 from space 3 (by dora on ",
        "it is the default (by carol on ",
    ):
        assert part in str(refused.value)
    with pytest.raises(LedgerConflict, match=f"bridge {BRIDGE} serves space 1 from space 3"):
        three.start_retiring(3, who="a", why="")
    assert {s.state for s in three.spaces()} == {"ready"}


def test_the_only_ready_space_stays(ledger: Ledger) -> None:
    make_ready(ledger, 1)
    ledger.register("e" * 12, "/a", {})
    with pytest.raises(LedgerConflict, match="no other space is ready"):
        ledger.start_retiring(1, who="a", why="")
    assert ledger.start_retiring(2, who="a", why="never ran").state == "retiring"


def test_a_retirement_is_resumed_and_ends_once(ledger: Ledger) -> None:
    make_ready(ledger, 2)
    with pytest.raises(LedgerConflict, match=r"Space 1 is ready .* cannot become retired"):
        ledger.finish_retiring(1, {}, who="a")
    ledger.start_retiring(1, who="a", why="")
    assert ledger.start_retiring(1, who="b", why="again").state == "retiring"
    ledger.finish_retiring(1, {"online": 1}, who="a")
    assert ledger.finish_retiring(1, {"online": 0}, who="b").facts == {"freed": {"online": 1}}
    with pytest.raises(LedgerConflict, match=r"Space 1 is retired .* nothing left to retire"):
        ledger.start_retiring(1, who="a", why="")
    assert [who for *_, who in story(ledger, "space", "1")][-2:] == ["a", "a"]


def test_erasures_are_remembered_without_the_user(ledger: Ledger) -> None:
    first = ledger.record_erasure("d" * 64, {"online": 2}, who="alice", why="asked")
    second = ledger.record_erasure("e" * 64, {}, who="bob", why="")
    assert ledger.erasures() == [first, second]
    assert (first.user_digest, first.counts, first.who) == ("d" * 64, {"online": 2}, "alice")
