"""The index itself: exact on few users, nearly so on many, and never short of an answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from encoder.errors import VerificationFailed
from materialize.neighbours.cells import Cells, Tuning, build_cells, directions, read_cells
from tests.neighbours import Planted, nearest, recall

DIM = 120


def _build(vectors: npt.NDArray[np.float32], **changes: int) -> tuple[Cells, Tuning]:
    rng = np.random.default_rng(0)

    def sample(n: int) -> npt.NDArray[np.float32]:
        return vectors[rng.choice(len(vectors), n, replace=False)]

    def chunks() -> Iterator[npt.NDArray[np.float32]]:
        yield from np.array_split(vectors, 3)

    return build_cells(len(vectors), vectors.shape[1], sample, chunks, **changes)


@pytest.fixture(scope="module")
def world() -> Planted:
    return Planted(DIM, tastes=200)


@pytest.fixture(scope="module")
def many(world: Planted) -> npt.NDArray[np.float32]:
    return world.users(20_000)


@pytest.fixture(scope="module")
def built(many: npt.NDArray[np.float32]) -> tuple[Cells, Tuning]:
    return _build(many)


def test_few_users_are_searched_exactly(world: Planted) -> None:
    vectors, queries = world.users(1_000), world.users(50, stream=1)
    cells, tuning = _build(vectors)
    assert (tuning.lists, tuning.probes, tuning.recall) == (1, 1, 1.0)
    position, cosine = cells.search(queries, 10, tuning.probes)
    truth, exact = nearest(vectors, queries, 10)
    np.testing.assert_allclose(cosine, exact, atol=1e-3)
    # Half precision may swap users whose cosines differ by less than it can tell.
    own = np.take_along_axis(queries @ vectors.T, position, axis=1)
    np.testing.assert_allclose(own, exact, atol=1e-3)
    assert recall(position, truth) > 0.99


def test_many_users_are_found_in_a_part_of_the_cells(
    world: Planted, many: npt.NDArray[np.float32], built: tuple[Cells, Tuning]
) -> None:
    cells, tuning = built
    assert tuning.lists > 100
    assert tuning.probes < tuning.lists / 4
    queries = world.users(200, stream=1)  # of people who are not in the index
    position, cosine = cells.search(queries, 50, tuning.probes)
    truth, _ = nearest(many, queries, 50)
    assert recall(position, truth) >= 0.95
    own = np.take_along_axis(queries @ many.T, position, axis=1)
    np.testing.assert_allclose(cosine, own, atol=1e-3)
    assert (np.diff(cosine, axis=1) <= 0).all()


def test_the_recall_that_a_build_states_is_that_of_its_searches(
    many: npt.NDArray[np.float32], built: tuple[Cells, Tuning]
) -> None:
    cells, tuning = built
    queries = many[:500]
    position, _ = cells.search(queries, tuning.k, tuning.probes)
    truth, _ = nearest(many, queries, tuning.k)
    assert tuning.recall >= 0.97
    assert recall(position, truth) == pytest.approx(tuning.recall, abs=0.02)
    fewer, _ = cells.search(queries, tuning.k, 1)
    assert recall(fewer, truth) < 0.9  # so the figure can tell


@pytest.mark.parametrize("k", [500, 5_000, 20_000])
def test_a_search_for_many_is_complete_and_as_good(
    many: npt.NDArray[np.float32], built: tuple[Cells, Tuning], k: int
) -> None:
    cells, tuning = built
    queries = many[:20]
    position, _ = cells.search(queries, k, tuning.probes)
    assert position.shape == (20, k)
    assert (position >= 0).all()
    assert all(len(np.unique(row)) == k for row in position)
    assert recall(position, nearest(many, queries, k)[0]) >= 0.95


def test_cells_that_hold_too_few_are_not_the_end(built: tuple[Cells, Tuning]) -> None:
    cells, _ = built
    position, cosine = cells.search(Planted(DIM, seed=5).users(5), 400, 1)
    assert (position >= 0).all()
    assert np.isfinite(cosine).all()


def test_a_written_index_answers_the_same_from_its_file(
    many: npt.NDArray[np.float32], built: tuple[Cells, Tuning], tmp_path: Path
) -> None:
    cells, tuning = built
    cells.write(tmp_path / "index")
    mapped = read_cells(tmp_path / "index")
    assert (mapped.count, mapped.dim, mapped.lists) == (20_000, DIM, tuning.lists)
    for one, other in zip(
        cells.search(many[:50], 20, tuning.probes),
        mapped.search(many[:50], 20, tuning.probes),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


def test_vectors_that_do_not_come_are_noticed(world: Planted) -> None:
    vectors = world.users(100)
    with pytest.raises(VerificationFailed, match="100 vectors to index, 99 came"):
        build_cells(100, DIM, lambda n: vectors[:n], lambda: [vectors[:99]])


def test_a_vector_without_direction_is_named() -> None:
    vectors = np.array([[3, 4], [0, 0], [np.nan, 1], [np.inf, 1]], np.float32)
    unit, wrong = directions(vectors)
    assert wrong.tolist() == [1, 2, 3]
    np.testing.assert_allclose(unit[0], [0.6, 0.8], rtol=1e-6)
