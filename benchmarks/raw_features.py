"""How many events a second become raw features, and does memory stay when users grow tenfold?"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness import compare, run_isolated, write_results
from materialize.features import build_features, current_modalities
from transforms.clean import CleanTables
from transforms.dataset import Dataset

DAY_US = 86_400_000_000
FIRST_DAY = 18_262  # 2020-01-01
DAYS, N_ITEMS, GROUPS, EVENTS_PER_USER = 60, 4000, 40, 40
WINDOWS = (7, 30)
INSTANT = pa.timestamp("us", "UTC")
SEED = 0

DATASET = Dataset.model_validate(
    {
        "name": "benchmark",
        "events": {
            "path": "-", "user": "u", "item": "i", "timestamp": "t", "context": ["country"]
        },
        "items": {"path": "-", "item": "i", "text": ["title"], "tags": "tags"},
        "windows": list(WINDOWS),
        "modalities": {
            "collaborative": {"dim": 64, "clusters": 32},
            "content": {"dim": 32, "clusters": 32},
        },
        "snapshots": {"every_days": 4},
        "evaluation": {"cutoff": "2020-02-10T00:00:00Z"},
    }
)  # fmt: skip


def write_clean(root: Path, users: int, copies: int) -> int:
    """Write clean tables: ``users`` planted users, ``copies`` times under other ids; return events.

    Copies leave items, sessions and co-occurrence as they are, so only the number of users grows.
    """
    rng = np.random.default_rng(SEED)
    n = users * EVENTS_PER_USER
    user = rng.integers(0, users, n)
    per_group = N_ITEMS // GROUPS
    item = user % GROUPS * per_group + np.minimum(rng.geometric(0.05, n), per_group) - 1
    ts = FIRST_DAY * DAY_US + rng.integers(0, DAYS * DAY_US, n)
    one = pa.table(
        {
            "user_id": pa.array(user),
            "item_id": pa.array(item),
            "ts": pa.array(ts).cast(INSTANT),
            "weight": pa.array(rng.integers(1, 6, n), pa.float32()),
            "session": pa.nulls(n, pa.int64()),
            "service": pa.nulls(n, pa.string()),
            "context": pa.ListArray.from_arrays(
                pa.array(np.arange(n + 1), pa.int32()), pa.array(["br", "pt", "mz"]).take(user % 3)
            ),
        }
    )
    ids = np.arange(users * copies)
    tables = {
        "users": pa.table(
            {
                "user_id": ids,
                "signed_up_at": pa.repeat(pa.scalar(FIRST_DAY * DAY_US), len(ids)).cast(INSTANT),
                "categories": pa.array([[]] * len(ids), pa.list_(pa.string())),
                "numbers": pa.array([[]] * len(ids), pa.list_(pa.float32())),
                "onboarding": pa.array([[]] * len(ids), pa.list_(pa.int64())),
            }
        ),
        "items": pa.table(
            {
                "item_id": np.arange(N_ITEMS),
                "text": [f"item of group {i // per_group}" for i in range(N_ITEMS)],
                "tags": [[f"group {i // per_group}"] for i in range(N_ITEMS)],
            }
        ),
    }
    for name in ("events", *tables):
        (root / "clean" / name).mkdir(parents=True)
    for name, table in tables.items():
        pq.write_table(table, root / "clean" / name / "0.parquet")
    for k in range(copies):
        shifted = one.set_column(0, "user_id", pa.array(user + k * users))
        pq.write_table(shifted, root / "clean" / "events" / f"{k}.parquet")
    (root / "clean" / "validation.json").write_text("{}")
    return n * copies


def build(root: str, memory_limit_mb: int) -> dict[str, Any]:
    """Build in this process; return the job's report."""
    report = build_features(
        DATASET,
        CleanTables(root),
        Path(root) / "features",
        memory_limit_mb=memory_limit_mb,
        seed=SEED,
        progress=False,
    )
    return report.to_dict()


