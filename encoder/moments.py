"""Streaming statistics that the preprocessor is fitted with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

__all__ = ["CategoryCounts", "Moments"]

Float64 = npt.NDArray[np.float64]

_MAX_DISTINCT = 1 << 16
_SMALLEST_DEVIATION = 1e-30


class Moments:
    """Mean and variance of each column of arrays that arrive in parts.

    State: ``count``, ``mean`` and ``m2`` (sum of squared distances to the mean), each float64
    (width,). NaN elements are left out of their column.

    Parameters
    ----------
    width : int
        Number of columns.

    References
    ----------
    Chan, Golub, LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample
    variances": the merge of two parts, equation 2.1.
    """

    def __init__(self, width: int) -> None:
        self.count: Float64 = np.zeros(width)
        self.mean: Float64 = np.zeros(width)
        self.m2: Float64 = np.zeros(width)

    def update(self, values: npt.NDArray[np.float32]) -> None:
        """Take in ``values`` float32 (n, width); NaN is skipped."""
        x = values.astype(np.float64)
        known = ~np.isnan(x)
        count = known.sum(axis=0, dtype=np.float64)
        x[~known] = 0.0
        mean = x.sum(axis=0) / np.maximum(count, 1.0)
        x -= mean
        x[~known] = 0.0
        m2 = np.einsum("ij,ij->j", x, x)
        total = np.maximum(self.count + count, 1.0)
        delta = mean - self.mean
        self.mean += delta * count / total
        self.m2 += m2 + delta**2 * self.count * count / total
        self.count += count

    def deviation(self) -> Float64:
        """Return the standard deviation of each column, 1 where the column is constant or empty."""
        deviation = np.sqrt(self.m2 / np.maximum(self.count, 1.0))
        # Rounding leaves about 1e-8 of the mean in a constant column; dividing by it makes noise.
        floor = np.maximum(1e-6 * np.abs(self.mean), _SMALLEST_DEVIATION)
        return np.where(deviation > floor, deviation, 1.0)

    def overall_deviation(self) -> float:
        """Return the root of the mean variance over the columns (one scale for the whole array)."""
        return float(np.sqrt(np.mean(self.m2 / np.maximum(self.count, 1.0))))


class CategoryCounts:
    """How often each string of one category block occurs.

    State: a counter with at most 65,536 strings. Beyond that the rarer half is forgotten, so a
    column of ids costs bounded memory; the most frequent strings keep (almost) exact counts.
    """

    def __init__(self) -> None:
        self.total = 0
        self._counts: Counter[str] = Counter()

    def update(self, values: Iterable[str]) -> None:
        """Count non-empty strings; the empty string means missing."""
        part = Counter(values)
        part.pop("", None)
        self.total += part.total()
        self._counts += part
        if len(self._counts) > _MAX_DISTINCT:
            self._counts = Counter(dict(self._ordered()[: _MAX_DISTINCT // 2]))

    def most_frequent(self, limit: int) -> tuple[str, ...]:
        """Return at most ``limit`` strings, most frequent first, ties in alphabetical order."""
        return tuple(value for value, _ in self._ordered()[:limit])

    def entropy(self, limit: int) -> float:
        """Return the entropy in nats over the ``limit`` most frequent strings and the rest."""
        kept = [count for _, count in self._ordered()[:limit]]
        shares = np.array([*kept, self.total - sum(kept)], np.float64) / max(self.total, 1)
        shares = shares[shares > 0]
        return float(-(shares * np.log(shares)).sum())

    def _ordered(self) -> list[tuple[str, int]]:
        return sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
