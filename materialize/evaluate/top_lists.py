"""The best items of each row, and how many of them were right."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

__all__ = ["hits", "ndcg_at", "recall_at", "top_lists"]

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


def top_lists(scores: npt.NDArray[Any], k: int, tie_rank: npt.NDArray[Any]) -> Int64:
    """Return the positions of the ``k`` highest scores of each row, highest first.

    Parameters
    ----------
    scores : float (n_rows, n_items), no NaN
        ``-inf``: not to be listed.
    k : int
        At least 1.
    tie_rank : int (n_items,)
        Of two items with equal scores the one with the lower rank comes first. By falling
        popularity, a model that knows nothing of a row lists what is popular; by position, it would
        list whatever the catalogue begins with.

    Returns
    -------
    int64 (n_rows, k)
        -1 where a row has fewer items to list.

    Raises
    ------
    ValueError
        ``k`` below 1, NaN, or ranks of another number of items.

    Examples
    --------
    >>> top_lists(np.array([[0.1, 0.7, 0.1, -np.inf]]), 2, np.array([1, 2, 0, 3]))
    array([[1, 2]])
    """
    import torch

    if k < 1:
        raise ValueError(f"k {k} given, at least 1 expected.")
    n_rows, n_items = scores.shape
    if tie_rank.shape != (n_items,):
        raise ValueError(f"tie_rank of shape {tie_rank.shape} given, ({n_items},) expected.")
    if np.isnan(scores).any():
        raise ValueError("Scores with NaN were given; -inf says that an item is not to be listed.")
    kept = min(k, n_items)
    # Three times as fast as numpy's partition, and like it takes any of equal scores.
    writable = np.require(scores, requirements="W")  # torch warns of an array that is not
    best = torch.from_numpy(writable).topk(kept, dim=1, sorted=False).indices.numpy()
    value = np.take_along_axis(scores, best, axis=1)  # (n_rows, kept)
    least = value.min(axis=1, keepdims=True)
    crowded = (scores == least).sum(axis=1) > (value == least).sum(axis=1)
    in_rank = np.argsort(tie_rank, kind="stable")
    for row in np.flatnonzero(crowded):
        above = np.flatnonzero(scores[row] > least[row])
        tied = in_rank[scores[row, in_rank] == least[row]]
        best[row] = np.concatenate([above, tied[: kept - len(above)]])
    value = np.take_along_axis(scores, best, axis=1)
    order = np.lexsort((tie_rank[best], -value), axis=1)
    lists = np.full((n_rows, k), -1, np.int64)
    lists[:, :kept] = np.take_along_axis(best, order, axis=1)
    lists[:, :kept][np.take_along_axis(value, order, axis=1) == -np.inf] = -1
    return lists


def hits(lists: Int64, relevant: sparse.csr_array) -> npt.NDArray[np.bool_]:
    """Return which places hold a relevant item, bool (n_rows, k).

    Parameters
    ----------
    lists : int64 (n_rows, k)
        -1: the place is empty.
    relevant : csr_array bool (n_rows, n_items)

    Examples
    --------
    >>> hits(np.array([[2, 0, -1]]), sparse.csr_array(np.array([[False, True, True]])))
    array([[ True, False, False]])
    """
    n_rows, n_items = relevant.shape
    entries = relevant.tocoo()
    there = entries.data != 0
    wanted = entries.row[there].astype(np.int64) * n_items + entries.col[there]
    listed = np.arange(n_rows)[:, None] * n_items + lists
    return np.isin(listed, wanted) & (lists >= 0)


def recall_at(k: int, hit: npt.NDArray[np.bool_], n_relevant: Int64) -> Float64:
    """Return each row's recall in its first ``k`` places: hits over ``min(k, n_relevant)``.

    Parameters
    ----------
    k : int
    hit : bool (n_rows, k or more)
    n_relevant : int64 (n_rows,)

    Returns
    -------
    float64 (n_rows,)
        From 0 to 1, where 1 can be reached whatever the number of relevant items; NaN for a row
        without any.

    References
    ----------
    Liang, Krishnan, Hoffman and Jebara (2018), Variational autoencoders for collaborative
    filtering, section 4.2 (Recall@R); so does Steck (2019) of EASE.

    Examples
    --------
    >>> recall_at(2, np.array([[True, False, True]]), np.array([3]))
    array([0.5])
    """
    _check(k, hit)
    return _share(hit[:, :k].sum(axis=1), np.minimum(n_relevant, k))


def ndcg_at(k: int, hit: npt.NDArray[np.bool_], n_relevant: Int64) -> Float64:
    """Return each row's nDCG in its first ``k`` places, binary relevance.

    Parameters and result as of ``recall_at``.

    References
    ----------
    Järvelin and Kekäläinen (2002), Cumulated gain-based evaluation of IR techniques: the sum of
    ``1 / log2(place + 1)`` over hits, over that of the best list, whose first
    ``min(k, n_relevant)`` places are hits.

    Examples
    --------
    >>> ndcg_at(2, np.array([[False, True]]), np.array([1])).round(4)  # 1 / log2(3)
    array([0.6309])
    """
    _check(k, hit)
    gain = 1.0 / np.log2(np.arange(k) + 2.0)
    ideal = np.concatenate([[0.0], np.cumsum(gain)])[np.minimum(n_relevant, k)]
    return _share(hit[:, :k] @ gain, ideal)


def _share(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> Float64:
    share = np.full(len(part), np.nan)
    np.divide(part, whole, out=share, where=whole > 0)
    return share


def _check(k: int, hit: npt.NDArray[np.bool_]) -> None:
    if not 1 <= k <= hit.shape[1]:
        raise ValueError(f"k {k} given for lists of {hit.shape[1]} places.")
