"""Ranking quality of multi-label scores, with intervals that treat users as the sampling unit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.stats import rankdata

__all__ = [
    "AucReplicates",
    "Interval",
    "auc_macro",
    "auc_micro",
    "auc_per_target",
    "bootstrap_auc",
    "bootstrap_mean",
]

_BINS = 8192
"""Resamples see scores through so many equally filled bins (see ``bootstrap_auc``)."""

_CELLS_PER_CHUNK = 2**24
"""Resamples are drawn in chunks of at most so many user weights: 64 MiB of float32."""


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


@dataclass(frozen=True)
class AucReplicates:
    """AUC of one model on all rows, and on every resample of the users.

    Attributes
    ----------
    micro, macro : float
        On all rows. NaN where no pair of a positive and a negative exists.
    micro_replicates, macro_replicates : float64 (n_resamples,)
        Replicate ``b`` of two models is computed on the same users when both were made with the
        same ``users``, ``n_resamples`` and ``seed``, so that their difference is paired.
    """

    micro: float
    macro: float
    micro_replicates: npt.NDArray[np.float64]
    macro_replicates: npt.NDArray[np.float64]

    @property
    def micro_interval(self) -> Interval:
        """Micro AUC with its interval."""
        return _interval(self.micro, self.micro_replicates)

    @property
    def macro_interval(self) -> Interval:
        """Macro AUC with its interval."""
        return _interval(self.macro, self.macro_replicates)

    def minus(self, other: AucReplicates) -> AucReplicates:
        """Return the paired difference to another model that saw the same resamples."""
        if len(self.micro_replicates) != len(other.micro_replicates):
            raise ValueError(
                f"{len(self.micro_replicates)} and {len(other.micro_replicates)} resamples given, "
                "a paired difference needs the same ones."
            )
        return AucReplicates(
            self.micro - other.micro,
            self.macro - other.macro,
            self.micro_replicates - other.micro_replicates,
            self.macro_replicates - other.macro_replicates,
        )


def auc_micro(y: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Return the ROC AUC over all (row, target) pairs; NaN when one class is missing.

    Parameters
    ----------
    y : bool (n_rows, n_targets)
    scores : float (n_rows, n_targets)
        Comparable between targets, for example probabilities or logits.

    References
    ----------
    Hanley and McNeil (1982), The meaning and use of the area under a ROC curve: AUC is the share of
    (positive, negative) pairs in the right order, a tie counting half.

    Examples
    --------
    >>> auc_micro([[True, False], [False, False]], [[0.9, 0.8], [0.95, 0.1]])
    0.6666666666666666
    """
    labels, values = _checked(y, scores)
    return _auc(labels.ravel(), values.ravel())


