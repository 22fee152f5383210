"""How far groups of users differ in what they get, beside what chance alone makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from encoder.resampling import Draws, Replicates, resampled_sums
from materialize.evaluate.lists import recentred

__all__ = ["LEAST_USERS", "GroupGaps", "group_gaps", "large_groups"]

LEAST_USERS = 30
"""Smaller groups are left out: their means are mostly noise."""

_SHUFFLES = 20


@dataclass(frozen=True, eq=False)
class GroupGaps:
    """One figure by group of users.

    Attributes
    ----------
    by_group : mapping of str to Replicates
    gap : Replicates
        Largest minus smallest group mean.
    least : Replicates
        Smallest group mean.
    chance : Replicates
        The gap between groups of the same sizes that are drawn by lot.
    """

    by_group: Mapping[str, Replicates]
    gap: Replicates
    least: Replicates
    chance: Replicates


def large_groups(groups: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return which users are of a known group with at least 30 users, bool (n_users,).

    Parameters
    ----------
    groups : str (n_users,)
        One row a user; "" for unknown.
    """
    names, codes, size = np.unique(groups.astype(str), return_inverse=True, return_counts=True)
    return np.asarray(((names != "") & (size >= LEAST_USERS))[codes], np.bool_)


def group_gaps(
    values: npt.NDArray[np.float64], groups: npt.NDArray[Any], draws: Draws, seed: int
) -> GroupGaps:
    """Return each group's mean and how far the groups are apart.

    Parameters
    ----------
    values : float64 (n_rows,), finite
        What each row gets, for example its nDCG.
    groups : str (n_rows,)
        At least two different ones.
    draws : Draws
        Of the rows.
    seed : int
        Of the groups that are drawn by lot.

    Raises
    ------
    ValueError
        One group only.

    Notes
    -----
    The figures are those of fairlearn's ``MetricFrame``: ``by_group``, ``difference`` (between
    groups: largest minus smallest) and ``group_min``. Their replicates are the same on each
    resample of the users, moved to have the figure as their mean: noise can only widen a gap and
    lower a minimum.

    Groups that differ by nothing have a gap above zero, the more so the more and the smaller they
    are. ``chance`` is the mean gap over 20 shuffles of the group names among the rows, on the same
    resamples: a gap says something where it lies above that.

    References
    ----------
    Weerts et al. (2023), Fairlearn: assessing and improving fairness of AI systems, JMLR 24 (257).
    """
    from fairlearn.metrics import MetricFrame, mean_prediction  # an extra, and slow to import

    names, codes = np.unique(groups.astype(str), return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"Groups {names.tolist()} given, at least two expected.")
    frame = MetricFrame(
        metrics=mean_prediction, y_true=values, y_pred=values, sensitive_features=names[codes]
    )
    means = _means(values, codes, len(names), draws)[1:]  # (n_resamples, n_groups)
    rng = np.random.default_rng(seed)
    by_lot = [
        _spread(_means(values, rng.permutation(codes), len(names), draws)) for _ in range(_SHUFFLES)
    ]
    return GroupGaps(
        by_group={
            name: Replicates(float(frame.by_group[name]), means[:, g])
            for g, name in enumerate(names.tolist())
        },
        gap=recentred(Replicates(float(frame.difference()), _spread(means))),
        least=recentred(Replicates(float(frame.group_min()), np.nanmin(means, axis=1))),
        chance=recentred(Replicates.of(np.mean(by_lot, axis=0))),
    )


def _means(
    values: npt.NDArray[np.float64], codes: npt.NDArray[np.intp], n_groups: int, draws: Draws
) -> npt.NDArray[np.float64]:
    """Return group means of all users first, then of each resample; NaN for a group not drawn."""
    member = np.eye(n_groups)[codes]  # (n_rows, n_groups)
    sums = resampled_sums(np.hstack([member * values[:, None], member]), draws)
    total, size = np.split(sums, 2, axis=1)
    means = np.full(total.shape, np.nan)
    np.divide(total, size, out=means, where=size > 0)
    return means


def _spread(means: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(np.nanmax(means, axis=1) - np.nanmin(means, axis=1), np.float64)
