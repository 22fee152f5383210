from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from materialize.evaluate import nearest
from materialize.evaluate.nearest import nearest_others, unit_rows


def _by_sorting(unit: Any, queries: Any, k: int, mask: Any) -> list[list[int]]:
    """Return each query's candidates by falling cosine, all pairs compared one by one."""
    cosine = unit.astype(np.float64) @ unit.T.astype(np.float64)
    found = []
    for q in queries:
        others = [c for c in np.flatnonzero(mask) if c != q]
        found.append(sorted(others, key=lambda c: -cosine[q, c])[:k])
    return found


@given(st.integers(2, 40), st.integers(1, 6), st.integers(0, 2**32))
def test_neighbours_are_those_of_comparing_every_pair(n: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    unit = unit_rows(rng.standard_normal((n, 5)))
    queries = rng.permutation(n)[: max(1, n // 2)]
    masks = {"all": np.ones(n, bool), "some": rng.random(n) < 0.6}
    masks["some"][0] = True
    found = nearest_others(unit, queries, k, masks)
    for name, mask in masks.items():
        for row, expected in zip(found[name], _by_sorting(unit, queries, k, mask), strict=True):
            assert list(row[row >= 0]) == expected[:k]


def test_place_is_empty_where_only_the_user_itself_is_left() -> None:
    unit = unit_rows(np.eye(3))
    found = nearest_others(unit, np.array([0, 1]), 2, {"one": np.array([True, False, False])})
    assert found["one"].tolist() == [[-1], [0]]


def test_equally_near_users_come_in_row_order() -> None:
    unit = unit_rows(np.ones((5, 2)))
    found = nearest_others(unit, np.array([2]), 4, {"all": np.ones(5, bool)})
    assert found["all"].tolist() == [[0, 1, 3, 4]]


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    unit = unit_rows(np.random.default_rng(0).standard_normal((30, 4)))
    everybody = {"all": np.ones(30, bool)}
    whole = nearest_others(unit, np.arange(30), 7, everybody)["all"]
    monkeypatch.setattr(nearest, "_CELLS_PER_CHUNK", 100)
    assert np.array_equal(nearest_others(unit, np.arange(30), 7, everybody)["all"], whole)


def test_set_without_candidates_is_refused() -> None:
    with pytest.raises(ValueError, match="No row may be a neighbour among country"):
        nearest_others(unit_rows(np.eye(2)), np.array([0]), 1, {"country": np.zeros(2, bool)})
    with pytest.raises(ValueError, match="k 0 given, at least 1"):
        nearest_others(unit_rows(np.eye(2)), np.array([0]), 0, {"all": np.ones(2, bool)})


def test_vectors_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="finite ones of"):
        unit_rows(np.array([[np.nan, 1.0]]))
