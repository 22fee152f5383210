"""Raw feature columns in the one form that preprocessing reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from encoder.errors import MalformedInput

__all__ = ["ArrayColumn", "RawBatch", "ScalarColumn", "TextColumn", "batch_from_arrow"]


@dataclass(frozen=True)
class ArrayColumn:
    """A float array per row.

    Attributes
    ----------
    values : float32 (n_rows, width)
        Zeros where ``valid`` is False.
    valid : bool (n_rows,)
        False: the row has no value (the user is not in that view).
    """

    values: npt.NDArray[np.float32]
    valid: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class TextColumn:
    """A string array per row: ``values`` object (n_rows, width) of str, "" is missing."""

    values: npt.NDArray[np.object_]
    valid: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ScalarColumn:
    """One scalar per row: ``values`` int64 (n_rows,) or object (n_rows,) of str."""

    values: npt.NDArray[Any]
    valid: npt.NDArray[np.bool_]


Column: TypeAlias = ArrayColumn | TextColumn | ScalarColumn


@dataclass(frozen=True)
class RawBatch:
    """Raw features of some users, by column name ``view__field``.

    Attributes
    ----------
    columns : mapping of str to column
    n_rows : int
    users : sequence of str, optional
        Ids for error messages, in row order; empty when unknown (the on-demand path).
    """

    columns: Mapping[str, Column]
    n_rows: int
    users: tuple[str, ...] = field(default=())


def batch_from_arrow(
    table: pa.Table | pa.RecordBatch,
    array_columns: Mapping[str, int],
    text_columns: Mapping[str, int],
    scalar_columns: Iterable[str],
    user_column: str | None = None,
) -> RawBatch:
    """Return the named columns of an Arrow table as a ``RawBatch``.

    Parameters
    ----------
    table : pyarrow.Table or RecordBatch
        Array columns are (fixed-size) lists of floats or strings; null rows are absent users.
    array_columns, text_columns : mapping of str to int
        Expected list width of each column.
    scalar_columns : iterable of str
        Int64 or string columns.
    user_column : str, optional
        Column of user ids, for error messages.

    Raises
    ------
    MalformedInput
        A row's list has another width than expected.
    KeyError
        A named column is not in the table.
    """
    columns: dict[str, Column] = {}
    for name, width in array_columns.items():
        flat, valid = _flat_lists(_one_chunk(table, name), name, width)
        values = np.zeros((len(valid), width), np.float32)
        values[valid] = flat.cast(pa.float32()).to_numpy(zero_copy_only=False).reshape(-1, width)
        columns[name] = ArrayColumn(values, valid)
    for name, width in text_columns.items():
        flat, valid = _flat_lists(_one_chunk(table, name), name, width)
        text = np.full((len(valid), width), "", object)
        strings = pc.fill_null(flat.cast(pa.string()), "")
        text[valid] = strings.to_numpy(zero_copy_only=False).reshape(-1, width)
        columns[name] = TextColumn(text, valid)
    for name in scalar_columns:
        column = _one_chunk(table, name)
        valid = column.is_valid().to_numpy(zero_copy_only=False)
        is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        filled = pc.fill_null(column, "" if is_text else 0)
        if pa.types.is_timestamp(filled.type):
            filled = filled.cast(pa.timestamp("us", filled.type.tz)).cast(pa.int64())
        columns[name] = ScalarColumn(filled.to_numpy(zero_copy_only=False), valid)
    users: tuple[str, ...] = ()
    if user_column is not None:
        users = tuple(str(u) for u in table.column(user_column).to_pylist())
    return RawBatch(columns, table.num_rows, users)


def _one_chunk(table: pa.Table | pa.RecordBatch, name: str) -> pa.Array:
    column = table.column(name)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _flat_lists(column: pa.Array, name: str, width: int) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    """Return the values of the non-null lists, end to end, and the row mask."""
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    present = column.drop_null()
    lengths = pc.list_value_length(present).to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(lengths != width)
    if wrong.size:
        row = int(np.flatnonzero(valid)[wrong[0]])
        raise MalformedInput(
            f"Row {row}, column {name!r}: a list of {int(lengths[wrong[0]])} values was given, "
            f"{width} expected. Rebuild the raw features with the encoder's layout.",
            column=name,
            row=row,
        )
    return present.flatten(), valid
