from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import sparse, stats

from encoder import resampling
from encoder.resampling import (
    Replicates,
    auc_replicates,
    column_means,
    mean_replicates,
    ratio_replicates,
    resampled_sums,
    user_draws,
)


def _weights(draws: Any) -> Any:
    return np.concatenate(list(draws.weights()), axis=1)


def test_sums_of_a_hand_computed_case() -> None:
    # Users a: rows 0 and 2, b: row 1. All: 1 + 10 + 100 = 111. A resample in which a is drawn
    # w_a times and b w_b times: w_a * (1 + 100) + w_b * 10.
    draws = user_draws(np.array(["a", "b", "a"]), n_resamples=6)
    found = resampled_sums(np.array([[1.0], [10.0], [100.0]]), draws)[:, 0]
    a, b = _weights(draws)
    assert found == pytest.approx([111.0, *(101 * a + 10 * b)])


def test_mean_and_ratio_of_a_hand_computed_case() -> None:
    # Mean over rows 2, 4, 9 (nan is left out): a has 2 and 9, b has 4 and nan.
    draws = user_draws(np.array([7, 8, 7, 8]), n_resamples=50)
    a, b = _weights(draws)
    seen = a + b > 0
    a, b = a[seen], b[seen]
    mean = mean_replicates([2.0, 4.0, 9.0, np.nan], draws)
    assert mean.value == pytest.approx(5.0)
    assert mean.replicates[seen] == pytest.approx((11 * a + 4 * b) / (2 * a + b))
    assert np.isnan(mean.replicates[~seen]).all()
    ratio = ratio_replicates([1, 1, 1, 1], [1, 2, 3, 4], draws)
    assert ratio.value == pytest.approx(4 / 10)
    assert ratio.replicates[seen] == pytest.approx((2 * a + 2 * b) / (4 * a + 6 * b))


def test_columns_are_means_of_their_own_rows() -> None:
    values = np.array([[1.0, np.nan], [3.0, 5.0], [np.nan, 7.0]])
    draws = user_draws(np.arange(3), n_resamples=4)
    together = column_means(values, draws)
    alone = [mean_replicates(values[:, k], draws) for k in range(2)]
    assert [r.value for r in together] == [2.0, 6.0]
    for one, other in zip(together, alone, strict=True):
        assert np.array_equal(one.replicates, other.replicates, equal_nan=True)


def test_sparse_values_are_summed_as_dense_ones() -> None:
    dense = np.random.default_rng(0).poisson(0.3, (40, 7)).astype(float)
    draws = user_draws(np.arange(40) % 13, n_resamples=9)
    found = resampled_sums(sparse.csr_array(dense), draws)
    assert found == pytest.approx(resampled_sums(dense, draws))


def test_auc_of_a_resample_is_the_auc_of_its_rows() -> None:
    rng = np.random.default_rng(1)
    users = rng.integers(0, 12, 60)
    y, s = rng.random(60) < 0.4, rng.integers(0, 9, 60) / 8
    draws = user_draws(users, n_resamples=20)
    found = auc_replicates(y, s, draws)
    for b, weights in enumerate(_weights(draws).T):
        rows = np.repeat(np.arange(60), weights[draws.owner].astype(int))
        assert found.replicates[b] == pytest.approx(resampling.auc(y[rows], s[rows]), abs=1e-12)


def test_weights_are_poisson_and_independent_between_users_and_resamples() -> None:
    weights = _weights(user_draws(np.arange(4000), n_resamples=200))
    counts = np.bincount(weights.astype(int).ravel(), minlength=8)
    expected = stats.poisson(1).pmf(np.arange(8)) * weights.size
    assert counts[:8] == pytest.approx(expected, abs=5 * np.sqrt(expected.max()))
    # Correlations of independent columns of 4,000 users, or of rows of 200 resamples: 1 / sqrt(n).
    between = np.corrcoef(weights.T) - np.eye(200)
    assert np.abs(between).max() < 5.5 / np.sqrt(4000)
    assert np.abs(np.corrcoef(weights[:100]) - np.eye(100)).max() < 5.5 / np.sqrt(200)


def test_weights_of_a_user_do_not_depend_on_the_others() -> None:
    few = user_draws(np.array([5, 17]), n_resamples=30)
    many = user_draws(np.arange(40), n_resamples=30)
    assert np.array_equal(_weights(few)[few.owner], _weights(many)[many.owner[[5, 17]]])


