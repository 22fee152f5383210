"""Stored lists of token ids as arrays: what protobuf reads, or a fault of their row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from feast.protos.feast.types.Value_pb2 import Int32List, Int64List, Value
from hypothesis import given
from hypothesis import strategies as st

from encoder.errors import CorruptValue
from materialize.stores.values import value_bytes
from materialize.stores.wire import Faults, Place
from materialize.stores.wire_tokens import token_lists
from tests.tokens import MOST, TOKEN_IDS
from tests.tokens import token_lists as lists_of_users

PLACE = Place("user_texts", "texts_tokens")


def _varint(number: int) -> bytes:
    groups = bytearray()
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups, number])


def _field(tag: int, content: bytes) -> bytes:
    return bytes([tag]) + _varint(len(content)) + content


def _of_varints(*varints: bytes) -> bytes:
    """Return a list as Feast and Palate write it, of varints that need not be ones."""
    return _field(0x6A, _field(0x0A, b"".join(varints)))


def _list(ids: Iterable[int]) -> bytes:
    return bytes(Value(int32_list_val=Int32List(val=ids)).SerializeToString())


def _unpacked(ids: Iterable[int]) -> bytes:
    """As an old writer spells it: a tag before each number."""
    return _field(0x6A, b"".join(b"\x08" + _varint(number) for number in ids))


def _in_two(ids: Sequence[int]) -> bytes:
    """Two messages behind each other are one list."""
    return _list(ids[:1]) + _unpacked(ids[1:])


def _overlong(ids: Iterable[int]) -> bytes:
    """With zeros behind each number's highest group."""
    return _of_varints(*(_varint(i)[:-1] + bytes([_varint(i)[-1] | 128, 128, 0]) for i in ids))


def _replacing(ids: Iterable[int]) -> bytes:
    return b"\x20\x07" + _list(ids)


def _with_unknown_fields(ids: Iterable[int]) -> bytes:
    return _field(0x6A, _field(0x0A, b"".join(map(_varint, ids))) + b"\x10\x05") + b"\xf8\x3f\x01"


_NULL = b"\x98\x01\x00"
_SPELLINGS = [_list, _unpacked, _in_two, _overlong, _replacing, _with_unknown_fields]


def _rows(
    found: tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]],
) -> list[list[int] | None]:
    """Return each row's ids, None for those that are not valid."""
    tokens, lengths, valid = found
    assert [array.dtype.name for array in found] == ["int32", "int64", "bool"]
    lists = iter(np.split(tokens, np.cumsum(lengths)[:-1]) if len(lengths) else [])
    rows = [next(lists).tolist() if ok else None for ok in valid]
    assert sum(len(row or ()) for row in rows) == len(tokens)
    return rows


@given(lists_of_users())
def test_what_was_cut_from_arrow_is_read_back(rows: list[list[int] | None]) -> None:
    values = value_bytes(pa.array(rows, pa.list_(pa.int32())), "INT32_LIST")
    assert _rows(token_lists(values, PLACE, most=MOST)) == rows


@given(lists_of_users(), st.data())
def test_every_spelling_is_the_list_that_protobuf_reads(
    rows: list[list[int] | None], data: st.DataObject
) -> None:
    """Absent rows, too: no field, no value, a null."""
    absent = st.sampled_from([None, b"", _NULL, b"\xf8\x3f\x01"])
    values = [
        data.draw(absent) if row is None else data.draw(st.sampled_from(_SPELLINGS))(row)
        for row in rows
    ]
    for row, value in zip(rows, values, strict=True):
        assert row is None or list(Value.FromString(value or b"").int32_list_val.val) == row
    assert _rows(token_lists(values, PLACE, most=MOST)) == rows


@pytest.mark.parametrize("length", [127, 128, 16_383, 16_384])
def test_lists_whose_lengths_take_more_bytes_are_read(length: int) -> None:
    rows = [[1] * length, [200] * length]
    assert _rows(token_lists([_list(row) for row in rows], PLACE, most=length)) == rows


