"""Rows as an online store holds them, back in Arrow."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from materialize.stores.compact import compact_form
from materialize.stores.wire import Faults, Place, Stored, float_lists, integers, text_lists, texts
from materialize.stores.wire_tokens import token_lists
from materialize.stream.targets import StoredView, StreamTargets
from transforms.layout import ACTIVITY, PROFILE, TEXTS, RawLayout, column, field
from transforms.names import USER_KEY
from transforms.texts import texts_schema
from transforms.windows import list_array

__all__ = ["stored_table"]

_Bools = npt.NDArray[np.bool_]


def stored_table(
    targets: StreamTargets,
    stored: StoredView,
    values: Sequence[Stored],
    users: Sequence[int | str],
    faults: Faults,
) -> pa.Table:
    """Return ``user_id`` and the features of some users' rows of one view.

    Parameters
    ----------
    targets : StreamTargets
    stored : StoredView
        One of these.
    values : sequence of (sequence of bytes or None)
        By feature, a value a user.
    users : sequence of int or str
    faults : dict
        Is filled with the rows that cannot be read; they are null.
    """
    ids = pa.int64() if targets.user_type == "int64" else pa.string()
    columns = {USER_KEY: pa.array(users, ids)}
    form = compact_form(stored.view)
    for feature, kind, column_values in zip(stored.features, stored.kinds, values, strict=True):
        place = Place(stored.name, feature, users)
        if kind == "FLOAT_LIST":
            columns[feature] = _lists(*float_lists(column_values, place, form=form, faults=faults))
        elif kind == "STRING_LIST":
            width = _text_width(targets.layout, feature)
            found, valid = text_lists(column_values, place, width=width, faults=faults)
            rows = [row.tolist() if ok else None for row, ok in zip(found, valid, strict=True)]
            columns[feature] = pa.array(rows, pa.list_(pa.string()))
        elif kind == "INT32_LIST":
            columns[feature] = _tokens(column_values, place, _most_tokens(targets), faults)
        else:
            numbers, valid = _SCALARS[kind](column_values, place, faults)
            columns[feature] = pa.array(numbers, _TYPES[kind], mask=~valid)
    return pa.table(columns)


def _lists(numbers: npt.NDArray[np.float32], valid: _Bools) -> pa.Array:
    if not valid.any():
        return pa.nulls(len(valid), pa.list_(pa.float32()))
    lists = list_array(numbers)
    if valid.all():
        return lists
    return lists.take(pa.array(np.arange(len(valid)), mask=~valid))


def _tokens(values: Stored, place: Place, most: int, faults: Faults) -> pa.Array:
    tokens, counts, valid = token_lists(values, place, most=most, faults=faults)
    lengths = np.zeros(len(valid), np.int64)
    lengths[valid] = counts
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(tokens), mask=pa.array(~valid))


def _most_tokens(targets: StreamTargets) -> int:
    schema = texts_schema(targets.layout, targets.encoders)
    return schema.token_columns[column(TEXTS, "tokens")]


def _text_width(layout: RawLayout, feature: str) -> int:
    return {
        field(ACTIVITY, "context"): len(layout.context),
        field(PROFILE, "categories"): len(layout.categories),
    }[feature]


_SCALARS: dict[str, Callable[[Stored, Place, Faults], tuple[npt.NDArray[np.generic], _Bools]]] = {
    "INT64": lambda column, place, faults: integers(column, place, faults=faults),
    "STRING": lambda column, place, faults: texts(column, place, faults=faults),
}
_TYPES = {"INT64": pa.int64(), "STRING": pa.string()}
