"""Rows as an online store holds them, back in Arrow."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from materialize.stores.compact import compact_form
from materialize.stores.wire import Faults, Place, Stored, float_lists, integers, text_lists, texts
from materialize.stream.targets import StoredView, StreamTargets
from transforms.layout import ACTIVITY, PROFILE, RawLayout, field
from transforms.names import USER_KEY
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
    for feature, kind, column in zip(stored.features, stored.kinds, values, strict=True):
        place = Place(stored.name, feature, users)
        if kind == "FLOAT_LIST":
            columns[feature] = _lists(*float_lists(column, place, form=form, faults=faults))
        elif kind == "STRING_LIST":
            width = _text_width(targets.layout, feature)
            found, valid = text_lists(column, place, width=width, faults=faults)
            rows = [row.tolist() if ok else None for row, ok in zip(found, valid, strict=True)]
            columns[feature] = pa.array(rows, pa.list_(pa.string()))
        else:
            numbers, valid = _SCALARS[kind](column, place, faults)
            columns[feature] = pa.array(numbers, _TYPES[kind], mask=~valid)
    return pa.table(columns)


def _lists(numbers: npt.NDArray[np.float32], valid: _Bools) -> pa.Array:
    if not valid.any():
        return pa.nulls(len(valid), pa.list_(pa.float32()))
    lists = list_array(numbers)
    if valid.all():
        return lists
    return lists.take(pa.array(np.arange(len(valid)), mask=~valid))


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
