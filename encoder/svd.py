"""Truncated singular value decomposition of a sparse matrix, of a stated width."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["l2_normalise", "truncated_svd"]

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]

_RANK_TOLERANCE = 1e-6
"""Singular values below this share of the largest are numerically zero."""


def truncated_svd(matrix: Any, dim: int, seed: int, what: str) -> tuple[Floats, Floats, Floats]:
    """Return ``dim`` left vectors, singular values and right vectors of a sparse matrix.

    Parameters
    ----------
    matrix : scipy sparse array (n_rows, n_columns)
        Not modified.
    dim : int
        Width of the answer; where the matrix has a lower rank, the rest is zeros (and logged).
    seed : int
        Of the random projection; the same seed gives the same factors, signs included.
    what : str
        Name of the matrix in log lines.

    Returns
    -------
    left : float32 (n_rows, dim)
    singular : float32 (dim,), descending
    right : float32 (dim, n_columns)

    References
    ----------
    Halko, Martinsson, Tropp. Finding structure with randomness. SIAM Review 53(2), 2011.
    """
    from sklearn.utils.extmath import randomized_svd

    n_rows, n_columns = matrix.shape
    left = np.zeros((n_rows, dim), np.float32)
    singular = np.zeros(dim, np.float32)
    right = np.zeros((dim, n_columns), np.float32)
    k = min(dim, n_rows, n_columns)
    rank = 0
    if k and matrix.nnz:
        u, s, vt = randomized_svd(matrix, k, n_iter=7, random_state=seed, flip_sign=True)
        rank = int((s > _RANK_TOLERANCE * s[0]).sum())
        left[:, :rank], singular[:rank], right[:rank] = u[:, :rank], s[:rank], vt[:rank]
    if rank < dim:
        logger.warning("%s: rank %d below dim %d, the rest of each vector is 0", what, rank, dim)
    return left, singular, right


def l2_normalise(vectors: Floats, smallest: float = 0.0) -> Floats:
    """Return the rows scaled to length 1; rows not longer than ``smallest`` become zeros.

    Parameters
    ----------
    vectors : float32 (n, dim)
    smallest : float
        Length at or below which a direction carries no information.
    """
    length = np.linalg.norm(vectors, axis=1, keepdims=True)  # (n, 1)
    scale = np.divide(1.0, length, out=np.zeros_like(length), where=length > smallest)
    scaled: Floats = (vectors * scale).astype(np.float32, copy=False)
    return scaled
