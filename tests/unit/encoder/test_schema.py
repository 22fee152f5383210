"""The encoder's input contract."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given

from encoder.schema import Block, ColumnElement, FeatureSchema, TextsModality
from tests.encoders import CLUE_SCHEMA, HYBRID_SCHEMA, SCHEMA
from tests.strategies import schemas


@given(schemas())
def test_a_schema_survives_json(schema: FeatureSchema) -> None:
    assert FeatureSchema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema


@given(schemas())
def test_blocks_tile_their_columns(schema: FeatureSchema) -> None:
    widths = schema.array_columns | schema.text_columns
    for column, width in widths.items():
        covered = [
            k
            for b in schema.blocks
            if b.column == column
            for k in range(b.offset, b.offset + b.width)
        ]
        assert sorted(covered) == list(range(width))


def test_columns_lists_every_column_once() -> None:
    schema = FeatureSchema(
        (Block("taste", "pooled", "v__a", 0, 2), Block("counts", "counts", "v__b", 0, 1)),
        ("v__as_of",),
        ColumnElement("v__b", 0),
        None,
        ("v__version",),
        "m",
    )
    assert schema.columns == ("v__a", "v__b", "v__as_of", "v__version")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "image"}, "unknown kind 'image'. Known: category, counts, histogram"),
        ({"offset": -1}, "offset -1 and width 1 given"),
        ({"width": 0}, "offset 0 and width 0 given"),
        ({"width": 2}, "a category has width 1, 2 given"),
    ],
)
def test_a_faulty_block_is_refused(change: dict[str, object], message: str) -> None:
    fields = {"name": "x", "kind": "category", "column": "v__c", "offset": 0, "width": 1}
    with pytest.raises(ValueError, match=message):
        Block(**(fields | change))  # type: ignore[arg-type]


def test_block_names_are_unique() -> None:
    block = Block("x", "counts", "v__b", 0, 1)
    with pytest.raises(ValueError, match="must be unique, given twice: x"):
        FeatureSchema((block, block), (), ColumnElement("v__b", 0), None, (), "m")


def test_a_schema_has_blocks() -> None:
    with pytest.raises(ValueError, match="without blocks"):
        FeatureSchema((), (), ColumnElement("v__b", 0), None, (), "m")


# --- blocks and texts


@pytest.mark.parametrize("schema", [SCHEMA, CLUE_SCHEMA])
def test_a_schema_of_one_kind_is_written_as_it_always_was(schema: FeatureSchema) -> None:
    """Versions of encoders are made of this: a new field would change all of them."""
    assert list(schema.to_dict()) == [
        "blocks",
        "as_of_columns",
        "event_count",
        "onboarding_count",
        "modality_columns",
        "modality_version",
    ]


def test_a_schema_of_both_survives_json_and_has_a_version_for_each_column() -> None:
    texts = replace(CLUE_SCHEMA, modality_version="fedcba987654")
    both = SCHEMA.with_texts(texts)
    assert FeatureSchema.from_dict(json.loads(json.dumps(both.to_dict()))) == both
    (column,) = texts.modality_columns
    assert both.texts_modality == TextsModality(column, "fedcba987654")
    assert {name: both.modality_version_of(name) for name in both.modality_columns} == {
        **dict.fromkeys(SCHEMA.modality_columns, SCHEMA.modality_version),
        column: "fedcba987654",
    }


def test_a_schema_of_both_reads_all_blocks_and_of_texts_the_tokens() -> None:
    assert HYBRID_SCHEMA.array_columns == SCHEMA.array_columns
    assert HYBRID_SCHEMA.token_columns == CLUE_SCHEMA.token_columns
    assert HYBRID_SCHEMA.event_count == SCHEMA.event_count
    assert set(HYBRID_SCHEMA.columns) - set(SCHEMA.columns) == {
        *CLUE_SCHEMA.token_columns,
        *CLUE_SCHEMA.as_of_columns,
        *CLUE_SCHEMA.modality_columns,
    }


def test_texts_with_a_version_of_their_own_name_a_column_that_carries_it() -> None:
    with pytest.raises(ValueError, match=r"texts_modality names 'v__x', one of .*: user_"):
        replace(SCHEMA, texts_modality=TextsModality("v__x", "m"))
