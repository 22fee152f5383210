from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoder.propensity import (
    diversity_of_rows,
    macro_auc_replicates,
    novelty,
    popularity_of_rows,
    weighted_score,
)
from encoder.resampling import auc_replicates, user_draws

LN3 = float(np.log(3.0))  # sigmoid(ln 3) = 3/4, sigmoid(-ln 3) = 1/4, sigmoid(0) = 1/2


def test_diversity_is_the_entropy_over_that_of_equal_probabilities() -> None:
    # 3/4, 1/4 -> -(3/4 log2 3/4 + 1/4 log2 1/4) = 0.75 * 0.415037 + 0.25 * 2 = 0.811278; over
    # log2 2 = 1. And 3/4, 3/4, 1/4, 1/4 -> shares 3/8, 3/8, 1/8, 1/8:
    # 2 * 3/8 * 1.415037 + 2 * 1/8 * 3 = 1.811278; over log2 4 = 2: 0.905639.
    assert diversity_of_rows(np.array([[LN3, -LN3]])) == pytest.approx([0.811278], abs=1e-6)
    four = np.array([[LN3, LN3, -LN3, -LN3], [0.0, 0.0, 0.0, 0.0]])
    assert diversity_of_rows(four) == pytest.approx([0.905639, 1.0], abs=1e-6)


def test_diversity_looks_at_shares_and_not_at_how_likely_anything_is() -> None:
    unlikely = np.full((1, 8), -9.0)
    assert diversity_of_rows(unlikely) == pytest.approx(diversity_of_rows(-unlikely), abs=1e-6)


def test_diversity_of_certainty_is_zero() -> None:
    assert diversity_of_rows(np.array([[50.0, -50.0, -50.0]])) == pytest.approx([0.0], abs=1e-6)


def test_popularity_weights_the_top_predictions_with_their_probability() -> None:
    # Popularities 4, 2, 1; the two most popular sum to 6. Probabilities 3/4, 1/4, 1/2: the top two
    # are the first and the last, (3/4 * 4 + 1/2 * 1) / 6 = 3.5 / 6.
    found = popularity_of_rows(np.array([[LN3, -LN3, 0.0]]), np.array([4, 2, 1]), k=2)
    assert found == pytest.approx([3.5 / 6])


def test_popularity_is_one_where_the_most_popular_are_certain() -> None:
    sure = np.array([[50.0, 50.0, -50.0]])
    assert popularity_of_rows(sure, np.array([4.0, 2.0, 1.0]), k=2) == pytest.approx([1.0])


def test_popularity_takes_all_targets_where_there_are_fewer_than_k() -> None:
    # (1/2 * 3 + 1/2 * 1) / 4 = 1/2
    assert popularity_of_rows(np.zeros((1, 2)), np.array([3, 1]), k=10) == pytest.approx([0.5])


def test_popularity_does_not_depend_on_the_unit_of_the_counts() -> None:
    rng = np.random.default_rng(0)
    logits, counts = rng.standard_normal((5, 30)), rng.integers(0, 90, 30)
    shares = counts / counts.sum()
    assert popularity_of_rows(logits, counts) == pytest.approx(popularity_of_rows(logits, shares))


def test_novelty_is_the_hundredth_power_of_what_is_left_of_popularity() -> None:
    # 0.99 ** 100 = 0.366032
    assert novelty(np.array([0.0, 0.01, 1.0])) == pytest.approx([1.0, 0.366032, 0.0], abs=1e-6)


def test_weighted_score_is_eight_parts_auroc_and_one_part_each_of_the_others() -> None:
    # 0.8 * 0.7 + 0.1 * 0.5 + 0.1 * 0.2 = 0.63
    assert weighted_score(0.7, novelty=0.5, diversity=0.2) == pytest.approx(0.63)


def test_macro_auc_leaves_out_a_target_with_one_class() -> None:
    # Target 0: positive 0.9 above 0.1 and 0.5: AUC 1. Target 1: positives 0.2, 0.6 and negative
    # 0.4: one of two pairs in order: 1/2. Target 2 has no positive. Mean 3/4.
    y = np.array([[True, True, False], [False, False, False], [False, True, False]])
    scores = np.array([[0.9, 0.2, 0.3], [0.1, 0.4, 0.1], [0.5, 0.6, 0.2]])
    found = macro_auc_replicates(y, scores, user_draws(np.arange(3), 20))
    assert found.value == pytest.approx(0.75)


def test_macro_auc_without_any_target_of_two_classes_is_nan() -> None:
    found = macro_auc_replicates(np.ones((4, 2), bool), np.zeros((4, 2)), user_draws(np.arange(4)))
    assert np.isnan(found.value)
    assert np.isnan(found.replicates).all()


@given(st.integers(0, 10_000), st.integers(1, 6), st.sampled_from([2, 5, 1000]))
def test_each_resample_has_the_weighted_auc_of_its_users(
    seed: int, n_targets: int, n_values: int
) -> None:
    # Against the definition: the weight of pairs in the right order, ties half, over all pairs.
    rng = np.random.default_rng(seed)
    users = rng.integers(0, 12, 30)
    y = rng.random((30, n_targets)) < 0.3
    scores = rng.integers(0, n_values, (30, n_targets)).astype(np.float32)
    draws = user_draws(users, 8)
    found = macro_auc_replicates(y, scores, draws)
    weights = np.concatenate(list(draws.weights()), axis=1)[draws.owner]
    for b in range(8):
        each = []
        for t in range(n_targets):
            positive, negative = y[:, t], ~y[:, t]
            pair = np.outer(weights[positive, b], weights[negative, b])
            above = np.subtract.outer(scores[positive, t], scores[negative, t])
            if pair.sum() > 0:
                each.append((pair * ((above > 0) + (above == 0) / 2)).sum() / pair.sum())
        assert found.replicates[b] == pytest.approx(np.mean(each) if each else np.nan, nan_ok=True)


def test_one_target_has_the_replicates_of_the_flat_auc() -> None:
    rng = np.random.default_rng(3)
    y, scores = rng.random(400) < 0.2, rng.standard_normal(400)
    draws = user_draws(np.arange(400), 50)
    macro = macro_auc_replicates(y[:, None], scores[:, None], draws)
    flat = auc_replicates(y, scores, draws)
    assert macro.value == pytest.approx(flat.value)
    assert macro.replicates == pytest.approx(flat.replicates)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: diversity_of_rows(np.zeros((2, 1))), "One target"),
        (lambda: diversity_of_rows(np.zeros(3)), r"shape \(3,\)"),
        (lambda: diversity_of_rows(np.full((1, 2), np.nan)), "finite"),
        (lambda: popularity_of_rows(np.zeros((1, 3)), np.ones(2)), r"shape \(2,\)"),
        (lambda: popularity_of_rows(np.zeros((1, 2)), np.zeros(2)), "all 0"),
        (lambda: popularity_of_rows(np.zeros((1, 2)), np.array([2, -1])), "below 0"),
        (lambda: popularity_of_rows(np.zeros((1, 2)), np.ones(2), k=0), "k 0"),
        (
            lambda: macro_auc_replicates(
                np.ones((2, 1), bool), np.ones((3, 1)), user_draws(np.arange(2))
            ),
            r"y \(2, 1\), scores \(3, 1\)",
        ),
        (
            lambda: macro_auc_replicates(
                np.ones((2, 1), bool), np.full((2, 1), np.inf), user_draws(np.arange(2))
            ),
            "infinity",
        ),
    ],
)
def test_bad_input_is_refused_with_what_was_given(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
