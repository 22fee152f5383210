"""What do 1, 2 and 3 live spaces cost, and is one pass over the raw features cheaper than k?"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import redis

from benchmarks import _job_repo
from benchmarks._jobs import SEED, Runs, jobs, peaks
from benchmarks.harness import Record, compare, write_results
from materialize.batch import materialize_space, materialize_spaces
from materialize.context import Context
from materialize.meter import StepMeter
from materialize.source import parquet_files
from transforms.names import stored_view

ONE, MANY = "benchmarks.live_spaces:one_pass", "benchmarks.live_spaces:many_passes"


def one_pass(repository: str, users: int) -> dict[str, Any]:
    """Materialise all spaces of a repository in one pass, in this process."""
    return _timed(repository, users, together=True)


def many_passes(repository: str, users: int) -> dict[str, Any]:
    """Materialise all spaces of a repository one after the other, in this process."""
    return _timed(repository, users, together=False)


def _timed(repository: str, users: int, *, together: bool) -> dict[str, Any]:
    context = Context(Path(repository))
    store, settings, ledger = context.store, context.settings, context.ledger
    spaces = ledger.spaces()
    before = _redis_bytes(context)
    meter = StepMeter()
    with meter.step("job") as step:
        began = time.perf_counter()
        if together:
            reports = materialize_spaces(
                store, settings, ledger, spaces, end=_job_repo.END, progress=False
            )
        else:
            reports = [
                materialize_space(store, settings, ledger, space, end=_job_repo.END, progress=False)
                for space in spaces
            ]
        seconds = time.perf_counter() - began
    assert [report.outcome for report in reports] == ["committed"] * len(spaces)
    assert all(report.online_rows == users for report in reports)
    files = [
        file
        for space in spaces
        for file in parquet_files(settings.offline_dir / stored_view(space.number))
    ]
    return {
        "rows": users,
        "seconds": seconds,
        "peak_mb": step.peak_memory_mb,
        "online_bytes": _redis_bytes(context) - before,
        "offline_bytes": sum(file.stat().st_size for file in files),
    }


def _redis_bytes(context: Context) -> int:
    address = context.store.config.online_store.connection_string.split(",")[0]
    host, port = address.split(":")
    with redis.Redis(host=host, port=int(port)) as client:
        used: int = client.info("memory")["used_memory"]
    return used


def _records(users: int, spaces: int, one: Runs, many: Runs) -> list[Record]:
    what = f"{users:,} users, {spaces} live space{'s' if spaces > 1 else ''}"
    seconds = [run["seconds"] for run in one]
    records = []
    if spaces > 1:
        records.append(
            compare(
                f"one pass over the raw features, {what}",
                seconds,
                unit="s",
                baseline=(f"{spaces} passes, a space each", [run["seconds"] for run in many]),
                target="ratio_to_baseline <= 0.85",
                seed=SEED,
            )
        )
    else:
        records.append(compare(f"a pass over the raw features, {what}", seconds, unit="s"))
    for name, unit, values in (
        ("peak memory of the pass", "MiB", peaks(one)),
        ("in Redis", "bytes/user", [run["online_bytes"] / users for run in one]),
        ("offline", "bytes/user", [run["offline_bytes"] / users for run in one]),
    ):
        records.append(compare(f"{name}, {what}", values, unit=unit, seed=SEED))
    return records


def main() -> None:
    """Measure, print and write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=300_000)
    parser.add_argument("--spaces", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    records = []
    with jobs() as jobs_:
        for spaces in given.spaces:
            runs: dict[str, Runs] = {ONE: [], MANY: []}
            for _ in range(given.repeats):
                for target in (ONE, MANY) if spaces > 1 else (ONE,):
                    _, result = jobs_.run(target, "palate", given.users, {}, spaces)
                    runs[target].append(result)
            records += _records(given.users, spaces, runs[ONE], runs[MANY])
    write_results("live_spaces", records)


if __name__ == "__main__":
    main()
