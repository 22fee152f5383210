"""`palate evaluate` on a small repository: tables, a kill, a resume, and a refusal."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from materialize.cli import main
from tests.e2e.conftest import Story

pytestmark = pytest.mark.slow

QUICK = ("--task", "probe", "--model", "popularity", "--resamples", "20", "--quiet")
SEEDS = 2
_DEADLINE_SECONDS = 300.0


@pytest.fixture(scope="module")
def repo(story: Story, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: evaluations are written into it."""
    copy = tmp_path_factory.mktemp("evaluated") / "repo"
    shutil.copytree(story.repo, copy)
    return copy


def palate(repo: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["evaluate", "--repo", str(repo), *arguments])


def summary(repo: Path, *arguments: str) -> dict[str, Any]:
    done = palate(repo, *QUICK, "--seeds", str(SEEDS), "--json", *arguments)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def units(repo: Path) -> list[Path]:
    return sorted((repo / "data" / "evaluations" / "space-1").glob("*/probe-*.json"))


def kill_after_a_unit(repo: Path) -> None:
    command = [Path(sys.executable).parent / "palate", "evaluate", "--repo", repo]
    process = subprocess.Popen([*command, *QUICK, "--seeds", str(SEEDS)])
    try:
        until = time.monotonic() + _DEADLINE_SECONDS
        while not units(repo):
            assert process.poll() is None, "the evaluation ended without a unit"
            assert time.monotonic() < until, "no unit in time"
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()


def test_killed_evaluation_goes_on_to_the_summary_of_an_undisturbed_one(repo: Path) -> None:
    kill_after_a_unit(repo)
    before = {path: path.read_bytes() for path in units(repo)}
    assert 1 <= len(before) <= SEEDS
    resumed = summary(repo)
    assert len(units(repo)) == SEEDS
    assert {path: path.read_bytes() for path in before} == before
    undisturbed = summary(repo, "--no-resume")
    assert resumed["results"] == undisturbed["results"]
    assert resumed["leaks"] == undisturbed["leaks"]
    assert resumed["seeds"] == list(range(SEEDS))
    assert resumed["command"] == (
        "palate evaluate --space 1 --task probe --model popularity --seeds 2 --resamples 20"
    )
    for row in resumed["results"]:
        assert len(row["by_seed"]) == SEEDS


def test_tables_are_printed_and_can_be_chosen(repo: Path) -> None:
    arguments = (*QUICK, "--seeds", "1", "--metric", "auc_macro", "--group", "all")
    done = palate(repo, *arguments)
    assert done.exit_code == 0, done.output
    assert "**probe: auc_macro, all**" in done.stdout
    assert "auc_micro" not in done.stdout
    assert "| popularity | 0.500 [0.500, 0.500] |" in done.stdout
    wrong = palate(repo, *QUICK, "--seeds", "1", "--group", "warm")
    assert wrong.exit_code == 2
    assert "no group 'warm'" in wrong.stderr


@pytest.mark.parametrize(
    ("kind", "models"),
    [("plain_story", ("--model", "popularity")), ("plain_story", ()), ("clue_story", ())],
)
def test_whatever_was_compared_can_be_reported(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, models: tuple[str, ...]
) -> None:
    repo = tmp_path / "repo"
    shutil.copytree(request.getfixturevalue(kind).repo, repo)
    quick = ("--task", "probe", "--seeds", "1", "--resamples", "20", "--quiet")
    done = palate(repo, *quick, *models)
    assert done.exit_code == 0, done.output
    page = tmp_path / "report.html"
    told = CliRunner().invoke(main, ["report", "--repo", str(repo), "--output", str(page)])
    assert told.exit_code == 0, told.output
    assert ("network on raw features" in page.read_text(encoding="utf-8")) == (not models)


def test_plan_names_the_tasks_and_writes_nothing(story: Story, tmp_path: Path) -> None:
    shutil.copytree(story.repo, tmp_path / "repo")
    before = sorted((tmp_path / "repo" / "data").rglob("*"))
    done = palate(tmp_path / "repo", "--dry-run", "--task", "probe", "--task", "future")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["tasks"] == ["probe", "future"]
    assert sorted((tmp_path / "repo" / "data").rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "prob"), "Unknown task 'prob'"),
        (("--model", "knn"), "Unknown model 'knn'"),
        (("--seeds", "0"), "0 is not in the range"),
    ],
)
def test_wrong_usage_is_told_before_anything_runs(
    repo: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = palate(repo, *arguments)
    assert done.exit_code == 2
    assert message in done.stderr


def test_encoder_that_saw_the_answers_is_refused_with_status_3(
    story: Story, tmp_path: Path
) -> None:
    shutil.copytree(story.repo, tmp_path / "repo")
    dataset = tmp_path / "repo" / "datasets" / "simulated.yaml"
    described = yaml.safe_load(dataset.read_text())
    # The encoder was trained up to the old cut-off, 20 days after this one.
    described["evaluation"]["cutoff"] = "2024-05-10T00:00:00Z"
    dataset.write_text(yaml.safe_dump(described))
    done = palate(tmp_path / "repo", *QUICK, "--seeds", "1")
    assert done.exit_code == 3, done.output
    assert "Refused:" in done.stderr
    assert not units(tmp_path / "repo")
