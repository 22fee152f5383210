from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from materialize.evaluate.top_lists import hits, ndcg_at, recall_at, top_lists

INF = float("inf")


def test_the_highest_scores_come_first() -> None:
    scores = np.array([[0.1, 0.9, 0.5], [3.0, 1.0, 2.0]])
    assert top_lists(scores, 2, np.arange(3)).tolist() == [[1, 2], [0, 2]]


def test_equal_scores_come_in_the_order_of_their_rank() -> None:
    # Five items tie for the last two places; ranks 0 and 1 are items 4 and 2.
    scores = np.array([[0.0, 0.0, 0.0, 7.0, 0.0, 0.0]])
    rank = np.array([5, 3, 1, 2, 0, 4])
    assert top_lists(scores, 3, rank).tolist() == [[3, 4, 2]]
    assert top_lists(np.zeros((1, 6)), 6, rank).tolist() == [[4, 2, 3, 1, 5, 0]]


def test_excluded_items_are_never_listed() -> None:
    scores = np.array([[-INF, 1.0, -INF], [-INF, -INF, -INF]])
    assert top_lists(scores, 2, np.arange(3)).tolist() == [[1, -1], [-1, -1]]


def test_places_beyond_the_catalogue_stay_empty() -> None:
    assert top_lists(np.array([[1.0, 2.0]]), 4, np.arange(2)).tolist() == [[1, 0, -1, -1]]


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 12))
def test_lists_equal_a_full_sort_by_score_then_rank(seed: int, n_items: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, (4, n_items)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.2] = -INF
    rank = rng.permutation(n_items)
    for row, listed in enumerate(top_lists(scores, k, rank)):
        order = sorted(range(n_items), key=lambda item: (-scores[row, item], rank[item]))
        allowed = [item for item in order if scores[row, item] > -INF][:k]
        assert listed.tolist() == allowed + [-1] * (k - len(allowed))


def test_recall_divides_by_what_could_be_found() -> None:
    # Row 0: hits in places 1 and 3 of four relevant items. At 2: 1 / min(2, 4) = 1/2; at 3: 2 / 3.
    # Row 1: one of one relevant item in place 2. At 2: 1 / 1. Row 2 has nothing to find.
    hit = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0]], bool)
    n_relevant = np.array([4, 1, 0])
    assert recall_at(2, hit, n_relevant) == pytest.approx([0.5, 1.0, np.nan], nan_ok=True)
    assert recall_at(3, hit, n_relevant) == pytest.approx([2 / 3, 1.0, np.nan], nan_ok=True)


def test_ndcg_discounts_by_place_and_divides_by_the_best_list() -> None:
    # Gains 1, 1 / log2(3) = 0.630930, 1 / log2(4) = 0.5. Row 0: (1 + 0.5) over the best list of
    # three, 2.130930: 0.703918. Row 1: 0.630930 over 1.
    hit = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0]], bool)
    found = ndcg_at(3, hit, np.array([4, 1, 0]))
    assert found == pytest.approx([0.703918, 0.630930, np.nan], abs=1e-6, nan_ok=True)


def test_hits_are_the_places_of_relevant_items() -> None:
    relevant = sparse.csr_array(np.array([[0, 1, 1], [1, 0, 0]], bool))
    lists = np.array([[2, 0, 1], [-1, -1, 0]])
    assert hits(lists, relevant).tolist() == [[True, False, True], [False, False, True]]


def test_an_empty_place_is_no_hit_of_the_row_before() -> None:
    # Position -1 of row 1 would be the last item of row 0 in a flat index.
    relevant = sparse.csr_array(np.array([[0, 1], [0, 0]], bool))
    assert not hits(np.array([[0], [-1]]), relevant).any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: top_lists(np.zeros((1, 2)), 0, np.arange(2)), "k 0"),
        (lambda: top_lists(np.zeros((1, 2)), 1, np.arange(3)), r"shape \(3,\)"),
        (lambda: top_lists(np.full((1, 2), np.nan), 1, np.arange(2)), "NaN"),
        (lambda: recall_at(3, np.zeros((1, 2), bool), np.ones(1, np.int64)), "2 places"),
        (lambda: ndcg_at(0, np.zeros((1, 2), bool), np.ones(1, np.int64)), "k 0"),
    ],
)
def test_bad_input_is_refused_with_what_was_given(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_scores_that_must_not_be_written_are_read() -> None:
    shared = np.broadcast_to(np.array([1.0, 3.0, 2.0], np.float32), (2, 3))
    assert top_lists(shared, 2, np.arange(3)).tolist() == [[1, 2], [1, 2]]
