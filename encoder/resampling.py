"""Figures on resampled users: means, ratios and AUC, paired between models, seeds and groups."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.stats import rankdata

__all__ = [
    "Draws",
    "Interval",
    "Replicates",
    "auc",
    "auc_replicates",
    "column_means",
    "mean_replicates",
    "ratio_replicates",
    "resampled_sums",
    "user_draws",
]

_BINS = 1024
"""Resamples see scores through so many equally filled bins (see ``auc_replicates``)."""

_CELLS_PER_CHUNK = 2**22
"""Weights are widened to floats in chunks of at most so many: 16 MiB of float32."""

_KEPT_CELLS = 2**26
"""Up to so many weights are kept as bytes (64 MiB); more are drawn again for each figure."""

_STEP = 0x9E3779B97F4A7C15
"""SplitMix64's increment."""

_POISSON = np.cumsum(np.exp(-1.0) / np.cumprod(np.concatenate([[1.0], np.arange(1.0, 13.0)])))
"""Distribution function of a Poisson variable of mean 1 at 0..12; beyond lies 6e-11."""


@dataclass(frozen=True)
class Interval:
    """A figure with its 95% bootstrap percentile interval."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """Return plain JSON types: NaN, which JSON does not know, becomes None."""
        figures = {"value": self.value, "low": self.low, "high": self.high}
        return {name: None if np.isnan(x) else x for name, x in figures.items()}

    @classmethod
    def of(cls, value: float, replicates: npt.NDArray[np.float64]) -> Interval:
        """Return the interval of replicates; those that are NaN are left out."""
        defined = replicates[~np.isnan(replicates)]
        if np.isnan(value) or not defined.size:
            return cls(value, float("nan"), float("nan"))
        low, high = np.percentile(defined, [2.5, 97.5])
        return cls(value, float(low), float(high))


@dataclass(frozen=True, eq=False)
class Replicates:
    """A figure on all users, and on every resample of them.

    Attributes
    ----------
    value : float
        NaN where the figure is not defined.
    replicates : float64 (n_resamples,)
        NaN likewise. Element ``b`` of two figures belongs to the same resample when both were made
        with the same ``n_resamples`` and ``seed`` of ``user_draws``: differences are then paired.
    """

    value: float
    replicates: npt.NDArray[np.float64]

    @property
    def interval(self) -> Interval:
        """The figure with its 95% percentile interval."""
        return Interval.of(self.value, self.replicates)

    @classmethod
    def of(cls, figures: npt.NDArray[np.float64]) -> Replicates:
        """Return the figure and replicates of (1 + n_resamples,), made of ``resampled_sums``."""
        return cls(float(figures[0]), np.asarray(figures[1:], np.float64))

    def minus(self, other: Replicates) -> Replicates:
        """Return the paired difference to another figure on the same resamples.

        Raises
        ------
        ValueError
            Other numbers of resamples.
        """
        _same_resamples(self, other)
        return Replicates(self.value - other.value, self.replicates - other.replicates)

    def gain_over(self, other: Replicates) -> Replicates:
        """Return ``self / other - 1``, paired; NaN where ``other`` is 0. Raises as ``minus``."""
        _same_resamples(self, other)
        mine = np.concatenate([[self.value], self.replicates])
        theirs = np.concatenate([[other.value], other.replicates])
        return Replicates.of(_ratio(mine, theirs) - 1.0)


@dataclass(frozen=True, eq=False)
class Draws:
    """Whose row each row is, and how often each user is drawn in each resample.

    A user's weight in resample ``b`` is a Poisson variable of mean 1, made from a hash of the user
    id, the seed and ``b`` alone. So it does not depend on which other users there are: figures of
    two models, two groups or two samples that share users are paired as far as they share them.

    State: the weights are drawn on first use and kept, one byte each, where they take 64 MiB or
    less; objects made by ``take`` share them.

    Attributes
    ----------
    owner : intp (n_rows,)
        Position of each row's user in ``keys``.
    keys : uint64 (n_users,)
        Hash of each user id.
    n_resamples, seed : int

    References
    ----------
    Chamandy, Muralidharan, Najmi and Naidu (2012), Estimating uncertainty for massive data streams
    (Poisson bootstrap). Field and Welsh (2007), Bootstrapping clustered data (whole clusters).
    """

    owner: npt.NDArray[np.intp]
    keys: npt.NDArray[np.uint64]
    n_resamples: int
    seed: int
    _kept: list[npt.NDArray[np.uint8]] = field(default_factory=list, repr=False)

    @property
    def n_users(self) -> int:
        """Users with at least one row."""
        return len(np.unique(self.owner))

    def take(self, rows: npt.NDArray[Any]) -> Draws:
        """Return the draws of some rows, or of (row, item) pairs.

        Parameters
        ----------
        rows : int (n_taken,), which may repeat, or bool (n_rows,)
        """
        return Draws(self.owner[rows], self.keys, self.n_resamples, self.seed, self._kept)

    def weights(self) -> Iterator[npt.NDArray[np.float32]]:
        """Yield weights float32 (n_keys, chunk): ``n_resamples`` columns, the same always."""
        n_users = len(self.keys)
        chunk = max(1, min(self.n_resamples, _CELLS_PER_CHUNK // max(n_users, 1)))
        keep = n_users * self.n_resamples <= _KEPT_CELLS
        if keep and not self._kept:
            self._kept.append(_drawn(self.keys, self.seed, 0, self.n_resamples))
        for start in range(0, self.n_resamples, chunk):
            end = min(start + chunk, self.n_resamples)
            if keep:
                drawn = self._kept[0][:, start:end]
            else:
                drawn = _drawn(self.keys, self.seed, start, end)
            yield drawn.astype(np.float32)


def user_draws(users: npt.NDArray[Any], n_resamples: int = 500, seed: int = 0) -> Draws:
    """Return the resamples of the users of some rows.

    Parameters
    ----------
    users : (n_rows,)
        Integers or strings. All rows of a user are drawn together, because they are not
        independent.
    n_resamples : int
        At least 2; 200 to 1000 give a usable 95% interval.
    seed : int
        Of the resamples; keep it the same for all that is to be compared.

    Raises
    ------
    ValueError
        No row, or too few resamples.
    """
    owners = np.asarray(users)
    if owners.ndim != 1 or not owners.size:
        raise ValueError(f"users of shape {owners.shape} given, (n_rows,) with a row expected.")
    if n_resamples < 2:
        raise ValueError(f"n_resamples {n_resamples} given, at least 2 expected.")
    names, owner = np.unique(owners.astype(str), return_inverse=True)
    hashed = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return Draws(owner, np.frombuffer(hashed, "<u8").astype(np.uint64), n_resamples, seed)


def resampled_sums(values: npt.ArrayLike, draws: Draws) -> npt.NDArray[np.float64]:
    """Return weighted sums over the rows: of all users first, then of each resample.

    Parameters
    ----------
    values : float (n_rows, n_columns), finite, or sparse
        Several columns cost little more than one.
    draws : Draws
        Of these rows.

    Returns
    -------
    float64 (1 + n_resamples, n_columns)
        Row 0: every user once. Any figure made of sums (a mean, a ratio, an ECE, a Gini index)
        follows by the same arithmetic on every row; ``Replicates.of`` takes it from there.
    """
    per_user = _per_user(values, draws)  # (n_keys, n_columns)
    parts = [per_user.sum(axis=0, keepdims=True)]
    parts += [weights.T.astype(np.float64) @ per_user for weights in draws.weights()]
    return np.concatenate(parts)


def mean_replicates(values: npt.ArrayLike, draws: Draws) -> Replicates:
    """Return the mean over rows of one value a row; rows of NaN are left out.

    Parameters
    ----------
    values : float or bool (n_rows,)
        NaN: not defined for that row, for example the AUC of a user without a negative.
    draws : Draws

    Examples
    --------
    >>> draws = user_draws(np.array(["a", "b", "b"]), n_resamples=10)
    >>> mean_replicates([1.0, 0.0, 2.0], draws).value
    1.0
    """
    return column_means(np.asarray(values, np.float64)[:, None], draws)[0]


def column_means(values: npt.ArrayLike, draws: Draws) -> list[Replicates]:
    """Return the mean over rows of each column, (n_rows, n_columns); NaN cells are left out."""
    cells = np.asarray(values, np.float64)
    defined = ~np.isnan(cells)
    n = cells.shape[1]
    sums = resampled_sums(np.hstack([np.where(defined, cells, 0.0), defined]), draws)
    means = _ratio(sums[:, :n], sums[:, n:])
    return [Replicates.of(means[:, k]) for k in range(n)]


def ratio_replicates(
    numerators: npt.ArrayLike, denominators: npt.ArrayLike, draws: Draws
) -> Replicates:
    """Return ``sum(numerators) / sum(denominators)`` over rows, finite (n_rows,) each.

    NaN where the denominators sum to 0.
    """
    sums = resampled_sums(np.column_stack([numerators, denominators]), draws)
    return Replicates.of(_ratio(sums[:, 0], sums[:, 1]))


def auc_replicates(y: npt.ArrayLike, scores: npt.ArrayLike, draws: Draws) -> Replicates:
    """Return the ROC AUC over all pairs of a positive and a negative.

    Parameters
    ----------
    y : bool (n_pairs,)
    scores : float (n_pairs,), finite
        Comparable between users.
    draws : Draws
        Of these pairs: ``draws_of_rows.take(row_of_pair)``.

    Raises
    ------
    ValueError
        Shapes that do not fit, NaN or infinity.

    Notes
    -----
    A resample's AUC is the weighted AUC. Weights of positives and negatives are summed per score
    bin by one sparse product for many resamples at a time, then accumulated over the bins:
    O(n_pairs) a resample, no sorting. Equal scores always share a bin. With at most 1024 distinct
    scores the replicates are exact; above, pairs inside one bin count as ties, which moves a
    replicate by at most half the share of such pairs (below 1 / (2 * 1024 * share of negatives));
    measured, by a thousandth of a standard error to a few. The value on all rows is always exact.

    References
    ----------
    Hanley and McNeil (1982), The meaning and use of the area under a ROC curve: AUC is the share of
    (positive, negative) pairs in the right order, a tie counting half.
    """
    labels, values = np.asarray(y, bool), np.asarray(scores)
    if labels.ndim != 1 or not labels.shape == values.shape == draws.owner.shape:
        raise ValueError(
            f"y {labels.shape}, scores {values.shape} and draws of {draws.owner.shape} rows given, "
            "the same (n_pairs,) expected."
        )
    if not np.isfinite(values).all():
        raise ValueError("Scores with NaN or infinity were given, finite ones are expected.")
    binned = _bin_by_user(labels, values, draws)
    replicates = [_weighted_auc(binned, weights) for weights in draws.weights()]
    return Replicates(auc(labels, values), np.concatenate(replicates))


def auc(y: npt.NDArray[np.bool_], scores: npt.NDArray[Any]) -> float:
    """Return the ROC AUC of flat pairs, (n_pairs,) each; NaN when one class is missing.

    Examples
    --------
    >>> auc(np.array([True, False, False, False]), np.array([0.9, 0.8, 0.95, 0.1]))
    0.6666666666666666
    """
    positives = int(y.sum())
    negatives = len(y) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    rank_sum = float(rankdata(scores)[y].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def _same_resamples(one: Replicates, other: Replicates) -> None:
    if len(one.replicates) != len(other.replicates):
        raise ValueError(
            f"{len(one.replicates)} and {len(other.replicates)} resamples given, a paired "
            "comparison needs the same ones."
        )


def _per_user(values: Any, draws: Draws) -> npt.NDArray[np.float64]:
    """Return the sum of each user's rows, float64 (n_keys, n_columns)."""
    n_rows = len(draws.owner)
    if values.ndim != 2 or values.shape[0] != n_rows:
        raise ValueError(f"values of shape {values.shape} given, ({n_rows}, n_columns) expected.")
    ones = np.ones(n_rows)
    member = sparse.csr_array(
        (ones, (draws.owner, np.arange(n_rows))), shape=(len(draws.keys), n_rows)
    )
    summed = member @ values
    dense = summed.toarray() if sparse.issparse(summed) else summed
    return np.asarray(dense, np.float64)


