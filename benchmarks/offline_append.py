"""Does appending one pushed row offline take the same time however many rows are there?"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import feast
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast.data_format import ParquetFormat
from feast.types import Float64

from benchmarks.harness import compare, run_isolated, write_results

DAY_US = 86_400_000_000
FIRST_DAY = 18_262  # 2020-01-01
INSTANT = pa.timestamp("us", "UTC")
SEED = 0
# Stock cannot append to a folder; it is given the one file that it rewrites.
STORES = {
    "stock": ("duckdb", "rows/0.parquet"),
    "ours": ("materialize.stores.parquet.PalateParquetOfflineStore", "rows"),
}


def write(root: Path, rows: int) -> None:
    """Write ``rows/0.parquet``: a user, two numbers and two times a row."""
    rng = np.random.default_rng(SEED)
    ts = FIRST_DAY * DAY_US + rng.integers(0, 180 * DAY_US, rows)
    table = pa.table(
        {
            "user_id": rng.integers(0, rows // 20, rows),
            "a": rng.random(rows),
            "b": rng.random(rows),
            "event_timestamp": pa.array(ts).cast(INSTANT),
            "created_timestamp": pa.array(ts).cast(INSTANT),
        }
    )
    (root / "rows").mkdir(parents=True)
    pq.write_table(table, root / "rows" / "0.parquet", row_group_size=65_536)


def append(root: str, store: str, rows: int, repeats: int) -> dict[str, Any]:
    """Push one row at a time through Feast; return the seconds of each push."""
    folder = Path(root)
    kind, path = STORES[store]
    (folder / "feature_store.yaml").write_text(
        "project: bench\nprovider: local\nregistry: registry.db\n"
        "online_store: {type: sqlite, path: online.db}\n"
        f"offline_store: {{type: {kind}}}\n"
        "entity_key_serialization_version: 3\n"
    )
    repo = feast.FeatureStore(repo_path=root)
    user = feast.Entity(name="user", join_keys=["user_id"], value_type=feast.ValueType.INT64)
    view = feast.FeatureView(
        name="view",
        entities=[user],
        schema=[feast.Field(name=name, dtype=Float64) for name in ("a", "b")],
        source=feast.FileSource(
            path=str(folder / path),
            file_format=ParquetFormat(),
            timestamp_field="event_timestamp",
            created_timestamp_column="created_timestamp",
        ),
    )
    repo.apply([user, view])
    seconds = []
    for k in range(repeats + 1):  # the first one opens the registry
        now = pd.DatetimeIndex([pd.Timestamp.now("UTC")]).as_unit("us")
        times = {"event_timestamp": now, "created_timestamp": now}
        row = pd.DataFrame({"user_id": [k], "a": [float(k)], "b": [0.0], **times})
        start = time.perf_counter()
        repo.write_to_offline_store("view", row)
        seconds.append(time.perf_counter() - start)
    there = sum(pq.read_metadata(file).num_rows for file in (folder / "rows").glob("*.parquet"))
    assert there == rows + repeats + 1, "every push is there"
    return {"seconds": seconds[1:]}


def main() -> None:
    """Measure, print and write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000, help="of the larger view")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    milliseconds: dict[tuple[str, int], list[float]] = {}
    sizes = (given.rows // 10, given.rows)
    for size in sizes:
        for store in STORES:
            with tempfile.TemporaryDirectory() as folder:
                write(Path(folder), size)
                run = run_isolated(
                    "benchmarks.offline_append:append", folder, store, size, given.repeats
                )
                milliseconds[store, size] = [1000 * s for s in run.result["seconds"]]
    records = [
        compare(
            f"appending one pushed row to a view of {size:,} rows",
            milliseconds["ours", size],
            unit="ms",
            baseline=("stock Feast DuckDB store", milliseconds["stock", size]),
            seed=SEED,
        )
        for size in sizes
    ]
    for store, target in (("ours", "ratio_to_baseline <= 1.5"), ("stock", None)):
        records.append(
            compare(
                f"appending one pushed row to {sizes[1]:,} rows, {store}",
                milliseconds[store, sizes[1]],
                unit="ms",
                baseline=(f"the same at {sizes[0]:,} rows", milliseconds[store, sizes[0]]),
                target=target,
                seed=SEED,
            )
        )
    write_results("offline_append", records)


if __name__ == "__main__":
    main()
