"""How the RecSys Challenge 2025 scores propensities: AUROC, novelty and diversity."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.special import expit

from encoder.resampling import Draws, Replicates, auc

__all__ = [
    "NOVELTY_POWER",
    "TOP_K",
    "diversity_of_rows",
    "macro_auc_replicates",
    "novelty",
    "popularity_of_rows",
    "weighted_score",
]

Float64 = npt.NDArray[np.float64]

TOP_K = 10
"""Predictions of a user whose popularity counts."""

NOVELTY_POWER = 100
"""Spreads figures that lie close to 1 where the data are sparse."""

_EPSILON = 1e-9
"""The challenge's ``10e-10``, inside its logarithm."""


def diversity_of_rows(logits: npt.NDArray[Any]) -> Float64:
    """Return each row's diversity, float64 (n_rows,), between 0 and 1.

    The entropy of the sigmoids at sum 1, over the entropy of equal ones: 1 where all targets are
    as likely, 0 where there is one only.

    Parameters
    ----------
    logits : float (n_rows, n_targets), finite
        At least two targets.

    Raises
    ------
    ValueError
        Another shape, or a single target.

    Examples
    --------
    >>> diversity_of_rows(np.zeros((1, 4))).round(6)
    array([1.])
    """
    probability = _probability(logits)
    if probability.shape[1] < 2:
        raise ValueError("One target given, diversity needs two or more.")
    share = probability / probability.sum(axis=1, keepdims=True)
    entropy = -(share * np.log2(share + _EPSILON)).sum(axis=1)
    return np.asarray(entropy / np.log2(probability.shape[1]), np.float64)


def popularity_of_rows(
    logits: npt.NDArray[Any], popularity: npt.NDArray[Any], k: int = TOP_K
) -> Float64:
    """Return how popular each row's predictions are, float64 (n_rows,), between 0 and 1.

    The popularities of the ``k`` most likely targets, each weighted with its probability, over
    those of the ``k`` most popular targets: 1 where exactly these are predicted with certainty.

    Parameters
    ----------
    logits : float (n_rows, n_targets), finite
    popularity : float (n_targets,)
        At least 0, one of them more; for example counts among training users.
    k : int
        Where there are fewer targets, all of them.

    Raises
    ------
    ValueError
        Shapes that do not fit, a negative popularity or none above 0, ``k`` below 1.
    """
    probability = _probability(logits)
    weight = np.asarray(popularity, np.float64)
    if weight.shape != (probability.shape[1],):
        raise ValueError(
            f"popularity of shape {weight.shape} given, ({probability.shape[1]},) expected."
        )
    if not (weight >= 0).all() or not weight.sum() > 0:
        raise ValueError("Popularities below 0 or all 0 given, counts of targets are expected.")
    if k < 1:
        raise ValueError(f"k {k} given, at least 1 expected.")
    kept = min(k, len(weight))
    best = np.argpartition(-probability, kept - 1, axis=1)[:, :kept]  # (n_rows, kept)
    predicted = (np.take_along_axis(probability, best, axis=1) * weight[best]).sum(axis=1)
    return np.asarray(predicted / np.sort(weight)[-kept:].sum(), np.float64)


def novelty(mean_popularity: npt.ArrayLike) -> Float64:
    """Return ``(1 - mean popularity of the rows) ** 100``.

    Parameters
    ----------
    mean_popularity : float (...)
        Mean of ``popularity_of_rows`` over the rows, between 0 and 1: the power is taken of the
        mean, not of each row.

    Examples
    --------
    >>> novelty(0.01).round(6)
    np.float64(0.366032)
    """
    return np.asarray((1.0 - np.asarray(mean_popularity, np.float64)) ** NOVELTY_POWER)[()]


def weighted_score(auroc: Any, novelty: Any, diversity: Any) -> Any:
    """Return the challenge's score of a propensity, ``0.8 AUROC + 0.1 novelty + 0.1 diversity``."""
    return 0.8 * auroc + 0.1 * novelty + 0.1 * diversity


