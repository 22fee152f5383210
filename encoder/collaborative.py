"""Item vectors from co-occurrence: a factorised shifted positive PMI matrix."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from encoder.svd import l2_normalise, truncated_svd

__all__ = ["cooccurrence", "fit_collaborative", "shifted_ppmi"]

logger = logging.getLogger(__name__)

Ints = npt.NDArray[np.int64]


def fit_collaborative(
    chunks: Iterable[tuple[Ints, Ints]],
    n_items: int,
    dim: int,
    *,
    seed: int,
    max_session_items: int = 300,
    smoothing: float = 0.75,
    negatives: float = 1.0,
) -> npt.NDArray[np.float32]:
    """Return an item vector for every item that shares a session with another one.

    Parameters
    ----------
    chunks : iterable of (session, item)
        Int64 arrays of equal length, distinct pairs; a session lies whole inside one chunk.
        ``item`` is a position in ``[0, n_items)``.
    n_items, dim : int
    seed : int
        Of the session sample and of the factorisation.
    max_session_items : int
        Longer sessions enter with a random sample of so many items: cost grows with its square.
    smoothing : float
        Exponent of the context distribution (0.75 in the paper).
    negatives : float
        PMI is shifted by the logarithm of this; 1 shifts nothing.

    Returns
    -------
    float32 (n_items, dim)
        Length 1; zeros (no vector) for items that never share a session with another item.

    References
    ----------
    Levy, Goldberg. Neural word embedding as implicit matrix factorization. NeurIPS 2014.
    Levy, Goldberg, Dagan. Improving distributional similarity with lessons learned from word
    embeddings. TACL 3, 2015 (context distribution smoothing, eigenvalue weighting 0.5).
    """
    pairs = cooccurrence(chunks, n_items, max_session_items=max_session_items, seed=seed)
    # Without the others: zero rows change no vector, but the shapes by which some BLAS round.
    paired = np.flatnonzero(np.diff(pairs.indptr))
    matrix = shifted_ppmi(pairs[paired][:, paired], smoothing=smoothing, negatives=negatives)
    left, singular, _ = truncated_svd(matrix, dim, seed, "collaborative")
    vectors = np.zeros((n_items, dim), np.float32)
    vectors[paired] = l2_normalise(left * np.sqrt(singular))
    return vectors


def cooccurrence(
    chunks: Iterable[tuple[Ints, Ints]], n_items: int, *, max_session_items: int, seed: int
) -> Any:
    """Return how much each pair of items occurs together, in a symmetric sparse matrix.

    A session of n items gives every pair the weight 1 / (n - 1), so that each of its items counts
    once and a session's total grows with n, not with n squared.

    Returns
    -------
    scipy CSR float32 (n_items, n_items), zero diagonal
    """
    total = sparse.csr_array((n_items, n_items), dtype=np.float32)
    for number, (session, item) in enumerate(chunks):
        rng = np.random.default_rng([seed, number])
        # The random key decides which items a long session keeps.
        order = np.lexsort((rng.random(len(session)), session))
        session, item = session[order], item[order]
        _, start, row, n = np.unique(
            session, return_index=True, return_inverse=True, return_counts=True
        )
        kept = np.arange(len(session)) - start[row] < max_session_items
        n = np.minimum(n, max_session_items)
        kept &= n[row] > 1
        row, item = row[kept], item[kept]
        weight = (1.0 / np.sqrt(n[row] - 1)).astype(np.float32)
        x = sparse.csr_array((weight, (row, item)), shape=(len(n), n_items))
        total = total + x.T @ x
    total = sparse.csr_array(total, dtype=np.float32)
    total.setdiag(0)
    total.eliminate_zeros()
    return total


def shifted_ppmi(pairs: Any, *, smoothing: float, negatives: float) -> Any:
    """Return max(0, PMI - log(negatives)) of a co-occurrence matrix, contexts smoothed.

    Parameters
    ----------
    pairs : scipy sparse (n_items, n_items)
        Not modified.
    smoothing, negatives : float
        See ``fit_collaborative``.

    Returns
    -------
    scipy CSR float32 (n_items, n_items)
    """
    coo = pairs.tocoo()
    data = coo.data.astype(np.float64)
    item_sum = np.bincount(coo.row, data, minlength=pairs.shape[0])
    context_sum = np.bincount(coo.col, data, minlength=pairs.shape[1]) ** smoothing
    # PMI = log( (C_ij / D) / ((c_i / D) * P_smooth(j)) ): D cancels.
    expected = item_sum[coo.row] * (context_sum / max(context_sum.sum(), 1e-300))[coo.col]
    pmi = np.log(data / expected) - np.log(negatives)
    keep = pmi > 0
    return sparse.csr_array(
        (pmi[keep].astype(np.float32), (coo.row[keep], coo.col[keep])), shape=pairs.shape
    )
