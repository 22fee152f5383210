"""A repository made of a list of events, with its raw features built, for tests of cohorts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from materialize.config import RepoSettings, load_settings
from materialize.features import build_features
from transforms.clean import CleanTables

__all__ = ["CUTOFF", "HORIZON_DAYS", "Event", "at", "make_repository", "write_clean_events"]

Event = tuple[str, str, str]
"""User, item, "MM-DD HH:MM" of 2024."""

CUTOFF, HORIZON_DAYS = "2024-03-07T00:00:00Z", 3
INSTANT = pa.timestamp("us", "UTC")


def at(text: str) -> datetime:
    """Return an instant of 2024."""
    return datetime.strptime(f"2024-{text}", "%Y-%m-%d %H:%M").replace(tzinfo=timezone.utc)


def make_repository(
    root: Path,
    events: Sequence[Event],
    tags: Mapping[str, Sequence[str]],
    picks: Mapping[str, Sequence[str]],
    *,
    label_times: str = "cutoff",
    tagged: bool = True,
) -> RepoSettings:
    """Write clean tables and settings, and build the raw features."""
    items: dict[str, Any] = {"path": "-", "item": "i"}
    dataset = {
        "name": "small",
        "events": {"path": "-", "user": "u", "item": "i", "timestamp": "t", "context": ["os"]},
        "users": {"path": "-", "user": "u", "categories": ["country"], "onboarding": "picks"},
        "items": items | ({"tags": "tags"} if tagged else {}),
        "windows": [3, 7],
        "modalities": {"collaborative": {"dim": 2, "clusters": 2}},
        "evaluation": {
            "cutoff": CUTOFF,
            "horizon_days": HORIZON_DAYS,
            "label_times": label_times,
        },
    }
    root.mkdir(parents=True, exist_ok=True)
    (root / "small.yaml").write_text(yaml.safe_dump(dataset))
    (root / "palate.yaml").write_text("dataset: small.yaml\n")
    settings = load_settings(root)
    write_clean_events(settings, events, tags, picks)
    build_features(
        settings.dataset, CleanTables(settings.data_dir), settings.features_dir, progress=False
    )
    return settings


def write_clean_events(
    settings: RepoSettings,
    events: Sequence[Event],
    tags: Mapping[str, Sequence[str]],
    picks: Mapping[str, Sequence[str]],
) -> None:
    """Write clean tables; who picked did so an hour before the first event, as did who did not."""
    users, items, times = zip(*events, strict=True)
    n, known = len(events), sorted(set(users))
    first = {u: min(at(t) for v, _, t in events if v == u) for u in known}
    texts = pa.list_(pa.string())
    tables = {
        "events": {
            "user_id": users,
            "item_id": items,
            "ts": pa.array([at(t) for t in times], INSTANT),
            # A weight that tells the item: 1 for item "a", 2 for "b", ...
            "weight": pa.array([float(ord(i[0]) - ord("a") + 1) for i in items], pa.float32()),
            "session": pa.nulls(n, pa.string()),
            "service": pa.nulls(n, pa.string()),
            "context": pa.array([["ios" if t[-1] == "0" else "web"] for t in times], texts),
        },
        "users": {
            "user_id": known,
            "signed_up_at": pa.array([first[u] - timedelta(hours=1) for u in known], INSTANT),
            "categories": pa.array([["br" if u[-1] < "5" else "de"] for u in known], texts),
            "numbers": pa.array([[]] * len(known), pa.list_(pa.float32())),
            "onboarding": pa.array([list(picks.get(u, ())) for u in known], texts),
        },
        "items": {
            "item_id": list(tags),
            "text": pa.nulls(len(tags), pa.string()),
            "tags": pa.array([list(t) for t in tags.values()], texts),
        },
    }
    folder = settings.data_dir / "clean"
    for name, columns in tables.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), folder / name / "part-0.parquet")
    (folder / "validation.json").write_text("{}")
