"""One ledger, two databases: every test runs on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from encoder.errors import LedgerConflict
from materialize.ledger import Ledger


def test_spaces_are_numbered_in_the_order_of_registration(ledger: Ledger) -> None:
    first = ledger.register("a" * 12, "/a", {"dataset": "x"})
    second = ledger.register("b" * 12, "/b", {})
    assert (first.number, second.number) == (1, 2)
    assert first.state == "trained"
    assert [s.encoder_version for s in ledger.spaces()] == ["a" * 12, "b" * 12]
    assert ledger.space().number == 2
    assert ledger.space(1).facts == {"dataset": "x"}


def test_registering_a_version_again_returns_its_space_unchanged(ledger: Ledger) -> None:
    first = ledger.register("a" * 12, "/a", {"dataset": "x"})
    assert ledger.register("a" * 12, "/elsewhere", {"dataset": "y"}) == first


def test_processes_that_register_at_once_get_distinct_numbers(ledger_url: str) -> None:
    versions = [f"{k:012x}" for k in range(8)]
    with ThreadPoolExecutor(8) as pool:
        spaces = list(pool.map(lambda v: Ledger(ledger_url).register(v, "/x", {}), versions))
    assert sorted(s.number for s in spaces) == list(range(1, 9))


def test_processes_that_register_one_version_at_once_share_one_space(ledger_url: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        spaces = list(pool.map(lambda _: Ledger(ledger_url).register("c" * 12, "/x", {}), range(8)))
    assert {s.number for s in spaces} == {1}


def test_unknown_space_names_the_known_ones(ledger: Ledger) -> None:
    with pytest.raises(LedgerConflict, match="palate train"):
        ledger.space()
    ledger.register("a" * 12, "/a", {})
    with pytest.raises(LedgerConflict, match=r"Unknown space 7\. Known: 1\."):
        ledger.space(7)


def test_a_run_over_history_makes_no_space_ready(ledger: Ledger) -> None:
    """It writes offline alone, and a consumer of a ready space must find users online."""
    ledger.register("a" * 12, "/a", {})
    for run_id, from_history, state in (("h", True, "materialising"), ("r", False, "ready")):
        ledger.begin_run(run_id * 16, "v1", run_id, {"from_history": from_history}, space=1)
        ledger.commit_run(run_id * 16, {"rows": 1})
        assert ledger.space(1).state == state


def test_a_run_is_opened_once_and_its_commit_makes_the_space_ready(ledger: Ledger) -> None:
    ledger.register("a" * 12, "/a", {})
    run = ledger.begin_run("r" * 16, "v1", "key", {"end": "2026-01-01"}, space=1)
    assert run.state == "running"
    assert ledger.begin_run("other" * 3, "v1", "key", {}).run_id == run.run_id
    assert ledger.space(1).state == "materialising"
    committed = ledger.commit_run(run.run_id, {"rows": 3})
    assert (committed.state, committed.counts) == ("committed", {"rows": 3})
    assert committed.finished_at is not None
    assert committed.finished_at.utcoffset() is not None
    assert ledger.space(1).state == "ready"


def test_a_committed_run_stays_committed(ledger: Ledger) -> None:
    ledger.register("a" * 12, "/a", {})
    ledger.begin_run("r" * 16, "v1", "key", {}, space=1)
    ledger.commit_run("r" * 16, {"rows": 3})
    ledger.fail_run("r" * 16, "too late")
    ledger.commit_run("r" * 16, {"rows": 99})
    (run,) = ledger.runs(1)
    assert (run.state, run.counts, run.error) == ("committed", {"rows": 3}, None)


def test_drift_is_added_to_a_committed_runs_counts(ledger: Ledger) -> None:
    ledger.register("a" * 12, "/a", {})
    ledger.begin_run("r" * 16, "v1", "key", {}, space=1)
    with pytest.raises(LedgerConflict, match="is running, a committed one expected"):
        ledger.record_drift("r" * 16, {"users": 3})
    ledger.commit_run("r" * 16, {"rows": 3})
    for users in (3, 4):
        ledger.record_drift("r" * 16, {"users": users})
        assert ledger.runs(1)[0].counts == {"rows": 3, "drift": {"users": users}}
    # A run that is repeated has other rows: what was measured of the former ones goes.
    ledger.begin_run("r" * 16, "v1", "key", {}, space=1, again=True)
    assert ledger.commit_run("r" * 16, {"rows": 5}).counts == {"rows": 5}


def test_a_failed_run_keeps_its_reason_until_it_is_begun_again(ledger: Ledger) -> None:
    ledger.register("a" * 12, "/a", {})
    ledger.begin_run("r" * 16, "v1", "key", {}, space=1)
    ledger.fail_run("r" * 16, "OSError: disk full")
    (failed,) = ledger.runs()
    assert (failed.state, failed.error) == ("failed", "OSError: disk full")
    assert ledger.space(1).state == "materialising"
    assert ledger.begin_run("r" * 16, "v1", "key", {}, space=1).state == "running"
    assert ledger.runs()[0].error is None


def test_processes_that_begin_one_run_at_once_share_it(ledger_url: str) -> None:
    Ledger(ledger_url).register("a" * 12, "/a", {})
    with ThreadPoolExecutor(8) as pool:
        runs = list(
            pool.map(
                lambda k: Ledger(ledger_url).begin_run(f"{k:016x}", "v1", "same", {}, space=1),
                range(8),
            )
        )
    assert len({r.run_id for r in runs}) == 1
    assert len(Ledger(ledger_url).runs()) == 1


def test_a_view_without_a_space_has_runs_of_its_own(ledger: Ledger) -> None:
    ledger.register("a" * 12, "/a", {})
    assert ledger.last_start("user_activity") is None
    run = ledger.begin_run("r" * 16, "user_activity", "key", {})
    assert ledger.space(1).state == "trained", "a raw view's run says nothing about a space"
    ledger.begin_run("s" * 16, "user_embedding_s1", "key", {}, space=1)
    assert ledger.last_start("user_activity") is None, "the run is not committed"
    ledger.commit_run(run.run_id, {"online_rows": 2})
    assert ledger.last_start("user_activity") == run.started_at
    assert ledger.last_start("user_embedding_s1") is None
    assert ledger.space(1).state == "materialising", "its own run is not committed"
    assert [r.view for r in ledger.runs(1)] == ["user_embedding_s1"]


def test_a_run_over_history_says_nothing_about_what_is_online(ledger: Ledger) -> None:
    ledger.register("a" * 12, "/a", {})
    online = ledger.begin_run("r" * 16, "v1", "one", {"from_history": False}, space=1)
    history = ledger.begin_run("s" * 16, "v1", "two", {"from_history": True}, space=1)
    for run in (online, history):
        ledger.commit_run(run.run_id, {})
    assert ledger.last_start("v1") == online.started_at
    assert ledger.last_start("v1", from_history=True) == history.started_at


def test_a_resumed_run_knows_its_partitions_until_it_commits(ledger: Ledger) -> None:
    ledger.register("a" * 12, "/a", {})
    for name in ("r", "s"):
        ledger.begin_run(name * 16, "v1", name, {}, space=1)
    ledger.partition_done("r" * 16, 0, {"rows": 5})
    ledger.partition_done("r" * 16, 7, {"rows": 3})
    ledger.partition_done("r" * 16, 7, {"rows": 4})  # a lost one is done again
    ledger.partition_done("s" * 16, 1, {"rows": 1})
    assert ledger.partitions_done("r" * 16) == {0: {"rows": 5}, 7: {"rows": 4}}
    ledger.commit_run("r" * 16, {"rows": 9})
    assert ledger.partitions_done("r" * 16) == {}
    assert ledger.partitions_done("s" * 16) == {1: {"rows": 1}}
    ledger.forget_partitions("s" * 16)
    assert ledger.partitions_done("s" * 16) == {}


def test_a_committed_run_that_is_begun_again_counts_as_running(ledger: Ledger) -> None:
    ledger.register("a" * 12, "/a", {})
    first = ledger.begin_run("r" * 16, "v1", "key", {"rows": 3}, space=1)
    ledger.commit_run(first.run_id, {"rows": 3})
    assert ledger.begin_run("t" * 16, "v1", "key", {}, space=1).state == "committed"
    again = ledger.begin_run("t" * 16, "v1", "key", {}, space=1, again=True)
    assert (again.run_id, again.state, again.plan) == (first.run_id, "running", {"rows": 3})
    assert ledger.begin_run("t" * 16, "v1", "key", {}, space=1).state == "running", "it resumes"
    assert ledger.commit_run(first.run_id, {"rows": 4}).counts == {"rows": 4}


def test_workers_record_partitions_at_once(ledger_url: str) -> None:
    ledger = Ledger(ledger_url)
    ledger.register("a" * 12, "/a", {})
    ledger.begin_run("r" * 16, "v1", "key", {}, space=1)
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(
                lambda k: Ledger(ledger_url).partition_done("r" * 16, k, {"rows": k}), range(24)
            )
        )
    assert ledger.partitions_done("r" * 16) == {k: {"rows": k} for k in range(24)}
