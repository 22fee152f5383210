"""A histogram of times that can be added up over workers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["LatencyHistogram"]

_GROWTH = 1.05
_BOUNDS_MS = 1.0 * _GROWTH ** np.arange(0, 380)
"""Upper bounds from 1 ms to more than a day, 5 % apart."""


class LatencyHistogram:
    """Counts milliseconds in buckets that are 5 % apart.

    State: ``counts`` int64 (n_buckets + 1,), the last one for what is beyond all bounds, and
    ``sum_ms``.

    Examples
    --------
    >>> times = LatencyHistogram()
    >>> times.add(np.array([10.0, 20.0, 400.0]))
    >>> round(times.quantile(0.5)), times.count
    (21, 3)
    """

    def __init__(self) -> None:
        self.counts = np.zeros(len(_BOUNDS_MS) + 1, np.int64)
        self.sum_ms = 0.0

    @property
    def count(self) -> int:
        """Number of times that were added."""
        return int(self.counts.sum())

    def add(self, milliseconds: npt.NDArray[np.float64]) -> None:
        """Count times; what is below 0 (clocks differ) counts as 0."""
        held = np.maximum(milliseconds, 0.0)
        places = np.searchsorted(_BOUNDS_MS, held)
        self.counts += np.bincount(places, minlength=len(self.counts))
        self.sum_ms += float(held.sum())

    def merge(self, counts: npt.ArrayLike, sum_ms: float) -> None:
        """Add another histogram's ``counts`` and ``sum_ms``."""
        self.counts += np.asarray(counts, np.int64)
        self.sum_ms += sum_ms

    def quantile(self, share: float) -> float:
        """Return the time that a share of all does not exceed, at most 5 % too large; NaN: none."""
        total = self.count
        if total == 0:
            return float("nan")
        at = int(np.searchsorted(np.cumsum(self.counts), share * total))
        return float("inf") if at >= len(_BOUNDS_MS) else float(_BOUNDS_MS[at])

    def at_most(self, milliseconds: float) -> int:
        """Return how many of the buckets' times do not exceed a bound."""
        places = int(np.searchsorted(_BOUNDS_MS, milliseconds, side="right"))
        return int(self.counts[:places].sum())
