"""Does `palate --help` answer in under 0.3 s?"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.harness import compare, repeat, write_results


def seconds(command: list[str]) -> float:
    """Return the wall seconds of ``command`` from start to exit; its output must not be empty."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    elapsed = time.perf_counter() - start
    assert done.stdout.strip(), f"{command} printed nothing"
    return elapsed


def main() -> None:
    """Measure, print and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    repeats = parser.parse_args().repeats
    palate = str(Path(sys.executable).with_name("palate"))
    bare = [sys.executable, "-c", "print('Usage')"]
    record = compare(
        "wall time of palate --help in a fresh process",
        repeat(lambda: seconds([palate, "--help"]), repeats),
        unit="s",
        baseline=("python that prints one word", repeat(lambda: seconds(bare), repeats)),
        limit=("slowest that feels instant", 0.3),
        target="ours < 0.3",
    )
    write_results("cli_startup", [record])


if __name__ == "__main__":
    main()
