"""What may be changed, what is refused with which words, and what is remembered of it."""

from __future__ import annotations

import multiprocessing
import pickle
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from encoder.errors import LedgerConflict
from materialize.ledger import Ledger, Pin

BRIDGE = "b" * 12


def make_ready(ledger: Ledger, count: int) -> None:
    for number in range(1, count + 1):
        ledger.register(f"{number:012x}", f"/artifacts/{number}", {})
        run = ledger.begin_run(f"{number:016x}", f"v{number}", "key", {}, space=number)
        ledger.commit_run(run.run_id, {})


@pytest.fixture
def three(ledger: Ledger) -> Ledger:
    """Three ready spaces, one consumer on the first, which is the default."""
    make_ready(ledger, 3)
    ledger.promote(1, who="carol", why="the first", expected=None)
    ledger.add_consumer("home", 1, who="carol", why="launch")
    return ledger


def _serve(ledger: Ledger, *, source: int, target: int, version: str = BRIDGE) -> None:
    ledger.record_bridge(
        version, source=source, target=target, url="/b", figures={"cosine": 0.9}, who="dora"
    )
    ledger.serve_bridge(version, who="dora", why="loss 0.01")


def _story(ledger: Ledger, subject: str, name: str) -> list[tuple[str | None, str | None, str]]:
    return [(t.before, t.after, t.who) for t in ledger.transitions(subject, name)]


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
    assert _story(ledger, "space", "1") == [
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
    _serve(three, source=2, target=1)
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
    assert [after for _, after, _ in _story(three, "default", "default")] == list("12321")


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


# --- consumers


def test_a_pin_says_what_a_consumer_reads(three: Ledger) -> None:
    assert three.pin("home") == Pin("home", 1, f"{1:012x}", "user_embedding_s1", 1)
    three.move_consumer("home", 2, expected_revision=1, who="a", why="")
    assert three.pin("home") == Pin("home", 2, f"{2:012x}", "user_embedding_s2", 2)
    _serve(three, source=3, target=2)
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
    assert [(b, a) for b, a, _ in _story(three, "consumer", "home")] == [
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
    _serve(three, source=3, target=1)
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
    assert [(b, a) for b, a, _ in _story(three, "bridge", BRIDGE)] == [
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
    _serve(three, source=3, target=1)
    with pytest.raises(LedgerConflict, match=f"beside bridge {BRIDGE}, which leads from space 3"):
        _serve(three, source=3, target=1, version="c" * 12)
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
    assert _story(three, "consumer", "home")[-1][:2] == ("1", f"1 through {BRIDGE}")
    with pytest.raises(LedgerConflict, match=r"'home' read space 1 through it\. Move them first"):
        three.retire_bridge(BRIDGE, who="a", why="")
    three.roll_back_consumer("home", expected_revision=2, who="a", why="")
    three.retire_bridge(BRIDGE, who="a", why="")
    assert three.pin("home").view == "user_embedding_s1"


# --- retirement


def test_whoever_needs_a_space_is_named_when_it_is_to_be_retired(three: Ledger) -> None:
    _serve(three, source=3, target=1)
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
    assert [who for *_, who in _story(ledger, "space", "1")][-2:] == ["a", "a"]


# --- the rest


def test_erasures_are_remembered_without_the_user(ledger: Ledger) -> None:
    first = ledger.record_erasure("d" * 64, {"online": 2}, who="alice", why="asked")
    second = ledger.record_erasure("e" * 64, {}, who="bob", why="")
    assert ledger.erasures() == [first, second]
    assert (first.user_digest, first.counts, first.who) == ("d" * 64, {"online": 2}, "alice")


def test_records_reach_other_processes(three: Ledger) -> None:
    _serve(three, source=3, target=1)
    records: list[object] = [
        three.space(1), three.runs()[0], three.consumer("home"), three.pin("home"),
        three.bridge(BRIDGE), three.transitions()[0],
    ]  # fmt: skip
    # Ray and multiprocessing hand records over as pickles; nothing is ever stored as one.
    assert pickle.loads(pickle.dumps(records)) == records  # noqa: S301


def test_a_pooled_ledger_reads_and_changes_like_another(three: Ledger, ledger_url: str) -> None:
    pooled = Ledger(ledger_url, pooled=True)
    assert [pooled.pin("home").space for _ in range(3)] == [1, 1, 1]
    three.move_consumer("home", 2, expected_revision=1, who="a", why="")
    assert pooled.pin("home").space == 2, "nothing is remembered"
    assert pooled.roll_back_consumer("home", expected_revision=2, who="a", why="").space == 1
    pooled.close()
    assert pooled.pin("home").revision == 3
    pooled.close()


def _pins_in_child(ledger: Ledger, answers: Any) -> None:
    answers.put([ledger.pin("home").space for _ in range(50)])
    ledger.close()


def test_a_forked_process_has_connections_of_its_own(three: Ledger, ledger_url: str) -> None:
    three.add_consumer("ads", 2, who="a", why="")
    pooled = Ledger(ledger_url, pooled=True)
    assert pooled.pin("home").space == 1  # a connection is open before the fork
    forks = multiprocessing.get_context("fork")
    answers: Any = forks.Queue()
    child = forks.Process(target=_pins_in_child, args=(pooled, answers))
    child.start()
    here = {pooled.pin("ads").space for _ in range(50)}
    there = set(answers.get(timeout=60))
    child.join(60)
    assert (here, there, child.exitcode) == ({2}, {1}, 0)
    answers.close()
    answers.join_thread()
    pooled.close()


def test_a_pin_survives_the_end_of_the_servers_connections(postgres_database: str) -> None:
    pooled = Ledger(postgres_database, pooled=True)
    make_ready(pooled, 1)
    pooled.add_consumer("home", 1, who="a", why="")
    assert pooled.pin("home").space == 1
    end = text(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with Ledger(postgres_database)._read() as session:
        assert session.scalar(end) == 1
    assert pooled.pin("home").space == 1
    pooled.close()
