"""Feast declarations of the raw user features and of the item vectors."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from feast import Entity, FeatureView, Field, FileSource, PushSource
from feast.data_format import ParquetFormat
from feast.types import Array, Float32, Int32, Int64, String

from transforms.layout import ACTIVITY, ONBOARDING, PROFILE, TEXTS, RawLayout, field
from transforms.names import ITEM_VECTORS

__all__ = ["declare_item_vectors", "declare_raw_views"]


def declare_raw_views(user: Entity, layout: RawLayout, features_dir: Path) -> list[FeatureView]:
    """Return the raw views that the layout fills: activity, and what else it has.

    Parameters
    ----------
    user : Entity
    layout : RawLayout
    features_dir : Path
        Absolute folder with one sub-folder of Parquet files a view.

    Notes
    -----
    A few wide arrays instead of many scalars: on Feast 0.67 an online read costs more per field
    than
    per byte. Each view has a push source, so that a stream can refresh it between batch builds.
    """
    fields: dict[str, list[Field]] = {
        ACTIVITY: [
            _floats(ACTIVITY, "pooled", "Mean item vector of each window and modality."),
            _floats(
                ACTIVITY, "histogram", "Shares over item clusters of each window and modality."
            ),
            _floats(ACTIVITY, "counts", "Events, weight, active days, distinct items; recency."),
            *(_texts(ACTIVITY, "context", "Circumstances of the newest event.", layout.context)),
            _as_of(ACTIVITY),
            _modality(ACTIVITY),
        ],
        PROFILE: [
            *(_texts(PROFILE, "categories", "Categorical demographics.", layout.categories)),
            *([_floats(PROFILE, "numbers", "Numeric demographics.")] if layout.numbers else []),
            _as_of(PROFILE),
        ],
        ONBOARDING: [
            _floats(
                ONBOARDING, "pooled", "Mean vector of the picks of each modality; their number."
            ),
            _as_of(ONBOARDING),
            _modality(ONBOARDING),
        ],
        TEXTS: [
            Field(
                name=field(TEXTS, "tokens"),
                dtype=Array(Int32),
                description="Token ids of what the newest events' items say, service by service.",
            ),
            _floats(TEXTS, "count", "Events in the longest window."),
            _as_of(TEXTS),
            _modality(TEXTS),
        ],
    }
    return [_view(view, user, fields[view], features_dir) for view in layout.views]


def declare_item_vectors(
    item: Entity, modalities: tuple[str, ...], features_dir: Path
) -> FeatureView:
    """Return the view of the modality encoders' item vectors, one array field a modality."""
    fields = [
        *(Field(name=name, dtype=Array(Float32)) for name in modalities),
        Field(name="modality_version", dtype=String),
    ]
    return _view(ITEM_VECTORS, item, fields, features_dir)


def _view(name: str, entity: Entity, fields: list[Field], features_dir: Path) -> FeatureView:
    source = FileSource(
        name=f"{name}_source",
        path=str(features_dir / name),
        file_format=ParquetFormat(),
        timestamp_field="event_timestamp",
        created_timestamp_column="created_timestamp",
    )
    return FeatureView(
        name=name,
        entities=[entity],
        ttl=timedelta(0),
        schema=fields,
        source=PushSource(name=f"{name}_push", batch_source=source),
    )


def _floats(view: str, name: str, description: str) -> Field:
    return Field(name=field(view, name), dtype=Array(Float32), description=description)


def _texts(view: str, name: str, description: str, columns: tuple[str, ...]) -> list[Field]:
    if not columns:
        return []
    description = f"{description} In order: {', '.join(columns)}."
    return [Field(name=field(view, name), dtype=Array(String), description=description)]


def _as_of(view: str) -> Field:
    return Field(
        name=field(view, "as_of"),
        dtype=Int64,
        description="Event time of the row, microseconds since the epoch, UTC.",
    )


def _modality(view: str) -> Field:
    return Field(
        name=field(view, "modality"),
        dtype=String,
        description="Version of the modality encoders behind the vectors.",
    )