def loop_over_rows(root: Path, users: int) -> float:
    """Pool the first users' windows in plain pandas, and check ours; return events a second."""
    table = pq.read_table(
        root / "features" / "user_activity",
        columns=["user_id", "activity_as_of", "activity_pooled", "activity_counts"],
        filters=[("user_id", "<", users)],
    )
    events = pq.read_table(
        root / "clean" / "events" / "0.parquet", filters=[("user_id", "<", users)]
    ).to_pandas()
    encoders = current_modalities(root / "features")
    position = encoders.index_of(events["item_id"].to_numpy())
    by_user = {u: e.assign(item=position[e.index]) for u, e in events.groupby("user_id")}
    seconds, worst = 0.0, 0.0
    for row in table.to_pylist():
        began = time.perf_counter()
        as_of = pd.Timestamp(row["activity_as_of"], unit="us", tz="UTC")
        mine = by_user[row["user_id"]]
        past = mine[mine["ts"] <= as_of]
        pooled, counts = [], []
        for days in WINDOWS:
            inside = past[past["ts"] >= as_of.floor("D") - pd.Timedelta(days=days - 1)]
            for m in encoders.modalities:
                covered = inside[m.cluster_of[inside["item"]] >= 0]
                weight = covered["weight"].to_numpy()
                vectors = m.vectors[covered["item"]]
                mean = weight @ vectors / weight.sum() if len(covered) else np.zeros(m.dim)
                pooled.append(mean)
            counts += [len(inside), inside["item"].nunique()]
        seconds += time.perf_counter() - began
        worst = max(worst, float(np.abs(np.concatenate(pooled) - row["activity_pooled"]).max()))
        ours = row["activity_counts"]
        assert counts == [ours[0], ours[3], ours[4], ours[7]], "both sides count the same"
    assert table.num_rows >= users, "every user has a row"
    assert worst < 1e-5, f"both sides pool the same vectors, {worst} apart"
    return len(events) / seconds


def main() -> None:
    """Measure, print and write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=25_000, help="at 1x; 40 events each")
    parser.add_argument("--memory-limit-mb", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    rates: dict[int, list[float]] = {1: [], 10: []}
    peaks: dict[int, list[float]] = {1: [], 10: []}
    plain: list[float] = []
    for copies in rates:
        for _ in range(given.repeats if copies == 1 else 1):
            with tempfile.TemporaryDirectory() as folder:
                n_events = write_clean(Path(folder), given.users, copies)
                run = run_isolated("benchmarks.raw_features:build", folder, given.memory_limit_mb)
                assert run.result["events"] == n_events
                assert run.result["rows"]["user_activity"] > 5 * given.users * copies
                rates[copies].append(n_events / run.seconds)
                peaks[copies].append(run.peak_rss_bytes / 2**20)
                if copies == 1:
                    plain.append(loop_over_rows(Path(folder), 200))
    size = f"{given.users * EVENTS_PER_USER:,} events"
    records = [
        compare(
            f"events per second of `features build` with the modality fit, {size}",
            rates[1],
            unit="events/s",
            baseline=("pandas loop over users and windows, pooling and counts only", plain),
            target="ratio_to_baseline >= 10",
            seed=SEED,
        ),
        compare(
            f"events per second of `features build` with 10 times the users of {size}",
            rates[10],
            unit="events/s",
            baseline=("the same at 1x", rates[1]),
            target="ratio_to_baseline >= 0.7",
            seed=SEED,
        ),
        compare(
            f"peak memory of `features build` at 10x, setting {given.memory_limit_mb} MiB",
            peaks[10],
            unit="MiB",
            baseline=("the same at 1x", peaks[1]),
            limit=("2 GiB", 2048.0),
            target="ratio_to_baseline <= 1.5",
            seed=SEED,
        ),
    ]
    write_results("raw_features", records)


if __name__ == "__main__":
    main()
