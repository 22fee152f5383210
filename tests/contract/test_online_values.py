"""Keys and values cut from Arrow are byte for byte what Feast and protobuf write."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from feast import ValueType
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import python_values_to_proto_values
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from materialize.stores.values import entity_keys, packed_header, value_bytes


@pytest.mark.parametrize("suffix", [b"", b"project"])
@given(st.data())
def test_entity_keys_are_feasts(suffix: bytes, data: st.DataObject) -> None:
    """Any join key name, any int64 or text, version 3 and multi-key rows."""
    names = data.draw(st.lists(st.text(min_size=1), min_size=1, max_size=2, unique=True))
    kinds = data.draw(st.lists(st.sampled_from(["INT64", "STRING", "INT32"]), min_size=2))
    n = data.draw(st.integers(0, 4))
    columns = []
    for name, kind in zip(names, kinds, strict=False):
        bits = 63 if kind == "INT64" else 31
        item = st.text() if kind == "STRING" else st.integers(-(2**bits), 2**bits - 1)
        values = data.draw(st.lists(item, min_size=n, max_size=n))
        arrow = {"INT64": pa.int64(), "STRING": pa.string(), "INT32": pa.int32()}[kind]
        columns.append((name, kind, pa.array(values, arrow)))
    expected = [
        serialize_entity_key(
            EntityKey(
                join_keys=names,
                entity_values=[
                    Value(**{f"{kind.lower()}_val": column[row].as_py()})
                    for _, kind, column in columns
                ],
            )
        )
        + suffix
        for row in range(n)
    ]
    assert entity_keys(columns, 3, suffix) == expected


_ITEMS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "INT64": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "INT32": (pa.int32(), st.integers(-(2**31), 2**31 - 1)),
    "STRING": (pa.string(), st.text()),
    "BYTES": (pa.binary(), st.binary()),
    "BOOL": (pa.bool_(), st.booleans()),
    "DOUBLE": (pa.float64(), st.floats(allow_nan=False)),
    "FLOAT": (pa.float32(), st.floats(width=32, allow_nan=False)),
    "STRING_LIST": (pa.list_(pa.string()), st.lists(st.text(), min_size=1)),
    "INT32_LIST": (pa.list_(pa.int32()), st.lists(st.integers(-(2**31), 2**31 - 1))),
    "INT64_LIST": (pa.list_(pa.int64()), st.lists(st.integers(-(2**63), 2**63 - 1))),
    "DOUBLE_LIST": (pa.list_(pa.float64()), st.lists(st.floats(allow_nan=False), min_size=1)),
}


@pytest.mark.parametrize("kind", _ITEMS)
@given(st.data())
def test_values_are_what_protobuf_writes(kind: str, data: st.DataObject) -> None:
    """Any column and any slice of it, nulls included."""
    arrow, item = _ITEMS[kind]
    values = data.draw(st.lists(st.one_of(st.none(), item), max_size=6))
    start = data.draw(st.integers(0, len(values)))
    column = pa.array(values, arrow).slice(start)
    name = f"{kind.lower()}_val"
    expected = []
    for value in values[start:]:
        message = Value()
        if value is not None and kind.endswith("_LIST"):
            getattr(message, name).SetInParent()
            getattr(message, name).val.extend(value)
        elif value is not None:
            setattr(message, name, value)
        expected.append(message.SerializeToString())
    assert value_bytes(column, kind) == expected


@pytest.mark.parametrize("kind", ["INT32_LIST", "INT64_LIST"])
@given(st.lists(st.one_of(st.none(), st.lists(st.one_of(st.none(), st.integers(-5, 300))))))
def test_integer_lists_are_what_feast_writes(kind: str, values: list[Any]) -> None:
    """Nulls inside and outside, of any type of list that holds them."""
    expected = [v.SerializeToString() for v in python_values_to_proto_values(values, _KINDS[kind])]
    for arrow in (pa.list_(pa.int64()), pa.large_list(pa.int16())):
        assert value_bytes(pa.array(values, arrow), kind) == expected


_KINDS = {"INT32_LIST": ValueType.INT32_LIST, "INT64_LIST": ValueType.INT64_LIST}


def test_more_integers_than_are_made_at_once_keep_their_lists() -> None:
    rng = np.random.default_rng(0)
    lengths = [40_000, 0, 30_000, 1, 70_000, 0]
    rows = [(2 ** rng.integers(0, 31, length) - 1).tolist() for length in lengths]
    found = value_bytes(pa.array(rows, pa.list_(pa.int32())), "INT32_LIST")
    assert [list(Value.FromString(row).int32_list_val.val) for row in found] == rows


def test_an_integer_beyond_the_lists_type_is_refused() -> None:
    with pytest.raises(ValueError, match="2147483648 not in range"):
        value_bytes(pa.array([[1], [2**31]]), "INT32_LIST")


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(0, 130))))
def test_float_lists_are_what_feast_writes(values: np.ndarray) -> None:
    column = pa.array([*values.tolist(), None], pa.list_(pa.float32()))
    found = [Value.FromString(row) for row in value_bytes(column, "FLOAT_LIST")]
    for row, message in zip(values, found, strict=False):
        assert np.array(message.float_list_val.val, np.float32).tobytes() == row.tobytes()
        assert message.WhichOneof("val") == "float_list_val"
    assert found[-1] == Value()
    if values.shape[1] and not np.isnan(values).any():
        expected = python_values_to_proto_values(values.tolist(), ValueType.FLOAT_LIST)
        assert found[:-1] == expected


@pytest.mark.parametrize("width", [0, 1, 31, 32, 4095, 70_000])
def test_the_header_of_packed_numbers_is_protobufs(width: int) -> None:
    message = Value()
    message.double_list_val.SetInParent()
    message.double_list_val.val.extend([1.0] * width)
    content = np.ones(width, "<f8").tobytes()
    assert packed_header(b"\x7a", 8 * width) + content == message.SerializeToString()