def test_rows_that_are_taken_keep_their_users_draws() -> None:
    values = np.arange(8.0)
    draws = user_draws(np.arange(8) // 2, n_resamples=12)
    mask = np.array([1, 1, 0, 0, 1, 1, 0, 0], bool)
    taken = mean_replicates(values[mask], draws.take(mask))
    alone = mean_replicates(values[mask], user_draws((np.arange(8) // 2)[mask], n_resamples=12))
    assert taken.value == alone.value
    assert np.array_equal(taken.replicates, alone.replicates, equal_nan=True)
    assert draws.take(mask).n_users == 2


@pytest.mark.parametrize("limit", ["_CELLS_PER_CHUNK", "_KEPT_CELLS"])
def test_limits_of_memory_change_no_figure(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).standard_normal(90)
    whole = mean_replicates(values, user_draws(np.arange(90), n_resamples=10))
    monkeypatch.setattr(resampling, limit, 100)
    parts = mean_replicates(values, user_draws(np.arange(90), n_resamples=10))
    assert parts.replicates == pytest.approx(whole.replicates, abs=1e-12)


def test_other_seed_gives_other_resamples_and_the_same_seed_the_same() -> None:
    first, again, other = (_weights(user_draws(np.arange(50), 5, seed)) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    # 400 samples of 60 users, 1 to 5 rows each that share their user's mean; the truth is 0.
    # 95 % intervals: 380 covered on average, standard deviation sqrt(400 * .95 * .05) = 4.4; the
    # percentile interval of 60 users is a little short, and fewer than 360 would be an error.
    rng = np.random.default_rng(3)
    covered = by_row = 0
    for _ in range(400):
        sizes = rng.integers(1, 6, 60)
        users = np.repeat(rng.integers(0, 2**40, 60), sizes)
        values = np.repeat(rng.standard_normal(60), sizes) + 0.3 * rng.standard_normal(sizes.sum())
        found = mean_replicates(values, user_draws(users, n_resamples=300)).interval
        covered += found.low <= 0.0 <= found.high
        rows = mean_replicates(values, user_draws(np.arange(len(values)), 300)).interval
        by_row += rows.low <= 0.0 <= rows.high
    assert 360 <= covered <= 396
    assert by_row < 330  # rows are not independent: resampling them is too sure of itself


def test_standard_error_of_the_mean_is_that_of_theory() -> None:
    values = np.random.default_rng(4).standard_normal(3000)
    found = mean_replicates(values, user_draws(np.arange(3000), n_resamples=2000))
    expected = values.std() / np.sqrt(3000)
    assert found.replicates.std() == pytest.approx(expected, rel=0.06)


def test_paired_difference_is_narrower_than_an_unpaired_one() -> None:
    rng = np.random.default_rng(5)
    user_effect = rng.standard_normal(500)
    one = user_effect + 0.2 * rng.standard_normal(500)
    two = user_effect + 0.2 * rng.standard_normal(500)
    draws, others = user_draws(np.arange(500)), user_draws(np.arange(500), seed=1)
    paired = mean_replicates(one, draws).minus(mean_replicates(two, draws))
    unpaired = mean_replicates(one, draws).minus(mean_replicates(two, others))
    assert paired.value == unpaired.value == pytest.approx(one.mean() - two.mean())
    # Standard errors: sqrt(2) * .2 / sqrt(500) = .013 paired, sqrt(2) * 1.02 / sqrt(500) = .065.
    width = paired.interval.high - paired.interval.low
    assert width < 0.3 * (unpaired.interval.high - unpaired.interval.low)


def test_gain_is_relative_to_the_baseline() -> None:
    mine, theirs = Replicates(0.9, np.array([0.8, 1.0])), Replicates(0.6, np.array([0.5, 0.0]))
    gain = mine.gain_over(theirs)
    assert gain.value == pytest.approx(0.5)  # .9 / .6 - 1
    assert gain.replicates == pytest.approx([0.6, np.nan], nan_ok=True)  # .8 / .5 - 1; nothing / 0


def test_figures_that_are_not_defined_have_no_interval() -> None:
    draws = user_draws(np.arange(3), n_resamples=2)
    nothing = auc_replicates([True, True, True], [1.0, 2.0, 3.0], draws)
    assert nothing.interval.to_dict() == {"value": None, "low": None, "high": None}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: user_draws(np.zeros((2, 2))), r"users of shape \(2, 2\) given"),
        (lambda d: user_draws(np.arange(3), 1), "n_resamples 1 given, at least 2"),
        (lambda d: mean_replicates([1.0], d), r"\(4, n_columns\) expected"),
        (lambda d: auc_replicates([True], [1.0], d), r"draws of \(4,\) rows given"),
        (
            lambda d: auc_replicates([True, False, True, False], [1, 2, 3, np.nan], d),
            "NaN or infinity",
        ),
        (
            lambda d: Replicates(0.0, np.zeros(3)).minus(Replicates(0.0, np.zeros(4))),
            "3 and 4 resamples given",
        ),
    ],
)
def test_bad_arguments_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(user_draws(np.arange(4), n_resamples=3))
