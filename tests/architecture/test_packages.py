"""The import packages are this project's, and a built wheel works without the checkout."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.architecture.modules import PACKAGES, ROOT


@pytest.mark.parametrize("package", PACKAGES)
def test_package_resolves_to_this_project(package: str) -> None:
    assert importlib.import_module(package).__file__ == str(ROOT / package / "__init__.py")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"),
            *("--no-index", "--wheel-dir", str(folder), str(ROOT)),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("palate-*.whl")
    return built


def _tracked(folder: str) -> set[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return {line for line in listed.stdout.splitlines() if (ROOT / line).is_file()}


def test_wheel_holds_the_packages_and_the_template_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if ".dist-info/" not in n}
    expected = set().union(*(_tracked(package) for package in PACKAGES))
    expected |= {f"materialize/templates/{name}" for name in _tracked("feature_repo")}
    assert names == expected
    assert "materialize/templates/feature_repo/feature_store.yaml" in names
    assert {f"{package}/py.typed" for package in PACKAGES} <= names


def test_installed_wheel_runs_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "installed"
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"),
            *("--target", str(target), str(wheel)),
        ],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    # PYTHONPATH goes before site-packages, whose editable install names the checkout last.
    environment = {**os.environ, "PYTHONPATH": str(target)}
    where = "import encoder, transforms, materialize as m; "
    where += "print(encoder.__file__, transforms.__file__, m.__file__, sep='\\n')"
    found = subprocess.run(
        [sys.executable, "-c", where],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == [str(target / p / "__init__.py") for p in PACKAGES]
    answered = subprocess.run(
        [sys.executable, str(target / "bin" / "palate"), "--help"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answered.returncode == 0, answered.stderr
    assert "materialize" in answered.stdout
