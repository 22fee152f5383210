"""Stored bytes of Feast values as numpy arrays: what `values` writes, read back.

Redis hashes and the value columns of Feast's SQL stores hold serialised ``feast.types.Value``
messages. Rows that look as Feast and Palate write them are read together, without a Python message
per value; any other legal spelling goes through protobuf. What is no value of the feature's type is
a fault of its row.

Each function takes one ``bytes`` a row, None where the store has no such field, and returns arrays
of all n rows and which of them are valid. A missing field and an unset value are not valid, and
no fault.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from encoder.errors import CorruptValue
from materialize.stores import messages
from materialize.stores.compact import unpack
from materialize.stores.packed import LONGEST_VARINT, list_head, varint_values
from materialize.stores.values import CREATED_FIELD, blob_header
from transforms.names import FLOAT32

__all__ = [
    "Faults",
    "Place",
    "Stored",
    "event_times",
    "float_lists",
    "integers",
    "report",
    "row_times",
    "text_lists",
    "texts",
]

Stored = Sequence[bytes | None]
"""One feature of n rows, as it lies in the store."""

Faults = dict[int, CorruptValue]
"""By row. A function that is given one adds to it, and such rows are not valid; one that is given
None raises the first."""

_Bool = npt.NDArray[np.bool_]
_Bytes = npt.NDArray[np.uint8]
_Floats = npt.NDArray[np.float32]

_FLOAT_LIST, _INT64_TAG = b"\x82\x01", 0x20


@dataclass(frozen=True)
class Place:
    """Where values were found, for the errors."""

    view: str
    field: str
    users: Sequence[Any] | npt.NDArray[Any] = ()
    """Ids of the rows; empty where the caller does not know them."""

    def fault(self, row: int, found: str, expected: str) -> CorruptValue:
        """Return the error of one row."""
        user = str(self.users[row]) if len(self.users) else None
        who = f"row {row}" if user is None else f"user {user}"
        return CorruptValue(
            f"{self.view}:{self.field} of {who} is {found}; {expected} is expected. Write the row "
            "anew, and find out which program wrote this one.",
            view=self.view,
            field=self.field,
            row=row,
            user=user,
        )


def float_lists(
    values: Stored,
    place: Place,
    *,
    form: str = FLOAT32,
    width: int | None = None,
    finite: bool = False,
    fill: float = 0.0,
    faults: Faults | None = None,
) -> tuple[_Floats, _Bool]:
    """Return lists of floats as a matrix.

    Parameters
    ----------
    values : sequence of bytes or None, n
    place : Place
    form : str
        Form of the view's vectors, of ``VECTOR_FORMS``; rows may be in it or float lists, as a
        store without this form wrote them.
    width : int, optional
        Numbers in each row; default: what most rows have.
    finite : bool
        NaN and infinities are faults.
    fill : float
        What a row that is not valid holds.
    faults : dict, optional
        Takes the faults by row; default: the first one is raised.

    Returns
    -------
    (float32 (n, width), bool (n,))
        Width 0 when nobody has the field and ``width`` is not given.

    Raises
    ------
    CorruptValue
        A row is no float list of this width; only without ``faults``.
    """
    found: dict[int, str] = {}
    parts = [
        part
        for size, rows in _by_length(values).items()
        for part in _float_rows(values, size, rows, form, found)
    ]
    if width is None:
        counted: Counter[int] = Counter()
        for rows, numbers in parts:
            counted[numbers.shape[1]] += len(rows)
        width = counted.most_common(1)[0][0] if counted else 0
    expected = f"a list of {width}{' finite' if finite else ''} floats"
    matrix, valid = np.full((len(values), width), fill, np.float32), np.zeros(len(values), np.bool_)
    for rows, numbers in parts:
        if numbers.shape[1] != width:
            found.update(dict.fromkeys(rows.tolist(), f"a list of {numbers.shape[1]} floats"))
            continue
        if finite and not (sound := np.isfinite(numbers).all(axis=1)).all():
            found.update(
                dict.fromkeys(rows[~sound].tolist(), "a list of floats with NaN or infinity")
            )
            rows, numbers = rows[sound], numbers[sound]
        if len(rows) == len(values):
            return numbers, np.ones(len(values), np.bool_)
        matrix[rows], valid[rows] = numbers, True
    report(found, place, expected, faults)
    return matrix, valid


def integers(
    values: Stored, place: Place, *, fill: int = 0, faults: Faults | None = None
) -> tuple[npt.NDArray[np.int64], _Bool]:
    """Return integers of either width, int64 (n,), and bool (n,); see `float_lists`."""
    numbers, valid = np.full(len(values), fill, np.int64), np.zeros(len(values), np.bool_)
    found: dict[int, str] = {}
    for size, rows in _by_length(values).items():
        read, fits = _plain_integers(_content(values, rows, size))
        at = np.array(rows)[fits]
        numbers[at], valid[at] = read[fits], True
        for row in np.array(rows)[~fits].tolist():
            _read_into(numbers, valid, [row], values[row], messages.read_integer, found)
    report(found, place, "an integer", faults)
    return numbers, valid


def texts(
    values: Stored, place: Place, *, fill: str | None = "", faults: Faults | None = None
) -> tuple[npt.NDArray[np.object_], _Bool]:
    """Return texts, object (n,) of str, and bool (n,); see `float_lists`."""
    out, valid = np.full(len(values), fill, object), np.zeros(len(values), np.bool_)
    found: dict[int, str] = {}
    for value, rows in _by_value(values).items():
        _read_into(out, valid, rows, value, messages.read_text, found)
    report(found, place, "a text", faults)
    return out, valid


def text_lists(
    values: Stored, place: Place, *, width: int, faults: Faults | None = None
) -> tuple[npt.NDArray[np.object_], _Bool]:
    """Return lists of texts, object (n, width) of str, and bool (n,); see `float_lists`.

    A row that is not valid holds ``""``.
    """
    out, valid = np.full((len(values), width), "", object), np.zeros(len(values), np.bool_)
    found: dict[int, str] = {}
    for value, rows in _by_value(values).items():
        _read_into(
            out, valid, rows, value, lambda stored: messages.read_texts(stored, width), found
        )
    report(found, place, f"a list of {width} texts", faults)
    return out, valid


def event_times(
    values: Stored, place: Place, *, fill: int = 0, faults: Faults | None = None
) -> tuple[npt.NDArray[np.int64], _Bool]:
    """Return event times, int64 (n,) microseconds since 1970, and bool (n,); see `float_lists`.

    Parameters
    ----------
    values : sequence of bytes or None, n
        What Feast's Redis store keeps under ``_ts:view``: protobuf timestamps, to which Palate adds
        the created time. Empty bytes are 1970 itself.
    """
    moments, _, valid = _times(values, place, fill, faults)
    return moments, valid


def row_times(
    values: Stored, place: Place, *, fill: int = 0, faults: Faults | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], _Bool]:
    """Return event times, created times and which rows are valid; see `event_times`.

    Returns
    -------
    (int64 (n,), int64 (n,), bool (n,))
        Microseconds since 1970; ``fill`` also where a valid row has no created time.
    """
    return _times(values, place, fill, faults)


def _times(
    values: Stored, place: Place, fill: int, faults: Faults | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], _Bool]:
    moments, valid = np.full(len(values), fill, np.int64), np.zeros(len(values), np.bool_)
    created = np.full(len(values), fill, np.int64)
    found: dict[int, str] = {}
    rows = np.array([row for row, value in enumerate(values) if value is not None], np.int64)
    read, whole = _plain_times([value for value in values if value is not None], fill)
    at = rows[whole]
    moments[at] = read[1][whole] * messages.MICROSECONDS + read[2][whole] // 1000
    created[at], valid[at] = read[CREATED_FIELD][whole], True
    for row in rows[~whole].tolist():
        _read_into(moments, valid, [row], values[row], messages.read_moment, found)
    report(found, place, "a time", faults)
    return moments, created, valid


def report(found: dict[int, str], place: Place, expected: str, faults: Faults | None) -> None:
    """Add what was found to the faults, row by row; raise the first where there are no faults.

    Parameters
    ----------
    found : dict of int to str
        Row -> what lies there, as a noun with its article.
    place : Place
    expected : str
        A noun, too.
    faults : dict or None

    Raises
    ------
    CorruptValue
    """
    for row in sorted(found):
        fault = place.fault(row, found[row], expected)
        if faults is None:
            raise fault
        faults.setdefault(row, fault)


def _read_into(
    out: npt.NDArray[Any],
    valid: _Bool,
    rows: list[int],
    value: bytes | None,
    read: Callable[[bytes], Any],
    found: dict[int, str],
) -> None:
    """Read one value that some rows share; None from ``read`` is an unset one."""
    try:
        answer = None if value is None else read(value)
    except messages.NoValue as exc:
        found.update(dict.fromkeys(rows, str(exc)))
        return
    if answer is not None:
        out[rows], valid[rows] = answer, True


def _by_length(values: Stored) -> dict[int, list[int]]:
    """Return the rows that have a value, by its length."""
    rows: dict[int, list[int]] = {}
    for row, value in enumerate(values):
        if value:
            rows.setdefault(len(value), []).append(row)
    return rows


def _by_value(values: Stored) -> dict[bytes, list[int]]:
    """Return the rows of each value: a column of texts often holds a few."""
    rows: dict[bytes, list[int]] = {}
    for row, value in enumerate(values):
        if value:
            rows.setdefault(value, []).append(row)
    return rows


def _content(values: Stored, rows: list[int], size: int) -> _Bytes:
    """Return values of one length as uint8 (m, size)."""
    joined = b"".join([values[row] or b"" for row in rows])
    return np.frombuffer(joined, np.uint8).reshape(len(rows), size)


def _float_rows(
    values: Stored, size: int, rows: list[int], form: str, found: dict[int, str]
) -> list[tuple[npt.NDArray[np.int64], _Floats]]:
    """Return rows of ``size`` bytes in groups of one width, each with its numbers."""
    content = _content(values, rows, size)
    groups = []
    left = np.ones(len(rows), np.bool_)
    for head, kind in _heads(size, form):
        fits = (content[:, : len(head)] == np.frombuffer(head, np.uint8)).all(axis=1) & left
        if fits.any():
            body = np.ascontiguousarray(content[fits, len(head) :])
            numbers = body.view("<f4").astype(np.float32, copy=False) if kind == FLOAT32 else None
            groups.append(
                (np.array(rows)[fits], unpack(body, form) if numbers is None else numbers)
            )
            left &= ~fits
    for at in np.flatnonzero(left).tolist():
        try:
            one = messages.read_floats(content[at].tobytes(), form)
        except messages.NoValue as exc:
            found[rows[at]] = str(exc)
        else:
            if one is not None:
                groups.append((np.array([rows[at]]), one[None, :]))
    return groups


@lru_cache(maxsize=64)
def _heads(size: int, form: str) -> list[tuple[bytes, str]]:
    """Return the headers that a value of ``size`` bytes can have, with the form that follows."""
    heads = []
    head = list_head(_FLOAT_LIST, size)
    if head is not None and (body := size - len(head)) and body % 4 == 0:
        heads.append((head, FLOAT32))
    if form != FLOAT32:
        for length in range(2, min(size, 7) + 1):
            body = size - length
            head = blob_header(body)
            if len(head) == length and (body % 2 == 0 if form == "float16" else body >= 4):
                heads.append((head, form))
    return heads


def _plain_integers(content: _Bytes) -> tuple[npt.NDArray[np.int64], _Bool]:
    """Return the int64 values of messages of one length, and which rows are such a message."""
    groups = content[:, 1:]
    length = groups.shape[1]
    fits = content[:, 0] == _INT64_TAG
    if not 1 <= length <= LONGEST_VARINT:
        return np.zeros(len(content), np.int64), np.zeros(len(content), np.bool_)
    more = groups >= 128
    fits &= more[:, :-1].all(axis=1) & ~more[:, -1]
    return varint_values(groups), fits


def _plain_times(
    rows: Sequence[bytes], fill: int
) -> tuple[dict[int, npt.NDArray[np.int64]], _Bool]:
    """Return fields of timestamps by number, int64 (m,), and which rows are plain ones.

    Plain is a message of up to three varint fields of one-byte tags: seconds, nanoseconds, and one
    that protobuf does not know, such as the created time (``fill`` where there is none).
    """
    n, most = len(rows), 3 * (1 + LONGEST_VARINT)
    lengths = np.fromiter(map(len, rows), np.int64, n)
    whole = lengths <= most
    # So many zeros behind that a varint may be looked for at the end of the longest.
    size = most + 1 + LONGEST_VARINT
    padded = np.frombuffer(b"".join([row[:most].ljust(size, b"\0") for row in rows]), np.uint8)
    padded = padded.reshape(n, size)
    read = {number: np.zeros(n, np.int64) for number in (1, 2)}
    read[CREATED_FIELD] = np.full(n, fill, np.int64)
    at, ahead = np.zeros(n, np.int64), np.arange(LONGEST_VARINT)
    for _ in range(3):
        left = whole & (at < lengths)
        if not left.any():
            break
        tags = padded[np.arange(n), at]
        groups = np.take_along_axis(padded, at[:, None] + 1 + ahead, axis=1)  # (n, 10)
        last = groups < 128
        length = last.argmax(axis=1) + 1
        good = (tags >= 8) & (tags < 128) & (tags & 7 == 0) & last.any(axis=1)
        good &= at + 1 + length <= lengths
        numbers = varint_values(np.where(ahead < length[:, None], groups, np.uint8(0)))
        for field, values in read.items():
            values[left & (tags == field << 3)] = numbers[left & (tags == field << 3)]
        at = np.where(left, at + 1 + length, at)
        whole &= good | ~left
    whole &= at == lengths
    seconds, nanos = read[1], read[2]
    whole &= (seconds >= messages.SECONDS[0]) & (seconds <= messages.SECONDS[1])
    whole &= (nanos >= 0) & (nanos < messages.NANOSECONDS)
    return read, whole
