"""What the batch makes of facts: a company's own tables, validated, bucketed, windowed, encoded.

The oracle of the fault tests. It shares no code with the stream but the encoder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import yaml

from encoder.bridge import BridgeStore
from encoder.columns import batch_from_arrow
from materialize.features import current_modalities
from materialize.validate import validate
from tests.e2e.stream_events import NEW_ITEMS, Facts, items
from tests.e2e.stream_world import World, described, write_tables
from transforms.buckets import DayBuckets
from transforms.clean import CleanTables
from transforms.dataset import load_dataset
from transforms.engine import bounded_connection
from transforms.layout import ACTIVITY, ONBOARDING, PROFILE, field
from transforms.names import USER_KEY, stored_view
from transforms.runtime import encode, load_encoder
from transforms.tables import ViewTables
from transforms.windows import Emission, activity_tables, bytes_per_day

__all__ = ["Cut", "Truth", "encoded", "truth_at"]

Cut = tuple[int, int | None]
"""A user, and the last moment (us) of which is known; None: everything is."""
_MEMORY_MB = 256


@dataclass(frozen=True)
class Truth:
    """Newest rows of some cuts.

    Attributes
    ----------
    raw : dict of str to list
        Raw view -> for each cut its row, field by field, or None.
    embeddings : dict of str to list
        Embedding view -> for each cut ``embedding``, ``as_of``, ``n_events`` and ``status``.
    """

    raw: dict[str, list[dict[str, Any] | None]]
    embeddings: dict[str, list[dict[str, Any]]]


def truth_at(world: World, facts: Facts, cuts: Sequence[Cut]) -> Truth:
    """Return what the batch would serve if nothing later than each cut had happened.

    Each cut becomes a user of its own in one set of tables, so that one pass answers for all. The
    batch dates picks and profile by the sign-up, because its tables do not say when they changed;
    a stream knows, so these two times are the facts' own.
    """
    with tempfile.TemporaryDirectory(prefix="truth-") as name:
        folder = Path(name)
        known = _cut(facts, cuts)
        write_tables(folder / "raw", known, range(len(cuts)), [*items(), *NEW_ITEMS])
        description = folder / "streamed.yaml"
        description.write_text(yaml.safe_dump(described(folder / "raw")), encoding="utf-8")
        report = validate(load_dataset(description), folder / "data", progress=False)
        refused = {fault.code for fault in report.faults} - {"unknown_user"}
        assert not refused, f"the batch refuses what the stream is to accept: {refused}"
        raw = _raw_rows(world, CleanTables(folder / "data"), folder, len(cuts))
    changed = [*known.signed_up.items(), *((user, at) for user, _, at, _ in known.changed)]
    picked = [(user, at) for user, _, at in known.picked]
    for view, times in ((PROFILE, _newest(changed)), (ONBOARDING, _newest(picked))):
        for user, row in enumerate(raw[view]):
            if row is not None and user in times:
                row[field(view, "as_of")] = times[user]
    return Truth(raw, encoded(world, raw))


def encoded(
    world: World, raw: dict[str, list[dict[str, Any] | None]]
) -> dict[str, list[dict[str, Any]]]:
    """Return the embeddings of raw rows in every view that the stream writes."""
    settings, n = world.settings, len(raw[ACTIVITY])
    made: dict[str, list[dict[str, Any]]] = {}
    vectors: dict[int, npt.NDArray[np.float32]] = {}
    for space in world.spaces:
        schema = load_encoder(settings.artifacts_url, space.encoder_version).preprocessor.schema
        columns = {USER_KEY: pa.array(range(n))}
        for name in schema.columns:
            view, _, own = name.partition("__")
            kind = world.types[view].field(own).type
            columns[name] = pa.array([row and row[own] for row in raw[view]], kind)
        scalars = (*schema.as_of_columns, *schema.modality_columns)
        batch = batch_from_arrow(
            pa.table(columns), schema.array_columns, schema.text_columns, scalars, USER_KEY
        )
        found = encode(batch, space.encoder_version, settings.artifacts_url)
        vectors[space.number] = found.embedding
        made[stored_view(space.number)] = [
            {
                "embedding": found.embedding[row],
                "as_of": int(found.as_of[row]),
                "n_events": int(found.n_events[row]),
                "status": str(found.status[row]),
            }
            for row in range(n)
        ]
    bridge = world.bridge
    mapped = BridgeStore(settings.artifacts_url).load(bridge.version).apply(vectors[bridge.source])
    source = made[stored_view(bridge.source)]
    made[world.bridged] = [
        row | {"embedding": vector} for row, vector in zip(source, mapped, strict=True)
    ]
    return made


def _cut(facts: Facts, cuts: Sequence[Cut]) -> Facts:
    """Return the facts of users 0, 1, ...: those of each cut."""
    known = Facts()
    for number, (user, until) in enumerate(cuts):
        end = 2**62 if until is None else until
        known.consumed |= {
            (number, item, at): value
            for (who, item, at), value in facts.consumed.items()
            if who == user and at <= end
        }
        known.picked |= {
            (number, item, at) for who, item, at in facts.picked if who == user and at <= end
        }
        known.changed |= {
            (number, *change) for who, *change in facts.changed if who == user and change[1] <= end
        }
        if user in facts.signed_up:
            known.signed_up[number] = facts.signed_up[user]
    return known


def _newest(moments: Iterable[tuple[int, int]]) -> dict[int, int]:
    """Return the newest moment of each user."""
    newest: dict[int, int] = {}
    for user, at in moments:
        newest[user] = max(at, newest.get(user, at))
    return newest


def _raw_rows(
    world: World, clean: CleanTables, folder: Path, n: int
) -> dict[str, list[dict[str, Any] | None]]:
    encoders, layout = current_modalities(world.settings.features_dir), world.layout
    buckets = DayBuckets(
        folder / "buckets",
        clean,
        memory_limit_mb=_MEMORY_MB,
        bytes_per_day=bytes_per_day(layout),
    )
    emission = Emission(np.array([buckets.update().days[-1] + 1], np.int64))
    tables: dict[str, list[pa.Table]] = {view: [] for view in layout.views}
    for partition in range(buckets.partitions):
        data = buckets.load(partition, emission.first_day(max(layout.windows)))
        if data is not None:
            tables[ACTIVITY] += activity_tables(data, encoders, layout, emission)
    with bounded_connection(_MEMORY_MB, folder) as connection:
        others = ViewTables(connection, clean, layout, None)
        tables[PROFILE] += others.profiles()
        tables[ONBOARDING] += others.onboarding(encoders)
    rows: dict[str, list[dict[str, Any] | None]] = {}
    for view, parts in tables.items():
        rows[view] = [None] * n
        for row in (row for part in parts for row in part.to_pylist()):
            rows[view][row.pop(USER_KEY)] = row
    return rows