def macro_auc_replicates(
    y: npt.NDArray[np.bool_], scores: npt.NDArray[Any], draws: Draws
) -> Replicates:
    """Return the mean ROC AUC over targets, on all users and on every resample of them.

    Parameters
    ----------
    y : bool (n_rows, n_targets)
    scores : float (n_rows, n_targets), finite
        Need not be comparable between targets.
    draws : Draws
        Of these rows.

    Returns
    -------
    Replicates
        A target that has one class only, in all or in a resample, is left out there.

    Raises
    ------
    ValueError
        Shapes that do not fit, NaN or infinity.

    Notes
    -----
    Exact, ties included, in O(n_rows) a target and resample without sorting again: the weights of
    negatives are summed between and at the scores of positives, which are few.
    """
    labels, values = np.asarray(y, bool), np.asarray(scores)
    if labels.ndim != 2 or labels.shape != values.shape or len(labels) != len(draws.owner):
        raise ValueError(
            f"y {labels.shape}, scores {values.shape} and draws of {len(draws.owner)} rows given, "
            "the same (n_rows, n_targets) expected."
        )
    if not np.isfinite(values).all():
        raise ValueError("Scores with NaN or infinity were given, finite ones are expected.")
    n_targets = labels.shape[1]
    each = np.array([auc(labels[:, t], values[:, t]) for t in range(n_targets)])
    levels = [_levels(labels[:, t], values[:, t], draws) for t in range(n_targets)]
    replicates = []
    for weights in draws.weights():  # (n_keys, chunk)
        total = np.zeros(weights.shape[1])
        defined = np.zeros(weights.shape[1])
        for part in levels:
            ordered, pairs = _ordered_pairs(part @ weights)
            there = pairs > 0
            total += np.divide(ordered, pairs, out=np.zeros_like(pairs), where=there)
            defined += there
        replicates.append(_mean(total, defined))
    there = ~np.isnan(each)
    value = _mean(np.array([each[there].sum()]), np.array([there.sum()], np.float64))
    return Replicates(float(value[0]), np.concatenate(replicates))


def _levels(y: npt.NDArray[np.bool_], scores: npt.NDArray[Any], draws: Draws) -> sparse.csr_array:
    """Return who stands where around a target's distinct positive scores, (3 n_levels + 1, n_keys).

    Rows 2l and 2l + 1: each user's negatives between level l - 1 and level l, and at level l; row
    2 n_levels: negatives above all; then a row a level: the positives at it.
    """
    level = np.unique(scores[y])
    n_levels = len(level)
    below = np.searchsorted(level, scores, side="left")
    tied = np.searchsorted(level, scores, side="right") - below
    place = np.where(y, 2 * n_levels + 1 + below, 2 * below + tied)
    ones = np.ones(len(scores), np.float32)
    shape = (3 * n_levels + 1, len(draws.keys))
    return sparse.csr_array((ones, (place, draws.owner)), shape=shape)


def _ordered_pairs(summed: npt.NDArray[np.float32]) -> tuple[Float64, Float64]:
    """Return the weights of pairs in the right order and of all pairs, float64 (chunk,) each."""
    n_levels = (len(summed) - 1) // 3
    negative = summed[: 2 * n_levels + 1].astype(np.float64)
    positive = summed[2 * n_levels + 1 :].astype(np.float64)
    n_negative = negative.sum(axis=0)
    strictly_below = np.cumsum(negative, axis=0)[0 : 2 * n_levels : 2]  # ends before level l
    won = strictly_below + negative[1::2] / 2  # ties count half
    return np.einsum("lb,lb->b", positive, won), positive.sum(axis=0) * n_negative


def _mean(total: Float64, n: Float64) -> Float64:
    mean: Float64 = np.divide(total, n, out=np.full(len(n), np.nan), where=n > 0)
    return mean


def _probability(logits: npt.NDArray[Any]) -> Float64:
    values = np.asarray(logits, np.float64)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise ValueError(
            f"logits of shape {values.shape} given, finite ones of (n_rows, n_targets) expected."
        )
    return np.asarray(expit(values), np.float64)
