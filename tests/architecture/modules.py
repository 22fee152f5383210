"""Where the project's modules are, and what each of them imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("encoder", "transforms", "materialize")
FOLDERS = (*PACKAGES, "feature_repo")


@dataclass(frozen=True)
class Import:
    """One imported module, as a full dotted name."""

    importer: str
    """Path of the importing file, relative to the checkout."""
    line: int
    module: str
    names: tuple[str, ...]
    """What ``from module import ...`` takes; empty for ``import module``."""
    on_load: bool
    """Runs when the importing module is loaded: not in a function, not only for type checkers."""

    @property
    def package(self) -> str:
        return self.module.partition(".")[0]

    @property
    def dotted(self) -> tuple[str, ...]:
        """Every dotted name that this may load: ``from a import b`` gives ``a`` and ``a.b``."""
        return (self.module, *(f"{self.module}.{name}" for name in self.names))

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.module}"


def files() -> list[Path]:
    """Return every Python file of the four folders."""
    return [
        path
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        if "data" not in path.relative_to(ROOT).parts[:-1]
    ]


def _walk(node: ast.AST, on_load: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, on_load
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _walk(child, on_load=False)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for statement in child.body:
                yield from _walk(ast.Module([statement], []), on_load=False)
            for statement in child.orelse:
                yield from _walk(ast.Module([statement], []), on_load)
        else:
            yield from _walk(child, on_load)


def imports(path: Path, source: str | None = None) -> list[Import]:
    """Return what the file at ``path`` imports; ``source`` replaces its text."""
    text = path.read_text(encoding="utf-8") if source is None else source
    found: list[Import] = []
    for node, on_load in _walk(ast.parse(text), on_load=True):
        if isinstance(node, ast.Import):
            entries: list[tuple[str, tuple[str, ...]]] = [(alias.name, ()) for alias in node.names]
        else:
            # Relative imports are refused by ruff (TID252), so a module is always named.
            entries = [(node.module or ".", tuple(alias.name for alias in node.names))]
        name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)
        found += [Import(name, node.lineno, module, names, on_load) for module, names in entries]
    return found
