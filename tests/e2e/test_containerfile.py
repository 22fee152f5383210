"""The container file's own steps, run without a container engine."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from tests.architecture.modules import PACKAGES, ROOT
from tests.repositories import TinyRepository, raw_rows
from tests.servers import free_port, running
from transforms.names import USER_KEY, on_demand_view

VIEW = on_demand_view(1)
USERS = [1, 2, 999]
INSTALL = "PALATE_INSTALL_TEST"
"""Set to 1: install from a package index into a fresh environment, which takes minutes."""


@dataclass(frozen=True)
class Instruction:
    """One instruction of the container file, its lines joined."""

    name: str
    rest: str


def _instructions() -> list[Instruction]:
    text = (ROOT / "Containerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [Instruction(*line.split(maxsplit=1)) for line in joined]


def _of(name: str) -> list[str]:
    return [i.rest for i in _instructions() if i.name == name]


def _environment() -> dict[str, str]:
    pairs = [pair.split("=", 1) for rest in _of("ENV") for pair in shlex.split(rest)]
    return {name: value for name, value in pairs}


def _command(name: str) -> list[str]:
    """Return the exec form of CMD or of HEALTHCHECK's CMD."""
    (rest,) = _of(name)
    command: list[str] = json.loads(rest[rest.index("[") :])
    return command


def _context(folder: Path) -> Path:
    """Copy what the COPY lines name, and nothing else."""
    for rest in _of("COPY"):
        *sources, target = rest.split()
        for source in sources:
            path = ROOT / source
            if path.is_dir():
                kept = shutil.ignore_patterns("__pycache__", "data")
                shutil.copytree(path, folder / target, ignore=kept)
            else:
                shutil.copy(path, folder / target)
    return folder


def test_the_base_is_named_plainly_and_the_account_is_not_root() -> None:
    (base,) = _of("FROM")
    assert re.fullmatch(r"python:\$\{PYTHON\}-slim", base), "no registry's name in it"
    (python,) = _of("ARG")
    assert python == f"PYTHON={sys.version_info.major}.{sys.version_info.minor}", (
        "the Python that the tests run on"
    )
    names = [i.name for i in _instructions()]
    assert _of("USER") == ["palate"]
    assert names.index("USER") > max(k for k, name in enumerate(names) if name == "RUN")
    assert _of("EXPOSE") == [_environment()["PALATE_PORT"]]


def test_what_is_copied_makes_the_whole_wheel(tmp_path: Path) -> None:
    context = _context(_made(tmp_path / "context"))
    wheels = []
    for source, folder in ((context, tmp_path / "theirs"), (ROOT, tmp_path / "ours")):
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"),
                *("--no-build-isolation", "--wheel-dir", str(folder), str(source)),
            ],
            check=True,
            capture_output=True,
        )
        (wheel,) = folder.iterdir()
        with zipfile.ZipFile(wheel) as archive:
            wheels.append({n for n in archive.namelist() if ".dist-info/" not in n})
    assert wheels[0] == wheels[1]
    assert {name.partition("/")[0] for name in wheels[0]} == set(PACKAGES)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> TinyRepository:
    made = TinyRepository.make(tmp_path_factory.mktemp("image") / "repo")
    made.apply_space(1, made.save_encoder())
    made.write_raw(raw_rows(USERS[:2]))
    return made


def _vectors(repository: TinyRepository) -> list[Any]:
    answer = repository.store.get_online_features(
        features=[f"{VIEW}:embedding"], entity_rows=[{USER_KEY: user} for user in USERS]
    ).to_dict()
    return [np.asarray(vector).tolist() for vector in answer["embedding"]]


def _serves(repository: TinyRepository, programs: Path, folder: Path) -> None:
    """Run CMD in the repository until HEALTHCHECK succeeds; ask; end it as an engine does."""
    environment = _environment() | {
        "PALATE_HOST": "127.0.0.1",
        "PALATE_PORT": str(free_port()),
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
    }

    def healthy() -> bool:
        check = _command("HEALTHCHECK")
        return (
            subprocess.run(
                [programs / check[0], *check[1:]],
                env=os.environ | environment,
                capture_output=True,
                check=False,
            ).returncode
            == 0
        )

    *shell, line = _command("CMD")
    command = [*shell, f"cd {shlex.quote(str(repository.path))} && {line}"]  # WORKDIR is /repo
    with running(command, folder, healthy, environment=environment) as process:
        asked = {"features": [f"{VIEW}:embedding"], "entities": {USER_KEY: USERS}}
        answer = requests.post(
            f"http://127.0.0.1:{environment['PALATE_PORT']}/get-online-features",
            json=asked,
            timeout=30,
        )
        assert answer.status_code == 200, answer.text
        body = answer.json()
        at = body["metadata"]["feature_names"].index("embedding")
        assert body["results"][at]["values"] == _vectors(repository)
    assert process.returncode == 0, "SIGTERM ends the server itself, not a shell around it"


@pytest.mark.slow
def test_its_command_serves_a_repository_and_its_check_finds_it_healthy(
    repository: TinyRepository, tmp_path: Path
) -> None:
    _serves(repository, Path(sys.executable).parent, tmp_path)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The programs of a fresh environment in which the file's `RUN pip` lines were run."""
    if os.environ.get(INSTALL) != "1":
        pytest.skip(f"installs a gigabyte from a package index: {INSTALL}=1 runs it")
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", with_pip=True)
    programs = folder / "venv" / "bin"
    lines = [rest for rest in _of("RUN") if rest.startswith("pip ")]
    assert lines
    for line in lines:
        subprocess.run(
            ["sh", "-c", line],
            cwd=_context(_made(folder / "context")),
            env=os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"},
            check=True,
        )
    yield programs
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_its_steps_install_what_serves_and_no_torch(
    installed: Path, repository: TinyRepository, tmp_path: Path
) -> None:
    def run(*command: str) -> str:
        done = subprocess.run(
            [installed / command[0], *command[1:]],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    packages = {
        p["name"].lower(): p["version"] for p in json.loads(run("pip", "list", "--format=json"))
    }
    assert {"palate", "feast", "onnxruntime", "redis", "psycopg"} <= set(packages)
    assert [n for n in packages if n.startswith(("torch", "nvidia", "triton"))] == []
    assert "materialize" in run("palate", "--help")
    assert "0.67" in run("feast", "version")
    _serves(repository, installed, tmp_path)
    sizes = json.loads(run("python", "-c", _SIZES))
    # 970 MB when docs/guides/serve.md was written.
    assert 0.5e9 < sizes["total"] < 1.3e9, sizes
    print(json.dumps(sizes, indent=2))


_SIZES = """
import collections, json, pathlib, sysconfig
root = pathlib.Path(sysconfig.get_path("purelib"))
sizes = collections.Counter()
for path in root.rglob("*"):
    if path.is_file() and not path.is_symlink():
        sizes[path.relative_to(root).parts[0]] += path.stat().st_size
print(json.dumps({"total": sum(sizes.values()), "largest": dict(sizes.most_common(12))}))
"""
