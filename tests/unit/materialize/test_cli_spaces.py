"""`palate spaces`: what it prints, how it exits, and that it changes nothing unasked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from encoder.store import ArtifactStore
from materialize.cli import main
from materialize.space_record import size, space_lines, space_record
from tests.chains import build_artifact, fit_encoders
from tests.repositories import VIEWS
from tests.sinks import close
from tests.spaces import Spaces
from transforms.names import stored_view

USERS = [1, 2, 3]
WHO = {"who": "anna", "why": "a test"}


@pytest.fixture
def spaces(tmp_path: Path) -> Iterator[Spaces]:
    """Spaces 1 and 2, ready; consumer `home` reads space 1, which is the default."""
    made = Spaces.make(tmp_path / "repo")
    encoders = fit_encoders()
    for weight in (1.0, 2.0):
        artifact = build_artifact(encoders, weight)
        url = ArtifactStore(made.settings.artifacts_url).save(artifact)
        facts = {"raw_views": list(VIEWS), "dataset": "tiny"}
        made.ledger.register(artifact.encoder_version, url, facts)
    for space in made.ledger.spaces():
        made.apply(space)
        made.write(space, USERS)
    made.ledger.add_consumer("home", 1, **WHO)
    made.ledger.promote(1, **WHO, expected=None)
    figures = {"cosine": {"before": None, "after": {"value": 0.934}}, "probe": None}
    pair = {"source": 2, "target": 1, "url": "", "figures": figures, "who": "anna"}
    made.ledger.record_bridge("b" * 12, **pair)
    yield made
    close(made.context.store._get_provider().online_store)


def palate(spaces: Spaces, *arguments: object) -> Result:
    repo = str(spaces.settings.repo)
    return CliRunner().invoke(main, ["spaces", *map(str, arguments), "--repo", repo])


def test_show_tells_the_whole_story(spaces: Spaces) -> None:
    text = palate(spaces, "show", 1).stdout
    version = spaces.ledger.space(1).encoder_version
    for line in (
        "space 1: ready, default, live",
        f"  encoder version  {version}",
        "data tiny",
        "modality encoder collaborative",
        "validation_loss 0.4",
        "  home  revision 1, since ",
        f"  {'b' * 12}  space 2 -> 1, measured, after 0.934",
        "3 rows",
        "consumer home: - -> 1, by anna: a test",
        "default default: - -> 1, by anna: a test",
        f"bridge {'b' * 12}: - -> measured, by anna",
        "space 1: materialising -> ready",
    ):
        assert line in text


def test_show_as_json_has_the_same(spaces: Spaces) -> None:
    record = json.loads(palate(spaces, "show", 1, "--json").stdout)
    assert (record["state"], record["default"], record["live"]) == ("ready", True, True)
    assert [c["name"] for c in record["consumers"]] == ["home"]
    assert [(b["source"], b["target"]) for b in record["bridges"]] == [(2, 1)]
    assert [run["view"] for run in record["runs"]] == [stored_view(1)]
    assert len(record["chain"]["parts"]) == 6
    assert {"space", "consumer", "default", "bridge"} == {
        change["subject"] for change in record["transitions"]
    }
    assert record == json.loads(json.dumps(space_record(spaces.settings, spaces.ledger, 1)))


def test_what_concerns_another_space_is_not_told(spaces: Spaces) -> None:
    record = space_record(spaces.settings, spaces.ledger, 2)
    assert record["consumers"] == []
    assert {change["subject"] for change in record["transitions"]} == {"space", "bridge"}
    assert not record["default"]
    assert record["live"], "it is the newest"


def test_a_lost_artifact_is_told_and_the_rest_shown(spaces: Spaces) -> None:
    ArtifactStore(spaces.settings.artifacts_url).delete(spaces.ledger.space(2).encoder_version)
    shown = palate(spaces, "show", 2)
    assert shown.exit_code == 0
    assert "came from: unknown: Unknown encoder version" in shown.stdout
    assert palate(spaces, "diff", 1, 2).exit_code == 1


def test_diff_names_what_was_made_anew(spaces: Spaces) -> None:
    lines = palate(spaces, "diff", 1, 2).stdout.splitlines()
    assert lines[0] == "space 1 -> space 2: made anew: autoencoder"
    assert any(line.startswith("  same     modality encoder content") for line in lines)
    assert any(line.startswith("  unknown  data tiny") for line in lines)
    assert any(line.split()[:3] == ["validation_loss", "0.4", "0.4"] for line in lines)
    assert palate(spaces, "diff", 1, 3).exit_code == 3


def test_promote_and_rollback_move_the_default(spaces: Spaces) -> None:
    planned = palate(spaces, "promote", 2, "--dry-run")
    assert json.loads(planned.stdout)["outcome"] == "planned"
    default = spaces.ledger.default_space()
    assert default is not None
    assert default.number == 1
    assert json.loads(palate(spaces, "promote", 2, "--why", "better").stdout)["outcome"] == "moved"
    back = json.loads(palate(spaces, "rollback", "--why", "not better").stdout)
    assert back["default"] == 1
    assert [t.why for t in spaces.ledger.transitions("default")][1:] == ["better", "not better"]


def test_retire_is_a_dry_run_unless_it_is_told_otherwise(spaces: Spaces) -> None:
    refused = palate(spaces, "retire", 1, "--quiet")
    assert refused.exit_code == 3
    assert "Would be refused: consumer 'home' reads it" in refused.stderr
    assert palate(spaces, "retire", 1, "--no-dry-run", "--quiet").exit_code == 3
    planned = palate(spaces, "retire", 2, "--quiet")
    assert planned.exit_code == 0, planned.output
    assert planned.stdout.splitlines()[0] == "space 2: would go"
    assert "Nothing was changed" in planned.stderr
    assert spaces.ledger.space(2).state == "ready"
    done = palate(spaces, "retire", 2, "--no-dry-run", "--why", "over", "--quiet")
    assert done.stdout.splitlines()[0] == "space 2: gone"
    assert spaces.ledger.space(2).state == "retired"
    again = palate(spaces, "retire", 2, "--no-dry-run", "--quiet")
    assert again.exit_code == 0
    assert again.stdout.splitlines()[0] == "space 2: was retired before"
    report = json.loads(palate(spaces, "retire", 2, "--json").stdout)
    assert report["outcome"] == "unchanged"
    text = palate(spaces, "show", 2).stdout
    assert "space 2: retired\n" in text
    assert "freed when it was retired: " in text
    assert "modality encoder collaborative" in text
    bridge = spaces.ledger.bridge("b" * 12)
    assert bridge.state == "retired"


def test_force_needs_a_reason(spaces: Spaces) -> None:
    result = palate(spaces, "bridge", 2, "--to", 1, "--force")
    assert result.exit_code == 2
    assert "--force needs a reason" in result.stderr


@pytest.mark.parametrize("arguments", [["bridge", 2, "--to", 1], ["stability", 2]], ids=str)
def test_what_cannot_be_measured_is_a_message(spaces: Spaces, arguments: list[object]) -> None:
    result = palate(spaces, *arguments)
    assert result.exit_code in (1, 3)
    assert "Traceback" not in result.output


def test_sizes_are_told_as_people_read_them() -> None:
    assert [size(n) for n in (0, 999, 1_000, 1_234_567, 5e9, 7e13)] == [
        *("0 B", "999 B", "1.0 kB", "1.2 MB", "5.0 GB", "70.0 TB")
    ]


def test_lines_are_never_of_two(spaces: Spaces) -> None:
    record = space_record(spaces.settings, spaces.ledger, 1)
    assert [line for line in space_lines(record) if "\n" in line] == []
