"""Loss against compute: power laws, and how well the runs determine them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from encoder.resampling import Interval

__all__ = ["LawFit", "PowerLaw", "Run", "fit_law", "fit_runs", "frontier"]

Floats = npt.NDArray[np.float64]

_STARTS = (0.0, 0.3, 0.6, 0.9)
"""Where the search for the constant begins, as shares of the smallest loss."""


@dataclass(frozen=True)
class PowerLaw:
    r"""The law :math:`L(C) = (C / C_0)^{-b} \, a + c`.

    Attributes
    ----------
    scale : float
        a, the loss above the constant at ``unit``.
    exponent : float
        b; positive: the loss falls.
    constant : float
        c, what no compute takes away; 0 in a pure power law.
    unit : float
        C_0, operations. The middle of the points: a and b would depend on each other at C_0 = 1.
    """

    scale: float
    exponent: float
    constant: float
    unit: float

    def __call__(self, compute: npt.ArrayLike) -> Floats:
        """Return the loss at ``compute``, float64 of its shape."""
        ratio = np.asarray(compute, np.float64) / self.unit
        loss: Floats = self.scale * ratio**-self.exponent + self.constant
        return loss


@dataclass(frozen=True)
class Run:
    """The course of one training.

    Attributes
    ----------
    compute : float64 (n_points,)
        Operations since its start, ascending.
    loss : float64 (n_points,)
        Held-out loss there; the same measure in all runs.
    """

    compute: Floats
    loss: Floats


@dataclass(frozen=True)
class LawFit:
    """A law and what the data say of it.

    Attributes
    ----------
    law : PowerLaw
    exponent, constant : Interval
        With 95% intervals over resampled runs. ``constant`` is exactly 0 in a pure power law.
    residual : float
        Root mean square of the logarithm of observed over predicted loss.
    aic : float
        Akaike's criterion for that residual: the lower of two laws on the same points is better.
    n_points, n_runs : int
        Points of the frontier, and runs that are behind it.
    """

    law: PowerLaw
    exponent: Interval
    constant: Interval
    residual: float
    aic: float
    n_points: int
    n_runs: int


def frontier(runs: Sequence[Run], n_bins: int = 24) -> tuple[Floats, Floats]:
    """Return the smallest loss that any run reaches within each stretch of compute.

    Stretches have equal widths in the logarithm. Points that an earlier stretch already beats are
    left out: more compute was spent there, and badly.

    Returns
    -------
    compute, loss : float64 (n_points,)
        At most ``n_bins``, compute ascending, loss descending.

    References
    ----------
    Kaplan et al. 2020, arXiv 2001.08361, figure 1; Hoffmann et al. 2022, arXiv 2203.15556,
    approach 1.
    """
    compute = np.concatenate([run.compute for run in runs])
    loss = np.concatenate([run.loss for run in runs])
    span = np.log(compute.max() / compute.min())
    place = np.log(compute / compute.min()) / max(span, 1e-12) * n_bins
    stretch = np.minimum(place.astype(np.int64), n_bins - 1)
    best: list[int] = []
    for k in np.unique(stretch):
        mine = np.flatnonzero(stretch == k)
        lowest = mine[np.argmin(loss[mine])]
        if not best or loss[lowest] < loss[best[-1]]:
            best.append(int(lowest))
    return compute[best], loss[best]


def fit_law(compute: Floats, loss: Floats, *, constant: bool) -> PowerLaw:
    """Return the law with the least squared error in the logarithm of the loss.

    Parameters
    ----------
    compute, loss : float64 (n_points,)
        Positive.
    constant : bool
        Whether c is fitted; it lies in [0, smallest loss).

    Raises
    ------
    ValueError
        There are fewer points than the law has parameters.
    """
    needed = 3 if constant else 2
    if len(np.unique(compute)) < needed:
        raise ValueError(
            f"{len(np.unique(compute))} different amounts of compute given, a law with {needed} "
            f"parameters needs at least {needed}. Add runs to the grid."
        )
    unit = float(np.exp(np.log(compute).mean()))
    x, y = np.log(compute / unit), np.log(loss)
    slope, level = np.polyfit(x, y, 1)
    pure = PowerLaw(float(np.exp(level)), float(-slope), 0.0, unit)
    if not constant:
        return pure

    smallest = float(loss.min())

    def law(parameters: Floats) -> PowerLaw:
        log_scale, exponent, share = parameters
        return PowerLaw(math.exp(log_scale), float(exponent), float(share) * smallest, unit)

    best: tuple[float, PowerLaw] = (math.inf, pure)
    for share in _STARTS:
        above = loss - share * smallest
        slope, level = np.polyfit(x, np.log(above), 1)
        found = least_squares(
            lambda p: np.log(law(p)(compute)) - y,
            (level, -slope, share),
            bounds=([-np.inf, -np.inf, 0.0], [np.inf, np.inf, 1.0 - 1e-9]),
        )
        best = min(best, (float(found.cost), law(found.x)), key=lambda one: one[0])
    return best[1]


def fit_runs(
    runs: Sequence[Run], *, constant: bool, n_resamples: int = 500, seed: int = 0
) -> LawFit:
    """Fit a law to the frontier of runs, with intervals over resampled runs.

    Runs are resampled whole: the points of one training are no independent observations.
    Resamples on which the law cannot be fitted are left out.

    Raises
    ------
    ValueError
        Too few runs, see `fit_law`.
    """
    compute, loss = frontier(runs)
    law = fit_law(compute, loss, constant=constant)
    rng = np.random.default_rng(seed)
    again: list[PowerLaw] = []
    for _ in range(n_resamples):
        drawn = [runs[k] for k in rng.integers(0, len(runs), len(runs))]
        x, y = frontier(drawn)
        if len(x) >= (3 if constant else 2):
            again.append(fit_law(x, y, constant=constant))
    errors = np.log(law(compute)) - np.log(loss)
    mean_square = float(np.mean(errors**2))
    parameters = (3 if constant else 2) + 1  # the spread is fitted, too
    return LawFit(
        law=law,
        exponent=Interval.of(law.exponent, np.array([one.exponent for one in again])),
        constant=Interval.of(law.constant, np.array([one.constant for one in again])),
        residual=math.sqrt(mean_square),
        aic=len(compute) * math.log(max(mean_square, 1e-300)) + 2 * parameters,
        n_points=len(compute),
        n_runs=len(runs),
    )
