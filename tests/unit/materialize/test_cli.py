"""The command line: what it lists, how it exits, what it loads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from materialize.cli import main
from materialize.embedding_rows import encode_rows
from materialize.ledger import Ledger, Space
from materialize.template import init_repository
from tests.repositories import VIEWS, TinyRepository, raw_rows, write_online
from transforms.names import stored_view


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def _commands(group: click.Group, prefix: str = "") -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        found[f"{prefix}{name}"] = command
        if isinstance(command, click.Group):
            found |= _commands(command, f"{prefix}{name} ")
    return found


STEPS = {
    "init", "data", "data validate", "data fetch", "features", "features build", "train",
    "materialize", "evaluate", "report", "spaces", "spaces list", "spaces show", "spaces diff",
    "spaces promote", "spaces rollback", "spaces stability", "spaces bridge", "spaces retire",
    "spaces compare", "compact", "doctor", "demo",
}  # fmt: skip


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A repository with which nothing was done yet."""
    init_repository(tmp_path / "repository", "simulated")
    return tmp_path / "repository"


# --- help


_HELP = """
import json, sys
from click.testing import CliRunner
from materialize.cli import main
answers = {}
for line in json.loads(sys.argv[1]):
    result = CliRunner().invoke(main, [*line.split(), "--help"])
    answers[line] = [result.exit_code, result.output]
print(json.dumps([answers, sorted(sys.modules)]))
"""


def test_every_command_has_help_without_heavy_imports(tmp_path: Path) -> None:
    names = sorted(_commands(main))
    done = subprocess.run(
        [sys.executable, "-c", _HELP, json.dumps(["", *names])],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers, modules = json.loads(done.stdout)
    assert [line for line, (code, _) in answers.items() if code != 0] == []
    for name in names:
        if " " not in name:
            assert f"\n  {name} " in answers[""][1]
    heavy = {"torch", "feast", "pandas", "duckdb", "pyarrow", "numpy", "onnxruntime", "sklearn"}
    assert heavy & set(modules) == set()


def test_the_steps_of_the_main_job_are_commands() -> None:
    commands = _commands(main)
    assert set(commands) >= STEPS
    assert [name for name, command in commands.items() if not command.help] == []


# --- exit status


def test_done_is_0(tmp_path: Path) -> None:
    result = _run("init", tmp_path / "mine")
    assert result.exit_code == 0
    assert str(tmp_path / "mine" / "palate.yaml") in result.stdout
    assert f"palate data validate --repo {tmp_path / 'mine'}" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["init", "{repo}"], "is not empty"),
        (["init", "{repo}/new", "--dataset", "films"], "Unknown data set 'films'"),
        (["spaces", "list", "--repo", "{repo}/datasets"], "has no palate.yaml"),
        (["features", "build", "--repo", "{repo}"], "Run `palate data validate` first"),
    ],
)
def test_failed_is_1_and_says_why_without_a_traceback(
    empty: Path, arguments: list[str], message: str
) -> None:
    result = _run(*(a.format(repo=empty) for a in arguments))
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["train", "--repo", "/no/such/folder"],
        ["materialize", "--space", "one"],
        ["materialize", "--start", "yesterday"],
        ["spaces", "show"],
        ["data", "fetch", "films"],
    ],
)
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    result = _run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["materialize"], "Refused: The ledger holds no space yet. Run `palate train` first."),
        (["spaces", "show", "3"], "Refused: The ledger holds no space yet"),
        (["evaluate"], "Refused: The ledger holds no space yet"),
    ],
)
def test_refused_is_3(empty: Path, arguments: list[str], message: str) -> None:
    result = _run(*arguments, "--repo", empty)
    assert result.exit_code == 3
    assert message in result.stderr
    assert result.stdout == ""


def test_the_repository_may_come_from_the_environment(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PALATE_REPO", str(empty))
    assert json.loads(_run("spaces", "list", "--json").stdout) == []


# --- spaces and doctor


def test_spaces_are_listed_and_shown(empty: Path) -> None:
    ledger = Ledger(f"sqlite:///{empty}/data/ledger.db")
    ledger.register("a" * 12, "/encoders/a", {"dataset": "simulated"})
    run = ledger.begin_run("0" * 16, stored_view(1), "key", {"start": None}, space=1)
    ledger.commit_run(run.run_id, {"rows": 5})
    listed = _run("spaces", "list", "--repo", empty).stdout.splitlines()
    assert len(listed) == 2
    assert listed[1].split()[:3] == ["1", "a" * 12, "ready"]
    assert listed[1].endswith("simulated")
    shown = json.loads(_run("spaces", "show", "1", "--json", "--repo", empty).stdout)
    assert shown["encoder_version"] == "a" * 12
    assert shown["artifact_url"] == "/encoders/a"
    assert [r["counts"] for r in shown["runs"]] == [{"rows": 5}]
    assert _run("spaces", "show", "2", "--repo", empty).exit_code == 3


def test_doctor_is_0_with_warnings_and_1_with_a_fault(empty: Path) -> None:
    result = _run("doctor", "--repo", empty)
    assert result.exit_code == 0, result.output
    assert "WARN  clean data: not validated yet\n      -> palate data validate" in result.stdout
    (empty / "palate.yaml").write_text("dataset: [")
    result = _run("doctor", "--repo", empty)
    assert result.exit_code == 1
    assert "FAIL  repository: " in result.stdout


@pytest.mark.parametrize(("change", "exit_code"), [(0.0, 0), (1e-3, 3), (float("nan"), 3)], ids=str)
def test_compare_is_3_when_the_views_differ(
    tiny: TinyRepository, space: Space, change: float, exit_code: int
) -> None:
    ledger = Ledger(tiny.settings.ledger_url)
    ledger.register(space.encoder_version, "", {"raw_views": list(VIEWS)})
    users = [7001, 7002]
    raw = raw_rows(users)
    tiny.write_raw(raw)
    (batch,) = raw.combine_chunks().to_batches()
    rows = pa.Table.from_batches([encode_rows(batch, space, tiny.settings.artifacts_url)])
    folder = tiny.settings.offline_dir / stored_view(1)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, folder / "run.parquet")
    vectors = rows.column("embedding").to_pylist()
    vectors[0][0] += change
    column = pa.array(vectors, pa.list_(pa.float32()))
    rows = rows.set_column(1, rows.schema.field("embedding"), column)
    write_online(tiny.store, stored_view(1), rows.combine_chunks().to_batches())
    result = _run("spaces", "compare", "--repo", tiny.path)
    assert result.exit_code == exit_code, result.output
    assert json.loads(result.stdout)["users"] == 2


def test_training_without_torch_names_the_extra_to_install(tmp_path: Path) -> None:
    init_repository(tmp_path / "repo", "simulated")
    program = (
        "import sys; sys.modules['torch'] = None\n"  # what a serving machine looks like to import
        "from materialize.cli import main; main(['train', '--repo', 'repo'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "needs the package 'torch'" in done.stderr
    assert "palate[train]" in done.stderr
    assert "Traceback" not in done.stderr
