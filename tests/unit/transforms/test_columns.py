"""Feast's Python columns give the same batch as Arrow's, or an error that names the user."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoder.columns import RawBatch, batch_from_arrow
from encoder.errors import MalformedInput
from encoder.schema import FeatureSchema
from tests.encoders import SCHEMA
from tests.strategies import VERSION, batches, random_batch, schemas, to_table
from transforms.columns import batch_from_feast
from transforms.layout import ACTIVITY, PROFILE, Modality, RawLayout, column

POOLED, GENDER = column(ACTIVITY, "pooled"), column(PROFILE, "categories")


def _assert_equal(got: RawBatch, expected: RawBatch) -> None:
    assert (got.n_rows, got.users) == (expected.n_rows, expected.users)
    assert set(got.columns) == set(expected.columns)
    for name, want in expected.columns.items():
        have = got.columns[name]
        assert type(have) is type(want)
        assert have.values.dtype == want.values.dtype
        np.testing.assert_array_equal(have.valid, want.valid)
        np.testing.assert_array_equal(have.values, want.values)


def _both(schema: FeatureSchema, batch: RawBatch) -> tuple[RawBatch, RawBatch]:
    table = to_table(batch)
    scalars = (*schema.as_of_columns, *schema.modality_columns)
    arrow = batch_from_arrow(
        table, schema.array_columns, schema.text_columns, scalars, user_column="user_id"
    )
    return batch_from_feast(table.to_pydict(), schema), arrow


@given(st.data())
def test_the_batch_equals_the_one_from_arrow(data: st.DataObject) -> None:
    """The same data through Feast's columns and through Arrow give bit-equal batches."""
    schema = data.draw(schemas())
    _assert_equal(*_both(schema, data.draw(batches(schema))))


def test_no_row_gives_an_empty_batch() -> None:
    _assert_equal(*_both(SCHEMA, random_batch(SCHEMA, 0)))


def _inputs(n: int = 3) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = to_table(random_batch(SCHEMA, n, present=1.1)).to_pydict()
    return found


def test_a_null_string_is_a_missing_one() -> None:
    inputs = _inputs()
    inputs[GENDER][1] = [None]
    assert batch_from_feast(inputs, SCHEMA).columns[GENDER].values[1].tolist() == [""]


def test_columns_of_others_are_ignored_and_users_need_not_be_named() -> None:
    inputs = _inputs() | {"other__field": [object()] * 3}
    del inputs["user_id"]
    batch = batch_from_feast(inputs, SCHEMA)
    assert batch.users == ()
    assert set(batch.columns) == set(SCHEMA.columns)


@pytest.mark.parametrize("name", [POOLED, GENDER])
@pytest.mark.parametrize(
    ("value", "given"), [([], "0 values were"), (["a"] * 9, "9 values were"), (3.5, "3.5 was")]
)
def test_another_width_names_user_column_and_expectation(name: str, value: Any, given: str) -> None:
    inputs = _inputs()
    inputs[name][0] = None  # the row that is named is the input's, not that of the present ones
    inputs[name][2] = value
    width = (SCHEMA.array_columns | SCHEMA.text_columns)[name]
    message = f"User user-2, column '{name}': {given} given, an array of {width} is expected"
    with pytest.raises(MalformedInput, match=message) as caught:
        batch_from_feast(inputs, SCHEMA)
    assert (caught.value.user, caught.value.row, caught.value.column) == ("user-2", 2, name)


@pytest.mark.parametrize("name", [POOLED, GENDER])
def test_a_string_is_no_array_of_its_letters(name: str) -> None:
    inputs = _inputs()
    width = (SCHEMA.array_columns | SCHEMA.text_columns)[name]
    inputs[name][1] = "1" * width
    with pytest.raises(MalformedInput, match=f"{'1' * width}' was given, an array of {width}"):
        batch_from_feast(inputs, SCHEMA)


@pytest.mark.parametrize("value", ["x", "1.5", [1.0], 10**400, b"1"])
def test_an_element_that_is_no_number_is_shown(value: Any) -> None:
    inputs = _inputs()
    inputs[POOLED][1][2] = value
    with pytest.raises(MalformedInput, match="number is expected") as caught:
        batch_from_feast(inputs, SCHEMA)
    assert repr(value)[:70] in str(caught.value)
    assert (caught.value.user, caught.value.column) == ("user-1", POOLED)


def test_a_null_element_is_nan_as_from_arrow() -> None:
    inputs = _inputs()
    inputs[POOLED][1][2] = None
    values = batch_from_feast(inputs, SCHEMA).columns[POOLED].values
    assert np.isnan(values[1]).tolist() == [False, False, True, False]
    table = pa.table({POOLED: pa.array(inputs[POOLED], pa.list_(pa.float32()))})
    arrow = batch_from_arrow(table, {POOLED: 4}, {}, []).columns[POOLED].values
    np.testing.assert_array_equal(values, arrow)


