"""How far groups of users differ in what they get, beside what chance alone makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from encoder.resampling import Draws, Replicates, resampled_sums
from materialize.evaluate.lists import recentred

__all__ = ["LEAST_USERS", "GroupGaps", "gap_by_lot", "group_gaps", "large_groups"]

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
    """

    by_group: Mapping[str, Replicates]
    gap: Replicates
    least: Replicates


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
    values: npt.NDArray[np.float64], groups: npt.NDArray[Any], draws: Draws
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

    References
    ----------
    Weerts et al. (2023), Fairlearn: assessing and improving fairness of AI systems, JMLR 24 (257).
    """
    from fairlearn.metrics import MetricFrame, mean_prediction  # an extra, and slow to import

    names, codes = _codes(groups)
    frame = MetricFrame(
        metrics=mean_prediction, y_true=values, y_pred=values, sensitive_features=names[codes]
    )
    means = _means(values, codes[:, None], len(names), draws)[1:, 0]  # (n_resamples, n_groups)
    return GroupGaps(
        by_group={
            name: Replicates(float(frame.by_group[name]), means[:, g])
            for g, name in enumerate(names.tolist())
        },
        gap=recentred(Replicates(float(frame.difference()), _spread(means))),
        least=recentred(Replicates(float(frame.group_min()), np.nanmin(means, axis=1))),
    )


def gap_by_lot(
    values: npt.NDArray[np.float64], groups: npt.NDArray[Any], draws: Draws, seed: int
) -> Replicates:
    """Return the gap between groups of the same sizes that are drawn by lot.

    Groups that differ by nothing have a gap above zero, the more so the more and the smaller they
    are. This is the mean gap over 20 shuffles of the group names among the rows, on the same
    resamples: a gap says something where it lies above that.

    Parameters
    ----------
    values, groups, draws
        As of ``group_gaps``, which raises the same.
    seed : int
    """
    names, codes = _codes(groups)
    rng = np.random.default_rng(seed)
    shuffled = np.stack([rng.permutation(codes) for _ in range(_SHUFFLES)], axis=1)
    means = _means(values, shuffled, len(names), draws)  # (1 + n_resamples, shuffles, n_groups)
    return recentred(Replicates.of(_spread(means).mean(axis=1)))


def _codes(groups: npt.NDArray[Any]) -> tuple[npt.NDArray[np.str_], npt.NDArray[np.intp]]:
    names, codes = np.unique(groups.astype(str), return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"Groups {names.tolist()} given, at least two expected.")
    return names, codes


def _means(
    values: npt.NDArray[np.float64], codes: npt.NDArray[np.intp], n_groups: int, draws: Draws
) -> npt.NDArray[np.float64]:
    """Return group means of several groupings, codes (n_rows, n_groupings).

    float64 (1 + n_resamples, n_groupings, n_groups): all users first; NaN for a group not drawn.
    """
    member = np.eye(n_groups)[codes].reshape(len(values), -1)  # (n_rows, n_groupings * n_groups)
    sums = resampled_sums(np.hstack([member * values[:, None], member]), draws)
    total, size = np.split(sums, 2, axis=1)
    means = np.full(total.shape, np.nan)
    np.divide(total, size, out=means, where=size > 0)
    return means.reshape(len(sums), -1, n_groups)


def _spread(means: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(np.nanmax(means, axis=-1) - np.nanmin(means, axis=-1), np.float64)
