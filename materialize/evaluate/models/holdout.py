"""Users kept from a recommender's fit, to choose its settings on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

__all__ = ["HeldOut", "binary", "hold_out", "ndcg_of_hidden"]

_MAX_FIT_USERS = 8_000
_MAX_FIT_ENTRIES = 500_000
_MAX_HELD_USERS = 500
_HIDDEN_SHARE = 0.2
_TOP = 50


@dataclass(frozen=True)
class HeldOut:
    """Interactions to fit on, and other users' interactions, known and hidden.

    Attributes
    ----------
    fit : csr_array float32 (n_fit_users, n_items)
    known, hidden : csr_array float32 (n_held_users, n_items)
        Four fifths and one fifth of the items of users who are not among the first.
    """

    fit: sparse.csr_array
    known: sparse.csr_array
    hidden: sparse.csr_array


def binary(weights: sparse.csr_array) -> sparse.csr_array:
    """Return a float32 copy with 1 for every entry, whatever its weight."""
    ones = sparse.csr_array(weights, copy=True).astype(np.float32)
    ones.data[:] = 1
    return ones


def hold_out(past: sparse.csr_array) -> HeldOut:
    """Split users of a fit matrix, the same way each time: settings do not hang on a seed.

    At most 8,000 users with about 500,000 interactions are fitted on, because settings are chosen
    often and on less than all data just as well. At most 500 users with five items or more are held
    out; none where nobody has so many, and the first setting is then taken.
    """
    rng = np.random.default_rng(0)
    sizes = np.diff(past.indptr)
    eligible = rng.permutation(np.flatnonzero(sizes >= 5))
    held = np.sort(eligible[: min(_MAX_HELD_USERS, len(eligible) // 5)])
    others = rng.permutation(np.setdiff1d(np.flatnonzero(sizes), held))[:_MAX_FIT_USERS]
    others = others[: int(np.searchsorted(np.cumsum(sizes[others]), _MAX_FIT_ENTRIES)) + 1]
    part = past[held]
    # A fifth of each user's items, at least one: the entries with the smallest random numbers.
    noise = rng.random(part.nnz)
    owner = np.repeat(np.arange(len(held)), np.diff(part.indptr))
    order = np.lexsort((noise, owner))
    rank = np.empty(part.nnz, np.int64)
    rank[order] = np.arange(part.nnz) - part.indptr[owner[order]]
    hidden = rank < np.maximum(1, np.floor(_HIDDEN_SHARE * np.diff(part.indptr)))[owner]
    return HeldOut(past[np.sort(others)], _where(part, ~hidden), _where(part, hidden))


def ndcg_of_hidden(held: HeldOut, scores: npt.NDArray[np.float32]) -> float:
    """Return the mean nDCG@50 of the hidden items, known ones left out of the ranking.

    Parameters
    ----------
    held : HeldOut
    scores : float32 (n_held_users, n_items)
        Of the held-out users, from what is known of them.
    """
    masked = np.array(scores, np.float32)
    known = held.known.tocoo()
    masked[known.row, known.col] = -np.inf
    k = min(_TOP, masked.shape[1] - 1)
    top = np.argpartition(-masked, k, axis=1)[:, :k]
    top = np.take_along_axis(
        top, np.argsort(-np.take_along_axis(masked, top, axis=1), axis=1, kind="stable"), axis=1
    )
    relevant = np.zeros(masked.shape, bool)
    hidden = held.hidden.tocoo()
    relevant[hidden.row, hidden.col] = True
    gain = 1 / np.log2(np.arange(k) + 2)
    dcg = (np.take_along_axis(relevant, top, axis=1) * gain).sum(axis=1)
    ideal = np.append(0, np.cumsum(gain))[np.minimum(relevant.sum(axis=1), k)]
    return float(np.mean(dcg / ideal))


def _where(part: sparse.csr_array, keep: npt.NDArray[np.bool_]) -> sparse.csr_array:
    """Return a copy with the chosen entries only."""
    owner = np.repeat(np.arange(part.shape[0]), np.diff(part.indptr))
    return sparse.csr_array((part.data[keep], (owner[keep], part.indices[keep])), shape=part.shape)
