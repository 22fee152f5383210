"""Bytes of Feast values, entity keys and timestamps, cut from Arrow columns.

Equal to what protobuf and Feast write, without a Python message per value. All functions return
one ``bytes`` a row, in the column's order; a null value is ``b""``, which is how Feast writes an
unset ``Value``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

__all__ = [
    "CREATED_FIELD",
    "blob_header",
    "blob_values",
    "entity_keys",
    "float_values",
    "message_field",
    "microseconds",
    "packed_header",
    "spread",
    "timestamps",
    "value_bytes",
    "value_text",
]

CREATED_FIELD = 15
"""Field of Feast's ``_ts:`` message under which the created time lies; see ADR 0012."""

_Bytes = npt.NDArray[np.uint8]
_STRING, _INT64 = 2, 4
"""Feast's ``ValueType`` numbers inside an entity key (key_encoding_utils.py)."""

# (number of the field in Feast's Value, wire type 0 varint, 1 eight bytes, 2 length, 5 four bytes)
_BYTES_VAL, _STRING_VAL = b"\x0a", b"\x12"
_VARINTS = {"INT32": (b"\x18", pa.int64()), "INT64": (b"\x20", pa.int64())}
_FIXED = {"DOUBLE": (b"\x29", "<f8", pa.float64()), "FLOAT": (b"\x35", "<f4", pa.float32())}
_PACKED = {
    "DOUBLE_LIST": (b"\x7a", "<f8", pa.float64()),
    "FLOAT_LIST": (b"\x82\x01", "<f4", pa.float32()),
}
_VARINT_LISTS = {"INT32_LIST": (b"\x6a", pa.int32()), "INT64_LIST": (b"\x72", pa.int64())}
_STRING_LIST = b"\x62"
_BOOL, _UNIX_TIMESTAMP = b"\x38", b"\x40"

_AT_ONCE = 1 << 16
"""Integers of lists that become varints together: a batch of lists may hold millions."""


def value_bytes(column: pa.Array, kind: str) -> list[bytes]:
    """Return each row as the serialised ``feast.types.Value`` of type ``kind``.

    Parameters
    ----------
    column : Array
        Any type that casts to the feature's.
    kind : str
        Name of Feast's ``ValueType``, for example ``"FLOAT_LIST"``. Types without a fast form go
        through Feast's own conversion.
    """
    if kind in _PACKED:
        return _packed(column, *_PACKED[kind])
    encode = _SCALARS.get(kind)
    if encode is None:
        return _through_protobuf(column, kind)
    present = column.drop_null()
    return spread(encode(present, kind), column)


def float_values(numbers: npt.NDArray[np.float32]) -> list[bytes]:
    """Return each row of float32 (n, dim) as a serialised ``Value`` of a float list."""
    tag, dtype, _ = _PACKED["FLOAT_LIST"]
    head = packed_header(tag, numbers.shape[1] * np.dtype(dtype).itemsize)
    return _fixed_rows(head, np.ascontiguousarray(numbers, dtype))


def blob_values(content: _Bytes) -> list[bytes]:
    """Return each row of uint8 (n, width) as a serialised ``Value`` of bytes."""
    return _fixed_rows(blob_header(content.shape[1]), np.ascontiguousarray(content))


def value_text(column: pa.Array, kind: str) -> list[str | None]:
    """Return what Feast's SQL stores keep in ``value_text``: text and numbers, else None."""
    if kind not in {"STRING", "INT32", "INT64", "FLOAT", "DOUBLE", "BOOL"}:
        return [None] * len(column)
    typed = column.cast(_FIXED[kind][2]) if kind in _FIXED else column
    return [None if value is None else str(value) for value in typed.to_pylist()]


