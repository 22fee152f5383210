"""Two who change the ledger at one moment: never both, when both would be wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import psycopg
import pytest

from materialize.ledger import Ledger
from tests.contract.ledger_steps import make_ready
from tests.racers import RACES, Round, race_threads, step

pytestmark = pytest.mark.slow

ROUNDS = 12
Race = Callable[[str, Sequence[Round]], list[list[str | None]]]
ALICE = {"who": "alice", "why": "a"}
BOB = {"who": "bob", "why": "b"}


@pytest.fixture(params=sorted(RACES))
def race(request: pytest.FixtureRequest) -> Race:
    return RACES[request.param]


def _one_won(answers: list[str | None]) -> None:
    assert [a is None for a in answers].count(True) == 1, answers


def test_of_two_promotions_one_wins_and_the_other_hears_of_it(ledger_url: str, race: Race) -> None:
    ledger = Ledger(ledger_url)
    make_ready(ledger, 3)
    ledger.promote(1, who="carol", why="", expected=None)
    # Both operators saw space 1; after each round it is the default again.
    both = (step("promote", 2, **ALICE, expected=1), step("promote", 3, **BOB, expected=1))
    back = (step("roll_back_default", who="carol", why=""), step("spaces"))
    answers = race(ledger_url, [both, back] * ROUNDS)
    changes = ledger.transitions("default")[1:]
    assert len(changes) == 2 * ROUNDS, "each round has one promotion and one roll back"
    for won, promoted, rolled in zip(answers[::2], changes[::2], changes[1::2], strict=True):
        _one_won(won)
        first = won[0] is None
        assert (promoted.before, promoted.after) == ("1", "2" if first else "3")
        assert promoted.who == ("alice" if first else "bob")
        refused = won[1] if first else won[0]
        assert f"default is space {promoted.after} by now (by {promoted.who} on " in str(refused)
        assert "not space 1 as expected" in str(refused)
        assert (rolled.before, rolled.after) == (promoted.after, "1")


def test_a_consumer_never_moves_to_a_space_that_is_retired_meanwhile(
    ledger_url: str, race: Race
) -> None:
    ledger = Ledger(ledger_url)
    make_ready(ledger, ROUNDS + 1)
    for k in range(ROUNDS):
        ledger.add_consumer(f"c{k}", 1, who="carol", why="")
    rounds = [
        (
            step("move_consumer", f"c{k}", k + 2, expected_revision=1, **ALICE),
            step("start_retiring", k + 2, **BOB),
        )
        for k in range(ROUNDS)
    ]
    for k, answers in enumerate(race(ledger_url, rounds)):
        _one_won(answers)
        moved = answers[0] is None
        space, consumer = ledger.space(k + 2), ledger.consumer(f"c{k}")
        assert (space.state, consumer.space) == (("ready", k + 2) if moved else ("retiring", 1))
        if moved:
            assert f"consumer 'c{k}' reads it (by alice on " in str(answers[1])
        else:
            assert f"space {k + 2}: it is retiring (by bob on " in str(answers[0])


def test_a_consumer_is_never_added_to_a_space_that_is_retired_meanwhile(
    ledger_url: str, race: Race
) -> None:
    ledger = Ledger(ledger_url)
    make_ready(ledger, ROUNDS + 1)
    rounds = [
        (step("start_retiring", k + 2, **BOB), step("add_consumer", f"c{k}", k + 2, **ALICE))
        for k in range(ROUNDS)
    ]
    for k, answers in enumerate(race(ledger_url, rounds)):
        _one_won(answers)
        pinned = [c.name for c in ledger.consumers(k + 2)]
        state = ledger.space(k + 2).state
        assert (state, pinned) == (("retiring", []) if answers[0] is None else ("ready", [f"c{k}"]))


def test_a_space_is_never_promoted_and_retired(ledger_url: str, race: Race) -> None:
    ledger = Ledger(ledger_url)
    make_ready(ledger, ROUNDS + 1)
    ledger.promote(1, who="carol", why="", expected=None)
    rounds: list[Round] = []
    for k in range(ROUNDS):
        promote = step("promote", k + 2, **ALICE, expected=1)
        rounds.append((promote, step("start_retiring", k + 2, **BOB)))
        rounds.append((step("roll_back_default", who="carol", why=""), step("spaces")))
    answers = race(ledger_url, rounds)
    for k, (won, back) in enumerate(zip(answers[::2], answers[1::2], strict=True)):
        _one_won(won)
        promoted = won[0] is None
        assert ledger.space(k + 2).state == ("ready" if promoted else "retiring")
        assert (back[0] is None) == promoted, "there was a promotion to roll back"


def test_the_last_two_ready_spaces_are_never_both_retired(ledger_url: str, race: Race) -> None:
    # Each retirement reads the other's row and writes its own: locks on the own row alone, or a
    # snapshot, would let both pass.
    ledger = Ledger(ledger_url)
    make_ready(ledger, 2)
    (answers,) = race(
        ledger_url, [(step("start_retiring", 1, **ALICE), step("start_retiring", 2, **BOB))]
    )
    _one_won(answers)
    assert sorted(s.state for s in ledger.spaces()) == ["ready", "retiring"]


def test_of_two_moves_of_one_consumer_one_wins(ledger_url: str, race: Race) -> None:
    ledger = Ledger(ledger_url)
    make_ready(ledger, 2 * ROUNDS + 1)
    ledger.add_consumer("home", 1, who="carol", why="")
    rounds = [
        tuple(
            step("move_consumer", "home", 2 * k + 2 + side, expected_revision=k + 1, **operator)
            for side, operator in enumerate((ALICE, BOB))
        )
        for k in range(ROUNDS)
    ]
    for k, answers in enumerate(race(ledger_url, rounds)):
        _one_won(answers)
        refused = next(a for a in answers if a is not None)
        assert f"revision {k + 1} was expected" in refused
    assert ledger.consumer("home").revision == ROUNDS + 1
    assert len(ledger.transitions("consumer", "home")) == ROUNDS + 1


def test_a_consumer_never_reads_through_a_bridge_that_is_retired_meanwhile(
    ledger_url: str, race: Race
) -> None:
    ledger = Ledger(ledger_url)
    make_ready(ledger, ROUNDS + 1)
    for k in range(ROUNDS):
        ledger.record_bridge(f"{k:012x}", source=k + 2, target=1, url="/b", figures={}, who="carol")
        ledger.serve_bridge(f"{k:012x}", who="carol", why="")
        ledger.add_consumer(f"c{k}", 1, who="carol", why="")
    rounds = [
        (
            step("move_consumer", f"c{k}", 1, bridge=f"{k:012x}", expected_revision=1, **ALICE),
            step("retire_bridge", f"{k:012x}", **BOB),
        )
        for k in range(ROUNDS)
    ]
    for k, answers in enumerate(race(ledger_url, rounds)):
        _one_won(answers)
        state, bridge = ledger.bridge(f"{k:012x}").state, ledger.consumer(f"c{k}").bridge
        assert (state, bridge) == (
            ("serving", f"{k:012x}") if answers[0] is None else ("retired", None)
        )


def test_a_bridge_never_serves_from_a_space_that_is_retired_meanwhile(
    ledger_url: str, race: Race
) -> None:
    ledger = Ledger(ledger_url)
    make_ready(ledger, ROUNDS + 1)
    for k in range(ROUNDS):
        ledger.record_bridge(f"{k:012x}", source=k + 2, target=1, url="/b", figures={}, who="carol")
    rounds = [
        (step("serve_bridge", f"{k:012x}", **ALICE), step("start_retiring", k + 2, **BOB))
        for k in range(ROUNDS)
    ]
    for k, answers in enumerate(race(ledger_url, rounds)):
        _one_won(answers)
        states = (ledger.bridge(f"{k:012x}").state, ledger.space(k + 2).state)
        assert states == (("serving", "ready") if answers[0] is None else ("measured", "retiring"))


def test_a_run_that_commits_does_not_bring_a_retiring_space_back(
    ledger_url: str, race: Race
) -> None:
    ledger = Ledger(ledger_url)
    make_ready(ledger, 1)
    for number in range(2, ROUNDS + 2):
        ledger.register(f"{number:012x}", "/a", {})
        ledger.begin_run(f"{number:016x}", f"v{number}", "key", {}, space=number)
    rounds = [
        (step("commit_run", f"{number:016x}", {}), step("start_retiring", number, **BOB))
        for number in range(2, ROUNDS + 2)
    ]
    for k, answers in enumerate(race(ledger_url, rounds)):
        assert answers[1] is None, "neither a run nor a ready space holds a retirement up"
        assert ledger.space(k + 2).state == "retiring"
        (run,) = ledger.runs(k + 2)
        assert run.state == ("committed" if answers[0] is None else "running")


def test_facts_that_are_added_at_once_are_all_kept(ledger_url: str, race: Race) -> None:
    ledger = Ledger(ledger_url)
    ledger.register("a" * 12, "/a", {"dataset": "x"})
    racers = range(4)
    answers = race(
        ledger_url, [tuple(step("update_facts", 1, {f"f{k}_{n}": n}) for k in racers) for n in "ab"]
    )
    assert answers == [[None] * 4] * 2
    assert ledger.space(1).facts == {"dataset": "x"} | {
        f"f{k}_{n}": n for k in racers for n in "ab"
    }


def test_an_empty_database_that_is_opened_at_once_gets_its_tables_once(
    ledger_url: str, race: Race
) -> None:
    answers = race(ledger_url, [tuple(step("spaces") for _ in range(4))])
    assert answers == [[None] * 4]
    assert Ledger(ledger_url).spaces() == []


def test_a_server_with_another_isolation_level_changes_nothing(postgres_database: str) -> None:
    """Under REPEATABLE READ one who waited for the lock would still see what was before it."""
    url = postgres_database
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            f'ALTER DATABASE "{url.rsplit("/", 1)[1]}" '
            "SET default_transaction_isolation = 'repeatable read'"
        )
    ledger = Ledger(url)
    make_ready(ledger, ROUNDS + 1)
    rounds = [
        (step("start_retiring", k + 2, **BOB), step("add_consumer", f"c{k}", k + 2, **ALICE))
        for k in range(ROUNDS)
    ]
    for answers in race_threads(url, rounds):
        _one_won(answers)
