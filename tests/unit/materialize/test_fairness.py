from __future__ import annotations

import numpy as np
import pytest

from encoder.resampling import user_draws
from materialize.evaluate.fairness import gap_by_lot, group_gaps, large_groups

GROUPS = np.array(["a", "a", "b", "b", "b", "c"], object)
VALUES = np.array([0.2, 0.4, 0.5, 0.6, 0.7, 0.1])


def test_gap_of_a_hand_computed_case() -> None:
    # Means .3, .6 and .1.
    found = group_gaps(VALUES, GROUPS, user_draws(np.arange(6), 20))
    by_group = {name: figure.value for name, figure in found.by_group.items()}
    assert by_group == {"a": pytest.approx(0.3), "b": pytest.approx(0.6), "c": pytest.approx(0.1)}
    assert found.gap.value == pytest.approx(0.5)
    assert found.least.value == pytest.approx(0.1)


def test_replicates_are_the_gap_of_repeated_users() -> None:
    rng = np.random.default_rng(0)
    values, groups = rng.random(90), np.array(["x", "y", "z"])[rng.integers(0, 3, 90)]
    draws = user_draws(np.arange(90), 6)
    found = group_gaps(values, groups, draws)
    (weights,) = draws.weights()
    gaps, least = [], []
    for b in range(6):
        times = weights[draws.owner, b].astype(int)
        v, g = np.repeat(values, times), np.repeat(groups, times)
        means = [v[g == name].mean() for name in "xyz"]
        gaps.append(max(means) - min(means))
        least.append(min(means))
    assert found.gap.replicates == pytest.approx(np.array(gaps) + found.gap.value - np.mean(gaps))
    assert found.least.replicates == pytest.approx(
        np.array(least) + found.least.value - np.mean(least)
    )


def test_groups_that_differ_by_nothing_have_the_gap_of_chance() -> None:
    rng = np.random.default_rng(1)
    values, groups = rng.random(600), np.array(list("abcdef"))[rng.integers(0, 6, 600)]
    draws = user_draws(np.arange(600), 200)
    found, chance = group_gaps(values, groups, draws), gap_by_lot(values, groups, draws, seed=0)
    difference = found.gap.minus(chance).interval
    assert found.gap.value > 0.02  # and yet nobody is worse off
    assert difference.low < 0 < difference.high


def test_a_planted_gap_lies_above_chance() -> None:
    rng = np.random.default_rng(2)
    groups = np.array(list("ab"))[rng.integers(0, 2, 400)]
    values = rng.random(400) + 0.3 * (groups == "b")
    draws = user_draws(np.arange(400), 200)
    found, chance = group_gaps(values, groups, draws), gap_by_lot(values, groups, draws, seed=0)
    assert found.gap.value == pytest.approx(0.3, abs=0.08)
    assert found.gap.minus(chance).interval.low > 0.1


def test_small_and_unknown_groups_are_left_out() -> None:
    groups = np.array(["big"] * 30 + ["small"] * 29 + [""] * 50, object)
    assert large_groups(groups).tolist() == [True] * 30 + [False] * 79


def test_one_group_has_no_gap() -> None:
    with pytest.raises(ValueError, match=r"Groups \['a'\] given, at least two"):
        group_gaps(np.ones(3), np.array(["a"] * 3), user_draws(np.arange(3), 5))
