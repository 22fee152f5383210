"""Run one benchmark by name, or list them: ``python -m benchmarks [NAME [ARGS...]]``."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
NOT_BENCHMARKS = {"__init__", "__main__", "harness"}


def questions() -> dict[str, str]:
    """Return name -> first line of the docstring of each benchmark script, by name."""
    return {
        path.stem: (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "")
        .partition("\n")[0]
        .strip()
        for path in sorted(FOLDER.glob("*.py"))
        if path.stem not in NOT_BENCHMARKS and not path.stem.startswith("_")
    }


def main(arguments: list[str]) -> int:
    """Run ``arguments[0]`` with the rest as its arguments; list the names when there is none.

    Returns
    -------
    int
        0, or 2 for a name that is no benchmark. The script itself may exit with another status.
    """
    known = questions()
    if not arguments:
        width = max(map(len, known), default=0)
        for name, question in known.items():
            print(f"{name:<{width}}  {question}")
        return 0
    name = arguments[0]
    if name not in known:
        print(f"Unknown benchmark {name!r}. Known: {', '.join(known)}.", file=sys.stderr)
        return 2
    sys.argv = [str(FOLDER / f"{name}.py"), *arguments[1:]]
    runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
