"""Feast declarations of the raw views say what the layout says."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from feast import Entity, FileSource, ValueType
from feast.types import Array, Float32, Int64, String
from hypothesis import given

from tests.strategies import VERSION, layouts
from transforms.layout import RawLayout, field
from transforms.names import ITEM_KEY, ITEM_VECTORS, USER_KEY
from transforms.raw_views import declare_item_vectors, declare_raw_views

USER = Entity(name="user", join_keys=[USER_KEY], value_type=ValueType.INT64)
FOLDER = Path("/features")


@given(layouts())
def test_the_views_hold_exactly_the_columns_that_the_encoder_reads(layout: RawLayout) -> None:
    schema = layout.schema(VERSION)
    views = declare_raw_views(USER, layout, FOLDER)
    declared = {f"{v.name}__{f.name}": f.dtype for v in views for f in v.features}
    assert set(declared) == set(schema.columns)
    assert [view.name for view in views] == list(layout.views)
    for names, dtype in (
        (schema.array_columns, Array(Float32)),
        (schema.text_columns, Array(String)),
        (schema.as_of_columns, Int64),
        (schema.modality_columns, String),
    ):
        assert {declared[name] for name in names} <= {dtype}


@given(layouts())
def test_no_two_views_share_a_field_name(layout: RawLayout) -> None:
    views = declare_raw_views(USER, layout, FOLDER)
    names = [f.name for view in views for f in view.features]
    assert len(names) == len(set(names))


def test_rows_come_from_parquet_and_from_pushes_and_never_expire() -> None:
    layout = RawLayout((), (7,), categories=("gender", "age"))
    for view in declare_raw_views(USER, layout, FOLDER):
        batch = view.batch_source
        assert isinstance(batch, FileSource)
        assert batch.path == f"/features/{view.name}"
        assert batch.timestamp_field == "event_timestamp"
        assert batch.created_timestamp_column == "created_timestamp"
        assert view.stream_source is not None
        assert view.stream_source.name == f"{view.name}_push"
        assert view.ttl == timedelta(0)
        assert view.entities == ["user"]
    (categories,) = (f for f in view.features if f.name == field("user_profile", "categories"))
    assert categories.description.endswith("In order: gender, age.")


@pytest.mark.parametrize("modalities", [(), ("collaborative", "audio")])
def test_item_vectors_have_a_field_a_modality(modalities: tuple[str, ...]) -> None:
    item = Entity(name="item", join_keys=[ITEM_KEY], value_type=ValueType.STRING)
    view = declare_item_vectors(item, modalities, FOLDER)
    assert view.name == ITEM_VECTORS
    assert [f.name for f in view.features] == [*modalities, "modality_version"]
    assert view.entities == ["item"]
