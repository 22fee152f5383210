"""Raw feature columns in the one form that preprocessing reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from encoder.errors import MalformedInput

if TYPE_CHECKING:
    from encoder.schema import FeatureSchema

__all__ = [
    "ArrayColumn",
    "RawBatch",
    "ScalarColumn",
    "TextColumn",
    "TokenColumn",
    "batch_from_arrow",
    "raw_batch",
]

Bools: TypeAlias = npt.NDArray[np.bool_]


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
class TokenColumn:
    """A list of token ids per row, of any length up to the schema's.

    Attributes
    ----------
    values : int32 (n_rows, longest)
        At least as wide as the longest list; 0, which is no token, behind a shorter one.
    valid : bool (n_rows,)
    """

    values: npt.NDArray[np.int32]
    valid: npt.NDArray[np.bool_]

    @classmethod
    def of_lists(
        cls, tokens: npt.NDArray[np.int32], lengths: npt.NDArray[np.int64], valid: Bools
    ) -> TokenColumn:
        """Return lists that lie end to end, those of the valid rows, as a column.

        Parameters
        ----------
        tokens : int32 (n_tokens,)
        lengths : int64 (n_valid,)
        valid : bool (n_rows,)
        """
        whole = np.zeros(len(valid), np.int64)
        whole[valid] = lengths
        there = np.arange(whole.max(initial=0)) < whole[:, None]  # (n_rows, longest)
        values = np.zeros(there.shape, np.int32)
        values[there] = tokens
        return cls(values, valid)


@dataclass(frozen=True)
class ScalarColumn:
    """One scalar per row: ``values`` int64 (n_rows,) or object (n_rows,) of str."""

    values: npt.NDArray[Any]
    valid: npt.NDArray[np.bool_]


Column: TypeAlias = ArrayColumn | TextColumn | TokenColumn | ScalarColumn


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


def raw_batch(
    table: pa.Table | pa.RecordBatch,
    schema: FeatureSchema,
    user_column: str | None = None,
    further: Mapping[str, int] | None = None,
) -> RawBatch:
    """Return the columns that an encoder reads of an Arrow table.

    Parameters
    ----------
    table : pyarrow.Table or RecordBatch
        As `batch_from_arrow` reads it.
    schema : FeatureSchema
    user_column : str, optional
        Column of user ids, for error messages.
    further : mapping of str to int, optional
        More float arrays, with their widths.

    Raises
    ------
    MalformedInput
        A row's list has another width than expected, or more tokens.
    KeyError
        A column is not in the table.
    """
    return batch_from_arrow(
        table,
        schema.array_columns | dict(further or {}),
        schema.text_columns,
        (*schema.as_of_columns, *schema.modality_columns),
        user_column,
        schema.token_columns,
    )


def batch_from_arrow(
    table: pa.Table | pa.RecordBatch,
    array_columns: Mapping[str, int],
    text_columns: Mapping[str, int],
    scalar_columns: Iterable[str],
    user_column: str | None = None,
    token_columns: Mapping[str, int] | None = None,
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
    token_columns : mapping of str to int, optional
        Most token ids of a list.

    Raises
    ------
    MalformedInput
        A row's list has another width than expected, or more tokens.
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
    for name, most in (token_columns or {}).items():
        flat, lengths, valid = _tokens(_one_chunk(table, name), name, most)
        columns[name] = TokenColumn.of_lists(flat, lengths, valid)
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
    _refuse_lengths(name, lengths, lengths != width, valid, str(width))
    return present.flatten(), valid


def _tokens(
    column: pa.Array, name: str, most: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], Bools]:
    """Return the tokens of the non-null lists, end to end, the lists' lengths, and the row mask."""
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    present = column.drop_null()
    lengths = pc.list_value_length(present).to_numpy(zero_copy_only=False).astype(np.int64)
    _refuse_lengths(name, lengths, lengths > most, valid, f"at most {most}")
    # No token is negative: what reads the tokens refuses a null with its row.
    flat = pc.fill_null(present.flatten().cast(pa.int32()), -1).to_numpy(zero_copy_only=False)
    return flat, lengths, valid


def _refuse_lengths(
    name: str, lengths: npt.NDArray[Any], wrong: Bools, valid: Bools, expected: str
) -> None:
    """Raise for the first present list of a wrong length."""
    found = np.flatnonzero(wrong)
    if not found.size:
        return
    row = int(np.flatnonzero(valid)[found[0]])
    raise MalformedInput(
        f"Row {row}, column {name!r}: a list of {int(lengths[found[0]])} values was given, "
        f"{expected} expected. Rebuild the raw features with the encoder's layout.",
        column=name,
        row=row,
    )
