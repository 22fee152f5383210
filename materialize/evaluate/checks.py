"""Refusals before a probe runs: features that know the label, users on both sides, bad rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from encoder.errors import EvaluationFault
from materialize.evaluate.labels import Labels

__all__ = ["check_no_leak", "check_rows"]


def check_no_leak(
    labels: Labels, as_of: npt.NDArray[np.datetime64], training: npt.NDArray[np.bool_]
) -> None:
    """Refuse labels, features and a split through which a feature could know its label.

    Parameters
    ----------
    labels : Labels
    as_of : datetime64[us] (n_rows,)
        Newest event time inside each row's features, UTC; NaT where there is none.
    training : bool (n_rows,)
        Rows to fit on; the others are tested on.

    Raises
    ------
    EvaluationFault
        A label time before the cut-off, features newer than their label time, or a user on both
        sides of the split, or an empty side.
    """
    early = np.flatnonzero(labels.event_timestamp < labels.cutoff)
    if early.size:
        raise EvaluationFault(
            f"{early.size} label time(s) lie before the cut-off {labels.cutoff}, first "
            f"{_row(labels, early[0])}. The encoder was trained on that time: build the labels "
            "from the cut-off on."
        )
    late = np.flatnonzero(as_of > labels.event_timestamp)
    if late.size:
        raise EvaluationFault(
            f"{late.size} row(s) have features newer than their label time, first "
            f"{_row(labels, late[0])} with as_of {as_of[late[0]]}. Read the features "
            "point-in-time at the label times."
        )
    both = np.intersect1d(labels.user_id[training], labels.user_id[~training])
    if both.size:
        raise EvaluationFault(
            f"{both.size} user(s) are in training and test, first {both[0]!r}. Split by user."
        )
    if training.all() or not training.any():
        raise EvaluationFault(
            f"{int(training.sum())} training and {int((~training).sum())} test row(s): both sides "
            "need some. More users must have labels."
        )


def check_rows(labels: Labels, features: npt.NDArray[Any], name: str) -> None:
    """Refuse a feature matrix with another number of rows, or with rows missing in part only.

    Parameters
    ----------
    labels : Labels
    features : float (n_rows, n_features)
        A row of NaN only: the user has no such features. No other NaN, no infinity.
    name : str
        For the message.

    Raises
    ------
    EvaluationFault
    """
    n_rows = len(labels.user_id)
    if features.ndim != 2 or len(features) != n_rows:
        raise EvaluationFault(
            f"{name} of shape {features.shape} given, ({n_rows}, n_features) expected: one row a "
            "label. A point-in-time join must keep every row."
        )
    bad = ~np.isfinite(features)
    damaged = np.flatnonzero(bad.any(axis=1) & ~np.isnan(features).all(axis=1))
    if damaged.size:
        first = int(damaged[0])
        raise EvaluationFault(
            f"{name}: {damaged.size} row(s) hold NaN or infinity, first {_row(labels, first)}, "
            f"element {int(np.argmax(bad[first]))}. A row is complete or wholly NaN (missing)."
        )


def _row(labels: Labels, row: int) -> str:
    return f"user {labels.user_id[row]!r} at {labels.event_timestamp[row]}"
