from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from encoder.resampling import Replicates, user_draws
from materialize.evaluate.lists import (
    Counted,
    counted_replicates,
    coverage,
    exposure_shares,
    gini,
    intra_list_diversity,
    novelty,
    p90_coverage,
    popularity_tenths,
    recentred,
    tag_miscalibration,
    total_variation,
)
from materialize.evaluate.nearest import unit_rows

LISTS = np.array([[0, 1], [0, 2], [0, 1], [0, 3], [0, 1]])
# Item 0 five times, 1 three times, 2 and 3 once: of ten places. Six items could be recommended.
COUNTS = np.array([[5], [3], [1], [1]])


def test_diversity_of_a_hand_computed_case() -> None:
    # Cosines of the three pairs: 0, 1/sqrt(2), 1/sqrt(2); mean .4714.
    items = unit_rows(np.array([[1, 0], [0, 1], [1, 1]]))
    found = intra_list_diversity(np.array([[0, 1, 2]]), items)
    assert found == pytest.approx([1 - 2 * math.sqrt(0.5) / 3])


@given(st.integers(2, 6), st.integers(0, 2**32))
def test_diversity_is_the_mean_over_pairs_also_of_sparse_features(k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    items = unit_rows(rng.standard_normal((9, 4)) * (rng.random((9, 4)) < 0.6))
    lists = np.stack([rng.permutation(9)[:k] for _ in range(3)])
    expected = [
        np.mean([1 - items[i] @ items[j] for i in row for j in row if i != j]) for row in lists
    ]
    assert intra_list_diversity(lists, items) == pytest.approx(expected, abs=1e-6)
    assert intra_list_diversity(lists, sparse.csr_array(items)) == pytest.approx(expected, abs=1e-6)


def test_a_list_of_one_item_has_no_diversity() -> None:
    with pytest.raises(ValueError, match=r"Lists of 1 item\(s\) given, at least 2"):
        intra_list_diversity(np.array([[0]]), np.eye(2))


def test_item_without_events_has_no_novelty() -> None:
    with pytest.raises(ValueError, match="more than 0 expected of every item"):
        novelty(np.array([[0]]), np.array([0, 1]))


def test_coverage_counts_items_in_any_list() -> None:
    assert coverage(Counted(COUNTS, 6)) == pytest.approx([4 / 6])


def test_p90_coverage_of_a_hand_computed_case() -> None:
    # 5 + 3 = 8 of 10 places are too few, 5 + 3 + 1 = 9 are 90%: three of six items.
    assert p90_coverage(Counted(COUNTS, 6)) == pytest.approx([3 / 6])


@pytest.mark.parametrize(("n", "needed"), [(10, 9), (100, 90), (1000, 900)])
def test_p90_coverage_of_equal_counts_is_nine_tenths(n: int, needed: int) -> None:
    assert p90_coverage(Counted(np.full((n, 1), 7.0), n)) == pytest.approx([needed / n])


def test_gini_of_a_hand_computed_case() -> None:
    # Rising 0 0 1 1 3 5, n = 6: (-5*0 - 3*0 - 1*1 + 1*1 + 3*3 + 5*5) / (6 * 10) = 34/60.
    assert gini(Counted(COUNTS, 6)) == pytest.approx([34 / 60])


@given(st.lists(st.integers(0, 9), min_size=2, max_size=8).filter(any))
def test_gini_is_half_the_relative_mean_difference(counts: list[int]) -> None:
    x = np.array(counts)
    expected = np.abs(x[:, None] - x).mean() / (2 * x.mean())
    listed = x[x > 0]
    assert gini(Counted(listed[:, None], len(x))) == pytest.approx([expected])


def test_figures_on_resamples_are_those_of_repeated_lists() -> None:
    users = np.arange(5)
    draws = user_draws(users, n_resamples=6)
    found = counted_replicates(p90_coverage, LISTS, 6, draws)
    (weights,) = draws.weights()
    by_hand = []
    for b in range(6):
        places = np.repeat(LISTS, weights[draws.owner, b].astype(int), axis=0)
        counts = np.bincount(places.ravel(), minlength=6)
        by_hand.append(p90_coverage(Counted(counts[:, None], 6))[0])
    assert found.value == pytest.approx(3 / 6)
    assert found.replicates.mean() == pytest.approx(found.value)
    shift = found.value - np.mean(by_hand)
    assert found.replicates == pytest.approx(np.array(by_hand) + shift)


def test_interval_of_coverage_holds_its_value_although_resamples_cover_less() -> None:
    rng = np.random.default_rng(0)
    lists = np.stack([rng.permutation(500)[:10] for _ in range(80)])
    found = counted_replicates(coverage, lists, 500, user_draws(np.arange(80), 200))
    assert found.interval.low < found.value < found.interval.high
    assert 0 < found.interval.high - found.interval.low < 0.2


def test_empty_places_count_for_no_item() -> None:
    lists = np.array([[0, -1], [1, -1]])
    found = counted_replicates(coverage, lists, 4, user_draws(np.arange(2), 5))
    assert found.value == pytest.approx(2 / 4)


def test_replicates_that_are_not_defined_stay_as_they_are() -> None:
    nothing = Replicates(float("nan"), np.full(3, np.nan))
    assert recentred(nothing) is nothing


def test_tenths_hold_equally_many_items_and_the_last_the_most_popular() -> None:
    popularity = np.random.default_rng(0).permutation(1000)
    tenth = popularity_tenths(popularity)
    assert np.bincount(tenth).tolist() == [100] * 10
    assert popularity[tenth == 9].min() == 900


def test_exposure_falls_with_the_place() -> None:
    # Exposures 1, .6309 and .5 of 2.1309.
    groups = sparse.csr_array(np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]))
    found = exposure_shares(np.array([[2, 0, 1]]), groups)
    second, total = 1 / math.log2(3), 1.5 + 1 / math.log2(3)
    assert found == pytest.approx(np.array([[(0.5 + second) / total, 1.0 / total]]))


def test_total_variation_of_a_hand_computed_case() -> None:
    # (.1 + .1 + .2) / 2
    found = total_variation(np.array([[0.5], [0.3], [0.2]]), np.array([[0.4], [0.2], [0.4]]))
    assert found == pytest.approx([0.2])


def test_miscalibration_of_a_hand_computed_case() -> None:
    # p = (.5, .5), q = (1, 0): q~ = (.995, .005); .5 log2(.5/.995) + .5 log2(.5/.005).
    found = tag_miscalibration(sparse.csr_array(np.array([[2.0, 2.0]])), np.array([[1.0, 0.0]]))
    assert found == pytest.approx([0.5 * math.log2(0.5 / 0.995) + 0.5 * math.log2(100)])


def test_miscalibration_is_not_defined_without_a_past_or_without_tags() -> None:
    past = sparse.csr_array(np.array([[0.0, 0.0], [1.0, 0.0]]))
    assert np.isnan(tag_miscalibration(past, np.array([[1.0, 0.0], [0.0, 0.0]]))).all()
