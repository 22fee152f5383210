"""What a module offers is listed, exists and is documented."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest

from tests.architecture.modules import PACKAGES, ROOT, files


def _declared(path: Path) -> list[str] | None:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["__all__"]:
            return list(ast.literal_eval(node.value))
    return None


def _modules() -> list[str]:
    return [
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for path in files()
        if path.relative_to(ROOT).parts[0] in PACKAGES and _declared(path) is not None
    ]


def _rank(name: str) -> tuple[int, str]:
    # As ruff's RUF022 sorts: constants, classes, the rest.
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def test_modules_with_public_names_are_found() -> None:
    assert "encoder.errors" in _modules()


@pytest.mark.parametrize("name", _modules())
def test_public_names_are_sorted_exist_and_are_documented(name: str) -> None:
    module = importlib.import_module(name)
    names = list(module.__all__)
    assert names == sorted(set(names), key=_rank)
    assert [n for n in names if not hasattr(module, n)] == []
    assert module.__doc__
    undocumented = [
        n
        for n in names
        if (inspect.isclass(getattr(module, n)) or inspect.isroutine(getattr(module, n)))
        # A dataclass without a docstring gets its signature as one.
        and (not (doc := inspect.getdoc(getattr(module, n))) or doc.startswith(f"{n}("))
    ]
    assert undocumented == []
