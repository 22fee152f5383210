from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import roc_auc_score

from encoder import resampling
from encoder.metrics import (
    auc_by_group,
    auc_macro,
    auc_micro,
    auc_per_target,
    best_threshold,
    bootstrap_auc,
)
from encoder.resampling import auc, user_draws

# Rows a..d, targets 0 and 1.
Y = np.array([[1, 0], [0, 0], [1, 1], [0, 1]], bool)
S = np.array([[0.9, 0.1], [0.9, 0.3], [0.8, 0.2], [0.1, 0.4]])
# Target 0: positives .9 .8, negatives .9 .1. Pairs: .9/.9 tie .5, .9/.1 1, .8/.9 0, .8/.1 1: 2.5/4.
# Target 1: positives .2 .4, negatives .1 .3. Pairs: 1, 0, 1, 1: 3/4.
# All: positives .9 .8 .2 .4, negatives .9 .1 .1 .3.
#   .9: .5+1+1+1 = 3.5; .8: 0+1+1+1 = 3; .2: 0+1+1+0 = 2; .4: 0+1+1+1 = 3; sum 11.5/16.


def test_auc_of_a_hand_computed_case() -> None:
    assert auc_per_target(Y, S) == pytest.approx([0.625, 0.75])
    assert auc_macro(Y, S) == pytest.approx(0.6875)
    assert auc_micro(Y, S) == pytest.approx(11.5 / 16)


def test_target_with_one_class_is_left_out_of_macro() -> None:
    y = np.column_stack([Y, np.ones(4, bool)])
    s = np.column_stack([S, np.arange(4.0)])
    assert np.isnan(auc_per_target(y, s)[2])
    assert auc_macro(y, s) == pytest.approx(0.6875)


def test_no_pair_to_order_gives_nan() -> None:
    assert np.isnan(auc_micro(np.ones((3, 2), bool), np.zeros((3, 2))))
    assert np.isnan(auc_macro(np.ones((3, 2), bool), np.zeros((3, 2))))


@given(
    arrays(bool, st.tuples(st.integers(2, 30), st.integers(1, 4))), st.integers(0, 2**32), st.data()
)
def test_auc_equals_scikit_learn_with_ties(y: Any, seed: int, data: st.DataObject) -> None:
    s = np.random.default_rng(seed).integers(0, data.draw(st.integers(1, 8)), y.shape) / 4
    if y.any() and not y.all():
        assert auc_micro(y, s) == pytest.approx(roc_auc_score(y.ravel(), s.ravel()), abs=1e-12)


def test_auc_inside_groups_of_a_hand_computed_case() -> None:
    # Group 0: positives .9 .2, negatives .9 .1: .5 + 1 + 0 + 1 = 2.5 of 4. Group 1: no negative.
    # Group 2: positive .3, negatives .3 .3 .1: .5 + .5 + 1 = 2 of 3. Group 3: no pair at all.
    group = np.array([2, 0, 1, 0, 2, 0, 2, 0, 2])
    y = np.array([1, 1, 1, 0, 0, 1, 0, 0, 0], bool)
    s = np.array([0.3, 0.9, 0.5, 0.9, 0.3, 0.2, 0.3, 0.1, 0.1])
    found = auc_by_group(y, s, group, 4)
    assert found == pytest.approx([2.5 / 4, np.nan, 2 / 3, np.nan], nan_ok=True)


