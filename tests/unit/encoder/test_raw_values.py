"""Blocks that are read together give what each gives alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoder.columns import ArrayColumn, RawBatch, TextColumn
from encoder.errors import MalformedInput
from encoder.preprocessing import CLIP, Preprocessor
from encoder.raw_values import RawReader
from encoder.schema import Block, ColumnElement, FeatureSchema
from tests.strategies import VERSION, batches, random_batch, schemas, take
from transforms.layout import Modality, RawLayout

Float32 = npt.NDArray[np.float32]


def _one_block(block: Block, batch: RawBatch) -> tuple[Float32, npt.NDArray[np.bool_]]:
    """Return a numeric block's values before standardising and who has them, read by itself."""
    column = batch.columns[block.column]
    assert isinstance(column, ArrayColumn)
    values = column.values[:, block.offset : block.offset + block.width]
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        if block.kind == "numbers":
            return values, column.valid & ~np.isnan(values).all(axis=1)
        if block.kind == "counts":
            return np.log1p(values), column.valid
        if block.kind == "pooled":
            length = np.sqrt(np.einsum("ij,ij->i", values, values, dtype=np.float64))
        else:
            length = values.sum(axis=1, dtype=np.float64)
        scaled = values * (1.0 / length).astype(np.float32)[:, None]
        values = scaled if block.kind == "pooled" else np.sqrt(scaled)
        return values, column.valid & (length > 1e-30)


def _block_by_block(p: Preprocessor, batch: RawBatch) -> Float32:
    """Return what ``transform`` is to return: its table of kinds, one block after the other."""
    arrays, config = p.state()
    factor = (1.0 / arrays["scale"]).astype(np.float32)
    inputs = np.zeros((batch.n_rows, p.n_inputs), np.float32)
    for block, where in zip(p.schema.blocks, p.input_slices, strict=True):
        part = slice(where.start, where.stop)
        if block.kind == "category":
            column = batch.columns[block.column]
            assert isinstance(column, TextColumn)
            known = config["categories"][block.name]
            for row, text in enumerate(column.values[:, block.offset].tolist()):
                if column.valid[row] and text != "":
                    code = known.index(text) if text in known else where.width - 1
                    inputs[row, where.start + code] = inputs[row, where.mask] = 1.0
            continue
        values, present = _one_block(block, batch)
        with np.errstate(over="ignore", invalid="ignore"):
            values = (values - arrays["mean"][part]) * factor[part]
        if block.kind in ("counts", "numbers"):
            values = np.clip(values, -CLIP, CLIP)
        if block.kind == "numbers":
            values = np.where(np.isnan(values), np.float32(0.0), values)
        inputs[present, part] = values[present]
        inputs[:, where.mask] = present
    return inputs


@given(st.data())
def test_all_blocks_at_once_equal_each_block_by_itself(data: st.DataObject) -> None:
    """The inputs are those of a plain loop over the blocks, bit for bit."""
    schema = data.draw(schemas())
    p = Preprocessor.fit(schema, [data.draw(batches(schema))])
    batch = data.draw(batches(schema))
    assert p.transform(batch).tobytes() == _block_by_block(p, batch).tobytes()


_WIDE = RawLayout(
    (Modality("collaborative", 37, 13), Modality("content", 64, 13)),
    (7, 30, 180),
    categories=("gender", "age"),
    numbers=("height", "income"),
    onboarding=True,
).schema(VERSION)


def test_many_rows_equal_each_block_by_itself_and_each_row_alone() -> None:
    batch = random_batch(_WIDE, 3000, seed=5)
    p = Preprocessor.fit(_WIDE, [batch])
    inputs = p.transform(batch)
    assert inputs.tobytes() == _block_by_block(p, batch).tobytes()
    for row in (0, 1023, 1024, 2999):
        assert p.transform(take(batch, slice(row, row + 1))).tobytes() == inputs[row].tobytes()


@st.composite
def _scattered(draw: st.DrawFn) -> FeatureSchema:
    """Blocks of few kinds and widths in any order, with gaps between them in their columns."""
    ends: dict[str, int] = {}
    blocks = []
    for k in range(draw(st.integers(1, 9))):
        kind = draw(st.sampled_from(["pooled", "histogram", "counts", "numbers", "category"]))
        width = 1 if kind == "category" else draw(st.integers(1, 3))
        column = f"v__{kind}"
        offset = ends.get(column, 0) + draw(st.integers(0, 2))
        ends[column] = offset + width
        blocks.append(Block(f"b{k}", kind, column, offset, width))
    order = draw(st.permutations(blocks))
    return FeatureSchema(tuple(order), (), ColumnElement("v__counts", 0), None, (), "m")


@given(_scattered(), st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_blocks_anywhere_equal_each_block_by_itself(
    schema: FeatureSchema, seed: int, rows: int
) -> None:
    """Whichever blocks are read at once, wherever they lie, the inputs are the same."""
    batch = random_batch(schema, rows, seed=seed)
    for column in batch.columns.values():  # what no block reads may not matter
        if column.values.dtype != object:
            column.values[:] = np.abs(column.values)
    p = Preprocessor.fit(schema, [batch])
    assert p.transform(batch).tobytes() == _block_by_block(p, batch).tobytes()


def test_the_blocks_of_all_windows_are_read_at_once() -> None:
    p = Preprocessor.fit(_WIDE, [random_batch(_WIDE, 20)])
    starts = [block.start for block in p.input_slices]
    groups = RawReader(_WIDE, starts, p.n_inputs)._groups
    read = sorted((g.kind, g.width, g.blocks.count, g.blocks.width) for g in groups)
    assert read == [
        ("counts", 1, 1, 1), ("counts", 14, 1, 1), ("histogram", 13, 3, 2), ("numbers", 2, 1, 1),
        ("pooled", 37, 1, 1), ("pooled", 37, 3, 1), ("pooled", 64, 1, 1), ("pooled", 64, 3, 1),
    ]  # fmt: skip


def test_the_first_malformed_block_of_the_schema_is_named_in_whichever_group_it_is() -> None:
    batch = random_batch(_WIDE, 1500, present=1.0)
    p = Preprocessor.fit(_WIDE, [batch])
    activity = {b.name: b for b in _WIDE.blocks}
    for name, row in (("content_180d", 3), ("collaborative_interests_30d", 1400)):
        block = activity[name]
        batch.columns[block.column].values[row, block.offset] = np.nan
    with pytest.raises(MalformedInput, match=r"Row 1400 .*'collaborative_interests_30d'"):
        p.transform(batch)


def test_malformed_values_of_a_null_row_are_nobodys_fault() -> None:
    batch = random_batch(_WIDE, 30, present=1.0)
    p = Preprocessor.fit(_WIDE, [batch])
    name = next(b.column for b in _WIDE.blocks if b.kind == "histogram")
    valid = np.ones(30, np.bool_)
    valid[4] = False
    values = batch.columns[name].values.copy()
    values[4, :3] = [np.nan, np.inf, -1.0]
    odd = replace(batch, columns={**batch.columns, name: ArrayColumn(values, valid)})
    values = values.copy()
    values[4] = 0.0
    plain = replace(batch, columns={**batch.columns, name: ArrayColumn(values, valid)})
    assert p.transform(odd).tobytes() == p.transform(plain).tobytes()
