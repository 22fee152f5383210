"""Values of the numeric blocks as they are before standardising, and what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from encoder.columns import ArrayColumn, RawBatch, ScalarColumn, TextColumn, TokenColumn
from encoder.errors import MalformedInput, SpaceMismatch
from encoder.schema import Block, BlockKind, ColumnElement, FeatureSchema

__all__ = ["RawReader", "column_of"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]
ScalarT = TypeVar("ScalarT", bound=np.generic)
ColumnT = TypeVar("ColumnT", ArrayColumn, TextColumn, TokenColumn, ScalarColumn)

_NOTHING = 1e-30
"""Norms and sums below this count as all zeros; their reciprocal would leave float32."""

_NO_ONE = "an unnamed user"


@dataclass(frozen=True)
class _Regular:
    """``count`` times ``width`` columns of a matrix, one piece every ``stride`` columns."""

    first: int
    count: int
    stride: int
    offset: int
    width: int

    @classmethod
    def find(cls, start: int, count: int, stride: int, width: int, total: int) -> _Regular | None:
        """Return the pieces from column ``start`` on, None where no view of a row has them.

        A view is cut out of ``count`` whole strides, and these must lie within ``total`` columns.
        """
        earliest, latest = max(0, start + width - stride), min(start, total - count * stride)
        if not width <= stride or earliest > latest:
            return None
        return cls(latest, count, stride, start - latest, width)

    def view(self, matrix: npt.NDArray[ScalarT]) -> npt.NDArray[ScalarT]:
        """Return (n, count, width); of a C-contiguous matrix, a view."""
        part = matrix[:, self.first : self.first + self.count * self.stride]
        pieces = part.reshape(len(part), self.count, self.stride)
        return pieces[:, :, self.offset : self.offset + self.width]


@dataclass(frozen=True)
class _Group:
    """Blocks of one kind and width that are read at once: ``count`` runs of adjacent blocks."""

    kind: BlockKind
    column: str
    width: int
    source: _Regular
    target: _Regular
    blocks: _Regular

    def split(self, pieces: Float32) -> Float32:
        """Return (n, count, blocks of a run, width) of (n, count, width of a run)."""
        return pieces.reshape(len(pieces), self.blocks.count, self.blocks.width, self.width)


class RawReader:
    """Reads a schema's numeric blocks, those that lie regularly at once.

    A call into numpy costs about a microsecond however few rows there are, so that one user's 20
    to 30 blocks would cost more than the network. The usual layout has the same blocks for each
    window: they are a strided view (n, windows, width) of their column, and of the inputs too.

    State: positions, which follow from the schema and never change.

    Parameters
    ----------
    schema : FeatureSchema
    starts : sequence of int
        First column of each block (categories too) in the matrix that ``read`` fills.
    width : int
        Columns of that matrix.
    """

    def __init__(self, schema: FeatureSchema, starts: Sequence[int], width: int) -> None:
        self._schema = schema
        self._arrays, self._texts = schema.array_columns, schema.text_columns
        self._groups = _groups(schema, starts, width)

    def check(self, batch: RawBatch) -> None:
        """Raise when columns are missing, of another width, or of other modality encoders.

        Raises
        ------
        MalformedInput, SpaceMismatch
        """
        schema = self._schema
        for name, width in self._arrays.items():
            _check_shape(name, column_of(batch, name, ArrayColumn).values, batch.n_rows, width)
        for name, width in self._texts.items():
            _check_shape(name, column_of(batch, name, TextColumn).values, batch.n_rows, width)
        for name in schema.token_columns:
            longest = column_of(batch, name, TokenColumn).values.shape[1]
            if longest > schema.token_columns[name]:
                raise MalformedInput(
                    f"Column {name!r}: lists of {longest} tokens given, at most "
                    f"{schema.token_columns[name]} expected. Rebuild the raw features with the "
                    "encoder's layout.",
                    column=name,
                )
        for name in schema.modality_columns:
            versions = column_of(batch, name, ScalarColumn)
            expected = schema.modality_version_of(name)
            other = versions.valid & (versions.values != expected)
            if other.any():
                row = int(np.flatnonzero(other)[0])
                raise SpaceMismatch(
                    f"Row {row} ({_user(batch, row) or _NO_ONE}), column {name!r}: features of "
                    f"modality version {versions.values[row]!r} given, this encoder was trained on "
                    f"{expected!r}. Build the raw features with the encoder's own modality "
                    "encoders, or train a new encoder on these."
                )

    def element(
        self, batch: RawBatch, where: ColumnElement
    ) -> tuple[npt.NDArray[np.float32], Bool]:
        """Return one element of an array column, (n_rows,), and which rows have the column.

        Raises
        ------
        MalformedInput
        """
        column = column_of(batch, where.column, ArrayColumn)
        width = self._arrays[where.column]
        _check_shape(where.column, column.values, batch.n_rows, width)
        return column.values[:, where.offset], column.valid

    def read(self, batch: RawBatch, rows: slice, values: Float32, present: Bool) -> bool:
        """Write the blocks' values, and who has them, of some rows of a checked batch.

        Fitting and transforming both start here, so they cannot drift apart. Values of a block that
        a row does not have may be anything.

        Parameters
        ----------
        batch : RawBatch
        rows : slice
        values : float32 (n, width), C-contiguous
            Written in place: numeric blocks only.
        present : bool (n, n_blocks)
            Likewise.

        Returns
        -------
        bool
            A value may be malformed: call ``refuse``.
        """
        suspicious = False
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            for group in self._groups:
                column = column_of(batch, group.column, ArrayColumn)
                suspicious |= _READERS[group.kind](
                    group.split(group.source.view(column.values[rows])),  # (n, runs, blocks, width)
                    column.valid[rows, None, None],  # (n, 1, 1)
                    group.split(group.target.view(values)),  # (n, runs, blocks, width)
                    group.blocks.view(present),  # (n, runs, blocks)
                )
        return suspicious

    def refuse(self, batch: RawBatch) -> None:
        """Raise for the first block with a malformed value; a null row's values do not count.

        Raises
        ------
        MalformedInput
        """
        for block in self._schema.blocks:
            if block.kind not in _READERS:
                continue
            column = column_of(batch, block.column, ArrayColumn)
            values = column.values[:, block.offset : block.offset + block.width]
            for faulty, what in _faults(block.kind, values):
                _raise_for(block, batch, column.valid & faulty, what)


def column_of(batch: RawBatch, name: str, kind: type[ColumnT]) -> ColumnT:
    """Return a column of a batch.

    Raises
    ------
    MalformedInput
        It is missing, or of another kind.
    """
    column = batch.columns.get(name)
    if isinstance(column, kind):
        return column
    what = "is missing" if column is None else f"is a {type(column).__name__}"
    raise MalformedInput(
        f"Column {name!r} {what}, {kind.__name__} is expected. "
        f"Given: {', '.join(sorted(batch.columns)) or 'no column'}.",
        column=name,
    )


def _pooled(values: Float32, valid: Bool, target: Float32, present: Bool) -> bool:
    # float64: the square of a large float32 is no float32.
    norm = np.sqrt(np.einsum("hijk,hijk->hij", values, values, dtype=np.float64))
    np.logical_and(valid, norm > _NOTHING, out=present)
    _scale(values, norm, target)
    return not math.isfinite(norm.sum())


def _histogram(values: Float32, valid: Bool, target: Float32, present: Bool) -> bool:
    total = np.add.reduce(values, axis=3, dtype=np.float64)  # (n, runs, blocks)
    np.logical_and(valid, total > _NOTHING, out=present)
    _scale(values, total, target)
    np.sqrt(target, out=target)
    return not math.isfinite(total.sum()) or _any_negative(values)


def _counts(values: Float32, valid: Bool, target: Float32, present: Bool) -> bool:
    np.log1p(values, out=target)
    present[:] = valid
    return not math.isfinite(values.sum(dtype=np.float64)) or _any_negative(values)


def _numbers(values: Float32, valid: Bool, target: Float32, present: Bool) -> bool:
    target[:] = values
    np.logical_and(valid, ~np.isnan(values).all(axis=3), out=present)
    return bool(np.isinf(values).any())


_READERS: dict[BlockKind, Callable[[Float32, Bool, Float32, Bool], bool]] = {
    "pooled": _pooled,
    "histogram": _histogram,
    "counts": _counts,
    "numbers": _numbers,
}
"""Each takes values and validity, fills a target of the values' shape (n, runs, blocks, width) and
presence (n, runs, blocks), and returns whether a value may be malformed."""


def _scale(values: Float32, length: Float64, target: Float32) -> None:
    """Divide by ``length`` (n, runs, blocks); where that is 0 the row does not have the block."""
    np.multiply(values, (1.0 / length).astype(np.float32)[..., None], out=target)


def _any_negative(values: Float32) -> bool:
    return bool(np.minimum.reduce(values, axis=None, initial=0.0) < 0)


def _faults(kind: BlockKind, values: Float32) -> list[tuple[Bool, str]]:
    """Return who has a malformed value, bool (n,), and what it is, for each way to be malformed."""
    if kind == "numbers":
        return [(_any(np.isinf(values)), "an infinite value")]
    not_finite = (_any(~np.isfinite(values)), "a value that is not finite")
    if kind == "pooled":
        return [not_finite]
    return [not_finite, (_any(values < 0), "a negative value")]


def _any(faulty: Bool) -> Bool:
    rows: Bool = np.logical_or.reduce(faulty, axis=1)
    return rows


def _groups(schema: FeatureSchema, starts: Sequence[int], width: int) -> list[_Group]:
    """Return the numeric blocks in as few groups as their places allow."""
    alike: dict[_Alike, list[_Place]] = {}
    for key, place in _runs(schema, starts):
        alike.setdefault(key, []).append(place)
    groups = []
    for key, left in alike.items():
        while left:
            group = next(
                found
                for count in range(len(left), 0, -1)
                if (found := _group(schema, key, left[:count], width))
            )
            groups.append(group)
            left = left[group.blocks.count :]
    return groups


class _Place(NamedTuple):
    """First column of a run of blocks in its raw column and in the target, and its number."""

    offset: int
    start: int
    number: int

    def step(self, after: _Place) -> tuple[int, int, int]:
        return after.offset - self.offset, after.start - self.start, after.number - self.number


class _Alike(NamedTuple):
    """What runs must share to be read at once."""

    column: str
    kind: BlockKind
    width: int
    n_blocks: int


def _runs(schema: FeatureSchema, starts: Sequence[int]) -> Iterator[tuple[_Alike, _Place]]:
    """Yield runs of numeric blocks alike that are neighbours in column, target and schema."""
    run: list[tuple[Block, _Place]] = []
    for number, (block, start) in enumerate(zip(schema.blocks, starts, strict=True)):
        place = _Place(block.offset, start, number)
        if run:
            last, before = run[-1]
            same = (last.column, last.kind, last.width) == (block.column, block.kind, block.width)
            if not (same and before.step(place) == (block.width, block.width, 1)):
                yield _run(run)
                run = []
        if block.kind in _READERS:
            run.append((block, place))
    if run:
        yield _run(run)


def _run(run: list[tuple[Block, _Place]]) -> tuple[_Alike, _Place]:
    block, place = run[0]
    return _Alike(block.column, block.kind, block.width, len(run)), place


def _group(schema: FeatureSchema, alike: _Alike, places: list[_Place], width: int) -> _Group | None:
    """Return runs as one group; None where they do not lie at one distance from each other."""
    run = alike.width * alike.n_blocks
    steps = {a.step(b) for a, b in pairwise(places)} or {(run, run, alike.n_blocks)}
    if len(steps) > 1:
        return None
    source_step, target_step, block_step = steps.pop()
    offset, start, number = places[0]
    count, in_column = len(places), schema.array_columns[alike.column]
    source = _Regular.find(offset, count, source_step, run, in_column)
    target = _Regular.find(start, count, target_step, run, width)
    blocks = _Regular.find(number, count, block_step, alike.n_blocks, len(schema.blocks))
    if source is None or target is None or blocks is None:
        return None
    return _Group(alike.kind, alike.column, alike.width, source, target, blocks)


def _check_shape(name: str, values: npt.NDArray[Any], n_rows: int, width: int) -> None:
    if values.shape != (n_rows, width):
        raise MalformedInput(
            f"Column {name!r}: values of shape {values.shape} given, ({n_rows}, {width}) expected. "
            "Rebuild the raw features with the encoder's layout.",
            column=name,
        )


def _raise_for(block: Block, batch: RawBatch, faulty: Bool, what: str) -> None:
    rows = np.flatnonzero(faulty)
    if rows.size == 0:
        return
    row = int(rows[0])
    user = _user(batch, row)
    raise MalformedInput(
        f"Row {row} ({user or _NO_ONE}), column {block.column!r}, block {block.name!r}: {what} "
        f"given ({rows.size} such row(s) in the batch), {_EXPECTED[block.kind]} expected. "
        "Correct the user's raw features and encode again.",
        column=block.column,
        row=row,
        user=user,
    )


_EXPECTED = {
    "pooled": "finite numbers",
    "histogram": "finite shares of at least 0",
    "counts": "finite counts of at least 0",
    "numbers": "finite numbers or NaN (missing)",
}


def _user(batch: RawBatch, row: int) -> str | None:
    return batch.users[row] if batch.users else None
