"""Hypothesis strategies for schemas and raw feature batches, and what tests do with batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from encoder.columns import ArrayColumn, Column, RawBatch, ScalarColumn, TextColumn, TokenColumn
from encoder.schema import FeatureSchema
from transforms.layout import Modality, RawLayout

__all__ = [
    "TOKENS",
    "VERSION",
    "batches",
    "concat",
    "layouts",
    "random_batch",
    "schemas",
    "take",
    "to_table",
    "token_column",
]

VERSION = "0123456789ab"


@dataclass(frozen=True)
class _Tokens:
    guides: int = 3
    item: int = 5
    events: int = 4
    vocabulary: int = 40


TOKENS = _Tokens()
"""Limits of token ids: guide tokens, tokens of an item, events of a service, ids."""

_SHARES = st.one_of(st.just(0.0), st.floats(0, 1, width=32), st.floats(0, 2**100, width=32))
_FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
_ANY = st.one_of(st.just(0.0), st.floats(-1, 1, width=32), _FINITE)
_STRINGS = st.sampled_from(["", "a", "b", "c", "ü", "unseen"])


@st.composite
def layouts(draw: st.DrawFn) -> RawLayout:
    """Small layouts with every optional part present or absent."""
    names = draw(st.sampled_from([("collaborative",), ("collaborative", "content")]))
    return RawLayout(
        modalities=tuple(
            Modality(n, draw(st.integers(1, 4)), draw(st.integers(1, 3))) for n in names
        ),
        windows=draw(st.sampled_from([(7,), (1, 30)])),
        context=draw(st.sampled_from([(), ("country",)])),
        categories=draw(st.sampled_from([(), ("gender", "age")])),
        numbers=draw(st.sampled_from([(), ("height",), ("height", "income")])),
        onboarding=draw(st.booleans()),
    )


def schemas() -> st.SearchStrategy[FeatureSchema]:
    """Schemas of ``layouts``."""
    return layouts().map(lambda layout: layout.schema(VERSION))


@st.composite
def batches(
    draw: st.DrawFn, schema: FeatureSchema, min_rows: int = 1, max_rows: int = 6
) -> RawBatch:
    """Well-formed batches: nulls, missing values, zeros, extremes, unseen strings."""
    n = draw(st.integers(min_rows, max_rows))
    columns: dict[str, Column] = {}
    numbers = {b.column for b in schema.blocks if b.kind == "numbers"}
    signed = {b.column for b in schema.blocks if b.kind == "pooled"}
    for name, width in schema.array_columns.items():
        elements = _ANY if name in signed | numbers else _SHARES
        if name in numbers:
            elements = st.one_of(elements, st.just(float("nan")))
        values = draw(hnp.arrays(np.float32, (n, width), elements=elements))
        # A column may hold pooled vectors and then a count (onboarding).
        for b in schema.blocks:
            if b.column == name and b.kind == "counts":
                part = slice(b.offset, b.offset + b.width)
                values[:, part] = np.abs(values[:, part])
        columns[name] = _masked(ArrayColumn, values, draw(_valid(n)), 0.0)
    for name, width in schema.text_columns.items():
        text = draw(hnp.arrays(object, (n, width), elements=_STRINGS))
        columns[name] = _masked(TextColumn, text, draw(_valid(n)), "")
    for name in schema.token_columns:
        lists = draw(st.lists(_token_lists(), min_size=n, max_size=n))
        columns[name] = token_column(lists, draw(_valid(n)))
    for name in schema.as_of_columns:
        times = draw(hnp.arrays(np.int64, n, elements=st.integers(0, 2**55)))
        columns[name] = _masked(ScalarColumn, times, draw(_valid(n)), 0)
    for name in schema.modality_columns:
        version = np.full(n, schema.modality_version_of(name), object)
        columns[name] = _masked(ScalarColumn, version, draw(_valid(n)), "")
    return RawBatch(columns, n, tuple(f"user-{k}" for k in range(n)))


def random_batch(
    schema: FeatureSchema, n: int, seed: int = 0, present: float = 0.9, first_user: int = 0
) -> RawBatch:
    """Return ``n`` well-formed rows without extremes, each column present with ``present``."""
    rng = np.random.default_rng(seed)
    columns: dict[str, Column] = {}
    for name, width in schema.array_columns.items():
        values = rng.standard_normal((n, width)).astype(np.float32)
        for b in schema.blocks:
            if b.column == name and b.kind in ("counts", "histogram"):
                part = slice(b.offset, b.offset + b.width)
                values[:, part] = rng.gamma(1.0, 2.0, (n, b.width))
                if b.kind == "histogram":
                    values[:, part] /= values[:, part].sum(axis=1, keepdims=True)
        columns[name] = _masked(ArrayColumn, values, rng.random(n) < present, 0.0)
    for name, width in schema.text_columns.items():
        text = rng.choice(np.array(["", "a", "b", "c"], object), (n, width))
        columns[name] = _masked(TextColumn, text, rng.random(n) < present, "")
    for name in schema.token_columns:
        lists = [_random_tokens(rng) for _ in range(n)]
        columns[name] = token_column(lists, rng.random(n) < present)
    for name in schema.as_of_columns:
        times = rng.integers(1, 2**50, n)
        columns[name] = _masked(ScalarColumn, times, rng.random(n) < present, 0)
    for name in schema.modality_columns:
        version = np.full(n, schema.modality_version_of(name), object)
        columns[name] = _masked(ScalarColumn, version, rng.random(n) < present, "")
    return RawBatch(columns, n, tuple(f"user-{first_user + k}" for k in range(n)))


def take(batch: RawBatch, rows: npt.NDArray[np.int64] | slice) -> RawBatch:
    """Return some rows of a batch, in the given order."""
    columns: dict[str, Any] = {
        name: _like(c, c.values[rows], c.valid[rows]) for name, c in batch.columns.items()
    }
    users = tuple(np.array(batch.users, object)[rows])
    return RawBatch(columns, len(next(iter(columns.values())).valid), users)


def concat(parts: list[RawBatch]) -> RawBatch:
    """Return the rows of all parts, in order."""
    columns: dict[str, Any] = {
        name: _like(
            column,
            np.concatenate(_as_wide([p.columns[name].values for p in parts])),
            np.concatenate([p.columns[name].valid for p in parts]),
        )
        for name, column in parts[0].columns.items()
    }
    users = tuple(user for p in parts for user in p.users)
    return RawBatch(columns, sum(p.n_rows for p in parts), users)


def to_table(batch: RawBatch) -> pa.Table:
    """Return a batch as the table that ``batch_from_arrow`` reads, with a ``user_id`` column."""
    arrays = {"user_id": pa.array(batch.users)}
    for name, column in batch.columns.items():
        kind: pa.DataType = pa.list_(pa.float32())
        if isinstance(column, TextColumn):
            kind = pa.list_(pa.string())
        elif isinstance(column, TokenColumn):
            kind = pa.list_(pa.int32())
        elif isinstance(column, ScalarColumn):
            kind = pa.string() if column.values.dtype == object else pa.int64()
        values = column.values.tolist()
        if isinstance(column, TokenColumn):
            values = [[token for token in row if token] for row in values]
        arrays[name] = pa.array(
            [v if ok else None for v, ok in zip(values, column.valid, strict=True)], kind
        )
    return pa.table(arrays)


def token_column(lists: Sequence[Sequence[int]], valid: npt.NDArray[np.bool_]) -> TokenColumn:
    """Return lists of token ids as a column; one of a row that is not valid does not count."""
    kept = [tokens for tokens, ok in zip(lists, valid, strict=True) if ok]
    flat = np.array([token for tokens in kept for token in tokens], np.int32)
    return TokenColumn.of_lists(flat, np.array([len(t) for t in kept], np.int64), valid)


@st.composite
def _token_lists(draw: st.DrawFn) -> list[int]:
    """Events of some services, as an encoder of `TOKENS` reads them."""
    tokens: list[int] = []
    for guide in draw(st.lists(st.integers(1, TOKENS.guides), unique=True)):
        for _ in range(draw(st.integers(1, TOKENS.events))):
            words = st.integers(TOKENS.guides + 1, TOKENS.vocabulary - 1)
            tokens += [guide, *draw(st.lists(words, max_size=TOKENS.item - 1))]
    return tokens


def _random_tokens(rng: np.random.Generator) -> list[int]:
    tokens: list[int] = []
    for guide in rng.permutation(TOKENS.guides)[: rng.integers(TOKENS.guides + 1)] + 1:
        for _ in range(rng.integers(1, TOKENS.events + 1)):
            words = rng.integers(TOKENS.guides + 1, TOKENS.vocabulary, rng.integers(TOKENS.item))
            tokens += [int(guide), *words.tolist()]
    return tokens


def _as_wide(parts: list[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    """Return matrices filled up with zeros to the widest; others as they are."""
    if parts[0].ndim < 2:
        return parts
    width = max(part.shape[1] for part in parts)
    return [
        part if part.shape[1] == width else np.pad(part, ((0, 0), (0, width - part.shape[1])))
        for part in parts
    ]


def _like(column: Column, values: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> Any:
    kind: type[Any] = type(column)
    return kind(values, valid)


def _valid(n: int) -> st.SearchStrategy[npt.NDArray[np.bool_]]:
    return hnp.arrays(np.bool_, n, elements=st.booleans())


def _masked(
    kind: type[Any], values: npt.NDArray[Any], valid: npt.NDArray[np.bool_], fill: object
) -> Any:
    """Return a column that holds ``fill`` where it is null, as its contract says."""
    values = values.copy()
    values[~valid] = fill
    return kind(values, valid)
