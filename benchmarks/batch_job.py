"""How many users a second go from raw features to both stores, and does memory stay with more?

Ours is `materialize_space` in a fresh process. Stock Feast reaches the same rows, on fewer users
(``--stock-users``), as its documentation has it: historical retrieval of the on-demand view with
the DuckDB offline store, written to the stored view's Parquet, then `materialize` with the local
engine. Both write to an empty local Redis, and both are timed without their imports.
Peak memory is that of all processes of the job together, imports included, Redis excluded.
"""

from __future__ import annotations

import argparse
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import _job_repo
from benchmarks._jobs import SEED, STORED, Runs, jobs, peaks, rates, same
from benchmarks.harness import Record, compare, write_results
from materialize.context import Context
from materialize.meter import StepMeter
from transforms.names import USER_KEY, on_demand_view
from transforms.on_demand import EMBEDDING_FIELDS

PALATE = "benchmarks._jobs:palate"
STOCK = "benchmarks.batch_job:stock"


def stock(repository: str, users: int) -> dict[str, Any]:
    """Reach the same with stock Feast in this process; return rows, seconds and peak memory."""
    context = Context(Path(repository))
    store, names = context.store, [f.name for f in EMBEDDING_FIELDS]
    assert store.get_feature_view(STORED)
    view = on_demand_view(_job_repo.SPACE)
    entities = pd.DataFrame(
        {
            USER_KEY: _job_repo.user_ids(np.arange(users)),
            "event_timestamp": pd.Timestamp(_job_repo.END),
        }
    )
    meter = StepMeter()
    with meter.step("job") as step:
        began = time.perf_counter()
        job = store.get_historical_features(entities, [f"{view}:{name}" for name in names])
        rows = job.to_arrow().select([USER_KEY, *names])
        as_of = rows["as_of"].cast(pa.timestamp("us", "UTC"))
        for name in ("event_timestamp", "created_timestamp"):
            rows = rows.append_column(name, as_of)
        pq.write_table(rows, context.settings.offline_dir / STORED / "rows.parquet")
        store.materialize(_job_repo.END - timedelta(days=1_000), _job_repo.END, [STORED])
        seconds = time.perf_counter() - began
    return {"rows": rows.num_rows, "seconds": seconds, "peak_mb": step.peak_memory_mb}


def _speed(users: int, stock_users: int, runs: Runs, stock_runs: Runs) -> Record:
    return compare(
        f"{users} users, raw features to embeddings in Parquet and Redis, read back",
        rates(runs),
        unit="rows/s",
        baseline=(
            f"stock Feast, {stock_users} users: on-demand view, Parquet, materialize",
            rates(stock_runs),
        ),
        target="ratio_to_baseline >= 5",
        seed=SEED,
    )


def _memory(users: int, runs: Runs, limit_mb: int) -> Record:
    return compare(
        f"peak memory of the whole job, {users} users, setting {limit_mb} MiB",
        peaks(runs),
        unit="MiB",
        limit=("1.5 GB", 1536.0),
        target="ours <= 1536",
        seed=SEED,
    )


def _growth(sizes: tuple[int, int], runs: Runs, big: Runs) -> list[Record]:
    return [
        compare(
            f"{what} of the whole job, {sizes[1]} users against {sizes[0]}",
            measured(big),
            unit=unit,
            baseline=(f"{sizes[0]} users", measured(runs)),
            target=target,
            seed=SEED,
        )
        for what, measured, unit, target in (
            ("peak memory", peaks, "MiB", "ratio_to_baseline <= 1.1"),
            ("speed", rates, "rows/s", None),
        )
    ]


def _workers(users: int, by_workers: dict[int, Runs]) -> list[Record]:
    (first, alone), *others = by_workers.items()
    return [
        compare(
            f"{users} users with {workers} workers",
            rates(runs),
            unit="rows/s",
            baseline=(f"{first} worker(s)", rates(alone)),
            seed=SEED,
        )
        for workers, runs in others
    ]


def main() -> None:
    """Measure, print and write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--big", type=int, help="users of the memory run; default 5 times --users")
    parser.add_argument("--stock-users", type=int, default=100_000)
    parser.add_argument("--memory-limit-mb", type=int, default=512)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 3], help="to compare")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    users, few = given.users, min(given.users, given.stock_users)
    big = given.big or 5 * users
    settings = {"memory_limit_mb": given.memory_limit_mb}
    runs: Runs = []
    stock_runs: Runs = []
    by_workers: dict[int, Runs] = {workers: [] for workers in given.workers}
    with jobs() as jobs_:
        for _ in range(given.repeats):
            palate, result = jobs_.run(PALATE, "palate", users, settings)
            runs.append(result)
            plain, result = jobs_.run(STOCK, "stock", few, {})
            stock_runs.append(result)
            same([palate, plain], few)
            for workers, known in by_workers.items():
                several = settings | {"materialize": {"workers": workers}}
                known.append(jobs_.run(PALATE, "palate", users, several)[1])
        big_runs = [jobs_.run(PALATE, "palate", big, settings)[1]]
    write_results(
        "batch_job",
        [
            _speed(users, few, runs, stock_runs),
            _memory(users, runs, given.memory_limit_mb),
            _memory(big, big_runs, given.memory_limit_mb),
            *_growth((users, big), runs, big_runs),
            *(_workers(users, by_workers) if by_workers else []),
        ],
    )


if __name__ == "__main__":
    main()
