"""The encoder's input contract."""

from __future__ import annotations

import json

import pytest
from hypothesis import given

from encoder.schema import Block, ColumnElement, FeatureSchema
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
