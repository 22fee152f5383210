"""A ledger of an earlier release is upgraded with its rows; one of another release is refused."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import event, inspect, text
from sqlalchemy.exc import DBAPIError

from encoder.errors import LedgerConflict, TransientError
from materialize.ledger import Ledger, connection, schema
from materialize.ledger.connection import make_engine, writing
from materialize.ledger.migrate import scripts, status, upgrade
from materialize.ledger.tables import Base

OLD = Path(__file__).parent / "ledger_before_alembic"
"""What the code before the first migration had written, dumped from both databases."""


def _run_script(url: str, script: str) -> None:
    if url.startswith("sqlite"):
        path = Path(url.removeprefix("sqlite:///"))
        path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(path)
        database.executescript(script)
        database.close()
    else:
        with psycopg.connect(url, autocommit=True) as server:
            server.execute(script)


@pytest.fixture
def old_url(ledger_url: str) -> str:
    kind = ledger_url.partition(":")[0].replace("postgresql", "postgres")
    _run_script(ledger_url, (OLD / f"{kind}.sql").read_text(encoding="utf-8"))
    return ledger_url


def _rows(url: str) -> dict[str, list[Any]]:
    """Return every row of every table."""
    with make_engine(url).connect() as db:
        return {
            table: sorted(map(repr, db.execute(text(f"SELECT * FROM {table}"))))  # noqa: S608
            for table in sorted(inspect(db).get_table_names())
        }


def _differences(url: str) -> list[Any]:
    """Return how the database's tables differ from the models, but for Alembic's own table."""
    with make_engine(url).connect() as db:
        return list(compare_metadata(MigrationContext.configure(db), Base.metadata))


def test_the_revisions_that_opening_knows_are_those_of_the_scripts() -> None:
    known = [script.revision for script in scripts().walk_revisions("base", "heads")]
    assert tuple(reversed(known)) == schema.REVISIONS
    assert scripts().get_heads() == [schema.HEAD]


def test_an_empty_database_gets_the_tables_of_the_newest_revision(ledger_url: str) -> None:
    ledger = Ledger(ledger_url)
    assert _differences(ledger_url) == []
    assert status(ledger_url).revision == schema.HEAD
    assert status(ledger_url).pending == ()
    assert ledger.transitions() == []


def test_a_ledger_made_while_its_revision_is_asked_for_is_not_taken_for_an_old_one(
    ledger_url: str,
) -> None:
    engine = make_engine(ledger_url)
    asked: list[str] = []

    @event.listens_for(engine, "after_cursor_execute")
    def another_process_is_faster(*_: Any) -> None:
        if not asked:
            asked.append(ledger_url)
            Ledger(ledger_url).close()

    with engine.connect() as connection:
        assert schema.read_revision(connection) in (None, schema.HEAD)
    assert asked
    Ledger(ledger_url).close()


def test_the_scripts_lead_from_nothing_to_the_same_tables(ledger_url: str) -> None:
    make_engine(ledger_url)  # makes the folder
    before = upgrade(ledger_url)
    assert before.revision is None
    assert [step.revision for step in before.pending] == list(schema.REVISIONS)
    assert _differences(ledger_url) == []
    assert Ledger(ledger_url).register("a" * 12, "/a", {}).number == 1


def test_a_difference_between_tables_and_models_is_found(ledger_url: str) -> None:
    Ledger(ledger_url)
    with writing(make_engine(ledger_url)).begin() as db:
        db.execute(text("DROP TABLE erasures"))
        db.execute(text("ALTER TABLE consumers ADD COLUMN colour VARCHAR"))
    found = [(d[0], d[1] if d[0] == "add_table" else d[3]) for d in _differences(ledger_url)]
    assert {(what, thing.name) for what, thing in found} == {
        ("add_table", "erasures"),
        ("remove_column", "colour"),
    }


def test_a_ledger_from_before_the_first_migration_is_refused_untouched(old_url: str) -> None:
    before = _rows(old_url)
    with pytest.raises(LedgerConflict, match=r"revision 0001.*run `palate ledger upgrade`"):
        Ledger(old_url)
    found = status(old_url)
    assert found.revision == "0001"
    assert [step.revision for step in found.pending] == ["0002"]
    assert "palate@" not in found.database, "no password in what is printed"
    assert _rows(old_url) == before


def test_an_upgrade_keeps_every_row_and_the_ledger_goes_on_from_it(old_url: str) -> None:
    before = _rows(old_url)
    upgrade(old_url)
    after = _rows(old_url)
    assert {name: after[name] for name in before} == before
    assert _differences(old_url) == []

    ledger = Ledger(old_url)
    first, second = ledger.spaces()
    assert (first.number, first.encoder_version, first.state) == (1, "a" * 12, "ready")
    assert (second.number, second.encoder_version, second.state) == (2, "b" * 12, "trained")
    assert first.facts == {"dataset": "ml1m", "raw_views": ["user_activity"]}
    assert first.created_at.utcoffset() == datetime.now(timezone.utc).utcoffset()
    assert [(r.view, r.state) for r in ledger.runs()] == [
        ("user_embedding_s1", "committed"),
        ("user_activity", "failed"),
        ("user_embedding_s2", "running"),
    ]
    assert ledger.partitions_done("3" * 16) == {0: {"rows": 7}}
    assert ledger.default_space() is None
    assert [(t.name, t.before, t.after, t.who) for t in ledger.transitions()] == [
        ("1", None, "ready", "palate ledger upgrade"),
        ("2", None, "trained", "palate ledger upgrade"),
    ]

    ledger.begin_run("4" * 16, "user_embedding_s2", "k3", {}, space=2)
    ledger.commit_run("3" * 16, {})
    assert ledger.space(2).state == "ready"
    assert ledger.add_consumer("home", 1, who="alice", why="").revision == 1


def test_an_upgrade_that_is_repeated_does_nothing(old_url: str) -> None:
    upgrade(old_url)
    before = _rows(old_url)
    assert upgrade(old_url).pending == ()
    assert _rows(old_url) == before


def test_a_ledger_that_lacks_the_youngest_table_of_its_revision_gets_it(old_url: str) -> None:
    with writing(make_engine(old_url)).begin() as db:
        db.execute(text("DROP TABLE partitions"))
    upgrade(old_url)
    assert _differences(old_url) == []
    assert len(Ledger(old_url).runs()) == 3


def test_an_upgrade_that_fails_half_way_leaves_the_ledger_as_it_was(old_url: str) -> None:
    with writing(make_engine(old_url)).begin() as db:
        db.execute(text("CREATE TABLE transitions (something_else INTEGER)"))
    before = _rows(old_url)
    with pytest.raises(DBAPIError, match="transitions"):
        upgrade(old_url)
    assert _rows(old_url) == before
    assert status(old_url).revision == "0001"


def test_a_ledger_of_a_trial_version_is_refused(ledger_url: str) -> None:
    make_engine(ledger_url)
    _run_script(
        ledger_url,
        "CREATE TABLE spaces (number INTEGER PRIMARY KEY); CREATE TABLE runs (run_id VARCHAR(16));",
    )
    with pytest.raises(LedgerConflict, match="no column `view`"):
        upgrade(ledger_url)
    assert set(_rows(ledger_url)) == {"runs", "spaces"}


def test_a_ledger_of_a_newer_palate_is_refused(ledger_url: str) -> None:
    ledger = Ledger(ledger_url)
    with writing(make_engine(ledger_url)).begin() as db:
        db.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for call in (Ledger, status, upgrade):
        with pytest.raises(LedgerConflict, match=r"'9999'.*Install a newer Palate"):
            call(ledger_url)
    with pytest.raises(LedgerConflict, match="was upgraded to revision '9999' while this process"):
        ledger.register("a" * 12, "/a", {})
    assert ledger.spaces() == []


def test_an_upgrade_waits_for_the_change_that_is_under_way(ledger_url: str) -> None:
    ledger = Ledger(ledger_url)
    ledger.register("a" * 12, "/a", {})
    order: list[str] = []

    def upgrading() -> None:
        with writing(make_engine(ledger_url)).begin() as db:
            db.execute(text("UPDATE alembic_version SET version_num = '9999'"))
            order.append("upgraded")

    other = threading.Thread(target=upgrading)
    with ledger._change():
        other.start()
        other.join(0.3)
        order.append("changed")
    other.join()
    assert order == ["changed", "upgraded"]


def test_a_change_that_waits_too_long_may_be_repeated(
    ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Ledger(ledger_url)
    monkeypatch.setattr(connection, "WAIT_SECONDS", 1)
    first, second = Ledger(ledger_url), Ledger(ledger_url)
    with first._change(), pytest.raises(TransientError, match=r"for 1 s\. Run the command again"):
        second.register("a" * 12, "/a", {})
    assert second.register("a" * 12, "/a", {}).number == 1


def test_opening_a_ledger_loads_no_alembic(ledger_url: str, tmp_path: Path) -> None:
    program = (
        "import sys; from materialize.ledger import Ledger; "
        f"l = Ledger({ledger_url!r}); l.register('a' * 12, '/a', {{}}); Ledger({ledger_url!r}); "
        "print([m for m in ('alembic', 'mako') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
