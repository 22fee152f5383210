"""Figures of recommended lists beyond their accuracy: of each list, and of all lists together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from encoder.resampling import Draws, Replicates

__all__ = [
    "Counted",
    "counted_replicates",
    "coverage",
    "exposure_shares",
    "gini",
    "intra_list_diversity",
    "novelty",
    "p90_coverage",
    "popularity_tenths",
    "recentred",
    "tag_miscalibration",
    "total_variation",
]

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

_SMOOTHING = 0.01


def intra_list_diversity(lists: Int64, items: Any) -> Float64:
    """Return the mean distance between the items of each list: 1 - cosine, over all pairs.

    Parameters
    ----------
    lists : int64 (n_lists, k), k at least 2
        Positions of items.
    items : float (n_items, n_features), array or sparse array
        Rows of unit length, or of zeros: an item of which nothing is known has distance 1 to every
        other.

    Returns
    -------
    float64 (n_lists,)
        0: all the same; 1: nothing in common; above 1 only where features are negative.

    References
    ----------
    Ziegler et al. (2005), Improving recommendation lists through topic diversification, section
    3.3; as a mean of distances in Castells, Hurley and Vargas (2015), Novelty and diversity in
    recommender systems, section 26.3.

    Notes
    -----
    The cosines of all ordered pairs sum to ``|sum of rows|**2 - sum of |row|**2``.

    Examples
    --------
    >>> intra_list_diversity(np.array([[0, 1], [0, 2]]), np.array([[1.0, 0], [0, 1], [1, 0]]))
    array([1., 0.])
    """
    k = lists.shape[1]
    if k < 2:
        raise ValueError(f"Lists of {k} item(s) given, at least 2 expected.")
    features = sparse.csr_array(items)
    chosen = _incidence(lists, features.shape[0])
    total = chosen @ features
    length = features.multiply(features).sum(axis=1)  # (n_items,)
    cosines = total.multiply(total).sum(axis=1) - chosen @ length
    return np.asarray(1 - cosines / (k * (k - 1)), np.float64)


def novelty(lists: Int64, popularity: npt.NDArray[Any]) -> Float64:
    """Return the mean self-information of each list's items, in bits.

    Parameters
    ----------
    lists : int64 (n_lists, k)
    popularity : float (n_items,), positive
        Events of each item.

    Returns
    -------
    float64 (n_lists,)
        Mean of ``-log2(popularity / sum of popularity)``: what is told by the news that somebody
        consumed just this item.

    References
    ----------
    Zhou et al. (2010), Solving the apparent diversity-accuracy dilemma of recommender systems
    (self-information, there of the share of users; here of events).

    Examples
    --------
    >>> novelty(np.array([[0, 1], [1, 2]]), np.array([2, 1, 1]))
    array([1.5, 2. ])
    """
    amounts = np.asarray(popularity, np.float64)
    if amounts.min() <= 0:
        raise ValueError(f"Popularity {amounts.min()} given, more than 0 expected of every item.")
    return np.asarray(-np.log2(amounts / amounts.sum())[lists].mean(axis=1))


@dataclass(frozen=True, eq=False)
class Counted:
    """How often items are recommended, in several weightings of the lists.

    Attributes
    ----------
    counts : float (n_recommended, n_columns), not negative
        Rows are the items that stand in any list.
    n_items : int
        All items that could be recommended; the others count zero.
    """

    counts: npt.NDArray[Any]
    n_items: int


def coverage(found: Counted) -> Float64:
    """Return the share of items that are recommended at all, float64 (n_columns,).

    References
    ----------
    Ge, Delgado-Battenfeld and Jannach (2010), Beyond accuracy: evaluating recommender systems by
    coverage and serendipity (catalogue coverage).

    Examples
    --------
    >>> coverage(Counted(np.array([[8, 1], [1, 0]]), n_items=4))
    array([0.5 , 0.25])
    """
    return np.asarray((found.counts > 0).sum(axis=0) / found.n_items, np.float64)


def p90_coverage(found: Counted) -> Float64:
    """Return the smallest share of the items that makes up 90% of all recommended places.

    Returns
    -------
    float64 (n_columns,)
        Near 0: everybody gets the same few items (popularity collapse); 0.9: every item is
        recommended equally often.

    References
    ----------
    Pancha et al. (2022), PinnerFormer: sequence modeling for user representation at Pinterest
    (arXiv 2205.04507), "P90 coverage@10": what fraction of the index accounts for 90% of the top 10
    retrieved results over a set of users. Their index is a million random pins (PinnerFormer .042,
    PinnerSage .13), here it is the catalogue, so that figures of two data sets do not compare.

    Examples
    --------
    >>> p90_coverage(Counted(np.array([[8, 1], [1, 1], [1, 1]]), n_items=10))
    array([0.2, 0.3])
    """
    falling = -np.sort(-found.counts, axis=0)
    reached = np.cumsum(falling, axis=0, dtype=np.float64)
    needed = (0.9 - 1e-9) * reached[-1]  # rounding must not ask for one item more
    return np.asarray(((reached < needed).sum(axis=0) + 1) / found.n_items, np.float64)


def gini(found: Counted) -> Float64:
    """Return the Gini coefficient of how often items are recommended, float64 (n_columns,).

    0: all equally often; near 1: one item has every place. NaN where nothing is recommended.

    References
    ----------
    Castells, Hurley and Vargas (2015), Novelty and diversity in recommender systems, section
    26.3: ``sum over items in rising order of (2 j - n - 1) x_j / (n sum x)``.

    Examples
    --------
    >>> gini(Counted(np.array([[1, 4], [1, 0], [1, 0], [1, 0]]), n_items=4))
    array([0.  , 0.75])
    """
    n, rising = found.n_items, np.sort(found.counts, axis=0).astype(np.float64)
    place = 2.0 * np.arange(n - len(rising) + 1, n + 1) - n - 1  # items that count zero come first
    total = rising.sum(axis=0)
    share = np.full(len(total), np.nan)
    np.divide(place @ rising, n * total, out=share, where=total > 0)
    return share


def counted_replicates(
    figure: Callable[[Counted], Float64], lists: Int64, n_items: int, draws: Draws
) -> Replicates:
    """Return a figure of how often items are recommended, on all users and on resamples.

    Parameters
    ----------
    figure : callable
        ``coverage``, ``p90_coverage`` or ``gini``.
    lists : int64 (n_lists, k)
        Positions of items; -1: the place is empty.
    n_items : int
        That could be recommended.
    draws : Draws
        Of the lists.

    Notes
    -----
    A resample holds about 63% of the users, so that it covers less than all of them do, and its
    replicates lie beside the value and not around it. They are moved to have the value as their
    mean: the interval keeps its width and loses the bias of the bootstrap (Efron and Tibshirani,
    1993, An Introduction to the Bootstrap, chapter 10). Memory: items in any list x resamples.
    """
    names, place = np.unique(lists, return_inverse=True)
    chosen = _incidence(place.reshape(lists.shape), len(names))[:, names >= 0].T.tocsr()
    ones = np.ones((lists.shape[0], 1), np.float32)
    parts = [figure(Counted(chosen @ ones, n_items))]
    parts += [figure(Counted(chosen @ w[draws.owner], n_items)) for w in draws.weights()]
    return recentred(Replicates.of(np.concatenate(parts)))


def recentred(found: Replicates) -> Replicates:
    """Return replicates with the value as their mean; see ``counted_replicates``."""
    defined = found.replicates[~np.isnan(found.replicates)]
    if not defined.size:
        return found
    return Replicates(found.value, found.replicates + (found.value - defined.mean()))


def popularity_tenths(popularity: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return which tenth of the items each is in, 0: the least popular, 9: the most popular.

    Tenths hold equally many items (up to one); items of equal popularity are told apart by their
    position.

    Examples
    --------
    >>> popularity_tenths(np.arange(20, 0, -2))
    array([9, 8, 7, 6, 5, 4, 3, 2, 1, 0])
    """
    place = np.empty(len(popularity), np.int64)
    place[np.argsort(popularity, kind="stable")] = np.arange(len(popularity))
    return place * 10 // len(popularity)


