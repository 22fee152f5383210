"""Forms of vectors: bounded loss once, none the second time, and what is refused."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Array, Float32, Float64, Int64
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from materialize.stores.compact import (
    compact_fields,
    compact_form,
    list_column,
    round_trip,
    round_trip_column,
    rounding_bound,
)
from transforms.names import FLOAT32, VECTOR_FORMS, VECTORS_TAG

_LARGEST = {"float16": 65_504.0, "int8": 127 * 2.0**120, FLOAT32: float(np.finfo("f4").max)}
_SHAPES = st.tuples(st.integers(0, 4), st.integers(0, 9))


def _vectors(form: str) -> st.SearchStrategy[np.ndarray]:
    """Any finite vectors of a form: zeros, subnormals, the largest, and mixtures of magnitudes."""
    largest = _LARGEST[form]
    return hnp.arrays(np.float32, _SHAPES, elements=st.floats(-largest, largest, width=32))


@pytest.mark.parametrize("form", VECTOR_FORMS)
@given(st.data())
def test_a_second_round_trip_changes_no_bit(form: str, data: st.DataObject) -> None:
    vectors = data.draw(_vectors(form))
    once = round_trip(vectors, form)
    assert (once.dtype, once.shape) == (np.float32, vectors.shape)
    assert round_trip(once, form).tobytes() == once.tobytes()


@pytest.mark.parametrize("form", VECTOR_FORMS)
@given(st.data())
def test_no_number_changes_by_more_than_the_bound(form: str, data: st.DataObject) -> None:
    vectors = data.draw(_vectors(form))
    change = np.abs(round_trip(vectors, form).astype(np.float64) - vectors)
    assert (change <= rounding_bound(vectors, form)).all()


@pytest.mark.parametrize("form", VECTOR_FORMS)
@given(st.data())
def test_a_vector_is_kept_the_same_beside_any_others(form: str, data: st.DataObject) -> None:
    vectors = data.draw(_vectors(form))
    alone = [round_trip(vectors[k : k + 1], form).tobytes() for k in range(len(vectors))]
    assert b"".join(alone) == round_trip(vectors, form).tobytes()


@pytest.mark.parametrize("form", ["float16", "int8"])
def test_numbers_near_zero_are_rounded_once_too(form: str) -> None:
    """Down to the smallest number, where float32 itself has fewer and fewer significant bits."""
    rng = np.random.default_rng(0)
    for exponent in range(-149, -100):
        vectors = np.ldexp(rng.uniform(-1, 1, (200, 9)), exponent + 1).astype(np.float32)
        once = round_trip(vectors, form)
        assert round_trip(once, form).tobytes() == once.tobytes()
        change = np.abs(once.astype(np.float64) - vectors)
        assert (change <= rounding_bound(vectors, form)).all()


def test_loss_of_each_form_on_one_vector() -> None:
    vector = np.array([[1.0, -0.3, 0.004, 0.001]], np.float32)
    assert round_trip(vector, FLOAT32) is vector
    # float16: 11 significant bits; -0.3 lies between two halves, 2**-12 apart.
    half = round_trip(vector, "float16")[0]
    assert half[0] == 1.0
    assert 0 < abs(half[1] + 0.3) <= 2**-13
    # int8: 1 / 127, rounded up to 16 bits, is 0.00787401...; 0.004 is half a level and more,
    # 0.001 less.
    scale = np.ceil(2.0**22 / 127) / 2.0**22
    assert round_trip(vector, "int8")[0].tolist() == [127 * scale, -38 * scale, scale, 0.0]


def test_the_bound_is_near_what_rounding_does() -> None:
    """A bound twice as large would hide faults as large as the rounding."""
    vectors = np.random.default_rng(0).standard_normal((2000, 120), dtype=np.float32)
    for form in ("float16", "int8"):
        share = np.abs(round_trip(vectors, form) - vectors) / rounding_bound(vectors, form)
        assert 0.95 < share.max() <= 1.0
    assert not rounding_bound(vectors, FLOAT32).any()


def test_the_bound_holds_beside_the_middle_between_two_levels() -> None:
    for largest in np.linspace(1, 2, 50, dtype=np.float32):
        scale = round_trip(np.array([[largest]]), "int8")[0, 0] / np.float32(127)
        middle = (np.arange(-126, 126, dtype=np.float32) + np.float32(0.5)) * scale
        near = [middle + k * np.spacing(middle) for k in (-1, 0, 1)]
        vectors = np.concatenate([[largest], *near])[None].astype(np.float32)
        change = np.abs(round_trip(vectors, "int8").astype(np.float64) - vectors)
        assert change.max() == scale / np.float32(2)
        assert (change <= rounding_bound(vectors, "int8")).all()


def test_the_bound_of_a_number_that_is_none_is_none() -> None:
    vectors = np.array([[np.nan, 1.0]], np.float32)
    for form in ("float16", "int8"):
        assert np.isnan(rounding_bound(vectors, form)[0, 0])


@pytest.mark.parametrize("form", ["float16", "int8"])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_refused(form: str, number: float) -> None:
    vectors = np.array([[1.0], [number], [number]], np.float32)
    with pytest.raises(ValueError, match="2 of 3 vectors hold NaN or infinity, the first in row 1"):
        round_trip(vectors, form)


@pytest.mark.parametrize("form", ["float16", "int8"])
def test_only_a_number_beyond_the_largest_is_refused(form: str) -> None:
    largest = np.float32(_LARGEST[form])
    assert np.isfinite(round_trip(np.array([[-largest]]), form)).all()
    with pytest.raises(ValueError, match=rf"a number beyond .*; {form} takes finite numbers"):
        round_trip(np.array([[np.nextafter(-largest, np.float32(-np.inf))]]), form)


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32()), pa.large_list(pa.float32()), pa.list_(pa.float32(), 2)]
)
def test_a_column_keeps_its_type_and_nulls(kind: pa.DataType) -> None:
    column = pa.array([None, [1.0, 0.3], None, [0.5, 0.1], [0.0, 0.0]], kind)
    kept = round_trip_column(pa.chunked_array([column[:2], column[2:]]), "int8")
    assert kept.type == kind
    assert kept.is_valid().to_pylist() == column.is_valid().to_pylist()
    expected = round_trip(np.array(column.drop_null().to_pylist(), np.float32), "int8")
    assert kept.drop_null().to_pylist() == expected.tolist()
    assert round_trip_column(column, FLOAT32) is column
    assert round_trip_column(column[:0], "int8").to_pylist() == []
    assert round_trip_column(column[:1], "int8").to_pylist() == [None]


@given(hnp.arrays(np.float32, _SHAPES))
def test_a_list_column_holds_the_vectors(vectors: np.ndarray) -> None:
    column = list_column(vectors)
    assert len(column) == len(vectors)
    assert column.flatten().to_numpy().tobytes() == vectors.tobytes()


def _view(form: str) -> FeatureView:
    return FeatureView(
        name="v",
        entities=[Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)],
        schema=[
            Field(name="user_id", dtype=Int64),
            Field(name="embedding", dtype=Array(Float32)),
            Field(name="exact", dtype=Array(Float64)),
            Field(name="as_of", dtype=Int64),
        ],
        source=FileSource(path="nowhere.parquet", timestamp_field="event_timestamp"),
        tags={VECTORS_TAG: form},
    )


def test_only_float_lists_of_a_tagged_view_are_compact() -> None:
    assert compact_fields(_view("int8")) == ("int8", frozenset({"embedding"}))
    assert compact_fields(_view(FLOAT32)) == (FLOAT32, frozenset())


def test_a_form_of_a_newer_release_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tagged palate\.vectors='int4', one of .* Update Palate"):
        compact_form(_view("int4"))
