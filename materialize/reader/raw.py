"""Raw features of some users: stored fields in, a batch that can be encoded out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from encoder.columns import ArrayColumn, Column, RawBatch, ScalarColumn, TextColumn, TokenColumn
from materialize.reader.fields import Found, Users
from materialize.stores.wire import Faults, Place, float_lists, integers, text_lists, texts
from materialize.stores.wire_tokens import token_lists

if TYPE_CHECKING:
    from encoder.schema import FeatureSchema

__all__ = ["RawFields", "newest", "of_other_modality", "parse_raw", "take_rows"]


@dataclass(frozen=True)
class RawFields:
    """Columns of an encoder's schema as fields of Feast's views, in the order of a question."""

    schema: FeatureSchema
    names: tuple[tuple[str, tuple[str, ...]], ...]
    """By view, its fields."""

    @classmethod
    def of(cls, schema: FeatureSchema, columns: Sequence[str] | None = None) -> RawFields:
        """Return the fields of some columns; default: of all."""
        by_view: dict[str, list[str]] = {}
        for column in schema.columns if columns is None else columns:
            view, field = column.split("__", 1)
            by_view.setdefault(view, []).append(field)
        return cls(schema, tuple((view, tuple(fields)) for view, fields in by_view.items()))

    @classmethod
    def of_times(cls, schema: FeatureSchema) -> RawFields:
        """Return the fields that say how old a user's raw features are."""
        return cls.of(schema, schema.as_of_columns)

    @property
    def places(self) -> list[tuple[str, str]]:
        """View and field of each column of the answer."""
        return [(view, field) for view, fields in self.names for field in fields]


def newest(
    found: Found, first: int, times: RawFields, users: Users, faults: Faults
) -> npt.NDArray[np.int64]:
    """Return the event time of each user's newest raw feature, int64 (n,) microseconds.

    Parameters
    ----------
    found : Found
    first : int
        Which of its columns is the first of ``times``.
    times : RawFields
        As `RawFields.of_times` makes them.
    users : sequence or array, n
    faults : dict
        Takes the rows whose times are damaged.

    Returns
    -------
    int64 (n,)
        -1 without any.
    """
    moments = np.full(len(users), -1, np.int64)
    for (view, field), values in zip(times.places, found.columns[first:], strict=True):
        read, _ = integers(values, Place(view, field, users), fill=-1, faults=faults)
        np.maximum(moments, read, out=moments)
    return moments


def parse_raw(found: Found, raw: RawFields, users: Users, faults: Faults) -> RawBatch:
    """Return raw features; a damaged value is null, and its row is in ``faults``.

    Parameters
    ----------
    found : Found
        Its columns are those of ``raw``.
    raw : RawFields
        All of the schema's.
    users : sequence or array, n
    faults : dict
    """
    schema = raw.schema
    arrays, lists, tokens = schema.array_columns, schema.text_columns, schema.token_columns
    columns: dict[str, Column] = {}
    for (view, field), values in zip(raw.places, found.columns, strict=True):
        name, place = f"{view}__{field}", Place(view, field, users)
        if name in arrays:
            read = float_lists(values, place, width=arrays[name], faults=faults)
            columns[name] = ArrayColumn(*read)
        elif name in lists:
            columns[name] = TextColumn(*text_lists(values, place, width=lists[name], faults=faults))
        elif name in tokens:
            ids = token_lists(values, place, most=tokens[name], faults=faults)
            columns[name] = TokenColumn.of_lists(*ids)
        elif name in schema.as_of_columns:
            columns[name] = ScalarColumn(*integers(values, place, faults=faults))
        else:
            columns[name] = ScalarColumn(*texts(values, place, faults=faults))
    return RawBatch(columns, len(users), tuple(str(user) for user in users))


def of_other_modality(batch: RawBatch, schema: FeatureSchema) -> npt.NDArray[np.bool_]:
    """Return which rows hold vectors of other modality encoders than the schema's, bool (n,)."""
    other = np.zeros(batch.n_rows, np.bool_)
    for name in schema.modality_columns:
        column = batch.columns[name]
        other |= column.valid & (column.values != schema.modality_version_of(name))
    return other


def take_rows(batch: RawBatch, rows: npt.NDArray[np.int64]) -> RawBatch:
    """Return some rows of a batch, in the given order."""
    columns: dict[str, Column] = {}
    for name, column in batch.columns.items():
        kind: type[Any] = type(column)
        columns[name] = kind(column.values[rows], column.valid[rows])
    users = tuple(batch.users[row] for row in rows.tolist()) if batch.users else ()
    return replace(batch, columns=columns, n_rows=len(rows), users=users)
