"""A feature repository for the benchmarks of the batch job: raw rows, encoders, a space of each."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import yaml

from benchmarks import _raw_rows
from materialize.context import Context
from materialize.embedding_rows import ensure_readable
from materialize.publish import Publication
from transforms.layout import ACTIVITY, RawLayout, field
from transforms.names import USER_KEY, stored_view
from transforms.tables import CREATED, EVENT_TIME, view_schema

END = datetime(2026, 1, 1, tzinfo=timezone.utc)
"""After every raw row."""

SPACE = 1
"""The first encoder's."""

Numbers = npt.NDArray[np.int64]

_USERS_PER_FILE, _PIECE, _ROW_GROUP = 100_000, 10_000, 16_384
_DAY_US = 86_400_000_000
_NEWEST_DAYS, _OLDER_DAYS = 90, 100
_INSTANT = pa.timestamp("us", "UTC")
_WORK = "benchmark"

_LAYOUT = _raw_rows.LAYOUT


def user_ids(numbers: Numbers) -> Numbers:
    """Return the ids of users numbered from 0: all different, in no order.

    Real files hold users by the hash of their id, so a file's smallest and largest id say nothing.
    """
    return numbers * 2_654_435_761 % 2**32  # an odd factor permutes 32-bit numbers


def write_raw(folder: Path, users: int, seed: int, layout: RawLayout = _LAYOUT) -> None:
    """Write the raw views of ``users`` users as `palate features build` lays them out.

    One row a user and view, and an older activity row for one user in ten. At most 100,000 rows
    differ; they come again under other ids and times, so that five million take minutes.
    """
    # Whole pieces, so that a user's row is the same however many users there are.
    distinct = pa.concat_tables(
        _raw_rows.table(_PIECE, seed + start, contract=_raw_rows.schema(layout))
        for start in range(0, min(users, _USERS_PER_FILE), _PIECE)
    )
    publication = Publication(folder)
    publication.begin(_WORK, int(time.time() * 1e6))
    for view in layout.views:
        schema = view_schema(view, layout, "int64")
        names = [name for name in distinct.column_names if name.startswith(f"{view}__")]
        rows = distinct.select(names).rename_columns([n.removeprefix(f"{view}__") for n in names])
        for start in range(0, users, _USERS_PER_FILE):
            numbers = np.arange(start, min(start + _USERS_PER_FILE, users))
            _stage(publication, view, f"{start:09d}", rows, schema, numbers)
            if view == ACTIVITY:
                older = numbers[numbers % 10 == 0]
                _stage(publication, view, f"{start:09d}-older", rows, schema, older, _OLDER_DAYS)
    publication.commit(_WORK, {}, replace=True)


def _stage(
    publication: Publication,
    view: str,
    name: str,
    rows: pa.Table,
    schema: pa.Schema,
    numbers: Numbers,
    days_older: int = 0,
) -> None:
    """Write one file with a row for each of these users, all older by so many days."""

    def tables() -> Iterator[pa.Table]:
        for start in range(0, len(numbers), _ROW_GROUP):
            part = numbers[start : start + _ROW_GROUP]
            table = rows.take(pa.array((part + days_older) % len(rows)))
            # Spread over a quarter.
            back = part * 7_919_000_003 % (_NEWEST_DAYS * _DAY_US) + days_older * _DAY_US + 1
            as_of = pa.array(int(END.timestamp()) * 1_000_000 - back)
            own = {
                USER_KEY: pa.array(user_ids(part)),
                field(view, "as_of"): as_of,
                EVENT_TIME: as_of.cast(_INSTANT),
                CREATED: as_of.cast(_INSTANT),
            }
            yield pa.table(dict(zip(table.column_names, table.columns, strict=True)) | own)

    publication.stage(_WORK, f"{view}/{name}.parquet", tables(), schema, keep_empty=False)


def save_encoder(store: Path, seed: int, layout: RawLayout = _LAYOUT) -> str:
    """Store an encoder with initial weights (speed does not depend on them); return its version."""
    from benchmarks.encode import artifact
    from encoder.autoencoder import AutoencoderConfig, DenoisingAutoencoder
    from encoder.preprocessing import Preprocessor
    from encoder.store import ArtifactStore

    contract = _raw_rows.schema(layout)
    preprocessor = Preprocessor.fit(contract, [_raw_rows.batch(5_000, seed, contract)])
    model = DenoisingAutoencoder(preprocessor.input_slices, AutoencoderConfig())
    encoder = artifact(preprocessor, model)
    ArtifactStore(str(store)).save(encoder)
    return encoder.encoder_version


def make(
    folder: Path,
    raw: Path,
    artifacts: Path,
    encoder_versions: Sequence[str],
    online: Mapping[str, Any],
    settings: Mapping[str, Any],
    layout: RawLayout = _LAYOUT,
) -> Path:
    """Write and apply a repository with a space of each encoder; return its folder.

    Parameters
    ----------
    folder : Path
        To be made; its name becomes the project's.
    raw : Path
        Where ``write_raw`` wrote.
    artifacts : Path
        Where ``save_encoder`` stored.
    encoder_versions : sequence of str
    online : mapping
        ``online_store`` of the feature_store.yaml; the rest of it is stock Feast's.
    settings : mapping
        Fields of palate.yaml.
    layout : RawLayout
        That of the raw rows and the encoders.
    """
    from feast import Entity, ValueType

    from transforms.embedding_views import declare_on_demand_view, declare_stored_view
    from transforms.raw_views import declare_raw_views

    folder.mkdir(parents=True)
    files = {
        "feature_store.yaml": {
            **{"project": folder.name, "provider": "local", "registry": "registry.db"},
            **{"online_store": dict(online), "offline_store": {"type": "duckdb"}},
            "entity_key_serialization_version": 3,
        },
        "palate.yaml": {"dataset": "dataset.yaml", "artifacts": str(artifacts), **settings},
        "dataset.yaml": _dataset(layout),
    }
    for name, content in files.items():
        (folder / name).write_text(yaml.safe_dump(content), encoding="utf-8")
    context = Context(folder)
    assert RawLayout.of(context.settings.dataset) == layout
    user = Entity(name="user", join_keys=[USER_KEY], value_type=ValueType.INT64)
    views = declare_raw_views(user, layout, raw)
    context.store.apply([user, *views])
    for number, encoder_version in enumerate(encoder_versions, start=SPACE):
        stored = context.settings.offline_dir / stored_view(number)
        ensure_readable(stored, pa.int64())
        version = {"space": number, "encoder_version": encoder_version}
        context.store.apply(
            [
                declare_stored_view(user, **version, folder=stored),
                declare_on_demand_view(views, **version, store=str(artifacts)),
            ]
        )
        url = (artifacts / encoder_version).as_uri()
        space = context.ledger.register(encoder_version, url, {"raw_views": list(layout.views)})
        assert space.number == number
    return folder


def _dataset(layout: RawLayout) -> dict[str, Any]:
    """Return the dataset.yaml whose raw features have a layout."""
    return {
        "name": "benchmark",
        "events": {
            **{"path": "events.parquet", "user": "u", "item": "i", "timestamp": "t"},
            "context": list(layout.context),
        },
        "users": {
            **{"path": "users.parquet", "user": "u"},
            **{"categories": list(layout.categories), "numbers": list(layout.numbers)},
        },
        "items": {"path": "items.parquet", "item": "i", "tags": "tags"},
        "windows": list(layout.windows),
        "modalities": {m.name: {"dim": m.dim, "clusters": m.clusters} for m in layout.modalities},
        "evaluation": {"cutoff": END.isoformat()},
    }
