"""One stored value through protobuf: for spellings that `wire` does not read by itself.

Protobuf lets one message be written in several ways, and only a parser knows all of them. Each
function returns None for an unset value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from materialize.stores.compact import unpack
from transforms.names import FLOAT32

if TYPE_CHECKING:
    from feast.protos.feast.types.Value_pb2 import Value

__all__ = [
    "MICROSECONDS",
    "NANOSECONDS",
    "SECONDS",
    "NoValue",
    "plain_tokens",
    "read_floats",
    "read_integer",
    "read_moment",
    "read_text",
    "read_texts",
]

MICROSECONDS, NANOSECONDS = 1_000_000, 1_000_000_000
"""In a second."""
SECONDS = (-62_135_596_800, 253_402_300_799)
"""The years 1 to 9999: all that protobuf's timestamps may hold."""

_Floats = npt.NDArray[np.float32]


class NoValue(Exception):
    """What bytes are instead of a value of the type, as a noun with its article."""


def _message(stored: bytes) -> Value:
    from feast.protos.feast.types.Value_pb2 import Value
    from google.protobuf.message import DecodeError

    try:
        value: Value = Value.FromString(stored)
    except DecodeError:
        raise NoValue(f"{len(stored)} bytes that are no value") from None
    return value


def _kind(value: Value, *kinds: str) -> str | None:
    """Return which of some kinds a value is; None: it is unset."""
    kind = value.WhichOneof("val")
    if kind is None or kind == "null_val":
        return None
    if kind not in kinds:
        raise NoValue(f"a {kind}")
    return kind


def read_floats(stored: bytes, form: str) -> _Floats | None:
    """Return a float list, or bytes of a form, as float32 (width,).

    Raises
    ------
    NoValue
    """
    value = _message(stored)
    kinds = ("float_list_val",) if form == FLOAT32 else ("float_list_val", "bytes_val")
    kind = _kind(value, *kinds)
    if kind is None:
        return None
    if kind == "float_list_val":
        return np.array(value.float_list_val.val, np.float32)
    try:
        (numbers,) = unpack(np.frombuffer(value.bytes_val, np.uint8)[None, :], form)
    except ValueError:
        raise NoValue(f"{len(value.bytes_val)} bytes, no {form} vector") from None
    return np.asarray(numbers)


def read_integer(stored: bytes) -> int | None:
    """Return an integer of either width; raises as `read_floats` does."""
    value = _message(stored)
    kind = _kind(value, "int64_val", "int32_val")
    return None if kind is None else int(getattr(value, kind))


def read_text(stored: bytes) -> str | None:
    """Return a text; raises as `read_floats` does."""
    value = _message(stored)
    return None if _kind(value, "string_val") is None else value.string_val


def read_texts(stored: bytes, width: int) -> list[str] | None:
    """Return so many texts; raises as `read_floats` does."""
    value = _message(stored)
    if _kind(value, "string_list_val") is None:
        return None
    items = list(value.string_list_val.val)
    if len(items) != width:
        raise NoValue(f"a list of {len(items)} texts")
    return items


def plain_tokens(stored: bytes) -> bytes | None:
    """Return a list of int32 as Feast writes it, however it was spelt; raises as `read_floats`."""
    value = _message(stored)
    if _kind(value, "int32_list_val") is None:
        return None
    value.DiscardUnknownFields()
    plain: bytes = value.SerializeToString()
    return plain


def read_moment(stored: bytes) -> int | None:
    """Return a timestamp as microseconds since 1970; raises as `read_floats` does."""
    from google.protobuf.message import DecodeError
    from google.protobuf.timestamp_pb2 import Timestamp

    try:
        moment = Timestamp.FromString(stored)
    except DecodeError:
        raise NoValue(f"{len(stored)} bytes that are no time") from None
    in_range = SECONDS[0] <= moment.seconds <= SECONDS[1]
    if not in_range or not 0 <= moment.nanos < NANOSECONDS:
        raise NoValue(f"{moment.seconds} s and {moment.nanos} ns since 1970")
    return int(moment.seconds) * MICROSECONDS + int(moment.nanos) // 1000
