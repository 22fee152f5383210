"""Rows of one feature view in the form in which an online store keeps them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["EncodedRows"]


@dataclass(frozen=True)
class EncodedRows:
    """Rows of one view, ready to be stored."""

    names: tuple[str, ...]
    """Features."""
    keys: list[bytes]
    """One a row, as the store spells it."""
    values: list[list[bytes]]
    """By feature, one serialised ``Value`` a row."""
    texts: list[list[str | None]]
    """By feature, Feast's ``value_text``; empty for a store without that column."""
    event_us: npt.NDArray[np.int64]
    """(n,) microseconds since 1970."""
    created_us: npt.NDArray[np.int64]
    """(n,) microseconds since 1970; 0 where there is none."""
    has_created: npt.NDArray[np.bool_]
    """(n,)."""

    def __len__(self) -> int:
        return len(self.keys)

    def newest_of_each_key(self) -> EncodedRows:
        """Return one row a key: the newest event, then the newest created, then the last."""
        if len(set(self.keys)) == len(self.keys):
            return self
        created = np.where(self.has_created, self.created_us, np.iinfo(np.int64).min)
        order = np.lexsort((np.arange(len(self)), created, self.event_us))
        newest = {self.keys[row]: row for row in order.tolist()}
        return self._take(sorted(newest.values()))

    def sorted_by_key(self) -> EncodedRows:
        """Return the rows in the order of their keys; rows of one key stay in theirs."""
        return self._take(sorted(range(len(self)), key=self.keys.__getitem__))

    def _take(self, rows: list[int]) -> EncodedRows:
        return EncodedRows(
            self.names,
            [self.keys[row] for row in rows],
            [[column[row] for row in rows] for column in self.values],
            [[column[row] for row in rows] for column in self.texts],
            self.event_us[rows],
            self.created_us[rows],
            self.has_created[rows],
        )