def _drawn(keys: npt.NDArray[np.uint64], seed: int, start: int, end: int) -> npt.NDArray[np.uint8]:
    """Return Poisson weights uint8 (n_keys, end - start) of resamples ``start`` to ``end``."""
    # Arrays and not scalars: their products wrap around without a warning.
    steps = np.arange(start + 1, end + 1, dtype=np.uint64) * np.uint64(_STEP)
    salted = _mixed(keys ^ _mixed(np.array([seed + _STEP]).astype(np.uint64)))
    weights = np.empty((len(keys), end - start), np.uint8)
    for column, step in enumerate(steps[:, None]):
        bits = _mixed(salted + step)
        uniform = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
        weights[:, column] = np.searchsorted(_POISSON, uniform, side="right")
    return weights


def _mixed(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return SplitMix64's output function of ``x`` (Steele, Lea and Flood, 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)), np.uint64)


def _bin_by_user(
    y: npt.NDArray[np.bool_], scores: npt.NDArray[Any], draws: Draws
) -> sparse.csr_array:
    """Return how many pairs each user has in each score bin: (2 * n_bins, n_keys).

    Negatives stand in the first ``n_bins`` rows, positives in the rest; bins ascend with the score.
    """
    _, level, size = np.unique(scores, return_inverse=True, return_counts=True)
    bin_of_level = np.arange(len(size))
    if len(size) > _BINS:
        below = np.cumsum(size) - size
        bin_of_level = below * _BINS // len(scores)
    n_bins = int(bin_of_level[-1]) + 1
    rows = bin_of_level[level] + n_bins * y
    ones = np.ones(len(rows), np.float32)
    return sparse.csr_array((ones, (rows, draws.owner)), shape=(2 * n_bins, len(draws.keys)))


def _weighted_auc(
    bins: sparse.csr_array, weights: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """Return the AUC of each weight column, float64 (chunk,); NaN where a class has no weight."""
    # float32 is exact for counts, and for halves of them, below 2**23.
    negative, positive = np.split(bins @ weights, 2)  # (n_bins, chunk)
    below = np.cumsum(negative, axis=0)
    below -= negative / 2  # ties count half
    below *= positive
    ordered = below.sum(axis=0, dtype=np.float64)
    pairs = positive.sum(axis=0, dtype=np.float64) * negative.sum(axis=0, dtype=np.float64)
    return _ratio(ordered, pairs)


def _ratio(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return ``part / whole``, NaN where ``whole`` is zero."""
    ratio = np.full(np.shape(whole), np.nan)
    np.divide(part, whole, out=ratio, where=np.asarray(whole) != 0)
    return ratio