def entity_keys(
    columns: Sequence[tuple[str, str, pa.Array]], version: int, suffix: bytes = b""
) -> list[bytes]:
    """Return each row's key as Feast's ``serialize_entity_key`` writes it, and ``suffix``.

    Parameters
    ----------
    columns : sequence of (join key, name of its ``ValueType``, Array)
        One a join key of the view.
    version : int
        ``entity_key_serialization_version`` of the repository; 3 is fast.
    suffix : bytes
        What the store appends; Feast's Redis store appends the project.

    Raises
    ------
    ValueError
        A join key is null.
    """
    for name, _, column in columns:
        if column.null_count:
            raise ValueError(
                f"join key {name!r} has {column.null_count} nulls, none expected. "
                "Remove these rows."
            )
    name, kind, column = columns[0]
    if version != 3 or len(columns) != 1 or kind not in {"INT64", "STRING"}:
        return _slow_keys(columns, version, suffix)
    encoded = name.encode("utf-8")
    head = struct.pack("<III", 1, _STRING, len(encoded)) + encoded
    if kind == "INT64":
        head += struct.pack("<II", _INT64, 8)
        numbers = column.cast(pa.int64()).to_numpy(zero_copy_only=False)
        return _fixed_rows(head, np.ascontiguousarray(numbers, "<i8"), suffix)
    head += struct.pack("<I", _STRING)
    texts = column.cast(pa.string()).cast(pa.binary()).to_pylist()
    return [head + struct.pack("<I", len(text)) + text + suffix for text in texts]


def timestamps(
    event_us: npt.NDArray[np.int64],
    created_us: npt.NDArray[np.int64],
    has_created: npt.NDArray[np.bool_],
) -> list[bytes]:
    """Return protobuf ``Timestamp`` bytes of event times, each with its created time behind.

    Parameters
    ----------
    event_us : int64 (n,), microseconds since 1970
    created_us : int64 (n,), microseconds since 1970
    has_created : bool (n,)
        False leaves the created time out.
    """
    seconds, rest = np.divmod(event_us, 1_000_000)
    parts = [
        _tagged(1, seconds, seconds != 0),
        _tagged(2, rest * 1000, rest != 0),
        _tagged(CREATED_FIELD, created_us, has_created),
    ]
    return _ragged(
        np.concatenate([content for content, _ in parts], axis=1),
        np.concatenate([used for _, used in parts], axis=1),
    )


def microseconds(column: pa.Array) -> npt.NDArray[np.int64]:
    """Return a timestamp column as int64 microseconds since 1970 UTC; nulls are 0."""
    kind = pa.timestamp("us", column.type.tz)
    whole = pc.fill_null(column.cast(kind, safe=False).cast(pa.int64()), 0)
    numbers: npt.NDArray[np.int64] = whole.to_numpy(zero_copy_only=False)
    return numbers


def _packed(column: pa.Array, tag: bytes, dtype: str, kind: pa.DataType) -> list[bytes]:
    """Return numeric lists: a header that depends on the length, then the Arrow buffer's bytes."""
    present = column.drop_null()
    flat = present.flatten().cast(kind).to_numpy(zero_copy_only=False)
    numbers = np.ascontiguousarray(flat, dtype)
    lengths = pc.list_value_length(present).to_numpy(zero_copy_only=False)
    if len(lengths) and lengths[0] > 0 and np.all(lengths == lengths[0]):
        width = int(lengths[0])
        head = packed_header(tag, width * numbers.itemsize)
        return spread(_fixed_rows(head, numbers.reshape(-1, width)), column)
    sizes = lengths.astype(np.int64) * numbers.itemsize
    return spread(_headed(tag, numbers.tobytes(), sizes), column)


def _headed(tag: bytes, data: bytes, sizes: npt.NDArray[np.int64]) -> list[bytes]:
    """Return packed lists of so many bytes, which lie end to end, each behind its header."""
    heads = {size: packed_header(tag, size) for size in np.unique(sizes).tolist()}
    ends = np.cumsum(sizes)
    return [
        heads[end - start] + data[start:end]
        for start, end in zip((ends - sizes).tolist(), ends.tolist(), strict=True)
    ]


def blob_header(size: int) -> bytes:
    """Return what stands before ``size`` bytes in a ``Value`` of bytes."""
    return _BYTES_VAL + _varint(size)


