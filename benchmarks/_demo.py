"""A finished ``palate demo`` for benchmarks that judge quality on a real repository."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Demo", "run_demo"]


@dataclass(frozen=True)
class Demo:
    """A repository whose space 1 is trained and materialised, and the folder of its raw data."""

    repository: Path
    raw: Path


def run_demo(folder: Path) -> Demo:
    """Run ``palate demo`` into a new ``folder``; reuse one that holds a finished run.

    On MovieLens 1M where ``PALATE_DATA`` has it, else on simulated listeners.
    """
    given = os.environ.get("PALATE_DATA", "")
    name = "ml1m" if given and (Path(given) / "ml1m").is_dir() else "simulated"
    program = Path(sys.executable).parent / "palate"
    if not (folder / "repo").is_dir():
        subprocess.run(
            [program, "demo", "--output", folder, "--dataset", name],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    raw = Path(given) if name == "ml1m" else folder / "raw"
    return Demo((folder / "repo").resolve(), raw.resolve())
