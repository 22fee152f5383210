"""A small data set with planted tastes, as clean tables, for tests of the raw feature job."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from transforms.clean import CleanTables
from transforms.dataset import Dataset

DAY_US = 86_400_000_000
FIRST_DAY = 18_262  # 2020-01-01
N_USERS, N_ITEMS, N_DAYS = 40, 24, 20

INSTANT = pa.timestamp("us", "UTC")


def dataset(**changes: object) -> Dataset:
    """A data set with every optional part: context, demographics, onboarding, brought vectors."""
    fields: dict = {
        "name": "small",
        "events": {"path": "-", "user": "u", "item": "i", "timestamp": "t", "context": ["os"]},
        "users": {
            "path": "-",
            "user": "u",
            "categories": ["country"],
            "numbers": ["age"],
            "onboarding": "picks",
        },
        "items": {
            "path": "-", "item": "i", "text": ["title"], "tags": "tags", "vectors": {"audio": "v"}
        },
        "windows": [3, 7],
        "modalities": {
            "collaborative": {"dim": 4, "clusters": 3},
            "content": {"dim": 3, "clusters": 3},
            "audio": {"clusters": 2},
        },
        "snapshots": {"every_days": 2},
        "evaluation": {"cutoff": "2020-01-11T00:00:00Z"},
    }  # fmt: skip
    return Dataset.model_validate(fields | changes)


def write_clean(root: Path, *, days: int = N_DAYS, users: int = N_USERS) -> CleanTables:
    """Write the tables with the events of the first ``days`` days; later days never change them."""
    rng = np.random.default_rng(0)
    n = users * 30
    user, day = rng.integers(0, users, n), np.sort(rng.integers(0, N_DAYS, n))
    item = (rng.integers(0, N_ITEMS // 3, n) * 3 + user % 3) % N_ITEMS
    ts = (FIRST_DAY + day) * DAY_US + rng.integers(0, DAY_US, n)
    known = day < days
    events = pa.table(
        {
            "user_id": pa.array([f"u{k}" for k in user]),
            "item_id": pa.array([f"i{k}" for k in item]),
            "ts": pa.array(ts).cast(INSTANT),
            "weight": pa.array(rng.integers(1, 6, n), pa.float32()),
            "session": pa.nulls(n, pa.string()),
            "service": pa.nulls(n, pa.string()),
            "context": pa.array([["ios" if k % 2 else "android"] for k in user]),
        }
    ).filter(pa.array(known))
    vectors = rng.normal(size=(N_ITEMS, 5)).astype(np.float32)
    tables = {
        "events": events,
        "users": pa.table(
            {
                "user_id": [f"u{k}" for k in range(users)],
                "signed_up_at": pa.array([FIRST_DAY * DAY_US] * users).cast(INSTANT),
                "categories": [["br"]] * users,
                "numbers": pa.array([[float("nan")]] * users, pa.list_(pa.float32())),
                "onboarding": [[f"i{k % 3}"] if k % 2 else [] for k in range(users)],
            }
        ),
        "items": pa.table(
            {
                "item_id": [f"i{k}" for k in range(N_ITEMS)],
                "text": [f"title {k % 3}" for k in range(N_ITEMS)],
                "tags": [[f"genre {k % 3}"] for k in range(N_ITEMS)],
                "vec_audio": [None, *vectors[1:].tolist()],
            }
        ),
    }
    for name, table in tables.items():
        folder = root / "clean" / name
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / "part-0.parquet")
    (root / "clean" / "validation.json").write_text("{}")
    return CleanTables(root)
