"""Seeds together, paired differences, relative gains and corrected p-values of measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from encoder.resampling import Interval, Replicates
from materialize.evaluate.measurement import Measurement

__all__ = ["Comparison", "compare_all", "holm", "over_seeds", "two_sided_p"]


@dataclass(frozen=True)
class Comparison:
    """One model against another on the same resampled users.

    Attributes
    ----------
    difference : Interval
        Model minus other, in the metric's unit.
    gain : Interval
        ``model / other - 1``; NaN where the other is 0.
    p : float
        Two-sided; NaN without resamples.
    p_holm : float
        Corrected for all comparisons of its family.
    """

    difference: Interval
    gain: Interval
    p: float
    p_holm: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, NaN as None."""
        return {
            "difference": self.difference.to_dict(),
            "gain": self.gain.to_dict(),
            "p": None if np.isnan(self.p) else self.p,
            "p_holm": None if np.isnan(self.p_holm) else self.p_holm,
        }


def over_seeds(measurements: Sequence[Measurement]) -> Replicates:
    """Return the mean over seeds of one model's figure, with its replicates.

    Parameters
    ----------
    measurements : sequence of Measurement
        Of one (task, metric, group, model), one for each seed.

    Raises
    ------
    ValueError
        None, a seed twice, or other numbers of resamples.

    Notes
    -----
    Replicate ``b`` is the mean over seeds on resample ``b``: the interval is one of users for the
    average of so many fits. How far seeds differ is another question, see ``by_seed`` and
    ``seed_spread`` of a summary.
    """
    seeds = [m.seed for m in measurements]
    sizes = {len(m.replicates) for m in measurements}
    if not seeds or len(set(seeds)) != len(seeds) or len(sizes) != 1:
        raise ValueError(
            f"Measurements of seeds {seeds} with {sorted(sizes)} resamples given, one for each "
            "seed with the same number of resamples expected."
        )
    return Replicates(
        float(np.mean([m.value for m in measurements])),
        np.mean([m.replicates for m in measurements], axis=0),
    )


def two_sided_p(difference: Replicates) -> float:
    """Return the two-sided bootstrap p-value of "there is no difference".

    Twice the share of resamples on the other side of zero, a resample at zero counting for both,
    the observed sample counted as one of them: never 0, and 1 for two equal models. NaN where no
    resample is defined. With n resamples it cannot fall below 2 / (n + 1).

    References
    ----------
    Davison and Hinkley (1997), Bootstrap Methods and their Application, section 4.2.

    Examples
    --------
    >>> two_sided_p(Replicates(0.5, np.array([0.1, 0.4, -0.2])))  # 2 * (1 + 1) / (1 + 3)
    1.0
    >>> two_sided_p(Replicates(0.5, np.full(99, 0.5)))
    0.02
    """
    drawn = difference.replicates[~np.isnan(difference.replicates)]
    if np.isnan(difference.value) or not drawn.size:
        return float("nan")
    rarer = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return min(1.0, 2 * (1 + rarer) / (1 + len(drawn)))


def holm(p_values: Sequence[float]) -> npt.NDArray[np.float64]:
    """Return p-values corrected for being several (family-wise error), in the order given.

    NaN stays NaN and does not count.

    References
    ----------
    Holm (1979), A simple sequentially rejective multiple test procedure.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03])  # 3 * .01; 2 * .03; the largest is no smaller than the one before
    array([0.03, 0.06, 0.06])
    """
    p = np.asarray(p_values, np.float64)
    corrected = np.full(len(p), np.nan)
    order = np.argsort(p, kind="stable")[: int((~np.isnan(p)).sum())]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(factors * p[order]))
    return corrected


def compare_all(model: Replicates, others: Mapping[str, Replicates]) -> dict[str, Comparison]:
    """Compare a model with each of the others, paired; the others are one family for Holm.

    Raises
    ------
    ValueError
        Other numbers of resamples.
    """
    differences = {name: model.minus(other) for name, other in others.items()}
    p = [two_sided_p(difference) for difference in differences.values()]
    return {
        name: Comparison(
            difference.interval, model.gain_over(others[name]).interval, raw, float(corrected)
        )
        for (name, difference), raw, corrected in zip(differences.items(), p, holm(p), strict=True)
    }