def message_field(number: int, content: bytes) -> bytes:
    """Return a field of a message that holds a message, packed numbers or text."""
    return bytes((number << 3 | 2,)) + _varint(len(content)) + content


def packed_header(tag: bytes, size: int) -> bytes:
    """Return what stands before ``size`` bytes of packed numbers in a ``Value``."""
    if size == 0:
        return tag + b"\x00"
    inner = b"\x0a" + _varint(size)
    return tag + _varint(len(inner) + size) + inner


def _texts(present: pa.Array, kind: str) -> list[bytes]:
    tag = _STRING_VAL if kind == "STRING" else _BYTES_VAL
    typed = present.cast(pa.string()) if kind == "STRING" else present
    return _framed(typed, tag)


def _framed(texts: pa.Array, tag: bytes) -> list[bytes]:
    """Return each text behind tag and length; a column has few different ones, mostly."""
    encoded = texts.cast(pa.binary()).dictionary_encode()
    made = [tag + _varint(len(text)) + text for text in encoded.dictionary.to_pylist()]
    return [made[k] for k in encoded.indices.to_pylist()]


def _text_lists(present: pa.Array, kind: str) -> list[bytes]:
    flat = present.flatten().cast(pa.string())
    if flat.null_count:
        return _through_protobuf(present, kind)
    items = _framed(flat, b"\x0a")
    ends = np.cumsum(pc.list_value_length(present).to_numpy(zero_copy_only=False)).tolist()
    rows, start = [], 0
    for end in ends:
        row = b"".join(items[start:end])
        rows.append(_STRING_LIST + _varint(len(row)) + row)
        start = end
    return rows


def _integer_lists(present: pa.Array, kind: str) -> list[bytes]:
    """Return lists of integers; a null among them is 0, as Feast writes it."""
    tag, target = _VARINT_LISTS[kind]
    lists = present.cast(pa.list_(target))
    numbers = pc.fill_null(lists.flatten(), 0).to_numpy(zero_copy_only=False)
    stops = np.zeros(len(numbers) + 1, np.int64)  # where each number's bytes end
    parts = []
    for start in range(0, len(numbers), _AT_ONCE):
        content, used = _varints(numbers[start : start + _AT_ONCE])
        parts.append(content[used].tobytes())
        stops[start + 1 : start + 1 + len(used)] = used.sum(axis=1)
    np.cumsum(stops, out=stops)
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    ends = np.cumsum(lengths)
    return _headed(tag, b"".join(parts), stops[ends] - stops[ends - lengths])


def _integers(present: pa.Array, kind: str) -> list[bytes]:
    tag, target = _VARINTS[kind]
    return _tagged_rows(tag, present.cast(target).to_numpy(zero_copy_only=False))


