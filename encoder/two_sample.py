"""Whether a classifier can tell two samples of vectors apart, when every user is in both."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from encoder.metrics import bootstrap_auc
from encoder.resampling import Interval

__all__ = ["LEAST_USERS", "two_sample_auc"]

_FOLDS = 5
LEAST_USERS = 2 * _FOLDS


def two_sample_auc(
    first: npt.NDArray[Any],
    second: npt.NDArray[Any],
    *,
    n_resamples: int = 500,
    seed: int = 0,
) -> Interval:
    """Return the ROC AUC with which logistic regression tells two samples of vectors apart.

    0.5: it cannot, their means agree as far as so many users show. 1.0: every vector of the second
    sample is told from every one of the first.

    Parameters
    ----------
    first, second : float (n_users, dim), finite
        Row i of both is the same user; at least 10 users.
    n_resamples : int
        Of the interval, over users.
    seed : int
        Of the resamples.

    Returns
    -------
    Interval
        Each vector is scored by a model that saw neither of its user's vectors.

    Raises
    ------
    ValueError
        Other shapes, too few users, NaN or infinity.

    Notes
    -----
    Five folds of users, by their place. If a user's vectors could lie on both sides, a classifier
    would know people instead of samples: of two equal vectors with opposite labels, the one that
    trains pulls the score of the other to the wrong side, and the AUC of samples that are alike
    falls below 0.5. A linear model sees means that differ, not spreads. The interval is over the
    users that were scored; that other users would have trained other models is not in it.

    References
    ----------
    Lopez-Paz and Oquab (2017), Revisiting classifier two-sample tests.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if first.shape != second.shape or first.ndim != 2 or len(first) < LEAST_USERS:
        raise ValueError(
            f"Vectors of shapes {first.shape} and {second.shape} given, (n_users, dim) with the "
            f"same users in the same order expected, at least {LEAST_USERS}."
        )
    vectors = np.concatenate([first, second]).astype(np.float64)  # (2 * n_users, dim)
    if not np.isfinite(vectors).all():
        raise ValueError("Vectors with NaN or infinity were given, finite ones are expected.")
    users = np.tile(np.arange(len(first)), 2)
    is_second = np.repeat([False, True], len(first))
    scores = cross_val_predict(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        vectors,
        is_second,
        groups=users,
        cv=GroupKFold(_FOLDS),
        method="decision_function",
    )
    return bootstrap_auc(
        is_second[:, None], scores[:, None], users, n_resamples=n_resamples, seed=seed
    ).micro_interval
