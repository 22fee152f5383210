"""A planted rotation is found, and neighbours are counted as a plain loop counts them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ortho_group

from encoder import alignment
from encoder.alignment import cosines, neighbour_overlap, orthogonal_map

Floats = npt.NDArray[np.float64]


def _space(n: int, dim: int, seed: int = 0) -> Floats:
    """Vectors whose directions differ in length, around a mean that is not 0."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, dim)) * np.linspace(1.0, 3.0, dim) + rng.standard_normal(dim)


def _rotation(dim: int, seed: int = 0) -> Floats:
    return np.asarray(ortho_group.rvs(dim, random_state=seed))


# --- the map


@given(dim=st.integers(2, 12), seed=st.integers(0, 10_000))
def test_a_planted_rotation_and_shift_is_found(dim: int, seed: int) -> None:
    """From pairs of vectors, the map sends vectors that it never saw where the plant does."""
    source, unseen = _space(60, dim, seed), _space(10, dim, seed + 1)
    rotation, shift = _rotation(dim, seed), np.arange(dim, dtype=np.float64)
    found = orthogonal_map(source, source @ rotation + shift)
    assert np.allclose(found.matrix, rotation, atol=1e-5)
    assert np.allclose(found.apply(unseen), unseen @ rotation + shift, atol=1e-4)


@given(dim=st.integers(1, 10), seed=st.integers(0, 10_000))
def test_the_map_keeps_distances_whatever_it_was_fitted_on(dim: int, seed: int) -> None:
    """Orthogonal: no vector grows or shrinks against the mean of the source."""
    source, target = _space(40, dim, seed), _space(40, dim, seed + 1)
    mapped = orthogonal_map(source, target).apply(source)
    assert np.allclose(mapped.mean(axis=0), target.mean(axis=0), atol=1e-4)
    before = np.linalg.norm(source - source.mean(axis=0), axis=1)
    after = np.linalg.norm(mapped - mapped.mean(axis=0, dtype=np.float64), axis=1)
    assert np.allclose(after, before, atol=1e-3)


@given(seed=st.integers(0, 10_000))
def test_no_other_rotation_comes_closer(seed: int) -> None:
    """Least squares: the plant under noise, and random rotations around the found one, lose."""
    rng = np.random.default_rng(seed)
    source = _space(80, 5, seed)
    target = source @ _rotation(5, seed) + 0.3 * rng.standard_normal((80, 5))
    found = orthogonal_map(source, target)
    best = np.square(found.apply(source) - target).sum()
    centred = source - source.mean(axis=0)
    for other in (_rotation(5, seed), *(_rotation(5, seed + k) for k in range(1, 4))):
        rotated = centred @ other + target.mean(axis=0)
        assert np.square(rotated - target).sum() >= best - 1e-3


def test_into_a_wider_space_no_length_is_lost() -> None:
    source = _space(50, 3)
    target = source @ _rotation(5)[:3]
    found = orthogonal_map(source, target)
    assert found.matrix.shape == (3, 5)
    assert np.allclose(found.matrix @ found.matrix.T, np.eye(3), atol=1e-5)
    assert np.allclose(found.apply(source), target, atol=1e-4)


def test_into_a_narrower_space_the_directions_that_agree_are_kept() -> None:
    source = np.random.default_rng(0).standard_normal((2000, 5))
    target = (source @ _rotation(5))[:, :3]  # the first three rotated directions
    found = orthogonal_map(source, target)
    assert found.matrix.shape == (5, 3)
    assert np.allclose(found.matrix.T @ found.matrix, np.eye(3), atol=1e-5)
    assert cosines(found.apply(source), target).mean() > 0.99


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (np.zeros((4, 2)), np.zeros((5, 2)), "the same users in the same order"),
        (np.zeros((0, 2)), np.zeros((0, 2)), "the same users in the same order"),
        (np.zeros(4), np.zeros((4, 2)), "the same users in the same order"),
        (np.ones((3, 4)), np.ones((3, 2)), r"3 pair\(s\) of vectors given, at least 4 expected"),
        (np.full((3, 2), np.nan), np.zeros((3, 2)), "NaN or infinity"),
        (np.zeros((3, 2)), np.full((3, 2), np.inf), "NaN or infinity"),
    ],
)
def test_pairs_that_determine_no_map_are_refused(
    source: Floats, target: Floats, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        orthogonal_map(source, target)


def test_vectors_of_another_space_are_refused() -> None:
    found = orthogonal_map(_space(9, 3), _space(9, 3, 1))
    with pytest.raises(ValueError, match=r"\(2, 4\) given, \(n, 3\) expected"):
        found.apply(np.zeros((2, 4)))


@given(cut=st.integers(0, 30))
def test_mapping_in_parts_is_mapping_at_once(cut: int) -> None:
    """Partitions of a job write what one pass would."""
    source = _space(30, 7)
    found = orthogonal_map(source, _space(30, 7, 1))
    parts = np.concatenate([found.apply(source[:cut]), found.apply(source[cut:])])
    assert np.array_equal(parts, found.apply(source))
    assert parts.dtype == np.float32


# --- cosine and neighbours


def test_cosines_of_a_hand_computed_case() -> None:
    # (3, 4) and (4, 3): 24 / 25. Opposite: -1. A zero vector has no direction: 0.
    a = np.array([[3.0, 4.0], [1.0, 1.0], [0.0, 0.0]])
    b = np.array([[4.0, 3.0], [-2.0, -2.0], [1.0, 0.0]])
    assert cosines(a, b) == pytest.approx([0.96, -1.0, 0.0])


def test_cosines_of_different_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="Widths 2 and 3 given"):
        cosines(np.ones((2, 2)), np.ones((2, 3)))


def _overlap_by_loop(a: Floats, b: Floats, k: int) -> list[float]:
    answer = []
    for row in range(len(a)):
        near = []
        for space in (a, b):
            similar = space @ space[row] / np.linalg.norm(space, axis=1)
            near.append(set([r for r in np.argsort(-similar) if r != row][:k]))
        answer.append(len(near[0] & near[1]) / k)
    return answer


@given(n=st.integers(3, 40), k=st.integers(1, 8), seed=st.integers(0, 1000))
def test_blocks_count_neighbours_as_a_plain_loop_does(n: int, k: int, seed: int) -> None:
    """Whatever the size of a block, each user's share is the loop's."""
    a, b = _space(n, 4, seed), _space(n, 6, seed + 1)
    k = min(k, n - 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alignment, "_CELLS_PER_BLOCK", 7 * n)
        assert neighbour_overlap(a, b, k) == pytest.approx(_overlap_by_loop(a, b, k))


@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 10.0))
def test_a_rotated_and_scaled_space_has_the_same_neighbours(seed: int, scale: float) -> None:
    """Cosine is blind to both."""
    a = _space(60, 5, seed)
    assert neighbour_overlap(a, scale * (a @ _rotation(5, seed)), 10).min() == 1.0


def test_unrelated_spaces_share_neighbours_by_chance_only() -> None:
    # 20 of 400 others in each list: 20 / 400 = 0.05 is expected; its standard error is below 0.003.
    share = neighbour_overlap(_space(401, 30), _space(401, 30, 1), 20).mean()
    assert share == pytest.approx(0.05, abs=0.02)


@pytest.mark.parametrize("k", [0, 5, 9])
def test_more_neighbours_than_others_are_refused(k: int) -> None:
    with pytest.raises(ValueError, match=rf"k {k} given for 5 users, a number in \[1, 4\]"):
        neighbour_overlap(_space(5, 2), _space(5, 2), k)