def _seconds(present: pa.Array, kind: str) -> list[bytes]:
    """Return times as whole seconds, as Feast keeps them."""
    if pa.types.is_integer(present.type):
        return _tagged_rows(_UNIX_TIMESTAMP, present.cast(pa.int64()).to_numpy())
    return _tagged_rows(_UNIX_TIMESTAMP, microseconds(present) // 1_000_000)


def _bools(present: pa.Array, kind: str) -> list[bytes]:
    return [_BOOL + (b"\x01" if value else b"\x00") for value in present.to_pylist()]


def _floats(present: pa.Array, kind: str) -> list[bytes]:
    tag, dtype, target = _FIXED[kind]
    numbers = present.cast(target).to_numpy(zero_copy_only=False)
    return _fixed_rows(tag, np.ascontiguousarray(numbers, dtype))


_SCALARS: dict[str, Callable[[pa.Array, str], list[bytes]]] = {
    "BOOL": _bools,
    "BYTES": _texts,
    "DOUBLE": _floats,
    "FLOAT": _floats,
    "INT32": _integers,
    "INT32_LIST": _integer_lists,
    "INT64": _integers,
    "INT64_LIST": _integer_lists,
    "STRING": _texts,
    "STRING_LIST": _text_lists,
    "UNIX_TIMESTAMP": _seconds,
}


def _through_protobuf(column: pa.Array, kind: str) -> list[bytes]:
    from feast.type_map import python_values_to_proto_values
    from feast.value_type import ValueType

    values = python_values_to_proto_values(column.to_pylist(), ValueType[kind])
    return [value.SerializeToString() for value in values]


def _slow_keys(
    columns: Sequence[tuple[str, str, pa.Array]], version: int, suffix: bytes
) -> list[bytes]:
    from feast.infra.key_encoding_utils import serialize_entity_key
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.type_map import python_values_to_proto_values
    from feast.value_type import ValueType

    names = [name for name, _, _ in columns]
    values = [
        python_values_to_proto_values(column.to_pylist(), ValueType[kind])
        for _, kind, column in columns
    ]
    return [
        serialize_entity_key(
            EntityKey(join_keys=names, entity_values=row), entity_key_serialization_version=version
        )
        + suffix
        for row in zip(*values, strict=True)
    ]


def spread(rows: list[bytes], column: pa.Array) -> list[bytes]:
    """Return ``rows`` with ``b""`` where ``column`` is null."""
    if not column.null_count:
        return rows
    present = iter(rows)
    return [next(present) if valid else b"" for valid in column.is_valid().to_pylist()]


def _varint(number: int) -> bytes:
    """Return a non-negative integer in groups of seven bits, lowest first."""
    groups = bytearray()
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    groups.append(number)
    return bytes(groups)


def _varints(numbers: npt.NDArray[np.signedinteger]) -> tuple[_Bytes, npt.NDArray[np.bool_]]:
    """Return bytes (n, longest) and which of them a varint uses; a negative number uses ten."""
    whole = numbers.astype(np.int64).view(np.uint64)
    longest = len(_varint(int(whole.max(initial=0))))
    left = whole[:, None] >> (np.arange(longest, dtype=np.uint64) * np.uint64(7))  # (n, longest)
    used = left != 0
    used[:, 0] = True
    content = (left & np.uint64(127)).astype(np.uint8)
    content[:, :-1] |= np.where(used[:, 1:], np.uint8(128), np.uint8(0))
    return content, used


def _tagged(
    field: int, numbers: npt.NDArray[np.int64], present: npt.NDArray[np.bool_]
) -> tuple[_Bytes, npt.NDArray[np.bool_]]:
    """Return a varint field as bytes (n, 1 + longest) and which are used, none where absent."""
    content, used = _varints(numbers)
    tags = np.full((len(numbers), 1), field << 3, np.uint8)
    whole = np.concatenate([tags, content], axis=1)  # (n, 1 + longest)
    used = np.concatenate([np.ones((len(numbers), 1), bool), used], axis=1)
    return whole, used & present[:, None]


def _tagged_rows(tag: bytes, numbers: npt.NDArray[np.int64]) -> list[bytes]:
    return _ragged(*_tagged(tag[0] >> 3, numbers, np.ones(len(numbers), bool)))


def _ragged(content: _Bytes, used: npt.NDArray[np.bool_]) -> list[bytes]:
    """Return the used bytes of each row of ``content`` (n, width)."""
    data = content[used].tobytes()
    ends = np.cumsum(used.sum(axis=1)).tolist()
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _fixed_rows(head: bytes, numbers: npt.NDArray[np.generic], tail: bytes = b"") -> list[bytes]:
    """Return head, the row's bytes and tail; ``numbers`` is contiguous, (n,) or (n, width)."""
    n = len(numbers)
    if n == 0:
        return []
    middle = numbers.reshape(n, -1).view(np.uint8)
    rows = np.empty((n, len(head) + middle.shape[1] + len(tail)), np.uint8)
    rows[:, : len(head)] = np.frombuffer(head, np.uint8)
    rows[:, len(head) : len(head) + middle.shape[1]] = middle
    rows[:, len(head) + middle.shape[1] :] = np.frombuffer(tail, np.uint8)
    # A void element becomes a bytes object of its whole width; "S" would cut trailing zeros.
    items: list[bytes] = rows.view(f"V{rows.shape[1]}").ravel().tolist()
    return items