@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(1, 6))
def test_auc_inside_groups_equals_the_auc_of_each_group(seed: int, n: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    y, group = rng.random(n) < 0.4, rng.integers(0, 5, n)
    s = rng.integers(0, levels, n) / 4
    expected = [auc(y[group == g], s[group == g]) for g in range(5)]
    assert auc_by_group(y, s, group, 5) == pytest.approx(expected, nan_ok=True, abs=1e-12)


def test_threshold_of_a_hand_computed_case_weighs_both_classes_the_same() -> None:
    # Scores .1n .2n .3p .4n .5p .6n .7n .8n: shares right below and above each edge:
    # .25 (between .2n and .3p): 2/6 of the negatives + 2/2 of the positives = 8/6: the most;
    # .45 (between .4n and .5p): 3/6 + 1/2 = 6/6; -inf: 0 + 1; inf: 1 + 0.
    y = np.array([0, 0, 1, 0, 1, 0, 0, 0], bool)
    assert best_threshold(y, np.arange(1, 9) / 10) == pytest.approx(0.25)


def test_no_threshold_parts_equal_scores() -> None:
    # Between the two .5 nothing can be told: all yes and none yes are both half right.
    assert best_threshold([False, True], [0.5, 0.5]) == -np.inf
    with pytest.raises(ValueError, match="2 pairs of one class"):
        best_threshold([True, True], [0.5, 0.6])


def _by_repeating_rows(
    y: Any, s: Any, users: Any, n_resamples: int, seed: int
) -> tuple[list[float], list[float]]:
    """Build each resample row by row, each user as often as it is drawn, and take its AUC."""
    draws = user_draws(users, n_resamples, seed)
    micro, macro = [], []
    for weights in np.concatenate(list(draws.weights()), axis=1).T:
        rows = np.repeat(np.arange(len(users)), weights[draws.owner].astype(int))
        micro.append(auc_micro(y[rows], s[rows]))
        macro.append(auc_macro(y[rows], s[rows]))
    return micro, macro


def _planted(n: int, rng: np.random.Generator, levels: int | None = None) -> tuple[Any, Any, Any]:
    z = rng.standard_normal((n, 3))
    y = z + rng.logistic(size=z.shape) > 0.5
    s = z if levels is None else np.round(z * levels) / levels
    return y, s, rng.integers(0, max(2, n // 2), n)


@pytest.mark.parametrize("levels", [None, 2])
def test_resamples_repeat_whole_users(levels: int | None) -> None:
    y, s, users = _planted(40, np.random.default_rng(1), levels)
    found = bootstrap_auc(y, s, users, n_resamples=25, seed=7)
    micro, macro = _by_repeating_rows(y, s, users, 25, 7)
    assert found.micro_replicates == pytest.approx(micro, abs=1e-12)
    assert found.macro_replicates == pytest.approx(macro, abs=1e-12)


def test_target_that_loses_a_class_is_left_out_of_that_resample() -> None:
    y = np.zeros((12, 2), bool)
    y[0, 0] = True  # user 0 is drawn in about 63% of the resamples
    y[::2, 1] = True
    s = np.random.default_rng(2).standard_normal((12, 2))
    found = bootstrap_auc(y, s, np.arange(12), n_resamples=40, seed=0)
    _, macro = _by_repeating_rows(y, s, np.arange(12), 40, 0)
    assert found.macro_replicates == pytest.approx(macro, abs=1e-12)


def test_binned_replicates_stay_within_the_stated_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    y, s, users = _planted(1000, np.random.default_rng(4))
    exact = bootstrap_auc(y, s, users, n_resamples=8, seed=1)
    monkeypatch.setattr(resampling, "_BINS", 64)
    binned = bootstrap_auc(y, s, users, n_resamples=8, seed=1)
    bound = 1 / (2 * 64 * (1 - y.mean(axis=0).max()))
    assert 0 < np.abs(binned.macro_replicates - exact.macro_replicates).max() < bound
    assert binned.macro == exact.macro


def test_interval_agrees_with_the_formula_of_hanley_and_mcneil() -> None:
    rng = np.random.default_rng(5)
    n = 2000
    y = rng.random((n, 1)) < 0.3
    s = rng.exponential(np.where(y, 2.0, 1.0))  # their formula is for exponential scores
    found = bootstrap_auc(y, s, np.arange(n), n_resamples=1000, seed=0).micro_interval
    # SE^2 = [A(1-A) + (P-1)(A/(2-A) - A^2) + (N-1)(2A^2/(1+A) - A^2)] / (P N)
    a, p = found.value, int(y.sum())
    q1, q2 = a / (2 - a) - a * a, 2 * a * a / (1 + a) - a * a
    se = np.sqrt((a * (1 - a) + (p - 1) * q1 + (n - p - 1) * q2) / (p * (n - p)))
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(se, rel=0.12)
    assert found.low < a < found.high


def test_interval_widens_when_rows_are_repeated_within_users() -> None:
    y, s, _ = _planted(200, np.random.default_rng(6))
    once = bootstrap_auc(y, s, np.arange(200), n_resamples=300, seed=0).micro_interval
    copies = np.tile(y, (4, 1)), np.tile(s, (4, 1))
    by_user = bootstrap_auc(*copies, np.tile(np.arange(200), 4), n_resamples=300, seed=0)
    by_row = bootstrap_auc(*copies, np.arange(800), n_resamples=300, seed=0).micro_interval
    # Copies of a user's rows carry no information: resampling users must not be fooled by them.
    assert by_user.micro_interval == once
    assert by_row.high - by_row.low < 0.6 * (once.high - once.low)


def test_paired_difference_is_narrower_than_either_model() -> None:
    rng = np.random.default_rng(7)
    y, s, users = _planted(400, rng)
    a = bootstrap_auc(y, s, users, n_resamples=200, seed=3)
    b = bootstrap_auc(y, s + 0.1 * rng.standard_normal(s.shape), users, n_resamples=200, seed=3)
    difference = a.minus(b)
    assert difference.micro == a.micro - b.micro
    width = difference.micro_interval.high - difference.micro_interval.low
    assert width < 0.5 * (a.micro_interval.high - a.micro_interval.low)
    same = a.minus(a).macro_interval
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_same_seed_gives_the_same_resamples() -> None:
    y, s, users = _planted(50, np.random.default_rng(8))
    runs = [bootstrap_auc(y, s, users, n_resamples=5, seed=k).micro_replicates for k in (0, 0, 1)]
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def test_undefined_figures_are_null_in_json() -> None:
    found = bootstrap_auc(np.ones((3, 1), bool), np.zeros((3, 1)), np.arange(3), n_resamples=2)
    assert found.micro_interval.to_dict() == {"value": None, "low": None, "high": None}


@pytest.mark.parametrize(
    ("y", "s", "users", "n", "message"),
    [
        (Y, S[:, :1], np.arange(4), 5, r"y of shape \(4, 2\) and scores of shape \(4, 1\)"),
        (Y, S, np.arange(3), 5, r"users of shape \(3,\) given, \(4,\) expected"),
        (Y, np.where(Y, np.nan, S), np.arange(4), 5, "NaN or infinity"),
        (Y, S, np.arange(4), 1, "n_resamples 1 given, at least 2"),
    ],
)
def test_bad_arguments_are_refused(y: Any, s: Any, users: Any, n: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_auc(y, s, users, n_resamples=n)


def test_replicates_of_different_number_have_no_paired_difference() -> None:
    a, b = (bootstrap_auc(Y, S, np.arange(4), n_resamples=n) for n in (3, 4))
    with pytest.raises(ValueError, match="3 and 4 resamples given"):
        a.minus(b)
