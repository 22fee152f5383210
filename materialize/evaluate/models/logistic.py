"""Logistic regression on a handful of numbers, with an offset."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit

__all__ = ["fit_logistic"]

Float64 = npt.NDArray[np.float64]

_RIDGE = 1e-4


def fit_logistic(x: Float64, y: npt.NDArray[np.bool_], offset: npt.NDArray[Any]) -> Float64:
    """Return weights and, last, the constant of a logistic regression with an offset.

    Parameters
    ----------
    x : float64 (n, k), standardised
    y : bool (n,)
    offset : float (n,)
        Added to each logit, not learned.

    Returns
    -------
    float64 (k + 1,)

    Raises
    ------
    FloatingPointError
        The loss is not finite.
    """
    design = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    target = y.astype(np.float64)

    def loss(weights: Float64) -> tuple[float, Float64]:
        logits = design @ weights + offset
        value = np.logaddexp(0, logits).mean() - (target * logits).mean()
        value += _RIDGE / 2 * (weights[:-1] ** 2).sum()
        gradient: Float64 = design.T @ (expit(logits) - target) / len(target)
        gradient[:-1] += _RIDGE * weights[:-1]
        return float(value), gradient

    found = minimize(loss, np.zeros(design.shape[1]), jac=True, method="L-BFGS-B")
    if not np.isfinite(found.fun):
        raise FloatingPointError(f"The loss of a calibration is {found.fun}.")
    return np.asarray(found.x, np.float64)
