"""How many users a second does the same batch job do on Ray, against threads of one process?

Both encode the same raw rows and write them to Parquet and to an emptied local Redis. The time on
Ray has everything in it that a run waits for: starting Ray here, and its workers' imports. Memory
is that of all processes together; what they share counts once for each.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks._jobs import SEED, Runs, jobs, peaks, rates, same
from benchmarks.harness import Record, compare, write_results

PALATE = "benchmarks._jobs:palate"
ENGINES = ("local", "ray")


def _records(users: int, workers: int, local: Runs, ray: Runs) -> list[Record]:
    return [
        compare(
            f"{what} of the whole job on Ray, {users} users, {workers} worker(s)",
            measured(ray),
            unit=unit,
            baseline=("threads of one process", measured(local)),
            seed=SEED,
        )
        for what, measured, unit in (("speed", rates, "rows/s"), ("peak memory", peaks, "MiB"))
    ]


def main() -> None:
    """Measure, print and write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--memory-limit-mb", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    records = []
    with jobs() as jobs_:
        for workers in given.workers:
            runs: dict[str, Runs] = {engine: [] for engine in ENGINES}
            for _ in range(given.repeats):
                done: list[Path] = []
                for engine in ENGINES:
                    settings = {
                        "memory_limit_mb": given.memory_limit_mb,
                        "materialize": {"engine": engine, "workers": workers},
                    }
                    repository, result = jobs_.run(PALATE, "palate", given.users, settings)
                    same([repository], given.users, emptied=done)
                    done.append(repository)
                    runs[engine].append(result)
            records += _records(given.users, workers, *runs.values())
    write_results("ray_job", records)


if __name__ == "__main__":
    main()
