"""One ledger in many processes: records travel, pooled connections are current, or made anew."""

from __future__ import annotations

import multiprocessing
import pickle
from typing import Any

from sqlalchemy import text

from materialize.ledger import Ledger
from tests.contract.ledger_steps import BRIDGE, make_ready, serve


def test_records_reach_other_processes(three: Ledger) -> None:
    serve(three, source=3, target=1)
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