_DAMAGE = {
    "cut short": (_list([300, 5])[:-1], "6 bytes that are no value"),
    "cut inside a number": (_of_varints(b"\x05", b"\x85"), "6 bytes that are no value"),
    "bytes behind": (_list([5]) + b"\x00", "6 bytes that are no value"),
    "another list": (
        Value(int64_list_val=Int64List(val=[5])).SerializeToString(),
        "a int64_list_val",
    ),
    "another type": (Value(int64_val=5).SerializeToString(), "a int64_val"),
    "negative": (_list([7, -2, -3]), "a list with the token id -2"),
    "negative, not packed": (_replacing([-2]), "a list with the token id -2"),
    "beyond int32": (_of_varints(_varint(2**31)), "a list with the token id 2147483648"),
    "beyond 35 bits": (_of_varints(_varint(2**40 + 5)), "a list with the token id 1099511627781"),
    "no varint": (_of_varints(b"\x80" * 10 + b"\x01"), "a list with a token id of 11 bytes"),
    "too long": (_list(range(MOST + 1)), "a list of 13 token ids"),
    "too long and negative": (_list([-1] * (MOST + 1)), "a list of 13 token ids"),
}


@pytest.mark.parametrize("name", _DAMAGE)
def test_damage_is_null_and_told_and_takes_no_other_row_down(name: str) -> None:
    damaged, found = _DAMAGE[name]
    place = Place("user_texts", "texts_tokens", [7, 8, 9, 10])
    values = [_list([1, 300]), damaged, None, _list([2])]
    faults: Faults = {}
    assert _rows(token_lists(values, place, most=MOST, faults=faults)) == [
        [1, 300],
        None,
        None,
        [2],
    ]
    assert list(faults) == [1]
    exc = faults[1]
    assert str(exc).startswith(
        f"user_texts:texts_tokens of user 8 is {found}; a list of at most 12 token ids from 0 to "
        "2147483647 is expected. Write the row anew"
    )
    assert (exc.view, exc.field, exc.row, exc.user) == ("user_texts", "texts_tokens", 1, "8")
    with pytest.raises(CorruptValue) as raised:
        token_lists(values, place, most=MOST)
    assert str(raised.value) == str(exc)


@given(st.lists(st.one_of(TOKEN_IDS, st.sampled_from(sorted(_DAMAGE))), min_size=1, max_size=8))
def test_each_row_at_fault_has_a_fault_of_its_own(drawn: list[int | str]) -> None:
    values = [_DAMAGE[one][0] if isinstance(one, str) else _list([one, 1]) for one in drawn]
    faults: Faults = {}
    rows = _rows(token_lists(values, PLACE, most=MOST, faults=faults))
    assert rows == [None if isinstance(one, str) else [one, 1] for one in drawn]
    found = {row: _DAMAGE[one][1] for row, one in enumerate(drawn) if isinstance(one, str)}
    assert faults.keys() == found.keys()
    for row, what in found.items():
        assert f"of row {row} is {what}; a list" in str(faults[row])


_PACKED = st.binary(max_size=30).map(lambda content: _field(0x6A, _field(0x0A, content)))
_LIST = st.binary(max_size=30).map(lambda content: _field(0x6A, content))


@given(st.lists(st.one_of(st.binary(max_size=30), _LIST, _PACKED), max_size=4))
def test_any_bytes_are_a_list_or_a_fault_of_their_row(values: list[bytes]) -> None:
    """Nothing else is raised, rows at fault are not valid, and lists are what protobuf reads."""
    faults: Faults = {}
    rows = _rows(token_lists(values, PLACE, most=30, faults=faults))
    if faults:
        with pytest.raises(CorruptValue) as raised:
            token_lists(values, PLACE, most=30)
        assert raised.value.row == min(faults)
    assert [rows[row] for row in faults] == [None] * len(faults)
    for row in set(range(len(values))) - set(faults):
        message = Value.FromString(values[row])
        if message.WhichOneof("val") == "int32_list_val":
            assert rows[row] == list(message.int32_list_val.val)
        else:
            assert message.WhichOneof("val") in {None, "null_val"}
            assert rows[row] is None


def test_an_empty_list_is_one_and_nobody_has_none() -> None:
    assert _rows(token_lists([b"\x6a\x00", b"\x6a\x02\x0a\x00"], PLACE, most=1)) == [[], []]
    assert _rows(token_lists([None, b""], PLACE, most=1)) == [None, None]
    assert _rows(token_lists([], PLACE, most=1)) == []
