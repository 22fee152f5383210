"""Ranking quality of multi-label scores, with intervals that treat users as the sampling unit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from encoder.resampling import (
    Interval,
    auc,
    auc_replicates,
    mean_replicates,
    user_draws,
)

__all__ = [
    "AucReplicates",
    "auc_by_group",
    "auc_macro",
    "auc_micro",
    "auc_per_target",
    "best_threshold",
    "bootstrap_auc",
    "bootstrap_mean",
]


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
        return Interval.of(self.micro, self.micro_replicates)

    @property
    def macro_interval(self) -> Interval:
        """Macro AUC with its interval."""
        return Interval.of(self.macro, self.macro_replicates)

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
    return auc(labels.ravel(), values.ravel())


def auc_per_target(y: npt.ArrayLike, scores: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return each target's ROC AUC, float64 (n_targets,); NaN where a target has one class only."""
    labels, values = _checked(y, scores)
    return np.array([auc(labels[:, t], values[:, t]) for t in range(labels.shape[1])])


def auc_macro(y: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Return the mean ROC AUC over the targets that have both classes; NaN when none has."""
    return float(_mean_of_defined(auc_per_target(y, scores)[:, None])[0])


def auc_by_group(
    y: npt.ArrayLike, scores: npt.ArrayLike, group: npt.ArrayLike, n_groups: int
) -> npt.NDArray[np.float64]:
    """Return the ROC AUC inside each group of flat pairs, float64 (n_groups,).

    Parameters
    ----------
    y : bool (n_pairs,)
    scores : float (n_pairs,), finite
    group : int (n_pairs,)
        Whose pair it is, 0 to ``n_groups - 1``; for example the row of a (row, item) pair.
    n_groups : int

    Returns
    -------
    float64 (n_groups,)
        NaN where a group has no positive or no negative.

    Examples
    --------
    >>> auc_by_group([True, False, True, False, False], [2, 1, 0, 0, 1], [0, 0, 1, 1, 1], 3)
    array([1.  , 0.25,  nan])
    """
    labels, values, owner = np.asarray(y, bool), np.asarray(scores), np.asarray(group)
    order = np.lexsort((values, owner))
    owner, values, labels = owner[order], values[order], labels[order]
    n = len(owner)
    changed = np.ones(n, bool)  # where a run of equal (group, score) begins
    changed[1:] = (owner[1:] != owner[:-1]) | (values[1:] != values[:-1])
    run = np.cumsum(changed) - 1
    begins = np.flatnonzero(changed)
    ends = np.append(begins[1:], n)
    rank = ((begins + 1 + ends) / 2)[run]  # mid-rank among all pairs, ties averaged
    size = np.bincount(owner, minlength=n_groups)
    before = np.cumsum(size) - size
    positives = np.bincount(owner, labels, n_groups)
    rank_sum = np.bincount(owner, labels * (rank - before[owner]), n_groups)
    pairs = positives * (size - positives)
    ordered = rank_sum - positives * (positives + 1) / 2
    found = np.full(n_groups, np.nan)
    np.divide(ordered, pairs, out=found, where=pairs > 0)
    return found


def best_threshold(y: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Return the score from which on "yes" is right most often, both classes counting the same.

    Parameters
    ----------
    y : bool (n_pairs,), both classes
    scores : float (n_pairs,), finite
        Of the pairs that the threshold is chosen on; accuracy belongs on others.

    Returns
    -------
    float
        Halfway between two neighbouring scores; a pair is a "yes" where its score is not below it.
        -inf: always yes, inf: never.

    Raises
    ------
    ValueError
        One class only.

    Examples
    --------
    >>> best_threshold([False, False, True, True], [0.1, 0.4, 0.6, 0.9])
    0.5
    """
    labels, values = np.asarray(y, bool), np.asarray(scores, np.float64)
    if labels.all() or not labels.any():
        raise ValueError(f"{len(labels)} pairs of one class given, both are expected.")
    order = np.argsort(values, kind="stable")
    labels, values = labels[order], values[order]
    # Share of negatives below position k plus share of positives from it on.
    negative = np.append(0, np.cumsum(~labels)) / (~labels).sum()
    positive = 1 - np.append(0, np.cumsum(labels)) / labels.sum()
    edges = np.concatenate([[-np.inf], (values[1:] + values[:-1]) / 2, [np.inf]])
    # Between two equal scores there is no threshold.
    apart = np.concatenate([[True], values[1:] > values[:-1], [True]])
    return float(edges[np.argmax(np.where(apart, negative + positive, -1.0))])


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
    Replicates are those of ``encoder.resampling.auc_replicates``; the values on all rows are always
    exact. A target that loses a class in a resample is left out of that resample's macro mean.

    References
    ----------
    Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapter 13 (percentile interval).
    """
    labels, values = _checked(y, scores)
    n_rows, n_targets = labels.shape
    owners = np.asarray(users)
    if owners.shape != (n_rows,):
        raise ValueError(f"users of shape {owners.shape} given, ({n_rows},) expected.")
    draws = user_draws(owners, n_resamples, seed)
    pairs = draws.take(np.repeat(np.arange(n_rows), n_targets))
    micro = auc_replicates(labels.ravel(), values.ravel(), pairs)
    targets = [auc_replicates(labels[:, t], values[:, t], draws) for t in range(n_targets)]
    return AucReplicates(
        micro.value,
        float(_mean_of_defined(np.array([[t.value] for t in targets]))[0]),
        micro.replicates,
        _mean_of_defined(np.stack([t.replicates for t in targets])),
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
    return mean_replicates(each, user_draws(np.arange(len(each)), n_resamples, seed)).interval


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


def _mean_of_defined(per_target: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the mean over targets (axis 0) without NaN; NaN where all are NaN."""
    defined = ~np.isnan(per_target)
    mean = np.full(per_target.shape[1], np.nan)
    total = np.where(defined, per_target, 0.0).sum(axis=0)
    np.divide(total, defined.sum(axis=0), out=mean, where=defined.any(axis=0))
    return mean
