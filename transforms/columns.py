"""Feast's plain Python columns (an on-demand view's inputs) as a ``RawBatch``."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from encoder.columns import ArrayColumn, Column, RawBatch, ScalarColumn, TextColumn, TokenColumn
from encoder.errors import MalformedInput
from encoder.schema import FeatureSchema
from transforms.faults import RowError, blank_rows
from transforms.layout import context_block
from transforms.names import USER_KEY

__all__ = ["batch_from_feast", "with_request_context"]

_Mask = npt.NDArray[np.bool_]

_INT64 = np.iinfo(np.int64)
_LARGEST_TOKEN = int(np.iinfo(np.int32).max)
_ADVICE = "Rebuild the raw features with the layout this encoder was trained on."
_REQUEST_ADVICE = "Correct the entity row; None leaves what is stored."


def batch_from_feast(
    inputs: Mapping[str, Sequence[Any]],
    schema: FeatureSchema,
    errors: dict[int, RowError] | None = None,
    request_context: Sequence[str] = (),
) -> RawBatch:
    """Return the raw feature columns that Feast hands to an on-demand view.

    Parameters
    ----------
    inputs : mapping of str to sequence
        Column ``view__field`` -> one value a row; None where the user is not in that view.
        Other columns are ignored; ``user_id``, when there, names users in errors.
    schema : FeatureSchema
    errors : dict, optional
        Is filled with the rows that do not fit, and these are null in every column of the batch.
        Without it the first such row raises.
    request_context : sequence of str
        Columns that the request gives, each for the context column of that name; null or empty:
        what is stored stays.

    Raises
    ------
    MalformedInput
        A column is missing or of another length than the others; and without ``errors`` also: a
        row's array has another width than the schema says, or its elements are of another type; a
        list of tokens is longer than the schema says, or an element is no token id.
    """
    reader = _Reader(inputs, (*schema.columns, *request_context), errors)
    columns: dict[str, Column] = {}
    for name, width in schema.array_columns.items():
        columns[name] = reader.array(name, width)
    for name, width in schema.text_columns.items():
        columns[name] = reader.text(name, width)
    for name, most in schema.token_columns.items():
        columns[name] = reader.tokens(name, most)
    for name in schema.as_of_columns:
        columns[name] = reader.scalar(name, int, np.zeros(reader.n_rows, np.int64))
    for name in schema.modality_columns:
        columns[name] = reader.scalar(name, str, np.full(reader.n_rows, "", object))
    batch = RawBatch(columns, reader.n_rows, reader.users)
    if request_context:
        given = {
            name: reader.scalar(name, str, np.full(reader.n_rows, "", object), _REQUEST_ADVICE)
            for name in request_context
        }
        batch = with_request_context(batch, schema, given)
    return blank_rows(batch, errors) if errors else batch


def with_request_context(
    batch: RawBatch, schema: FeatureSchema, given: Mapping[str, ScalarColumn]
) -> RawBatch:
    """Return a batch in which what the request knows stands in place of what is stored.

    A user without any stored circumstances gets those that are given, the others are missing.

    Parameters
    ----------
    batch : RawBatch
        Not modified.
    schema : FeatureSchema
    given : mapping of str to ScalarColumn
        Context column -> strings; a row that is null or "" gives nothing.

    Raises
    ------
    MalformedInput
        The encoder knows no context column of this name.
    """
    blocks = {block.name: block for block in schema.blocks if block.kind == "category"}
    columns = dict(batch.columns)
    for name, values in given.items():
        block = blocks.get(context_block(name))
        if block is None:
            raise MalformedInput(
                f"Request context {name!r} was given, but this encoder has no block "
                f"{context_block(name)!r}. Declare the space's views again, with `feast apply`.",
                column=name,
            )
        stored = cast(TextColumn, columns[block.column])
        text, valid = stored.values.copy(), stored.valid.copy()
        rows = values.valid & (values.values != "")
        text[rows, block.offset] = values.values[rows]
        valid |= rows
        columns[block.column] = TextColumn(text, valid)
    return replace(batch, columns=columns)


class _Reader:
    """Reads one column after the other; ``fault`` raises, or notes the row and goes on."""

    def __init__(
        self,
        inputs: Mapping[str, Sequence[Any]],
        names: Sequence[str],
        errors: dict[int, RowError] | None,
    ) -> None:
        absent = [name for name in names if name not in inputs]
        if absent:
            raise MalformedInput(
                f"Column(s) {', '.join(repr(a) for a in absent)} are not among the inputs. Request "
                "the on-demand view through get_online_features, with every source view "
                "materialised.",
                column=absent[0],
            )
        users = (USER_KEY,) if USER_KEY in inputs else ()
        for name in (*names, *users):
            if not isinstance(inputs[name], list | tuple | np.ndarray):
                raise MalformedInput(
                    f"Column {name!r}: {inputs[name]!r} was given, a list with one value a row is "
                    "expected.",
                    column=name,
                )
        self.n_rows = len(inputs[names[0]])
        for name in (*names, *users):
            if len(inputs[name]) != self.n_rows:
                raise MalformedInput(
                    f"Column {name!r}: {len(inputs[name])} rows were given, {self.n_rows} are "
                    f"expected, as in {names[0]!r}.",
                    column=name,
                )
        self.users = tuple(str(u) for u in inputs.get(USER_KEY, ()))
        self._inputs = inputs
        self._errors = errors

    def fault(
        self, row: int, column: str, given: str, expected: str, advice: str = _ADVICE
    ) -> None:
        user = self.users[row] if self.users else None
        who = f"User {user}" if user is not None else f"Row {row}"
        error = MalformedInput(
            f"{who}, column {column!r}: {given} given, {expected} is expected. {advice}",
            column=column,
            row=row,
            user=user,
        )
        if self._errors is None:
            raise error
        self._errors.setdefault(row, error)

    def array(self, name: str, width: int) -> ArrayColumn:
        rows, valid = self._lists(name, width, width)
        values = np.zeros((self.n_rows, width), np.float32)
        pack = struct.Struct(f"<{width}f").pack
        try:
            # A third of what numpy takes for the same lists, and no string passes for a number.
            packed = b"".join([pack(*row) for row in rows])
            values[valid] = np.frombuffer(packed, "<f4").reshape(-1, width)
        except (struct.error, OverflowError, TypeError, ValueError):
            for row, numbers in zip(np.flatnonzero(valid).tolist(), rows, strict=True):
                values[row] = self._numbers(name, row, numbers)
        return ArrayColumn(values, valid)

    def text(self, name: str, width: int) -> TextColumn:
        rows, valid = self._lists(name, width, width)
        text = np.full((self.n_rows, width), "", object)
        flat = [element for row in rows for element in row]
        if set(map(type, flat)) - {str}:
            for row, strings in zip(np.flatnonzero(valid).tolist(), rows, strict=True):
                text[row] = self._strings(name, row, strings)
        elif rows:
            text[valid] = np.array(flat, object).reshape(-1, width)
        return TextColumn(text, valid)

    def tokens(self, name: str, most: int) -> TokenColumn:
        rows, valid = self._lists(name, 0, most)
        rows = [row.tolist() if isinstance(row, np.ndarray) else row for row in rows]
        ids = _plain_tokens([element for row in rows for element in row])
        if ids is None:
            numbered = zip(np.flatnonzero(valid).tolist(), rows, strict=True)
            ids = np.concatenate([self._tokens(name, row, given) for row, given in numbered])
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        return TokenColumn.of_lists(ids, lengths, valid)

    def scalar(
        self, name: str, kind: type[Any], values: npt.NDArray[Any], advice: str = _ADVICE
    ) -> ScalarColumn:
        """Return a column of strings or of whole numbers; ``values`` is what stands for null."""
        found, valid = _present(self._inputs[name])
        if set(map(type, found)) <= {kind}:
            try:
                values[valid] = found
                return ScalarColumn(values, valid)
            except OverflowError:  # beyond 64 bits; found again below
                pass
        for row, value in zip(np.flatnonzero(valid).tolist(), found, strict=True):
            if _fits(value, kind):
                values[row] = value
            else:
                what = "a string" if kind is str else "a whole number of 64 bits"
                self.fault(row, name, f"{_short(value)} was", what, advice)
        return ScalarColumn(values, valid)

    def _lists(self, name: str, least: int, most: int) -> tuple[list[Any], _Mask]:
        """Return the rows that are lists of so many elements, and where they are."""
        rows, valid = _present(self._inputs[name])
        wrong = []
        for position, row in enumerate(rows):
            is_array = isinstance(row, list | tuple | np.ndarray)
            if not is_array or not least <= len(row) <= most:
                given = f"{len(row)} values were" if is_array else f"{_short(row)} was"
                at = int(np.flatnonzero(valid)[position])
                expected = f"an array of {'' if least == most else 'at most '}{most}"
                self.fault(at, name, given, expected)
                wrong.append((position, at))
        for position, at in reversed(wrong):
            del rows[position]
            valid[at] = False
        return rows, valid

    def _numbers(self, name: str, row: int, numbers: Sequence[Any]) -> npt.NDArray[np.float32]:
        """Return one row's numbers, element by element; a null element is NaN, as from Arrow."""
        values = np.zeros(len(numbers))
        for k, element in enumerate(numbers):
            if element is None:
                values[k] = np.nan
                continue
            try:
                if isinstance(element, str | bytes):
                    raise TypeError(element)
                values[k] = float(element)
            except (TypeError, ValueError, OverflowError):
                self.fault(row, name, f"the element {_short(element)} was", "a number")
        with np.errstate(over="ignore"):  # infinity, which preprocessing refuses
            return values.astype(np.float32)

    def _strings(self, name: str, row: int, strings: Sequence[Any]) -> npt.NDArray[np.object_]:
        """Return one row's strings, element by element; a null element is a missing one."""
        values = np.full(len(strings), "", object)
        for k, element in enumerate(strings):
            if isinstance(element, str):
                values[k] = element
            elif element is not None:
                self.fault(row, name, f"the element {_short(element)} was", "a string")
        return values

    def _tokens(self, name: str, row: int, elements: Sequence[Any]) -> npt.NDArray[np.int32]:
        """Return one row's token ids, element by element."""
        ids = np.zeros(len(elements), np.int32)
        for k, element in enumerate(elements):
            if _is_token(element):
                ids[k] = element
            else:
                expected = f"a token id, a whole number from 0 to {_LARGEST_TOKEN},"
                self.fault(row, name, f"the element {_short(element)} was", expected)
        return ids


def _plain_tokens(elements: list[Any]) -> npt.NDArray[np.int32] | None:
    """Return token ids, int32 (n,); None: not all of them are token ids and Python's integers."""
    if not set(map(type, elements)) <= {int}:
        return None
    try:
        ids = np.array(elements, np.int32)
    except OverflowError:
        return None
    return ids if ids.min(initial=0) >= 0 else None


def _is_token(value: Any) -> bool:
    is_float = isinstance(value, float | np.floating)
    whole = float(value).is_integer() if is_float else _fits(value, int)
    return whole and 0 <= value <= _LARGEST_TOKEN


def _fits(value: object, kind: type[Any]) -> bool:
    if kind is str:
        return isinstance(value, str)
    # numpy's integers are Integral, and bool is one to Python.
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    return whole and _INT64.min <= int(value) <= _INT64.max  # type: ignore[call-overload]


def _present(values: Sequence[Any]) -> tuple[list[Any], _Mask]:
    rows = [v for v in values if v is not None]
    if len(rows) == len(values):
        return rows, np.ones(len(rows), np.bool_)
    return rows, np.fromiter((v is not None for v in values), np.bool_, len(values))


def _short(value: object) -> str:
    """Return how a value is shown in a message; a large one is cut."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python prints
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."
