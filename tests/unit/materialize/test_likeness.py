from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse
from sklearn.metrics import ndcg_score

from materialize.evaluate.cohort import Catalogue
from materialize.evaluate.likeness import (
    SharedGroup,
    SharedTaste,
    ndcg,
    nearest_groups,
    taste_profiles,
)

COUNTRIES = SharedGroup.of(np.array(["se", "de", "se", "", "se", "de", "fi"], object))


def test_ndcg_of_a_hand_computed_case() -> None:
    # DCG 1/log2(2) + 0/log2(3) + .5/log2(4) = 1.25; best 1/log2(2) + .5/log2(3) + 0 = 1.315465.
    found = ndcg(np.array([[1.0, 0.0, 0.5]]), np.array([[1.0, 0.5, 0.0]]))
    assert found == pytest.approx([1.25 / (1 + 0.5 / math.log2(3))])


def test_ndcg_equals_scikit_learn_when_the_whole_list_is_ranked() -> None:
    rng = np.random.default_rng(0)
    gains, scores = rng.random((20, 9)), rng.random((20, 9))
    ranked = np.take_along_axis(gains, np.argsort(-scores, axis=1), axis=1)
    found = ndcg(ranked, -np.sort(-gains, axis=1))
    assert found.mean() == pytest.approx(ndcg_score(gains, scores))


def test_ndcg_is_not_defined_where_nobody_could_gain() -> None:
    assert np.isnan(ndcg(np.zeros((1, 3)), np.zeros((1, 3)))).all()


def test_group_gains_are_ones_for_the_same_known_value() -> None:
    queries, neighbours = np.array([0, 1]), np.array([[2, 3, 1], [5, 0, -1]])
    assert COUNTRIES.gains(queries, neighbours).tolist() == [[1, 0, 0], [1, 0, 0]]
    assert COUNTRIES.known.tolist() == [True, True, True, False, True, True, True]
    assert COUNTRIES.n_groups == 3


def test_best_list_of_a_group_is_full_of_its_other_members() -> None:
    # Sweden has two others, Germany one, Finland none.
    best = COUNTRIES.best(np.array([0, 1, 6]), 3)
    assert best.tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 0]]


def test_a_country_that_only_one_user_has_is_not_defined() -> None:
    queries = np.array([6])
    each = ndcg(COUNTRIES.gains(queries, np.array([[0, 1]])), COUNTRIES.best(queries, 2))
    assert np.isnan(each).all()


def test_taste_is_the_departure_from_the_average() -> None:
    # Shares (.8 .2), (.6 .4), (.1 .9): mean (.5 .5); departures (.3 -.3), (.1 -.1), (-.4 .4).
    profiles = taste_profiles(sparse.csr_array([[8.0, 2], [6, 4], [1, 9], [1, 1]]), least=3)
    root = math.sqrt(0.5)
    expected = [[root, -root], [root, -root], [-root, root], [0, 0]]
    assert profiles == pytest.approx(np.array(expected), abs=1e-6)


def test_opposite_tastes_gain_nothing() -> None:
    # Cosines 1, -1 and 1 / sqrt(2).
    taste = SharedTaste(np.array([[1, 0], [1, 0], [-1, 0], [0.70710678, 0.70710678]], np.float32))
    gains = taste.gains(np.array([0]), np.array([[1, 2, 3, -1]]))
    assert gains == pytest.approx(np.array([[1.0, 0.0, math.sqrt(0.5), 0.0]]), abs=1e-6)
    assert taste.best(np.array([0]), 3) == pytest.approx(
        np.array([[1.0, math.sqrt(0.5), 0.0]]), abs=1e-6
    )


def test_user_without_a_profile_is_not_a_candidate() -> None:
    taste = SharedTaste(np.array([[1, 0], [0, 0], [1, 0]], np.float32))
    assert taste.known.tolist() == [True, False, True]
    # Of three users two are known, so the longest list has two places; one is the user's own.
    assert taste.best(np.array([0]), 5).tolist() == [[1.0, 0.0]]


def test_picks_belong_to_the_item_cluster_they_point_to() -> None:
    catalogue = Catalogue(
        item_ids=pa.array([1, 2, 3, 4]),
        popularity=np.ones(4),
        daily=sparse.csr_array(np.ones((1, 4))),
        tags=((), (), (), ()),
        vectors={"content": np.array([[1, 0], [3, 1], [0, 2], [5, 5]], np.float32)},
        # Mean directions: cluster 7 (4, 1), cluster 9 (0, 2); the last item belongs to none.
        clusters={"content": np.array([7, 7, 9, -1], np.int32)},
    )
    picks = {"content": np.array([[2, 0.1], [-1, 3], [0, 0]], np.float32)}
    groups = nearest_groups(picks, catalogue)
    assert groups is not None
    assert groups.tolist() == ["content 7", "content 9", ""]


def test_without_clusters_there_are_no_onboarding_groups() -> None:
    catalogue = Catalogue(
        pa.array([1]), np.ones(1), sparse.csr_array(np.ones((1, 1))), ((),), {}, {}
    )
    assert nearest_groups({}, catalogue) is None