def exposure_shares(lists: Int64, membership: sparse.csr_array) -> Float64:
    """Return how each list's exposure divides among groups of items.

    Parameters
    ----------
    lists : int64 (n_lists, k)
    membership : csr_array (n_items, n_groups)
        How much of an item belongs to each group; rows sum to 1, or to 0 for an item in none.

    Returns
    -------
    float64 (n_lists, n_groups)
        Each place r from 1 has the exposure ``1 / log2(r + 1)``, divided by the list's total.

    References
    ----------
    Singh and Joachims (2018), Fairness of exposure in rankings, section 3 (position bias as in
    nDCG); Biega, Gummadi and Weikum (2018), Equity of attention (exposure in proportion to merit).

    Examples
    --------
    >>> groups = sparse.csr_array(np.array([[1.0, 0.0], [0.0, 1.0]]))
    >>> exposure_shares(np.array([[0, 1]]), groups).round(3)  # 1 and 1 / log2(3) of 1.631
    array([[0.613, 0.387]])
    """
    discount = 1 / np.log2(np.arange(lists.shape[1]) + 2.0)
    seen = _incidence(lists, membership.shape[0], discount / discount.sum())
    return np.asarray((seen @ membership).toarray(), np.float64)


def total_variation(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> Float64:
    """Return half the sum of absolute differences of shares, along the first axis.

    0: the same distribution; 1: nothing in common.

    Examples
    --------
    >>> total_variation(np.array([[1.0], [0.0]]), np.array([[0.25], [0.75]]))
    array([0.75])
    """
    return np.asarray(np.abs(first - second).sum(axis=0) / 2, np.float64)


def tag_miscalibration(history: sparse.csr_array, listed: npt.NDArray[Any]) -> Float64:
    """Return how far each list's tags are from those of the user's history.

    Parameters
    ----------
    history : csr_array (n_lists, n_tags), not negative
        Weights of each user's past by tag.
    listed : float (n_lists, n_tags), not negative
        Shares of the tags in the list.

    Returns
    -------
    float64 (n_lists,)
        Kullback-Leibler divergence ``sum of p log2(p / q~)`` in bits with
        ``q~ = 0.99 q + 0.01 p``; NaN for a user without a past or a list without tags.

    References
    ----------
    Steck (2018), Calibrated recommendations, equations 1 to 4 (alpha = 0.01).

    Examples
    --------
    >>> past = sparse.csr_array(np.array([[1.0, 1.0], [3.0, 0.0]]))
    >>> tag_miscalibration(past, np.array([[0.5, 0.5], [1.0, 0.0]]))
    array([0., 0.])
    """
    p, p_total = _shares(history.toarray())
    q, q_total = _shares(np.asarray(listed, np.float64))
    mixed = (1 - _SMOOTHING) * q + _SMOOTHING * p
    ratio = np.divide(p, mixed, out=np.ones_like(p), where=p > 0)
    divergence = (p * np.log2(ratio)).sum(axis=1)
    return np.where((p_total > 0) & (q_total > 0), divergence, np.nan)


def _shares(amounts: npt.NDArray[Any]) -> tuple[Float64, Float64]:
    total = amounts.sum(axis=1, dtype=np.float64)
    share = np.zeros(amounts.shape)
    np.divide(amounts, total[:, None], out=share, where=total[:, None] > 0)
    return share, total


def _incidence(
    lists: Int64, n_items: int, by_place: npt.NDArray[Any] | None = None
) -> sparse.csr_array:
    """Return csr_array (n_lists, n_items): 1, or the weight of the place, where an item stands."""
    n_lists, k = lists.shape
    value = np.broadcast_to(np.ones(k) if by_place is None else by_place, lists.shape)
    return sparse.csr_array(
        (value.ravel(), lists.ravel(), np.arange(n_lists + 1) * k), shape=(n_lists, n_items)
    )
