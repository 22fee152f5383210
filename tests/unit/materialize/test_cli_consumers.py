"""``palate consumers``: what each command prints, refuses and records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from materialize.cli import main
from tests.spaces import Spaces
from transforms.names import stored_view

USERS = list(range(5))


@pytest.fixture
def spaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spaces:
    """Spaces 1 and 2 with the same users, space 3 with fewer."""
    monkeypatch.setenv("PALATE_USER", "ada")
    made = Spaces.make(tmp_path / "repo")
    for users in (USERS, USERS, USERS[:2]):
        made.add_space(users)
    return made


def _run(spaces: Spaces, *arguments: object) -> Result:
    command, *rest = arguments
    line = ["consumers", str(command), "--repo", str(spaces.tiny.path), *map(str, rest)]
    return CliRunner().invoke(main, line)


def _json(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_consumers_way_from_one_space_to_the_other_and_back(spaces: Spaces) -> None:
    added = _json(_run(spaces, "add", "home", "--space", 1, "--why", "launch"))
    assert (added["consumer"], added["space"], added["revision"]) == ("home", 1, 1)
    moved = _json(_run(spaces, "move", "home", "--space", 2))
    assert (moved["outcome"], moved["revision"], moved["after"]["users"]) == ("moved", 2, 5)
    assert _json(_run(spaces, "move", "home", "--space", 2))["outcome"] == "unchanged"
    back = _json(_run(spaces, "rollback", "home", "--why", "worse"))
    assert (back["space"], back["revision"]) == (1, 3)
    shown = _json(_run(spaces, "show", "home"))
    assert shown["reads"]["view"] == stored_view(1)
    assert [(c["after"], c["who"], c["why"]) for c in shown["history"]] == [
        ("1", "ada", "launch"),
        ("2", "ada", ""),
        ("1", "ada", "worse"),
    ]
    assert _run(spaces, "remove", "home").exit_code == 0
    assert _json(_run(spaces, "list", "--json")) == []


def test_a_dry_run_prints_the_plan_and_moves_nothing(spaces: Spaces) -> None:
    _json(_run(spaces, "add", "home", "--space", 1))
    plan = _json(_run(spaces, "move", "home", "--space", 2, "--dry-run"))
    assert (plan["outcome"], plan["users_both"], plan["users_lost"]) == ("planned", 5, 0)
    refused = _run(spaces, "move", "home", "--space", 3, "--dry-run")
    assert refused.exit_code == 3
    assert json.loads(refused.stdout)["users_lost"] == 3
    assert "Would be refused: user_embedding_s3 lacks 3 of the 5 users" in refused.stderr
    assert spaces.ledger.consumer("home").revision == 1


def test_a_refused_move_exits_with_3_and_a_forced_one_needs_a_reason(spaces: Spaces) -> None:
    _json(_run(spaces, "add", "home", "--space", 1))
    refused = _run(spaces, "move", "home", "--space", 3)
    assert refused.exit_code == 3
    assert "--force --why" in refused.stderr
    assert _run(spaces, "move", "home", "--space", 3, "--force").exit_code == 2
    line = ("move", "home", "--space", 3, "--force", "--why", "the others left")
    assert _json(_run(spaces, *line))["users_lost"] == 3
    assert spaces.ledger.transitions("consumer", "home")[-1].forced


def test_a_bridge_is_named_by_its_source(spaces: Spaces) -> None:
    one, two, _ = spaces.ledger.spaces()
    bridge = spaces.add_bridge(two, one, USERS)
    added = _json(_run(spaces, "add", "old", "--space", 1, "--bridge-from", 2))
    assert (added["space"], added["bridge"]) == (1, bridge.version)
    refused = _run(spaces, "add", "new", "--space", 2, "--bridge-from", 1)
    assert refused.exit_code == 3
    assert "palate spaces bridge 1 --to 2" in refused.stderr


def test_the_list_is_a_table_or_json(spaces: Spaces) -> None:
    for name, space in (("home", 1), ("mail", 2)):
        _json(_run(spaces, "add", name, "--space", space))
    rows = _json(_run(spaces, "list", "--json"))
    assert [(row["consumer"], row["space"]) for row in rows] == [("home", 1), ("mail", 2)]
    table = _run(spaces, "list").stdout.splitlines()
    assert table[0].split() == ["consumer", "space", "through", "revision", "moved"]
    assert [line.split()[:2] for line in table[1:]] == [["home", "1"], ["mail", "2"]]


@pytest.mark.parametrize("name", ["user_embedding", "a b"])
def test_a_name_that_no_service_can_have_is_a_wrong_usage(spaces: Spaces, name: str) -> None:
    refused = _run(spaces, "add", name, "--space", 1)
    assert refused.exit_code == 2
    assert "Consumer name" in refused.stderr


def test_apply_repairs_the_services_and_says_which(spaces: Spaces) -> None:
    _json(_run(spaces, "add", "home", "--space", 1))
    spaces.ledger.move_consumer("home", 2, expected_revision=1, who="ada", why="")
    assert _json(_run(spaces, "apply"))["stale"] == ["home"]
    assert _json(_run(spaces, "apply")) == {"stale": [], "extra": [], "unknown_views": []}
    (service,) = spaces.context.store.list_feature_services()
    assert service.feature_view_projections[0].name == stored_view(2)


def test_an_unknown_consumer_is_refused(spaces: Spaces) -> None:
    for line in (("show", "nobody"), ("rollback", "nobody"), ("move", "nobody", "--space", 1)):
        refused = _run(spaces, *line)
        assert refused.exit_code == 3
        assert "Unknown consumer 'nobody'" in refused.stderr
