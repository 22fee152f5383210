"""Raw features become finite, standardised inputs, or an error that names the user."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoder.columns import ArrayColumn, RawBatch, ScalarColumn, TextColumn
from encoder.errors import ArtifactError, MalformedInput, SpaceMismatch
from encoder.moments import CategoryCounts, Moments
from encoder.preprocessing import CLIP, MAX_CATEGORIES, Preprocessor
from encoder.schema import Block, ColumnElement, FeatureSchema
from tests.strategies import VERSION, batches, concat, random_batch, schemas, take
from transforms.layout import Modality, RawLayout

SCHEMA = RawLayout(
    (Modality("collaborative", 4, 3),),
    (7, 30),
    context=("country",),
    categories=("gender",),
    numbers=("height", "income"),
    onboarding=True,
).schema(VERSION)


def _column(kind: str) -> str:
    return next(b.column for b in SCHEMA.blocks if b.kind == kind)


def _where(p: Preprocessor, name: str) -> slice:
    block = next(b for b in p.input_slices if b.name == name)
    return slice(block.start, block.stop)


def _mask(p: Preprocessor, name: str) -> int:
    return next(b for b in p.input_slices if b.name == name).mask


@given(st.data())
def test_preprocessing_is_finite_and_total(data: st.DataObject) -> None:
    """Nulls, unseen categories, missing numbers and extremes give finite inputs of one shape."""
    schema = data.draw(schemas())
    p = Preprocessor.fit(schema, [data.draw(batches(schema))])
    batch = data.draw(batches(schema))
    inputs = p.transform(batch)
    assert inputs.shape == (batch.n_rows, p.n_inputs)
    assert inputs.dtype == np.float32
    assert inputs.flags.c_contiguous
    assert np.isfinite(inputs).all()
    for b in p.input_slices:
        assert set(np.unique(inputs[:, b.mask])) <= {0.0, 1.0}
        assert (inputs[inputs[:, b.mask] == 0, b.start : b.stop] == 0).all()


@given(st.data())
def test_a_row_does_not_depend_on_the_others(data: st.DataObject) -> None:
    """Any order and any split of the rows gives the same inputs, bit for bit."""
    schema = data.draw(schemas())
    batch = data.draw(batches(schema, min_rows=2))
    p = Preprocessor.fit(schema, [batch])
    order = np.array(data.draw(st.permutations(range(batch.n_rows))))
    whole = p.transform(batch)
    assert np.array_equal(p.transform(take(batch, order)), whole[order])
    cut = data.draw(st.integers(1, batch.n_rows - 1))
    parts = [p.transform(take(batch, part)) for part in (slice(cut), slice(cut, None))]
    assert np.array_equal(np.concatenate(parts), whole)


def test_fitting_in_parts_equals_fitting_at_once() -> None:
    parts = [random_batch(SCHEMA, n, seed=n) for n in (5, 40, 17)]
    once, _ = Preprocessor.fit(SCHEMA, [concat(parts)]).state()
    streamed, _ = Preprocessor.fit(SCHEMA, parts).state()
    for name, expected in once.items():
        np.testing.assert_allclose(streamed[name], expected, rtol=1e-5, atol=1e-6)


def test_every_block_has_mean_0_and_mean_variance_1_over_the_training_rows() -> None:
    batch = random_batch(SCHEMA, 2000)
    p = Preprocessor.fit(SCHEMA, [batch])
    inputs = p.transform(batch)
    for b in p.input_slices:
        if b.kind != "category":
            values = inputs[inputs[:, b.mask] == 1, b.start : b.stop]
            # 0.05: the clip at 8 deviations cuts the counts' upper tail a little.
            np.testing.assert_allclose(values.mean(axis=0), 0.0, atol=0.05)
            assert values.var(axis=0).mean() == pytest.approx(1.0, abs=0.05)


def test_pooled_vectors_keep_their_direction_only() -> None:
    batch = random_batch(SCHEMA, 100, present=1.0)
    p = Preprocessor.fit(SCHEMA, [batch])
    column = batch.columns[_column("pooled")]
    assert isinstance(column, ArrayColumn)
    for factor in (1e-10, 3.0, 1e25):
        values = (column.values * np.float32(factor)).astype(np.float32)
        longer = replace(
            batch, columns={**batch.columns, _column("pooled"): ArrayColumn(values, column.valid)}
        )
        np.testing.assert_allclose(p.transform(longer), p.transform(batch), rtol=1e-4, atol=1e-5)


def test_histograms_are_compared_by_their_square_roots() -> None:
    schema = FeatureSchema(
        (Block("h", "histogram", "v__h", 0, 2), Block("c", "counts", "v__c", 0, 1)),
        (), ColumnElement("v__c", 0), None, (), "m",
    )  # fmt: skip
    valid = np.ones(2, bool)
    counts = ArrayColumn(np.ones((2, 1), np.float32), valid)
    histogram = ArrayColumn(np.array([[1, 0], [0.36, 0.64]], np.float32), valid)
    batch = RawBatch({"v__h": histogram, "v__c": counts}, 2)
    p = Preprocessor.fit(schema, [batch])
    # roots: (1, 0) and (0.6, 0.8); means (0.8, 0.4); variances 0.04 and 0.16, mean 0.1
    scale = np.sqrt(0.1)
    expected = np.array([[0.2, -0.4], [-0.2, 0.4]]) / scale
    np.testing.assert_allclose(p.transform(batch)[:, :2], expected, rtol=1e-5)


def test_counts_are_log1p_then_standardised_then_clipped() -> None:
    schema = FeatureSchema(
        (Block("c", "counts", "v__c", 0, 1),), (), ColumnElement("v__c", 0), None, (), "m"
    )

    def batch(*values: float) -> RawBatch:
        column = np.array(values, np.float32)[:, None]
        return RawBatch({"v__c": ArrayColumn(column, np.ones(len(values), bool))}, len(values))

    p = Preprocessor.fit(schema, [batch(0.0, np.e - 1), batch(np.e**2 - 1)])
    # log1p: 0, 1, 2; mean 1, variance 2/3
    inputs = p.transform(batch(np.e**2 - 1, 1e30))
    assert inputs[:, 0].tolist() == pytest.approx([1 / np.sqrt(2 / 3), CLIP], rel=1e-5)


def test_a_missing_number_is_the_mean_and_a_row_without_numbers_is_absent() -> None:
    batch = random_batch(SCHEMA, 50, present=1.0)
    values = batch.columns[_column("numbers")].values
    values[0] = [np.nan, 1.0]
    values[1] = np.nan
    p = Preprocessor.fit(SCHEMA, [batch])
    inputs = p.transform(batch)
    numbers, mask = _where(p, "numbers"), _mask(p, "numbers")
    assert inputs[0, numbers][0] == 0.0
    assert inputs[0, numbers][1] != 0.0
    assert inputs[:3, mask].tolist() == [1.0, 0.0, 1.0]


def test_zero_vectors_zero_histograms_and_empty_strings_are_absent() -> None:
    batch = random_batch(SCHEMA, 50, present=1.0)
    for kind, fill in (("pooled", 0.0), ("histogram", 0.0), ("category", "")):
        batch.columns[_column(kind)].values[0] = fill
    p = Preprocessor.fit(SCHEMA, [batch])
    inputs = p.transform(batch)
    for b in SCHEMA.blocks:
        if b.column in (_column("pooled"), _column("histogram"), _column("category")):
            assert inputs[0, _mask(p, b.name)] == 0.0


def test_an_unseen_category_takes_the_last_input() -> None:
    batch = random_batch(SCHEMA, 50, present=1.0)
    p = Preprocessor.fit(SCHEMA, [batch])
    batch.columns[_column("category")].values[0] = "never seen"
    values = p.transform(batch)[0, _where(p, "context_country")]
    assert values.tolist() == [0.0] * (len(values) - 1) + [1.0]


def test_only_the_most_frequent_categories_have_an_input() -> None:
    counts = CategoryCounts()
    counts.update([f"{k:04d}" for k in range(MAX_CATEGORIES + 50)])
    counts.update(["0300", "0300", ""])
    known = counts.most_frequent(MAX_CATEGORIES)
    assert known[:3] == ("0300", "0000", "0001")
    assert len(known) == MAX_CATEGORIES


def test_counting_a_column_of_ids_keeps_the_frequent_ones_in_bounded_memory() -> None:
    counts = CategoryCounts()
    for part in range(4):
        counts.update([f"id-{part}-{k}" for k in range(40_000)] + ["common"] * 10)
    assert counts.most_frequent(1) == ("common",)
    assert len(counts.most_frequent(1 << 20)) <= 1 << 16


def test_the_entropy_of_a_category_is_over_known_strings_and_the_rest() -> None:
    counts = CategoryCounts()
    counts.update(["a", "a", "b", "c"])
    # one known string: shares 1/2 and 1/2 -> ln 2; all known: 1/2, 1/4, 1/4 -> 1.5 ln 2
    assert counts.entropy(1) == pytest.approx(np.log(2))
    assert counts.entropy(9) == pytest.approx(1.5 * np.log(2))


def test_moments_of_parts_are_those_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(5.0, 3.0, (300, 4)).astype(np.float32)
    values[rng.random(values.shape) < 0.2] = np.nan
    moments = Moments(4)
    for part in (values[:1], values[1:120], values[120:]):
        moments.update(part)
    np.testing.assert_allclose(moments.mean, np.nanmean(values, axis=0), rtol=1e-5)
    np.testing.assert_allclose(moments.deviation(), np.nanstd(values, axis=0), rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "value", "what"),
    [
        ("pooled", np.nan, "not finite"),
        ("pooled", np.inf, "not finite"),
        ("histogram", np.nan, "not finite"),
        ("histogram", -0.1, "negative"),
        ("counts", -1.0, "negative"),
        ("counts", np.inf, "not finite"),
        ("numbers", -np.inf, "infinite"),
    ],
)
def test_malformed_values_name_row_user_and_column(kind: str, value: float, what: str) -> None:
    p = Preprocessor.fit(SCHEMA, [random_batch(SCHEMA, 20)])
    batch = random_batch(SCHEMA, 20, present=1.0)
    batch.columns[_column(kind)].values[3, 0] = value
    with pytest.raises(MalformedInput, match=rf"Row 3 \(user-3\), .*{what}.* expected") as caught:
        p.transform(batch)
    fault = caught.value
    assert (fault.column, fault.row, fault.user) == (_column(kind), 3, "user-3")
    with pytest.raises(MalformedInput, match=what):
        Preprocessor.fit(SCHEMA, [batch])


def test_another_width_a_missing_column_and_another_type_are_refused() -> None:
    batch = random_batch(SCHEMA, 4)
    p = Preprocessor.fit(SCHEMA, [batch])
    name = _column("pooled")
    narrow = ArrayColumn(np.zeros((4, 7), np.float32), np.ones(4, bool))
    text = TextColumn(np.full((4, 8), "", object), np.ones(4, bool))
    for column, message in (
        (narrow, r"shape \(4, 7\) given, \(4, 8\) expected"),
        (text, "is a TextColumn, ArrayColumn is expected"),
    ):
        with pytest.raises(MalformedInput, match=message):
            p.transform(replace(batch, columns={**batch.columns, name: column}))
    lacking = {k: v for k, v in batch.columns.items() if k != name}
    with pytest.raises(MalformedInput, match=f"'{name}' is missing"):
        p.transform(replace(batch, columns=lacking))


def test_vectors_of_other_modality_encoders_are_refused() -> None:
    batch = random_batch(SCHEMA, 4, present=1.0)
    p = Preprocessor.fit(SCHEMA, [batch])
    name = SCHEMA.modality_columns[0]
    column = batch.columns[name]
    column.values[2] = "fedcba987654"
    with pytest.raises(SpaceMismatch, match=rf"\(user-2\).*'fedcba987654'.*'{VERSION}'"):
        p.transform(batch)
    column.valid[2] = False
    p.transform(batch)


def test_fitting_on_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="No training row"):
        Preprocessor.fit(SCHEMA, [])


def test_summary_tells_age_events_and_status() -> None:
    batch = random_batch(SCHEMA, 4, present=1.0)
    count, picks = SCHEMA.event_count, SCHEMA.onboarding_count
    assert picks is not None
    batch.columns[count.column].values[:, count.offset] = [5, 0, 0, 3]
    batch.columns[picks.column].values[:, picks.offset] = [2, 2, 0, 2]
    batch.columns[count.column].valid[3] = False
    for k, name in enumerate(SCHEMA.as_of_columns):
        times = np.array([10 + k, 20 - k, 0, 7], np.int64)
        batch = replace(
            batch,
            columns={
                **batch.columns,
                name: ScalarColumn(times, np.array([True, True, False, k == 0])),
            },
        )
    as_of, n_events, status = Preprocessor.fit(SCHEMA, [batch]).summary(batch)
    assert as_of.tolist() == [12, 20, 0, 7]
    assert n_events.tolist() == [5, 0, 0, 0]
    assert status.tolist() == ["warm", "onboarded", "cold", "onboarded"]
    assert as_of.dtype == n_events.dtype == np.int64


@given(st.data())
def test_the_state_gives_the_same_inputs_back(data: st.DataObject) -> None:
    schema = data.draw(schemas())
    batch = data.draw(batches(schema))
    p = Preprocessor.fit(schema, [batch])
    arrays, config = p.state()
    again = Preprocessor.from_state(schema, arrays, json.loads(json.dumps(config)))
    assert np.array_equal(again.transform(batch), p.transform(batch))
    assert again.input_slices == p.input_slices


def test_a_state_that_does_not_fit_is_refused() -> None:
    arrays, config = Preprocessor.fit(SCHEMA, [random_batch(SCHEMA, 9)]).state()
    with pytest.raises(ArtifactError, match="extra, mean, scale given, mean, scale expected"):
        Preprocessor.from_state(SCHEMA, {**arrays, "extra": arrays["mean"]}, config)
    with pytest.raises(ArtifactError, match="does not fit the schema"):
        Preprocessor.from_state(SCHEMA, {**arrays, "mean": arrays["mean"][1:]}, config)