def test_without_user_ids_the_row_is_named() -> None:
    inputs = _inputs()
    del inputs["user_id"]
    inputs[POOLED][1] = [1.0]
    with pytest.raises(MalformedInput, match=f"Row 1, column '{POOLED}': 1 values"):
        batch_from_feast(inputs, SCHEMA)


@pytest.mark.parametrize("name", SCHEMA.columns)
def test_a_missing_column_is_named(name: str) -> None:
    inputs = _inputs()
    del inputs[name]
    with pytest.raises(MalformedInput, match=f"Column.s. '{name}' are not among") as caught:
        batch_from_feast(inputs, SCHEMA)
    assert caught.value.column == name


AS_OF, MODALITY = column(ACTIVITY, "as_of"), column(ACTIVITY, "modality")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (AS_OF, "2026", "a whole number of 64 bits"),
        (AS_OF, 1.5, "a whole number of 64 bits"),
        (AS_OF, True, "a whole number of 64 bits"),
        (AS_OF, 2**63, "a whole number of 64 bits"),
        (AS_OF, [1], "a whole number of 64 bits"),
        (MODALITY, 7, "a string"),
        (MODALITY, ["a"], "a string"),
        (GENDER, [3], "a string"),
        (GENDER, [["f"]], "a string"),
    ],
)
def test_a_value_of_another_type_is_named(name: str, value: Any, expected: str) -> None:
    inputs = _inputs()
    inputs[name][1] = value
    with pytest.raises(MalformedInput, match=f"given, {expected} is expected") as caught:
        batch_from_feast(inputs, SCHEMA)
    assert (caught.value.user, caught.value.row, caught.value.column) == ("user-1", 1, name)


def test_whole_numbers_of_numpy_are_taken() -> None:
    inputs = _inputs()
    inputs[AS_OF][1] = np.int64(2**62)
    assert batch_from_feast(inputs, SCHEMA).columns[AS_OF].values[1] == 2**62


@pytest.mark.parametrize("name", [POOLED, GENDER, AS_OF, "user_id"])
def test_a_column_of_another_length_or_of_no_rows_is_named(name: str) -> None:
    inputs: dict[str, Any] = _inputs()
    inputs[name] = inputs[name][:2]
    with pytest.raises(MalformedInput, match=r"[23] rows were given"):
        batch_from_feast(inputs, SCHEMA)
    inputs[name] = 3.5
    with pytest.raises(MalformedInput, match=f"Column '{name}': 3.5 was given, a list") as caught:
        batch_from_feast(inputs, SCHEMA)
    assert caught.value.column == name


def test_rows_that_do_not_fit_are_told_and_null_everywhere() -> None:
    inputs = _inputs()
    inputs[POOLED][0] = [1.0]
    inputs[GENDER][2] = 5
    inputs[AS_OF][2] = "later"
    errors: dict[int, Any] = {}
    batch = batch_from_feast(inputs, SCHEMA, errors)
    assert {row: (e.user, e.column) for row, e in errors.items()} == {
        0: ("user-0", POOLED),
        2: ("user-2", GENDER),
    }
    for found in batch.columns.values():
        assert found.valid.tolist() == [False, True, False]
        assert not any(found.values[0].tolist() if found.values.ndim > 1 else [found.values[0]])


CONTEXT = column(ACTIVITY, "context")
WITH_CONTEXT = RawLayout(
    (Modality("collaborative", 4, 3),), (7,), context=("country", "device")
).schema(VERSION)


def test_what_the_request_knows_replaces_what_is_stored() -> None:
    inputs = to_table(random_batch(WITH_CONTEXT, 4, present=1.1)).to_pydict()
    inputs[CONTEXT] = [["es", "tv"], ["es", "tv"], None, None]
    inputs["device"] = ["phone", None, "phone", ""]
    errors: dict[int, Any] = {}
    batch = batch_from_feast(inputs, WITH_CONTEXT, errors, ["device"])
    found = batch.columns[CONTEXT]
    assert found.values.tolist() == [["es", "phone"], ["es", "tv"], ["", "phone"], ["", ""]]
    assert found.valid.tolist() == [True, True, True, False]
    assert errors == {}


@pytest.mark.parametrize("value", [3, ["phone"], b"phone", True])
def test_request_context_of_another_type_names_user_and_column(value: Any) -> None:
    inputs = to_table(random_batch(WITH_CONTEXT, 3, present=1.1)).to_pydict()
    inputs["device"] = [None, value, None]
    message = "User user-1, column 'device': .* given, a string is expected. Correct the entity"
    with pytest.raises(MalformedInput, match=message):
        batch_from_feast(inputs, WITH_CONTEXT, request_context=["device"])


def test_request_context_that_is_not_given_or_not_known_is_named() -> None:
    inputs = to_table(random_batch(WITH_CONTEXT, 3)).to_pydict()
    with pytest.raises(MalformedInput, match="'device' are not among the inputs"):
        batch_from_feast(inputs, WITH_CONTEXT, request_context=["device"])
    inputs["hour"] = ["8", "9", "10"]
    with pytest.raises(MalformedInput, match="no block 'context_hour'"):
        batch_from_feast(inputs, WITH_CONTEXT, request_context=["hour"])
