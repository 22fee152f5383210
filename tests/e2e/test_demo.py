"""`palate demo` and the README's snippets, as a user without data and without network runs them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from materialize.cli import main
from tests.e2e.conftest import run

README = Path(__file__).parents[2] / "README.md"

# A whole demo trains for real: 50 s on one machine, 190 s on another of as many cores.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Demo:
    """A finished demo on simulated listeners."""

    output: Path
    printed: str
    summary: dict[str, Any]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    output = tmp_path_factory.mktemp("demo") / "demo-output"
    before = os.environ.pop("PALATE_DATA", None)
    try:
        printed = run(
            *("palate", "demo", "--dataset", "simulated", "--output", str(output)),
            cwd=output.parent,
        )
    finally:
        if before is not None:
            os.environ["PALATE_DATA"] = before
    return Demo(output, printed, json.loads((output / "summary.json").read_text()))


def test_the_summary_says_what_was_done_and_on_what(demo: Demo) -> None:
    summary = demo.summary
    assert (summary["dataset"], summary["source"]) == ("simulated", "simulated")
    assert summary["space"] == 1
    assert re.fullmatch(r"[0-9a-f]{12}", summary["encoder_version"])
    assert summary["max_abs_diff"] <= 1e-5
    assert summary["compared_users"] == 500
    assert summary["pit_rows_in"] == summary["pit_rows_out"] > 500
    names = [step["name"] for step in summary["steps"]]
    assert names == [
        *("data", "validate", "features", "apply", "train", "apply space"),
        *("materialise history", "materialise", "read", "evaluate", "report"),
    ]
    assert all(s["seconds"] >= 0 and s["peak_memory_mb"] > 0 for s in summary["steps"])
    counted = {s["name"]: s["counts"] for s in summary["steps"]}
    assert counted["validate"]["users"] == 4000
    assert counted["materialise"]["rows"] == counted["materialise"]["online_rows"] == 4000


def test_the_planted_taste_is_found_better_than_by_both_baselines(demo: Demo) -> None:
    result = demo.summary["probe"]["groups"]["all"]
    assert result["models"]["embedding"]["auc_macro"]["low"] > 0.6
    for baseline in ("raw_pooled", "popularity"):
        assert result["differences"][baseline]["auc_macro"]["low"] > 0, baseline


def test_the_table_names_data_figures_and_report(demo: Demo) -> None:
    assert "simulated (simulated)" in demo.printed
    assert "probe embedding" in demo.printed
    assert str(demo.output / "report.html") in demo.printed
    assert (demo.output / "report.html").stat().st_size > 1_000_000


def test_a_second_demo_goes_on_from_the_first_and_refuses_another_data_set(demo: Demo) -> None:
    arguments = ("--output", str(demo.output))
    before = demo.summary["encoder_version"]
    again = run("palate", "demo", "--dataset", "simulated", *arguments, cwd=demo.output)
    assert before in again
    assert json.loads((demo.output / "summary.json").read_text())["space"] == 1
    refused = subprocess.run(
        [Path(sys.executable).parent / "palate", "demo", "--dataset", "ml100k", *arguments],
        cwd=demo.output,
        env={**os.environ, "PALATE_DATA": str(_folder_with(demo.output.parent, "ml100k"))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 1
    assert "holds the data set 'simulated'" in refused.stderr


def _folder_with(parent: Path, name: str) -> Path:
    (parent / "given" / name).mkdir(parents=True, exist_ok=True)
    return parent / "given"


def test_the_readme_python_runs_as_it_stands(demo: Demo) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    assert len(blocks) == 3
    # The README's ids are ml1m's numbers; the simulated listeners have names.
    users = ["L00000001", "L00000002", "nobody"]
    program = "\n".join(blocks)
    for number, user in zip(("1", "2", "999_999_999"), users, strict=True):
        program = re.sub(rf'("user_id": (?:\[[^]]*)?)\b{number}\b', rf'\g<1>"{user}"', program)
    program = re.sub(r"\[1, 2, 999_999_999\]", repr(users), program)
    program = program.replace('repo_path="."', 'repo_path="demo-output/repo"')
    program = program.replace("2001-03-01", "2024-07-01")
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=demo.output.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    first, last = (line for line in done.stdout.splitlines() if line.strip())
    assert first.startswith("120 ")
    assert last == "['warm', 'cold']"


def test_the_readme_names_every_command() -> None:
    text = README.read_text()
    missing = [name for name in main.commands if f"`palate {name}" not in text]
    assert not missing
