"""What the nightly batch leaves for a tiny stream: clean tables, and the newest rows online."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from materialize.features import current_modalities
from materialize.live import live_targets
from materialize.stream.given import gather
from materialize.stream.recompute import embeddings_of, raw_rows_of
from tests.repositories import INSTANT, write_online
from tests.streams import NOON, TinyStream, item_vectors
from transforms.clean import CleanTables
from transforms.names import stored_view
from transforms.stream.events import StreamEvent

__all__ = ["run_batch", "users_of", "write_clean"]


def users_of(events: Sequence[StreamEvent]) -> list[int]:
    """Return the users of some events, ascending."""
    return sorted({int(event.user_id) for event in events})


def write_clean(
    stream: TinyStream,
    events: Sequence[StreamEvent],
    signed_up: dict[int, int] | None = None,
    picks: dict[int, list[str]] | None = None,
) -> CleanTables:
    """Write what `palate data validate` would; a user without sign-up gets the first event."""
    clean = CleanTables(stream.context.settings.data_dir)
    consumed = [event for event in events if event.type == "consume"]
    first: dict[int, int] = {}
    for event in consumed:
        user = int(event.user_id)
        first[user] = min(first.get(user, event.timestamp_us), event.timestamp_us)
    joined = first | (signed_up or {})
    users = sorted(joined)
    tables = {
        "events": {
            "user_id": pa.array([e.user_id for e in consumed], pa.int64()),
            "item_id": pa.array([e.item_id for e in consumed], pa.string()),
            "ts": pa.array([e.timestamp_us for e in consumed], pa.int64()).cast(INSTANT),
            "weight": pa.array([e.weight for e in consumed], pa.float32()),
            "service": pa.array([e.service for e in consumed], pa.string()),
            "context": pa.array([list(e.context or ()) for e in consumed], pa.list_(pa.string())),
        },
        "users": {
            "user_id": pa.array(users, pa.int64()),
            "signed_up_at": pa.array([joined[u] for u in users], pa.int64()).cast(INSTANT),
            "categories": pa.array([["f"]] * len(users), pa.list_(pa.string())),
            "numbers": pa.array([[30.0]] * len(users), pa.list_(pa.float32())),
            "onboarding": pa.array(
                [(picks or {}).get(u, []) for u in users], pa.list_(pa.string())
            ),
        },
        "items": {"item_id": item_vectors().item_ids},
    }
    for name, columns in tables.items():
        (clean.folder / name).mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), clean.folder / name / "part-0.parquet")
    clean.report.write_text("{}", encoding="utf-8")
    return clean


def run_batch(stream: TinyStream, users: Sequence[int]) -> None:
    """Write the newest rows of the clean tables online, as the nightly job does."""
    context = stream.context
    clean = CleanTables(context.settings.data_dir)
    known = gather(clean, context.settings.dataset, users, {})
    layout = stream.layout
    encoders = current_modalities(context.settings.features_dir)
    raw = raw_rows_of(known.events, known.profiles, known.onboarding, encoders, layout)
    now = pa.scalar(NOON, pa.int64()).cast(INSTANT)
    for view, rows in raw.items():
        table = rows.append_column("created_timestamp", pa.repeat(now, rows.num_rows))
        write_online(context.store, view, table.to_batches())
    for space in live_targets(context.settings, context.ledger).spaces:
        rows = embeddings_of(
            *(users, raw, layout, space, None, context.settings.artifacts_url, pa.int64())
        )
        write_online(context.store, stored_view(space.number), rows.to_batches())