def auc_per_target(y: npt.ArrayLike, scores: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return each target's ROC AUC, float64 (n_targets,); NaN where a target has one class only."""
    labels, values = _checked(y, scores)
    return np.array([_auc(labels[:, t], values[:, t]) for t in range(labels.shape[1])])


def auc_macro(y: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Return the mean ROC AUC over the targets that have both classes; NaN when none has."""
    return float(_mean_of_defined(auc_per_target(y, scores)[:, None])[0])


def bootstrap_auc(
    y: npt.ArrayLike,
    scores: npt.ArrayLike,
    users: npt.ArrayLike,
    *,
    n_resamples: int = 500,
    seed: int = 0,
) -> AucReplicates:
    """Return micro and macro AUC on all rows and on resamples of the users.

    Parameters
    ----------
    y : bool (n_rows, n_targets)
    scores : float (n_rows, n_targets), finite
    users : (n_rows,)
        Whose row it is. Whole users are drawn with replacement, all rows of a user together,
        because rows of one user are not independent.
    n_resamples : int
        At least 2; 200 to 1000 give a usable 95% interval.
    seed : int

    Notes
    -----
    A resample is a vector of multinomial user weights, and its AUC is the weighted AUC. Weights of
    positives and negatives are summed per score bin by one sparse product for many resamples at a
    time, then accumulated over the bins: O(n_rows * n_targets) per resample, no sorting. Equal
    scores always share a bin. With at most 8192 distinct scores the replicates are exact; above,
    pairs inside one bin count as ties, which moves a replicate by at most half the share of such
    pairs (below 1 / (2 * 8192 * share of negatives)). The values on all rows are always exact. A
    target that loses a class in a resample is left out of that resample's macro mean.

    References
    ----------
    Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapter 13 (percentile interval).
    Field and Welsh (2007), Bootstrapping clustered data (resampling whole clusters).
    """
    labels, values = _checked(y, scores)
    n_rows, n_targets = labels.shape
    owners = np.asarray(users)
    if owners.shape != (n_rows,):
        raise ValueError(f"users of shape {owners.shape} given, ({n_rows},) expected.")
    if n_resamples < 2:
        raise ValueError(f"n_resamples {n_resamples} given, at least 2 expected.")
    if not np.isfinite(values).all():
        raise ValueError("Scores with NaN or infinity were given, finite ones are expected.")
    names, owner = np.unique(owners, return_inverse=True)
    targets = [
        _bin_by_user(labels[:, t], values[:, t], owner, len(names)) for t in range(n_targets)
    ]
    pooled = _bin_by_user(labels.ravel(), values.ravel(), np.repeat(owner, n_targets), len(names))
    micro, macro = [], []
    for weights in _user_weights(len(names), n_resamples, seed):  # (n_users, chunk)
        micro.append(_weighted_auc(pooled, weights))
        macro.append(_mean_of_defined(np.stack([_weighted_auc(b, weights) for b in targets])))
    return AucReplicates(
        auc_micro(labels, values),
        auc_macro(labels, values),
        np.concatenate(micro),
        np.concatenate(macro),
    )


def bootstrap_mean(values: npt.ArrayLike, *, n_resamples: int = 500, seed: int = 0) -> Interval:
    """Return the mean of one figure a user, with its interval over resampled users.

    Parameters
    ----------
    values : float (n_users,), finite
    n_resamples : int
        At least 2.
    seed : int

    Examples
    --------
    >>> bootstrap_mean([0.5, 0.5, 0.5])
    Interval(value=0.5, low=0.5, high=0.5)
    """
    each = np.asarray(values, np.float64)
    if each.ndim != 1 or not each.size or not np.isfinite(each).all():
        raise ValueError(f"Values of shape {each.shape} given, finite (n_users,) expected.")
    if n_resamples < 2:
        raise ValueError(f"n_resamples {n_resamples} given, at least 2 expected.")
    replicates = np.concatenate(
        [each @ weights for weights in _user_weights(len(each), n_resamples, seed)]
    )
    return _interval(float(each.mean()), replicates / len(each))


def _checked(
    y: npt.ArrayLike, scores: npt.ArrayLike
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.floating]]:
    labels, values = np.asarray(y, bool), np.asarray(scores)
    if labels.ndim != 2 or labels.shape != values.shape:
        raise ValueError(
            f"y of shape {labels.shape} and scores of shape {values.shape} given, "
            "the same (n_rows, n_targets) expected."
        )
    return labels, values


def _auc(y: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating]) -> float:
    positives = int(y.sum())
    negatives = len(y) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    rank_sum = float(rankdata(scores)[y].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def _bin_by_user(
    y: npt.NDArray[np.bool_],
    scores: npt.NDArray[np.floating],
    owner: npt.NDArray[np.intp],
    n_users: int,
) -> sparse.csr_matrix:
    """Return how many rows each user has in each score bin: (2 * n_bins, n_users).

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
    return sparse.csr_matrix((ones, (rows, owner)), shape=(2 * n_bins, n_users))


def _user_weights(n_users: int, n_resamples: int, seed: int) -> Iterator[npt.NDArray[np.float32]]:
    """Yield how often each user was drawn: float32 (n_users, chunk), ``n_resamples`` in all."""
    rng = np.random.default_rng(seed)
    chunk = max(1, min(n_resamples, _CELLS_PER_CHUNK // n_users))
    for start in range(0, n_resamples, chunk):
        weights = np.empty((n_users, min(chunk, n_resamples - start)), np.float32)
        for b in range(weights.shape[1]):
            drawn = rng.integers(0, n_users, n_users)
            weights[:, b] = np.bincount(drawn, minlength=n_users)
        yield weights


def _weighted_auc(
    bins: sparse.csr_matrix, weights: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """Return the AUC of each weight column, float64 (chunk,); NaN where a class has no weight."""
    per_bin = bins @ weights  # (2 * n_bins, chunk); float32 is exact for counts below 2**24
    negative, positive = np.split(np.asarray(per_bin, np.float64), 2)
    below = np.cumsum(negative, axis=0)
    below -= negative / 2  # ties count half
    ordered = np.einsum("kb,kb->b", positive, below)
    pairs = positive.sum(axis=0) * negative.sum(axis=0)
    return _ratio(ordered, pairs)


def _mean_of_defined(per_target: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the mean over targets (axis 0) without NaN; NaN where all are NaN."""
    defined = ~np.isnan(per_target)
    return _ratio(np.where(defined, per_target, 0.0).sum(axis=0), defined.sum(axis=0))


def _ratio(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return ``part / whole``, NaN where ``whole`` is zero."""
    ratio = np.full(len(whole), np.nan)
    np.divide(part, whole, out=ratio, where=whole > 0)
    return ratio


def _interval(value: float, replicates: npt.NDArray[np.float64]) -> Interval:
    defined = replicates[~np.isnan(replicates)]
    if np.isnan(value) or not defined.size:
        return Interval(value, float("nan"), float("nan"))
    low, high = np.percentile(defined, [2.5, 97.5])
    return Interval(value, float(low), float(high))
