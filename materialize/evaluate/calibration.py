"""Whether predicted probabilities are what happens: reliability bins and the ECE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from encoder.resampling import Draws, Replicates, resampled_sums
from materialize.evaluate.lists import recentred

__all__ = ["Calibration", "calibration"]

_BINS = 15


@dataclass(frozen=True, eq=False)
class Calibration:
    """Calibration of one model's probabilities.

    Attributes
    ----------
    ece : Replicates
    share : float64 (n_bins,)
        Of the pairs whose probability lies in the bin.
    predicted, observed : float64 (n_bins,)
        Mean probability and share of positives of the bin's pairs; NaN where it has none.
    """

    ece: Replicates
    share: npt.NDArray[np.float64]
    predicted: npt.NDArray[np.float64]
    observed: npt.NDArray[np.float64]

    def to_list(self) -> list[dict[str, float]]:
        """Return the bins that hold a pair, JSON types: a reliability diagram."""
        return [
            {
                "share": float(self.share[b]),
                "predicted": float(self.predicted[b]),
                "observed": float(self.observed[b]),
            }
            for b in np.flatnonzero(self.share)
        ]


def calibration(
    y: npt.NDArray[np.bool_], probability: npt.NDArray[Any], draws: Draws
) -> Calibration:
    """Return the expected calibration error of probabilities, and their reliability bins.

    Parameters
    ----------
    y : bool (n_pairs,)
    probability : float (n_pairs,), from 0 to 1
    draws : Draws
        Of the pairs.

    Raises
    ------
    ValueError
        Shapes that do not fit, or a number that is no probability.

    Notes
    -----
    ``ECE = sum over bins of n_b / n * |share of positives in b - mean probability in b|`` over 15
    bins of equal width. A resample adds noise to every bin, and noise only adds to absolute
    values, so that its ECE is larger; replicates are moved to have the value as their mean, as of
    ``counted_replicates``.

    References
    ----------
    Naeini, Cooper and Hauskrecht (2015), Obtaining well calibrated probabilities using Bayesian
    binning; Guo et al. (2017), On calibration of modern neural networks, equation 3 (15 bins), of
    the probability of the positive class.
    """
    p = np.asarray(probability, np.float64)
    if not y.shape == p.shape == draws.owner.shape:
        raise ValueError(
            f"y {y.shape}, probabilities {p.shape} and draws of {draws.owner.shape} pairs given, "
            "the same (n_pairs,) expected."
        )
    wrong = p[~((p >= 0) & (p <= 1))]
    if wrong.size:
        raise ValueError(f"{wrong.size} number(s) from 0 to 1 expected, {wrong[0]} given first.")
    bins = np.minimum((p * _BINS).astype(np.int64), _BINS - 1)
    pairs = np.arange(len(p))
    columns = sparse.csr_array(
        (
            np.concatenate([np.ones(len(p)), p, y.astype(np.float64)]),
            (np.tile(pairs, 3), np.concatenate([bins, bins + _BINS, bins + 2 * _BINS])),
        ),
        shape=(len(p), 3 * _BINS),
    )
    count, predicted, positive = np.split(resampled_sums(columns, draws), 3, axis=1)
    total = count.sum(axis=1)  # (1 + n_resamples,)
    ece = np.full(len(total), np.nan)
    np.divide(np.abs(positive - predicted).sum(axis=1), total, out=ece, where=total > 0)
    n = np.where(count[0] > 0, count[0], np.nan)
    return Calibration(
        ece=recentred(Replicates.of(ece)),
        share=count[0] / total[0],
        predicted=predicted[0] / n,
        observed=positive[0] / n,
    )
