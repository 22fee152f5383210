"""Stored values as arrays: equal to what protobuf reads, whoever wrote them and however."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from feast.protos.feast.types.Value_pb2 import Value
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from encoder.errors import CorruptValue
from materialize.stores.compact import compact_values, list_column, round_trip
from materialize.stores.values import timestamps, value_bytes
from materialize.stores.wire import (
    Faults,
    Place,
    event_times,
    float_lists,
    integers,
    text_lists,
    texts,
)
from transforms.names import VECTOR_FORMS

PLACE = Place("view", "field")
_FLOATS = st.floats(width=32, allow_nan=False)
_ABSENT = st.sampled_from([None, b"", Value(null_val=0).SerializeToString()])
_INT64 = st.integers(-(2**63), 2**63 - 1)


def _list(numbers: Any) -> bytes:
    message = Value()
    message.float_list_val.SetInParent()
    message.float_list_val.val.extend(numbers)
    return bytes(message.SerializeToString())


def _varint(number: int) -> bytes:
    groups = bytearray()
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups, number])


def _unpacked(numbers: Any) -> bytes:
    """Return a float list as an old writer spells it: a tag before each number."""
    inner = b"".join(b"\x0d" + np.float32(number).tobytes() for number in numbers)
    return b"\x82\x01" + _varint(len(inner)) + inner


@given(st.data(), st.integers(1, 40))
def test_float_lists_are_what_protobuf_reads(data: st.DataObject, width: int) -> None:
    """Rows of one width: packed or not, behind a value that is replaced, or absent."""
    rows = data.draw(
        st.lists(st.one_of(_ABSENT, hnp.arrays(np.float32, width, elements=_FLOATS)), max_size=6)
    )
    spell = st.sampled_from([_list, _unpacked, lambda row: b"\x20\x07" + _list(row)])
    values = [data.draw(spell)(row) if isinstance(row, np.ndarray) else row for row in rows]
    matrix, valid = float_lists(values, PLACE, width=width, fill=np.nan)
    assert matrix.shape == (len(rows), width)
    assert matrix.dtype == np.float32
    for row, value, found, ok in zip(rows, values, matrix, valid, strict=True):
        assert ok == isinstance(row, np.ndarray)
        if ok:
            assert np.array_equal(found, Value.FromString(value).float_list_val.val)
        else:
            assert np.isnan(found).all()


@given(hnp.arrays(np.float32, st.tuples(st.integers(0, 5), st.integers(1, 130)), elements=_FLOATS))
def test_what_was_cut_from_arrow_is_read_back_bit_for_bit(vectors: np.ndarray) -> None:
    values = value_bytes(list_column(vectors), "FLOAT_LIST")
    matrix, valid = float_lists(values, PLACE, width=vectors.shape[1])
    assert matrix.tobytes() == vectors.tobytes()
    assert valid.all()


@pytest.mark.parametrize("form", [form for form in VECTOR_FORMS if form != "float32"])
@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.integers(1, 130)),
        elements=st.floats(-1000, 1000, width=32),
    ),
    st.data(),
)
def test_a_views_form_and_float_lists_may_be_mixed(
    form: str, vectors: np.ndarray, data: st.DataObject
) -> None:
    packed = compact_values(list_column(vectors), form)
    own = data.draw(hnp.arrays(np.bool_, len(vectors)))
    # Another field order: an older value before the one that counts.
    packed = [data.draw(st.sampled_from([b"", b"\x20\x07"])) + row for row in packed]
    values = [p if k else _list(v) for p, k, v in zip(packed, own, vectors, strict=True)]
    matrix, valid = float_lists(values, PLACE, form=form, width=vectors.shape[1])
    expected = np.where(own[:, None], round_trip(vectors, form), vectors)
    assert np.array_equal(matrix, expected)
    assert valid.all()
    with pytest.raises(CorruptValue, match="a bytes_val"):
        float_lists([*values, packed[0]], PLACE)


@given(st.lists(st.one_of(_ABSENT, _INT64, st.integers(-(2**31), 2**31 - 1).map(str)), max_size=8))
def test_integers_are_what_protobuf_reads(rows: list[Any]) -> None:
    """int64, int32 (drawn as text here) and absent."""
    values = [
        Value(int64_val=row).SerializeToString()
        if isinstance(row, int)
        else Value(int32_val=int(row)).SerializeToString()
        if isinstance(row, str)
        else row
        for row in rows
    ]
    numbers, valid = integers(values, PLACE, fill=-1)
    assert (numbers.dtype, valid.dtype) == (np.dtype(np.int64), np.dtype(bool))
    assert numbers.tolist() == [int(r) if isinstance(r, int | str) else -1 for r in rows]
    assert valid.tolist() == [isinstance(row, int | str) for row in rows]


def test_an_overlong_varint_is_the_number_that_protobuf_reads() -> None:
    values = [b"\x20\x85\x80\x00", b"\x20" + b"\xff" * 9 + b"\x7f", b"\x20\x05\x20\x06"]
    expected = [Value.FromString(value).int64_val for value in values]
    assert integers(values, PLACE)[0].tolist() == expected == [5, -1, 6]


@given(st.lists(st.one_of(_ABSENT, st.text().map(lambda text: [text])), max_size=6))
def test_texts_are_what_protobuf_reads(rows: list[Any]) -> None:
    values = [
        Value(string_val=row[0]).SerializeToString() if isinstance(row, list) else row
        for row in rows
    ]
    found, valid = texts(values, PLACE, fill=None)
    assert found.tolist() == [row[0] if isinstance(row, list) else None for row in rows]
    assert valid.tolist() == [isinstance(row, list) for row in rows]


@given(st.integers(1, 3), st.data())
def test_text_lists_are_what_protobuf_reads(width: int, data: st.DataObject) -> None:
    item = st.lists(st.text(max_size=3), min_size=width, max_size=width)
    rows = data.draw(st.lists(st.one_of(_ABSENT, item), max_size=6))
    present = [row for row in rows if isinstance(row, list)]
    cut = iter(value_bytes(pa.array(present, pa.list_(pa.string())), "STRING_LIST"))
    values = [next(cut) if isinstance(row, list) else row for row in rows]
    found, valid = text_lists(values, PLACE, width=width)
    assert found.tolist() == [row if isinstance(row, list) else [""] * width for row in rows]
    assert valid.tolist() == [isinstance(row, list) for row in rows]


_MOMENTS = st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999)


@given(st.lists(st.tuples(_MOMENTS, st.one_of(st.none(), _INT64)), max_size=6))
def test_event_times_are_read_back_with_and_without_a_created_time(rows: list[Any]) -> None:
    event = np.array([moment for moment, _ in rows], np.int64)
    created = np.array([made or 0 for _, made in rows], np.int64)
    has = np.array([made is not None for _, made in rows], np.bool_)
    moments, valid = event_times([*timestamps(event, created, has), None], PLACE, fill=-5)
    assert moments.tolist() == [*event.tolist(), -5]
    assert valid.tolist() == [True] * len(rows) + [False]


@given(st.binary(max_size=40))
def test_any_bytes_are_the_time_that_protobuf_reads_or_a_fault(stored: bytes) -> None:
    try:
        (moment,), _ = event_times([stored], PLACE)
    except CorruptValue:
        return
    message = Timestamp.FromString(stored)
    assert moment == message.seconds * 1_000_000 + message.nanos // 1000


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        (lambda values, **k: float_lists(values, PLACE, **k), "float_list_val"),
        (lambda values, **k: float_lists(values, PLACE, form="int8", **k), None),
        (lambda values, **k: float_lists(values, PLACE, form="float16", **k), None),
        (lambda values, **k: integers(values, PLACE, **k), "int64_val"),
        (lambda values, **k: texts(values, PLACE, **k), "string_val"),
        (lambda values, **k: text_lists(values, PLACE, width=1, **k), "string_list_val"),
    ],
    ids=["floats", "int8", "float16", "integers", "texts", "text lists"],
)
@given(st.lists(st.binary(max_size=30), max_size=4))
def test_any_bytes_are_a_value_or_a_fault_of_their_row(
    read: Any, kind: str | None, values: list[bytes]
) -> None:
    """Nothing else is raised, rows at fault are not valid, and values are what protobuf reads."""
    faults: Faults = {}
    found, valid = read(values, faults=faults)
    assert len(found) == len(valid) == len(values)
    assert not valid[list(faults)].any()
    if faults:
        with pytest.raises(CorruptValue) as raised:
            read(values)
        assert raised.value.row == min(faults)
    for row in np.flatnonzero(valid):
        message = Value.FromString(values[row])
        if kind is not None:
            value = getattr(message, message.WhichOneof("val"))
            value = list(value.val) if kind.endswith("list_val") else value
            assert np.array_equal(found[row], value, equal_nan=kind == "float_list_val")


def test_a_fault_names_view_field_user_and_what_was_found() -> None:
    place = Place("user_embedding_s1", "embedding", [7, 8, 9])
    good = _list([1.0, 2.0])
    with pytest.raises(
        CorruptValue,
        match=r"user_embedding_s1:embedding of user 9 is 7 bytes that are no value; a list of 2 "
        r"floats is expected\. Write the row anew",
    ) as raised:
        float_lists([good, good, good[:7]], place)
    exc = raised.value
    assert (exc.view, exc.field, exc.row, exc.user) == ("user_embedding_s1", "embedding", 2, "9")


def test_rows_of_another_width_are_faults_and_the_others_stay() -> None:
    rows = [[1.0, 2.0], [3.0], [5.0, 6.0]]
    values = [_list(row) for row in rows]
    faults: Faults = {}
    matrix, valid = float_lists(values, PLACE, faults=faults)
    assert np.array_equal(matrix[[0, 2]], [rows[0], rows[2]])
    assert valid.tolist() == [True, False, True]
    assert list(faults) == [1]
    assert "a list of 1 floats; a list of 2" in str(faults[1])
    with pytest.raises(CorruptValue, match="a list of 2 floats; a list of 1 floats is expected"):
        float_lists(values, PLACE, width=1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_faults_where_asked(bad: float) -> None:
    values = [_list([1.0, 2.0]), _list([bad, 1.0])]
    assert float_lists(values, PLACE)[1].all()
    with pytest.raises(CorruptValue, match="NaN or infinity; a list of 2 finite floats"):
        float_lists(values, PLACE, finite=True)
    faults: Faults = {}
    matrix, valid = float_lists(values, PLACE, finite=True, fill=-1, faults=faults)
    assert matrix.tolist() == [[1.0, 2.0], [-1.0, -1.0]]
    assert (valid.tolist(), list(faults)) == ([True, False], [1])


def test_a_damaged_scale_of_int8_is_not_finite() -> None:
    for scale in (np.nan, np.inf):
        packed = np.float32(scale).tobytes() + b"\x00\x01"
        value = Value(bytes_val=packed).SerializeToString()
        with pytest.raises(CorruptValue, match="NaN or infinity"):
            float_lists([value], PLACE, form="int8", finite=True)


def test_nobody_has_width_zero_unless_told() -> None:
    assert float_lists([None, b""], PLACE)[0].shape == (2, 0)
    assert float_lists([], PLACE, width=3)[0].shape == (0, 3)
