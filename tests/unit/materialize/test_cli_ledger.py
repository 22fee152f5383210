"""`palate ledger`: what it prints, what it changes, what it refuses."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from materialize.cli import main
from materialize.config import load_settings
from materialize.doctor import examine
from materialize.ledger import Ledger
from materialize.ledger.schema import HEAD
from materialize.template import init_repository

OLD = Path(__file__).parents[2] / "contract" / "ledger_before_alembic" / "sqlite.sql"


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["ledger", *(str(a) for a in arguments)])


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    init_repository(tmp_path / "repository", "simulated")
    return tmp_path / "repository"


def _file(repo: Path) -> Path:
    return Path(load_settings(repo).ledger_url.removeprefix("sqlite:///"))


@pytest.fixture
def old(repo: Path) -> Path:
    """A repository with a ledger from before the first migration."""
    _file(repo).parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(_file(repo))
    database.executescript(OLD.read_text(encoding="utf-8"))
    database.close()
    return repo


def test_status_of_a_repository_without_a_ledger_makes_none(repo: Path) -> None:
    result = _run("status", "--repo", repo)
    assert result.exit_code == 0, result.output
    assert f"no ledger yet, newest {HEAD}" in result.stdout
    assert not _file(repo).exists()


def test_status_says_what_an_upgrade_would_do(old: Path) -> None:
    result = _run("status", "--repo", old)
    assert result.exit_code == 0, result.output
    assert f"revision 0001, newest {HEAD}" in result.stdout
    assert "pending 0002: Consumers, the default space, bridges" in result.stdout
    assert "palate ledger upgrade" in result.stderr
    found = json.loads(_run("status", "--repo", old, "--json").stdout)
    assert (found["revision"], found["newest"]) == ("0001", HEAD)
    assert [step["revision"] for step in found["pending"]] == ["0002"]


def test_a_dry_run_of_an_upgrade_changes_nothing(old: Path) -> None:
    before = _file(old).read_bytes()
    result = _run("upgrade", "--repo", old, "--dry-run")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("would run 0002: ")
    assert _file(old).read_bytes() == before


def test_an_upgrade_runs_once(old: Path) -> None:
    assert CliRunner().invoke(main, ["spaces", "list", "--repo", str(old)]).exit_code == 3
    first = _run("upgrade", "--repo", old)
    assert (first.exit_code, first.stdout.startswith("ran 0002: ")) == (0, True), first.output
    assert "nothing to do" in _run("upgrade", "--repo", old).stdout
    listed = CliRunner().invoke(main, ["spaces", "list", "--repo", str(old)])
    assert listed.exit_code == 0, listed.output
    assert "a" * 12 in listed.stdout


def test_a_ledger_of_a_newer_palate_is_refused(old: Path) -> None:
    _run("upgrade", "--repo", old)
    database = sqlite3.connect(_file(old))
    database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.commit()
    database.close()
    for command in ("status", "upgrade", "transitions"):
        result = _run(command, "--repo", old)
        assert result.exit_code == 3
        assert "Install a newer Palate" in result.stderr


def test_transitions_are_listed_oldest_first(repo: Path) -> None:
    ledger = Ledger(load_settings(repo).ledger_url)
    ledger.register("a" * 12, "/a", {})
    run = ledger.begin_run("r" * 16, "user_embedding_s1", "key", {}, space=1)
    ledger.commit_run(run.run_id, {})
    ledger.promote(1, who="alice", why="the first", expected=None)
    lines = _run("transitions", "--repo", repo).stdout.splitlines()
    assert len(lines) == 4
    assert "space 1: - -> trained  by " in lines[0]
    assert lines[3].endswith("default default: - -> 1  by alice  the first")
    chosen = _run("transitions", "--repo", repo, "--subject", "space", "--name", 1, "--json")
    assert [row["after"] for row in json.loads(chosen.stdout)] == [
        "trained",
        "materialising",
        "ready",
    ]
    assert _run("transitions", "--repo", repo, "--subject", "moon").exit_code == 2


def test_the_doctor_says_what_an_older_ledger_needs(old: Path) -> None:
    (check,) = [check for check in examine(old) if check.name == "ledger"]
    assert (check.outcome, check.remedy) == ("FAIL", "palate ledger status")
    assert "palate ledger upgrade" in check.detail
