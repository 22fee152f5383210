"""Stored lists of token ids as numpy arrays; see `wire`."""

from __future__ import annotations

from itertools import compress

import numpy as np
import numpy.typing as npt

from materialize.stores.messages import NoValue, plain_tokens
from materialize.stores.packed import LONGEST_VARINT, list_head, varint_values
from materialize.stores.wire import Faults, Place, Stored, report

__all__ = ["token_lists"]

_Bool = npt.NDArray[np.bool_]
_Int32 = npt.NDArray[np.int32]
_Int64 = npt.NDArray[np.int64]

_INT32_LIST = b"\x6a"
_LARGEST = int(np.iinfo(np.int32).max)


def token_lists(
    values: Stored, place: Place, *, most: int, faults: Faults | None = None
) -> tuple[_Int32, _Int64, _Bool]:
    """Return lists of token ids as `encoder.columns.TokenColumn.of_lists` takes them.

    Parameters
    ----------
    values : sequence of bytes or None, n
        Lists of int32; a varint that int32 does not hold is a fault of the packed form that Feast
        and Palate write, and cut to its low 32 bits, as protobuf does, in any other.
    place : Place
    most : int
        Token ids that a list may have; it may have none.
    faults : dict, optional
        Takes the faults by row; default: the first one is raised.

    Returns
    -------
    (int32 (n_tokens,), int64 (n_valid,), bool (n,))
        Token ids of the valid rows, end to end; how many each has; which rows are valid.

    Raises
    ------
    CorruptValue
        A row is no such list; only without ``faults``.
    """
    found: dict[int, str] = {}
    rows, packed = [], []
    for row, value in enumerate(values):
        try:
            varints = _packed(value) if value else None
        except NoValue as exc:
            found[row] = str(exc)
            continue
        if varints is not None:
            rows.append(row)
            packed.append(varints)
    numbers, sizes, counts = _numbers(packed)
    faulty = (numbers < 0) | (numbers > _LARGEST) | (sizes > LONGEST_VARINT)
    owners = np.repeat(np.arange(len(rows)), counts)
    sound = counts <= most
    sound[owners[faulty]] = False
    for at in np.flatnonzero(faulty)[::-1].tolist():  # the first of a list is told
        number = f"the token id {numbers[at]}"
        if sizes[at] > LONGEST_VARINT:
            number = f"a token id of {sizes[at]} bytes"
        found[rows[owners[at]]] = f"a list with {number}"
    for at in np.flatnonzero(counts > most).tolist():
        found[rows[at]] = f"a list of {counts[at]} token ids"
    report(found, place, f"a list of at most {most} token ids from 0 to {_LARGEST}", faults)
    valid = np.zeros(len(values), np.bool_)
    valid[list(compress(rows, sound))] = True
    return numbers[sound[owners]].astype(np.int32), counts[sound], valid


def _packed(stored: bytes) -> bytes | None:
    """Return a list's varints, the last of which is whole; None: an unset value.

    Raises
    ------
    NoValue
    """
    head = list_head(_INT32_LIST, len(stored))
    if head is not None and stored.startswith(head):
        varints = stored[len(head) :]
        if not varints or varints[-1] < 128:
            return varints
    plain = plain_tokens(stored)
    return None if plain is None else plain[len(list_head(_INT32_LIST, len(plain)) or b"") :]


def _numbers(packed: list[bytes]) -> tuple[_Int64, _Int64, _Int64]:
    """Return the numbers of all lists, the bytes each takes, and how many each list has.

    Of a number with more bytes than a varint has, the first ones are read.
    """
    content = np.frombuffer(b"".join(packed), np.uint8)
    last = content < 128
    ends = np.flatnonzero(last)
    sizes = np.diff(ends, prepend=-1)
    ahead = np.arange(min(sizes.max(initial=0), LONGEST_VARINT))
    at = np.minimum((ends - sizes + 1)[:, None] + ahead, len(content) - 1)  # (n_numbers, longest)
    groups = np.where(ahead < sizes[:, None], content[at], np.uint8(0))
    so_far = np.concatenate([np.zeros(1, np.int64), np.cumsum(last)])
    stops = np.cumsum([0, *map(len, packed)])
    return varint_values(groups), sizes, np.diff(so_far[stops])
