"""Processes that tests start import Feast in a third of the time: Typeguard's work is kept.

Feast decorates its classes with Typeguard, which parses and rewrites a whole module for each of 240
functions: most of the ten seconds that `import feast` takes, in every process anew. What it makes
of a function depends on the source alone, so that its code objects can be kept in a folder: a
process that finds them there runs the very same checks.

Python imports this file by its name, from PYTHONPATH, in every process that begins (`conftest.py`
sets both variables). It must cost nothing where Typeguard is not imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

FOLDER = "PALATE_TYPEGUARD_CODE"
"""Environment variable: the folder that keeps the code objects."""
_NAME = "typeguard._decorators"


def install() -> None:
    """Let Typeguard keep and find its code, now or when it is imported."""
    if FOLDER not in os.environ:
        return
    if _NAME in sys.modules:
        _patch(sys.modules[_NAME])
    else:
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Patches the module as soon as it is executed."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != _NAME:
            return None
        sys.meta_path.remove(self)
        from importlib.util import find_spec

        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            _patch_after(spec.loader)
        return spec


def _patch_after(loader: Loader) -> None:
    execute = loader.exec_module

    def exec_module(module: Any) -> None:
        execute(module)
        _patch(module)

    loader.exec_module = exec_module  # type: ignore[method-assign]


def _patch(module: Any) -> None:
    if not hasattr(module.instrument, "original"):
        module.instrument = _kept(module.instrument)


def _kept(instrument: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return Typeguard's ``instrument`` that looks into the folder first."""
    import hashlib
    import marshal
    from importlib.metadata import version
    from pathlib import Path
    from types import FunctionType

    folder = Path(os.environ[FOLDER])
    made_by = f"{sys.implementation.cache_tag} {sys.hexversion} {version('typeguard')}"
    sources: dict[str, bytes] = {}

    def path_of(function: Any) -> Path:
        """Return where the code of a function is kept: by all that decides what it is."""
        file = function.__code__.co_filename
        if file not in sources:
            sources[file] = hashlib.sha256(Path(file).read_bytes()).digest()
        told = f"{made_by} {file} {function.__qualname__} {function.__code__.co_firstlineno} "
        return folder / hashlib.sha256(told.encode() + sources[file]).hexdigest()

    def instrument_or_find(function: Any) -> Any:
        # Typeguard makes new cells for some closures, and refuses what is not a plain function.
        if not isinstance(function, FunctionType) or hasattr(function, "__wrapped__"):
            return instrument(function)
        path = path_of(function)
        if not path.exists():
            made = instrument(function)
            if (
                isinstance(made, FunctionType)
                and made.__code__.co_freevars == function.__code__.co_freevars
            ):
                partial = path.with_name(f"{path.name}.{os.getpid()}")
                partial.write_bytes(marshal.dumps(made.__code__))
                partial.replace(path)
            return made
        code = marshal.loads(path.read_bytes())  # noqa: S302 - this project wrote it
        found = FunctionType(
            code, function.__globals__, function.__name__, closure=function.__closure__
        )
        for name in ("module", "qualname", "doc", "defaults", "kwdefaults", "annotations"):
            setattr(found, f"__{name}__", getattr(function, f"__{name}__"))
        return found

    instrument_or_find.original = instrument  # type: ignore[attr-defined]
    return instrument_or_find


if __name__ == "sitecustomize":
    install()
