"""Sequences of events as padded arrays, for models that read them in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from materialize.evaluate.cohort import Cohort

__all__ = ["Sequences", "of_past", "of_rows", "vocabulary"]

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sequences:
    """Events of several users, one after the other, oldest first.

    Attributes
    ----------
    offsets : int64 (n_sequences + 1,)
    item : int64 (n_events,)
        Position in the catalogue.
    day : float64 (n_events,)
        Days since the epoch.
    """

    offsets: Int64
    item: Int64
    day: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def sizes(self) -> Int64:
        """Events of each sequence, int64 (n_sequences,)."""
        return np.diff(self.offsets)


def of_past(cohort: Cohort) -> Sequences:
    """Return what the past users did before the cut-off: what a sequence model is fitted on."""
    table = cohort.sequences
    user = table.column("user_id").to_numpy()
    starts = np.flatnonzero(np.append(len(user) > 0, user[1:] != user[:-1]))
    return Sequences(
        np.append(starts, len(user)).astype(np.int64),
        table.column("item").to_numpy().astype(np.int64),
        _days(table.column("ts").to_numpy()),
    )


def of_rows(cohort: Cohort) -> Sequences:
    """Return what is known of each of the cohort's rows at its moment."""
    found = cohort.history_sequences
    return Sequences(found.offsets, found.item.astype(np.int64), _days(found.ts))


def vocabulary(cohort: Cohort, size: int) -> Int64:
    """Return the most popular items, at most ``size`` of them, as sorted positions."""
    popularity = cohort.catalogue.popularity
    return np.sort(np.argsort(-popularity, kind="stable")[:size]).astype(np.int64)


def _days(moments: npt.NDArray[np.datetime64]) -> npt.NDArray[np.float64]:
    return moments.astype("datetime64[us]").astype(np.int64) / 86_400e6
