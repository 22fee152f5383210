"""What stands where in the raw columns, and the encoder schema that says the same."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from feast import Entity, ValueType
from hypothesis import given

from tests.strategies import VERSION, layouts
from transforms.dataset import Dataset
from transforms.layout import (
    ACTIVITY,
    ONBOARDING,
    PROFILE,
    RAW_FIELDS,
    TEXTS,
    Modality,
    RawLayout,
    TextLayout,
    column,
    field,
)
from transforms.names import USER_KEY
from transforms.raw_views import declare_raw_views

FULL = RawLayout(
    (Modality("collaborative", 4, 3), Modality("content", 2, 5)),
    (7, 30),
    context=("country",),
    categories=("gender", "age"),
    numbers=("height",),
    onboarding=True,
)

WITH_TEXTS = replace(FULL, texts=TextLayout(max_events=3, max_item_tokens=5))


def test_texts_are_a_view_that_one_encoder_reads_and_the_other_does_not() -> None:
    assert WITH_TEXTS.views == (*FULL.views, TEXTS)
    assert WITH_TEXTS.schema(VERSION) == FULL.schema(VERSION)
    schema = WITH_TEXTS.texts_schema(VERSION, n_services=2)
    assert {name.split("__")[0] for name in schema.columns} == {TEXTS}
    # Two services and all others together, 3 events of 5 tokens each.
    assert schema.token_columns == {column(TEXTS, "tokens"): 45}
    assert schema.event_count.column == column(TEXTS, "count")
    with pytest.raises(ValueError, match="one with texts expected"):
        FULL.texts_schema(VERSION, n_services=2)


@given(layouts())
def test_the_blocks_of_a_column_tile_it(layout: RawLayout) -> None:
    """Every element of every array column is read by exactly one block."""
    schema = layout.schema(VERSION)
    read: dict[str, list[int]] = defaultdict(list)
    for block in schema.blocks:
        read[block.column] += range(block.offset, block.offset + block.width)
    widths = schema.array_columns | schema.text_columns
    assert {name: sorted(elements) for name, elements in read.items()} == {
        name: list(range(width)) for name, width in widths.items()
    }


@given(layouts())
def test_the_schema_has_the_widths_that_the_builder_writes(layout: RawLayout) -> None:
    widths = layout.schema(VERSION).array_columns
    expected = {
        column(ACTIVITY, "pooled"): layout.pooled_width,
        column(ACTIVITY, "histogram"): layout.histogram_width,
        column(ACTIVITY, "counts"): layout.counts_width,
    }
    if layout.numbers:
        expected[column(PROFILE, "numbers")] = len(layout.numbers)
    if layout.onboarding:
        expected[column(ONBOARDING, "pooled")] = layout.onboarding_width
    assert widths == expected


@given(layouts())
def test_the_schema_reads_the_filled_views_and_no_other(layout: RawLayout) -> None:
    read = {name.split("__")[0] for name in layout.schema(VERSION).columns}
    assert read == set(layout.views)
    assert (PROFILE in read) == bool(layout.categories or layout.numbers)
    assert (ONBOARDING in read) == layout.onboarding


def test_blocks_stand_in_the_documented_order() -> None:
    schema = FULL.schema(VERSION)
    pooled = column(ACTIVITY, "pooled")
    places = {b.name: (b.column, b.offset, b.width) for b in schema.blocks}
    # [window][modality][dim]: 7 days 4 + 2, then 30 days 4 + 2
    assert places["collaborative_7d"] == (pooled, 0, 4)
    assert places["content_7d"] == (pooled, 4, 2)
    assert places["collaborative_30d"] == (pooled, 6, 4)
    assert places["content_30d"] == (pooled, 10, 2)
    # [window][modality][cluster]: 3 + 5 a window
    assert places["content_interests_30d"] == (column(ACTIVITY, "histogram"), 11, 5)
    assert places["profile_age"] == (column(PROFILE, "categories"), 1, 1)
    # onboarding: 4 + 2 vector elements, then the number of picks
    assert places["onboarding_count"] == (column(ONBOARDING, "pooled"), 6, 1)
    assert schema.onboarding_count is not None
    assert schema.onboarding_count.offset == 6
    # events of the longest window: 4 counts a window, window by window
    assert schema.event_count.offset == 4
    assert schema.modality_columns == (
        column(ACTIVITY, "modality"),
        column(ONBOARDING, "modality"),
    )


@pytest.mark.parametrize("name", ["pooled", "as_of", "modality"])
def test_equal_field_names_of_two_views_do_not_collide(name: str) -> None:
    """Feast hands an on-demand view its inputs under short names as well."""
    assert field(ACTIVITY, name) != field(ONBOARDING, name)
    assert column(ACTIVITY, name) == f"{ACTIVITY}__{field(ACTIVITY, name)}"


def test_a_brought_vector_has_the_width_it_came_with() -> None:
    dataset = Dataset.model_validate(
        {
            "name": "x",
            "events": {"path": "-", "user": "u", "item": "i", "timestamp": "t"},
            "items": {"path": "-", "item": "i", "vectors": {"audio": "v"}},
            "windows": [7],
            "modalities": {"audio": {"clusters": 2}, "collaborative": {"dim": 3, "clusters": 2}},
            "evaluation": {"cutoff": "2026-01-01T00:00:00Z"},
        }
    )
    layout = RawLayout.of(dataset, {"audio": 11})
    assert {m.name: m.dim for m in layout.modalities} == {"audio": 11, "collaborative": 3}
    assert RawLayout.of(dataset).views == (ACTIVITY,)


def test_the_fields_of_all_raw_views_are_listed() -> None:
    user = Entity(name="user", join_keys=[USER_KEY], value_type=ValueType.INT64)
    views = declare_raw_views(user, WITH_TEXTS, Path("/features"))
    assert {f.name for view in views for f in view.features} == set(RAW_FIELDS)
