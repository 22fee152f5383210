from __future__ import annotations

import numpy as np
import pytest

from encoder.resampling import user_draws
from materialize.evaluate.calibration import calibration

# Bins of 1/15: .1 and .12 are in bin 1 (.067 to .133), .9 in bin 13, 1.0 in the last, 14.
P = np.array([0.1, 0.12, 0.9, 1.0])
Y = np.array([False, True, True, True])


def test_ece_of_a_hand_computed_case() -> None:
    # Bin 1: |1/2 - .11| of 2/4 pairs; bin 13: |1 - .9| of 1/4; bin 14: |1 - 1| of 1/4.
    found = calibration(Y, P, user_draws(np.arange(4), 5))
    assert found.ece.value == pytest.approx(0.39 / 2 + 0.1 / 4)
    assert found.to_list() == [
        {"share": 0.5, "predicted": pytest.approx(0.11), "observed": 0.5},
        {"share": 0.25, "predicted": pytest.approx(0.9), "observed": 1.0},
        {"share": 0.25, "predicted": 1.0, "observed": 1.0},
    ]
    assert np.isnan(found.observed[0])


def test_probabilities_that_are_right_have_a_small_error_and_those_that_are_not_a_large_one() -> (
    None
):
    rng = np.random.default_rng(0)
    p = rng.random(20_000)
    y = rng.random(20_000) < p
    draws = user_draws(np.arange(20_000) // 20, 100)
    right = calibration(y, p, draws).ece
    assert right.value < 0.02
    assert right.interval.low <= right.value <= right.interval.high
    # p**2 is p - p**2 too small: 1/6 on average.
    assert calibration(y, p**2, draws).ece.value == pytest.approx(1 / 6, abs=0.02)


def test_replicates_are_the_error_of_repeated_pairs() -> None:
    rng = np.random.default_rng(1)
    p, users = rng.random(60), rng.integers(0, 12, 60)
    y = rng.random(60) < 0.5
    draws = user_draws(users, 8)
    found = calibration(y, p, draws).ece
    (weights,) = draws.weights()
    by_hand = []
    for b in range(8):
        times = weights[draws.owner, b].astype(int)
        again = calibration(
            np.repeat(y, times), np.repeat(p, times), user_draws(np.repeat(users, times), 2)
        )
        by_hand.append(again.ece.value)
    shift = found.value - np.mean(by_hand)
    assert found.replicates == pytest.approx(np.array(by_hand) + shift)


def test_numbers_that_are_no_probabilities_are_refused() -> None:
    draws = user_draws(np.arange(2), 5)
    with pytest.raises(ValueError, match=r"1 number\(s\) from 0 to 1 expected, 1.5 given first"):
        calibration(np.array([True, False]), np.array([1.5, 0.5]), draws)
    with pytest.raises(ValueError, match="from 0 to 1 expected, nan given"):
        calibration(np.array([True, False]), np.array([np.nan, 0.5]), draws)
    with pytest.raises(ValueError, match=r"the same \(n_pairs,\) expected"):
        calibration(np.array([True]), np.array([0.5, 0.5]), draws)
