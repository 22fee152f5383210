"""How fast is a point-in-time join through the plugin, beside stock Feast and a bare ASOF query?"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb
import feast
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast.data_format import ParquetFormat
from feast.types import Array, Float32, Float64, Int64

from benchmarks.harness import Record, compare, run_isolated, write_results

DAY_US = 86_400_000_000
FIRST_DAY = 18_262  # 2020-01-01
DAYS, WIDTH = 180, 120
INSTANT = pa.timestamp("us", "UTC")
SEED = 0
MEMORY_LIMIT_MB = 4096
STORES = {
    "stock": "duckdb",
    "ours": "materialize.stores.parquet.PalateParquetOfflineStore",
}
FIELDS = {"scalars": {"a": Float64, "b": Int64}, "vectors": {"vector": Array(Float32)}}


def write(root: Path, kind: str, history: int, entities: int, users: int) -> None:
    """Write ``history/`` and ``entities.parquet``; rows are created within the hour after."""
    rng = np.random.default_rng(SEED)
    (root / "history").mkdir(parents=True)
    piece = 500_000
    for start in range(0, history, piece):
        n = min(piece, history - start)
        ts = FIRST_DAY * DAY_US + rng.integers(0, DAYS * DAY_US, n)
        if kind == "scalars":
            columns = {"a": pa.array(rng.random(n)), "b": pa.array(rng.integers(0, 100, n))}
        else:
            flat = pa.array(rng.standard_normal(n * WIDTH, dtype=np.float32))
            offsets = pa.array(np.arange(n + 1, dtype=np.int32) * WIDTH)
            columns = {"vector": pa.ListArray.from_arrays(offsets, flat)}
        table = pa.table(
            {
                "user_id": rng.integers(0, users, n),
                **columns,
                "event_timestamp": pa.array(ts).cast(INSTANT),
                "created_timestamp": pa.array(ts + rng.integers(0, DAY_US // 24, n)).cast(INSTANT),
            }
        )
        pq.write_table(table, root / "history" / f"{start:09d}.parquet", row_group_size=65_536)
    moments = FIRST_DAY * DAY_US + rng.integers(0, (DAYS + 20) * DAY_US, entities)
    asked = {
        "user_id": rng.integers(0, users, entities),
        "event_timestamp": pa.array(moments).cast(INSTANT),
    }
    pq.write_table(pa.table(asked), root / "entities.parquet")


def retrieve(root: str, kind: str, store: str, created: bool) -> dict[str, Any]:
    """Retrieve through Feast, in this process; seconds are from the call to the Arrow table."""
    folder = Path(root)
    repository = folder / f"{store}_{created}"
    repository.mkdir(exist_ok=True)
    ours = f"  memory_limit_mb: {MEMORY_LIMIT_MB}\n  filter_by_created_timestamp: {created}\n"
    limit = ours.lower() if store == "ours" else ""
    (repository / "feature_store.yaml").write_text(
        "project: bench\nprovider: local\nregistry: registry.db\n"
        "online_store: {type: sqlite, path: online.db}\n"
        f"offline_store:\n  type: {STORES[store]}\n{limit}"
        "entity_key_serialization_version: 3\n"
    )
    repo = feast.FeatureStore(repo_path=str(repository))
    user = feast.Entity(name="user", join_keys=["user_id"], value_type=feast.ValueType.INT64)
    view = feast.FeatureView(
        name="history",
        entities=[user],
        schema=[feast.Field(name=name, dtype=dtype) for name, dtype in FIELDS[kind].items()],
        source=feast.FileSource(
            path=str(folder / "history"),
            file_format=ParquetFormat(),
            timestamp_field="event_timestamp",
            created_timestamp_column="created_timestamp",
        ),
    )
    repo.apply([user, view])
    entities = pd.read_parquet(folder / "entities.parquet")
    entities["position"] = np.arange(len(entities))
    features = [f"history:{name}" for name in FIELDS[kind]]
    start = time.perf_counter()
    job = repo.get_historical_features(entities, features, filter_by_created_timestamp=created)
    table = job.to_arrow()
    return _answer(start, table, kind)


def bare(root: str, kind: str) -> dict[str, Any]:
    """Run the query that somebody would write by hand; the same rows in the same order.

    Created times are left aside: with them no single ASOF join gives the right rows.
    """
    fields = ", ".join(f"h.{name}" for name in FIELDS[kind])
    entities = pd.read_parquet(Path(root) / "entities.parquet")
    entities["position"] = np.arange(len(entities))
    start = time.perf_counter()
    with duckdb.connect() as db:
        db.execute(f"SET memory_limit = '{MEMORY_LIMIT_MB}MiB'")
        db.execute("SET TimeZone = 'UTC'")
        table = db.sql(
            f"SELECT e.*, {fields} FROM entities e "  # noqa: S608
            f"ASOF LEFT JOIN read_parquet('{root}/history/*.parquet') h "
            "ON e.user_id = h.user_id AND e.event_timestamp >= h.event_timestamp "
            "ORDER BY e.position"
        ).to_arrow_table()
    return _answer(start, table, kind)


def _answer(start: float, table: pa.Table, kind: str) -> dict[str, Any]:
    """Return the seconds since ``start``, the row count, and a digest of the values by position."""
    from benchmarks._environment import peak_rss_bytes

    seconds, peak = time.perf_counter() - start, peak_rss_bytes()
    assert table.num_rows == table.column("position").combine_chunks().unique().__len__()
    order = np.argsort(table.column("position").to_numpy(), kind="stable")
    digest = hashlib.sha256()
    missing = 0
    for name in FIELDS[kind]:
        column = table.column(name).combine_chunks()
        missing += column.null_count
        for rows in np.array_split(order, max(1, len(order) // 50_000)):
            part = column.take(pa.array(rows))
            digest.update(np.asarray(part.is_valid().to_numpy(zero_copy_only=False)).tobytes())
            part = part.drop_null()
            flat = part.flatten() if kind == "vectors" else part
            digest.update(flat.to_numpy(zero_copy_only=False).tobytes())
    return {
        "seconds": seconds,
        "peak": peak,
        "rows": table.num_rows,
        "missing": missing,
        "digest": digest.hexdigest(),
    }


def _measure(root: str, kind: str, repeats: int) -> dict[str, list[dict[str, Any]]]:
    answers: dict[str, list[dict[str, Any]]] = {}
    for _ in range(repeats):
        runs = {"bare": run_isolated("benchmarks.point_in_time:bare", root, kind)}
        for store, created in (("ours", False), ("ours", True), ("stock", True)):
            runs[f"{store} {'filtered' if created else 'unfiltered'}"] = run_isolated(
                "benchmarks.point_in_time:retrieve", root, kind, store, created
            )
        for name, run in runs.items():
            answers.setdefault(name, []).append(run.result)
    for one, other in (("ours filtered", "stock filtered"), ("ours unfiltered", "bare")):
        assert answers[one][0]["digest"] == answers[other][0]["digest"], f"{one}, {other} differ"
    return answers


def _records(kind: str, size: str, faster: float | None, answers: dict[str, Any]) -> list[Record]:
    def of(name: str, field: str, scale: float = 1.0) -> list[float]:
        return [answer[field] / scale for answer in answers[name]]

    def limit(field: str, scale: float = 1.0) -> tuple[str, float]:
        name = "bare DuckDB ASOF query, same order, no created filter"
        return name, float(np.median(of("bare", field, scale)))

    what = f"point-in-time join, {size}"
    return [
        compare(
            f"speed of the {what}, created filter on",
            [1 / s for s in of("ours filtered", "seconds")],
            unit="joins/s",
            baseline=(
                "stock Feast DuckDB store",
                [1 / s for s in of("stock filtered", "seconds")],
            ),
            target=f"ratio_to_baseline >= {faster}" if faster else None,
            seed=SEED,
        ),
        compare(
            f"seconds of the {what}, created filter off: the bare query's rows",
            of("ours unfiltered", "seconds"),
            unit="s",
            limit=limit("seconds"),
            target="ratio_to_limit <= 1.3",
            seed=SEED,
        ),
        compare(
            f"seconds of the {what}, created filter on: more than the bare query does",
            of("ours filtered", "seconds"),
            unit="s",
            limit=limit("seconds"),
            target="ratio_to_limit <= 1.3",
            seed=SEED,
        ),
        compare(
            f"peak memory of the {what}, created filter on",
            of("ours filtered", "peak", 2**20),
            unit="MiB",
            baseline=("stock Feast DuckDB store", of("stock filtered", "peak", 2**20)),
            limit=limit("peak", 2**20),
            target="ratio_to_limit <= 1.2",
            seed=SEED,
        ),
    ]


def main() -> None:
    """Measure, print and write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of rows")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    records = []
    for kind, history, entities, users, faster in (
        # Stock pairs every entity row with every earlier row of its key before it chooses one, so
        # its time depends on the rows a user: 200 (daily rows of half a year), and 20.
        ("scalars", 4_000_000, 200_000, 20_000, 5.0),
        ("scalars", 4_000_000, 200_000, 200_000, None),
        ("vectors", 500_000, 500_000, 100_000, 2.5),
    ):
        n, asked = int(history * given.scale), int(entities * given.scale)
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), kind, n, asked, int(users * given.scale))
            answers = _measure(folder, kind, given.repeats)
        what = "two scalars" if kind == "scalars" else f"{WIDTH}-d vectors"
        what += f", {history // users} rows a user"
        records += _records(kind, f"{n:,} history x {asked:,} rows of {what}", faster, answers)
    write_results("point_in_time", records)


if __name__ == "__main__":
    main()
