"""Feast's plain Python columns (an on-demand view's inputs) as a ``RawBatch``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from encoder.columns import ArrayColumn, Column, RawBatch, ScalarColumn, TextColumn
from encoder.errors import MalformedInput
from encoder.schema import FeatureSchema
from transforms.names import USER_KEY

__all__ = ["batch_from_feast"]


def batch_from_feast(inputs: Mapping[str, Sequence[Any]], schema: FeatureSchema) -> RawBatch:
    """Return the raw feature columns that Feast hands to an on-demand view.

    Parameters
    ----------
    inputs : mapping of str to sequence
        Column ``view__field`` -> one value a row; None where the user is not in that view.
        Other columns are ignored; ``user_id``, when there, names users in errors.
    schema : FeatureSchema

    Raises
    ------
    MalformedInput
        A column is missing, or a row's array has another width than the schema says, or its
        elements are of another type.
    """
    absent = [name for name in schema.columns if name not in inputs]
    if absent:
        raise MalformedInput(
            f"Column(s) {', '.join(repr(a) for a in absent)} are not among the inputs. Request the "
            "on-demand view through get_online_features, with every source view materialised.",
            column=absent[0],
        )
    users = tuple(str(u) for u in inputs.get(USER_KEY, ()))
    n_rows = len(inputs[schema.columns[0]])
    columns: dict[str, Column] = {}
    for name, width in schema.array_columns.items():
        rows, valid = _present(inputs[name])
        _check_width(rows, valid, name, width, users)
        values = np.zeros((n_rows, width), np.float32)
        values[valid] = _floats(rows, valid, name, width, users)
        columns[name] = ArrayColumn(values, valid)
    for name, width in schema.text_columns.items():
        rows, valid = _present(inputs[name])
        _check_width(rows, valid, name, width, users)
        text = np.full((n_rows, width), "", object)
        if rows:
            flat = ["" if element is None else element for row in rows for element in row]
            text[valid] = np.array(flat, object).reshape(-1, width)
        columns[name] = TextColumn(text, valid)
    for name in schema.as_of_columns:
        numbers, valid = _present(inputs[name])
        whole = np.zeros(n_rows, np.int64)
        whole[valid] = numbers
        columns[name] = ScalarColumn(whole, valid)
    for name in schema.modality_columns:
        names, valid = _present(inputs[name])
        strings = np.full(n_rows, "", object)
        strings[valid] = names
        columns[name] = ScalarColumn(strings, valid)
    return RawBatch(columns, n_rows, users)


def _present(values: Sequence[Any]) -> tuple[list[Any], npt.NDArray[np.bool_]]:
    rows = [v for v in values if v is not None]
    if len(rows) == len(values):
        return rows, np.ones(len(rows), np.bool_)
    return rows, np.fromiter((v is not None for v in values), np.bool_, len(values))


def _floats(
    rows: list[Any], valid: npt.NDArray[np.bool_], name: str, width: int, users: tuple[str, ...]
) -> npt.NDArray[np.float32]:
    try:
        flat = np.fromiter(chain.from_iterable(rows), np.float32, len(rows) * width)
    except (TypeError, ValueError) as exc:
        for index, row in zip(np.flatnonzero(valid), rows, strict=True):
            for element in row:
                try:
                    float(element)
                except (TypeError, ValueError):
                    raise _malformed(
                        int(index), name, users, f"the element {element!r} was given, a number"
                    ) from exc
        raise
    return flat.reshape(-1, width)


def _check_width(
    rows: list[Any], valid: npt.NDArray[np.bool_], name: str, width: int, users: tuple[str, ...]
) -> None:
    for position, row in enumerate(rows):
        is_array = hasattr(row, "__len__") and not isinstance(row, str)
        if not is_array or len(row) != width:
            index = int(np.flatnonzero(valid)[position])
            given = f"{len(row)} values were" if is_array else f"{row!r} was"
            raise _malformed(index, name, users, f"{given} given, an array of {width}")


def _malformed(index: int, name: str, users: tuple[str, ...], fault: str) -> MalformedInput:
    user = users[index] if users else None
    who = f"User {user}" if user is not None else f"Row {index}"
    return MalformedInput(
        f"{who}, column {name!r}: {fault} is expected. Rebuild the raw features with the layout "
        "this encoder was trained on.",
        column=name,
        row=index,
        user=user,
    )
