"""One figure of one model on one group of users, with its replicates on resampled users."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from encoder.resampling import Draws, Replicates

__all__ = ["EMBEDDING", "Measurement"]

EMBEDDING = "embedding"
"""Name of the model under judgement; all others of a (task, metric, group) are its baselines."""


@dataclass(frozen=True, eq=False)
class Measurement:
    """A figure and its replicates.

    Attributes
    ----------
    task, metric, group, model : str
        The metric's name carries its unit where it has one (``read_ms``).
    seed : int
        Of the model's fit and of what the task samples; not of the resamples.
    value : float
        NaN where it is not defined for this group.
    replicates : float64 (n_resamples,)
        The same resamples for all models and seeds of a (task, group), from
        ``encoder.resampling``. Empty where no users were sampled (bytes, sizes): no interval then.
    n_users, n_rows : int
        That the figure was computed on.
    higher_is_better : bool
    """

    task: str
    metric: str
    group: str
    model: str
    seed: int
    value: float
    replicates: npt.NDArray[np.float64]
    n_users: int
    n_rows: int
    higher_is_better: bool = True

    @classmethod
    def of(
        cls,
        found: Replicates,
        draws: Draws,
        *,
        task: str,
        metric: str,
        group: str,
        model: str,
        seed: int,
        higher_is_better: bool = True,
    ) -> Measurement:
        """Return the measurement of a figure that was computed on the rows of ``draws``."""
        return cls(
            task,
            metric,
            group,
            model,
            seed,
            found.value,
            found.replicates,
            draws.n_users,
            len(draws.owner),
            higher_is_better,
        )

    @property
    def figure(self) -> Replicates:
        """Value and replicates, for differences and gains."""
        return Replicates(self.value, self.replicates)
