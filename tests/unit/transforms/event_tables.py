"""Clean events of a few users, drawn at random, and item vectors of what they consume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from encoder.modality import ItemVectors, ModalityEncoders
from transforms.buckets import DayBuckets
from transforms.clean import CleanTables
from transforms.layout import Modality, RawLayout

__all__ = [
    "DAY",
    "DAY_0",
    "ENCODERS",
    "EVENTS",
    "LAYOUT",
    "WINDOWS",
    "Event",
    "buckets_of",
    "item_vectors",
    "write_events",
]

DAY = 86_400_000_000
DAY_0 = 18_000
WINDOWS = (2, 5, 11)
N_ITEMS = 9
LAYOUT = RawLayout((Modality("a", 3, 4), Modality("b", 2, 3)), WINDOWS, ("country", "os"))

# (user, day, microsecond of the day, item, weight, context)
Event = tuple[int, int, int, int, float, str]
EVENTS = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.integers(0, 25),
        st.one_of(st.integers(0, DAY - 1), st.just(0), st.just(DAY - 1)),
        st.integers(0, N_ITEMS - 1),
        st.sampled_from([0.5, 1.0, 2.0, 3.7]),
        st.sampled_from(["", "br", "pt"]),
    ),
    min_size=1,
    max_size=40,
)


def item_vectors(rng: np.random.Generator, n_items: int) -> tuple[ItemVectors, ...]:
    """Both modalities of ``LAYOUT``; items 0 and 1 have no vector in the first, 1 in neither."""
    made = []
    for m, absent in zip(LAYOUT.modalities, ([0, 1], [1]), strict=True):
        vectors = rng.normal(size=(n_items, m.dim)).astype(np.float32)
        cluster = rng.integers(0, m.clusters, n_items).astype(np.int32)
        vectors[absent], cluster[absent] = 0, -1
        centroids = np.zeros((m.clusters, m.dim), np.float32)
        made.append(ItemVectors(m.name, vectors, cluster, m.clusters, centroids))
    return tuple(made)


ENCODERS = ModalityEncoders(
    pa.array([f"item {i}" for i in range(N_ITEMS)]),
    item_vectors(np.random.default_rng(0), N_ITEMS),
    np.ones(N_ITEMS, bool),
    {"cutoff": "x"},
)


def write_events(root: Path, events: list[Event], name: str = "0") -> CleanTables:
    """Write clean events; the other tables are not read here."""
    folder = root / "clean" / "events"
    folder.mkdir(parents=True, exist_ok=True)
    user, day, moment, item, weight, context = zip(*events, strict=True)
    ts = (np.array(day) + DAY_0) * DAY + np.array(moment)
    table = pa.table(
        {
            "user_id": pa.array([f"user {u}" for u in user]),
            "item_id": pa.array([f"item {i}" for i in item]),
            "ts": pa.array(ts).cast(pa.timestamp("us", "UTC")),
            "weight": pa.array(weight, pa.float32()),
            "session": pa.nulls(len(events), pa.int64()),
            "service": pa.nulls(len(events), pa.string()),
            "context": pa.array([[c, "linux"] for c in context], pa.list_(pa.string())),
        }
    )
    pq.write_table(table, folder / f"{name}.parquet")
    return CleanTables(root)


def buckets_of(clean: CleanTables, root: Path, *, bytes_per_day: int = 100) -> DayBuckets:
    buckets = DayBuckets(root / "buckets", clean, memory_limit_mb=256, bytes_per_day=bytes_per_day)
    buckets.update()
    return buckets
