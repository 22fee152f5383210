"""How two embedding spaces of the same users relate: the orthogonal map, cosine, neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import orthogonal_procrustes

__all__ = ["OrthogonalMap", "cosines", "neighbour_overlap", "orthogonal_map"]

Float32 = npt.NDArray[np.float32]

_CELLS_PER_BLOCK = 2**23
"""Similarities in memory at a time: 32 MiB of float32, and a copy while they are ranked."""


@dataclass(frozen=True)
class OrthogonalMap:
    """A rotation (or reflection) and a shift from one space into another.

    Attributes
    ----------
    matrix : float32 (source_dim, target_dim)
        Orthogonal; of different widths semi-orthogonal: the smaller side's vectors are orthonormal.
    shift : float32 (target_dim,)
    """

    matrix: Float32
    shift: Float32

    def apply(self, vectors: npt.NDArray[Any]) -> Float32:
        """Return ``vectors`` (n, source_dim) in the target space, float32 (n, target_dim).

        Raises
        ------
        ValueError
            The vectors have another width.
        """
        if vectors.ndim != 2 or vectors.shape[1] != len(self.matrix):
            raise ValueError(
                f"Vectors of shape {vectors.shape} given, (n, {len(self.matrix)}) expected: the "
                "map reads vectors of its source space."
            )
        # In float64: sums of other lengths of batch differ by less than a float32 can show.
        mapped = vectors.astype(np.float64) @ self.matrix.astype(np.float64)  # (n, target_dim)
        return (mapped + self.shift).astype(np.float32)


def orthogonal_map(source: npt.NDArray[Any], target: npt.NDArray[Any]) -> OrthogonalMap:
    r"""Return the orthogonal map that brings source vectors closest to the target's.

    Minimises :math:`\lVert (A - \bar a) R - (B - \bar b) \rVert_F` over orthogonal :math:`R`; the
    map is :math:`x \mapsto (x - \bar a) R + \bar b`. Of different widths the narrower side is
    padded with zeros: into a wider space no length is lost; into a narrower one the directions that
    agree least are dropped.

    Parameters
    ----------
    source, target : float (n, source_dim) and (n, target_dim), finite
        Row i of both is the same user at the same moment.

    Raises
    ------
    ValueError
        Other shapes, fewer rows than the wider space has dimensions (the map would not be
        determined), NaN or infinity.

    References
    ----------
    Schönemann 1966, "A generalized solution of the orthogonal Procrustes problem".
    """
    _check_pairs(source, target)
    source_dim, target_dim = source.shape[1], target.shape[1]
    width = max(source_dim, target_dim)
    if len(source) < width:
        raise ValueError(
            f"{len(source)} pair(s) of vectors given, at least {width} expected for spaces of "
            f"{source_dim} and {target_dim} dimensions."
        )
    means, centred = [], []
    for vectors in (source, target):
        exact = vectors.astype(np.float64)
        mean = exact.mean(axis=0)
        means.append(mean)
        centred.append(np.pad(exact - mean, ((0, 0), (0, width - vectors.shape[1]))))
    rotation, _ = orthogonal_procrustes(*centred)  # (width, width)
    matrix = rotation[:source_dim, :target_dim]
    shift = means[1] - means[0] @ matrix
    return OrthogonalMap(matrix.astype(np.float32), shift.astype(np.float32))


def cosines(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the cosine of each pair of rows, float64 (n,); 0 where one of them is zero.

    Parameters
    ----------
    a, b : float (n, dim)

    Examples
    --------
    >>> cosines(np.array([[1.0, 0.0], [1.0, 1.0]]), np.array([[2.0, 0.0], [-1.0, 1.0]]))
    array([1., 0.])
    """
    _check_pairs(a, b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"Widths {a.shape[1]} and {b.shape[1]} given, equal ones expected.")
    found: npt.NDArray[np.float64] = np.einsum("nd,nd->n", _unit(a), _unit(b))
    return found


def neighbour_overlap(
    a: npt.NDArray[Any], b: npt.NDArray[Any], k: int = 50
) -> npt.NDArray[np.float64]:
    """Return the share of each user's ``k`` nearest others that both spaces agree on, (n,).

    Parameters
    ----------
    a, b : float (n, dim) and (n, other_dim), finite
        The same users in both; neighbours are sought among them, by cosine, each in its own space.
    k : int

    Returns
    -------
    float64 (n,)
        In [0, 1]; k / (n - 1) is expected of unrelated spaces.

    Raises
    ------
    ValueError
        Other shapes, NaN or infinity, or ``k`` not in [1, n - 1].

    Notes
    -----
    Takes ``O(n**2)`` time and, besides the vectors, memory for a block of similarities.

    Examples
    --------
    >>> line = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    >>> neighbour_overlap(line, line[:, ::-1], k=1)
    array([1., 1., 1., 1.])
    """
    _check_pairs(a, b)
    n = len(a)
    if not 1 <= k < n:
        raise ValueError(f"k {k} given for {n} users, a number in [1, {n - 1}] expected.")
    spaces = [_unit(x).astype(np.float32) for x in (a, b)]
    shares = np.empty(n)
    rows_per_block = max(1, _CELLS_PER_BLOCK // n)
    for start in range(0, n, rows_per_block):
        rows = np.arange(start, min(start + rows_per_block, n))
        nearest = [_nearest(space, rows, k) for space in spaces]  # 2 of (block, k), sorted
        both = np.sort(np.concatenate(nearest, axis=1), axis=1)  # (block, 2 k)
        # Each list holds a user once, so one who is in both stands beside himself.
        shares[rows] = (both[:, 1:] == both[:, :-1]).sum(axis=1) / k
    return shares


def _nearest(unit: Float32, rows: npt.NDArray[np.intp], k: int) -> npt.NDArray[np.intp]:
    similar = unit[rows] @ unit.T  # (block, n)
    similar[np.arange(len(rows)), rows] = -np.inf
    return np.argpartition(similar, -k, axis=1)[:, -k:]


def _unit(vectors: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    exact = vectors.astype(np.float64)
    length = np.linalg.norm(exact, axis=1, keepdims=True)
    return np.asarray(exact / np.where(length > 0, length, 1.0))


def _check_pairs(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> None:
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b) or not len(a):
        raise ValueError(
            f"Vectors of shapes {a.shape} and {b.shape} given, (n, dim) and (n, other_dim) with "
            "the same users in the same order expected."
        )
    for vectors in (a, b):
        if not np.isfinite(vectors).all():
            raise ValueError("Vectors with NaN or infinity were given, finite ones are expected.")
