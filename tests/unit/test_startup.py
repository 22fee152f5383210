"""Typeguard's work that is kept between processes: the same checks, made once."""

from __future__ import annotations

import json
import marshal
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.startup import python_path
from tests.startup.sitecustomize import FOLDER

_CHECKED = """
from typeguard import typechecked

@typechecked
class Checked:
    def given(self, value: int) -> str:
        return {answer!r}
"""
_PROGRAM = """
import json
from typeguard import TypeCheckError
from checked import Checked

answers = [Checked().given(1)]
for wrong in (None, "a"):
    try:
        answers.append(Checked().given(wrong))
    except TypeCheckError as refused:
        answers.append(str(refused))
print(json.dumps(answers))
"""


def _run(folder: Path, kept: Path | None) -> list[str]:
    environ = {name: value for name, value in os.environ.items() if name != FOLDER}
    if kept is not None:
        kept.mkdir(exist_ok=True)
        environ[FOLDER] = str(kept)
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        env=environ | {"PYTHONPATH": python_path(folder)},
        capture_output=True,
        check=True,
    )
    answers: list[str] = json.loads(done.stdout)
    return answers


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    (tmp_path / "checked.py").write_text(_CHECKED.format(answer="right"), encoding="utf-8")
    return tmp_path / "kept"


def test_a_process_that_finds_the_code_refuses_what_one_without_it_refuses(kept: Path) -> None:
    plain = _run(kept.parent, None)
    assert plain[0] == "right"
    assert all("is not an instance of int" in refused for refused in plain[1:])
    assert _run(kept.parent, kept) == plain
    assert len(list(kept.iterdir())) == 1
    assert _run(kept.parent, kept) == plain


def test_it_runs_what_it_finds(kept: Path) -> None:
    _run(kept.parent, kept)
    (file,) = kept.iterdir()
    file.write_bytes(marshal.dumps((lambda self, value: "planted").__code__))
    assert _run(kept.parent, kept) == ["planted"] * 3


def test_another_source_is_another_code(kept: Path) -> None:
    _run(kept.parent, kept)
    (kept.parent / "checked.py").write_text(_CHECKED.format(answer="other"), encoding="utf-8")
    assert _run(kept.parent, kept)[0] == "other"
    assert len(list(kept.iterdir())) == 2
