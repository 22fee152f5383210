"""What users may share with their neighbours, and how well neighbour lists are ordered by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy import sparse

from materialize.evaluate.nearest import nearest_others, unit_rows

if TYPE_CHECKING:
    from materialize.evaluate.cohort import Catalogue

__all__ = ["Likeness", "SharedGroup", "SharedTaste", "ndcg", "nearest_groups", "taste_profiles"]

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


class Likeness(Protocol):
    """How much two users have in common: the gain of a neighbour."""

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """Bool (n_users,): of whom it is known. The others neither ask nor are candidates."""
        ...

    def gains(self, queries: Int64, neighbours: Int64) -> Float64:
        """Return the gain of each neighbour, float64 (n_queries, k) from 0 to 1; -1 has none."""
        ...

    def best(self, queries: Int64, k: int) -> Float64:
        """Return the gains of the k best others, float64 (n_queries, up to k), falling."""
        ...


@dataclass(frozen=True, eq=False)
class SharedGroup:
    """Two users have the same value of one column: gain 1, else 0.

    Attributes
    ----------
    codes : int64 (n_users,)
        Equal numbers: equal values; -1: unknown.
    """

    codes: Int64

    @classmethod
    def of(cls, values: npt.NDArray[Any]) -> SharedGroup:
        """Return the likeness of a column of str, "" for unknown."""
        names, codes = np.unique(values.astype(str), return_inverse=True)
        return cls(np.where(names[codes] == "", -1, codes).astype(np.int64))

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """Users whose value is known."""
        return np.asarray(self.codes >= 0)

    @property
    def n_groups(self) -> int:
        """Return the number of different values."""
        return len(np.unique(self.codes[self.known]))

    def gains(self, queries: Int64, neighbours: Int64) -> Float64:
        """Return 1 where a neighbour has the query's value."""
        same = self.codes[neighbours] == self.codes[queries][:, None]
        return np.asarray(same & (neighbours >= 0), np.float64)

    def best(self, queries: Int64, k: int) -> Float64:
        """Return as many ones as there are others with the query's value, at most k."""
        size = np.bincount(self.codes[self.known])
        others = size[self.codes[queries]] - 1
        return (np.arange(k) < others[:, None]).astype(np.float64)


@dataclass(frozen=True, eq=False)
class SharedTaste:
    """Two users differ from the average in the same direction: gain = max(0, cosine).

    Attributes
    ----------
    profiles : float32 (n_users, n_tags)
        Of unit length; zeros: unknown.
    """

    profiles: npt.NDArray[np.float32]

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """Users with a profile."""
        return np.asarray(self.profiles.any(axis=1))

    def gains(self, queries: Int64, neighbours: Int64) -> Float64:
        """Return the cosine of the profiles where it is positive."""
        found = np.empty(neighbours.shape)
        for r in range(neighbours.shape[1]):  # one place at a time: no (n_queries, k, n_tags)
            found[:, r] = np.einsum(
                "qt,qt->q", self.profiles[queries], self.profiles[neighbours[:, r]]
            )
        return np.where(neighbours >= 0, np.maximum(found, 0.0), 0.0)

    def best(self, queries: Int64, k: int) -> Float64:
        """Return the gains of the exact neighbours in taste."""
        among = {"known": self.known}
        return self.gains(queries, nearest_others(self.profiles, queries, k, among)["known"])


def ndcg(gains: npt.NDArray[Any], best: npt.NDArray[Any]) -> Float64:
    """Return each query's normalised discounted cumulative gain.

    Parameters
    ----------
    gains : float (n_queries, k), not negative
        Of the list as it stands, first place first.
    best : float (n_queries, k or fewer), not negative
        Of the best list there could be.

    Returns
    -------
    float64 (n_queries,)
        From 0 to 1; NaN where no list could gain anything.

    References
    ----------
    Järvelin and Kekäläinen (2002), Cumulated gain-based evaluation of IR techniques: DCG = sum over
    places r from 1 of gain(r) / log2(r + 1), linear gain; divided by the DCG of the best list.

    Examples
    --------
    >>> ndcg([[0, 1]], [[1, 0]]).round(4)  # (1 / log2 3) / (1 / log2 2)
    array([0.6309])
    """
    dcg, ideal = _dcg(np.asarray(gains, np.float64)), _dcg(np.asarray(best, np.float64))
    share = np.full(len(dcg), np.nan)
    np.divide(dcg, ideal, out=share, where=ideal > 0)
    return share


def _dcg(gains: Float64) -> Float64:
    return np.asarray(gains @ (1 / np.log2(np.arange(gains.shape[1]) + 2.0)))


def taste_profiles(amounts: sparse.csr_array, least: int) -> npt.NDArray[np.float32]:
    """Return in which direction each user's taste differs from the average.

    Parameters
    ----------
    amounts : csr_array (n_users, n_tags), not negative
        How much of each tag a user consumed.
    least : int
        Users with a smaller total have no profile.

    Returns
    -------
    float32 (n_users, n_tags)
        Share of each tag in the user's total, minus the mean share over users with a profile, at
        unit length. Zeros: no profile.

    Notes
    -----
    Without the mean, everybody's taste is mostly what is popular, all users look alike, and a
    random neighbour gains almost as much as the best.

    Examples
    --------
    >>> taste_profiles(sparse.csr_array([[4, 0], [0, 9], [1, 0]]), least=2)
    array([[ 0.70710677, -0.70710677],
           [-0.70710677,  0.70710677],
           [ 0.        ,  0.        ]], dtype=float32)
    """
    dense = amounts.toarray().astype(np.float32)
    total = dense.sum(axis=1, keepdims=True)
    has = total[:, 0] >= max(least, 1)
    share = np.divide(dense, total, out=np.zeros_like(dense), where=total > 0)
    if has.any():
        share -= share[has].mean(axis=0, dtype=np.float64).astype(np.float32)
    share[~has] = 0.0
    share[np.abs(share) < 1e-6] = 0.0  # a user who is the average differs by rounding only
    return unit_rows(share)


def nearest_groups(
    vectors: Mapping[str, npt.NDArray[np.float32]], catalogue: Catalogue
) -> npt.NDArray[np.object_] | None:
    """Return which item cluster each user's onboarding picks lie nearest to.

    Parameters
    ----------
    vectors : mapping of str to float32 (n_users, dim)
        Mean vector of the picks, by modality; zeros: none.
    catalogue : Catalogue

    Returns
    -------
    object (n_users,) of str or None
        ``"<modality> <cluster>"`` by the largest cosine to the clusters' mean item vectors, in the
        first modality that has clusters; "" for a user without picks. None: no modality has any.
    """
    for name, clusters in catalogue.clusters.items():
        placed = clusters >= 0
        if name not in vectors or not placed.any():
            continue
        numbers, at = np.unique(clusters[placed], return_inverse=True)
        belongs = sparse.csr_array(
            (np.ones(len(at), np.float32), (at, np.arange(len(at)))), shape=(len(numbers), len(at))
        )
        centres = unit_rows(belongs @ catalogue.vectors[name][placed])  # direction of the mean
        picks = unit_rows(vectors[name])
        nearest = numbers[np.argmax(picks @ centres.T, axis=1)]
        groups = np.array([f"{name} {cluster}" for cluster in nearest], object)
        groups[~picks.any(axis=1)] = ""
        return groups
    return None
