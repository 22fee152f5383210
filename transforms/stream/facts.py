"""Events of several users as arrays in one order, and the union of two such sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

__all__ = [
    "Bools",
    "Context",
    "Facts",
    "Floats",
    "Ints",
    "Picks",
    "first_after",
    "first_at_or_after",
    "one_context_table",
    "ranges",
    "run_starts",
]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Context = tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """What users consumed.

    Attributes
    ----------
    start : int64 (n_users + 1,)
        Where each user's events begin.
    ts, item : int64 (n_facts,)
        Microseconds since the epoch; item key. Ascending by user, time, item, each once.
    weight : float32 (n_facts,)
    context : int64 (n_facts,)
        Position in ``contexts``.
    contexts : tuple of tuples of str, ascending, distinct
        So that a larger position is a larger context, which the batch prefers.
    """

    start: Ints
    ts: Ints
    item: Ints
    weight: Floats
    context: Ints
    contexts: tuple[Context, ...]

    @property
    def user(self) -> Ints:
        """Position of each event's user: int64 (n_facts,)."""
        return np.repeat(np.arange(len(self.start) - 1), np.diff(self.start))

    @property
    def per_user(self) -> Ints:
        """Number of each user's events: int64 (n_users,)."""
        return np.diff(self.start)

    def newest(self, none: int) -> Ints:
        """Return the time of each user's newest event, ``none`` without any: int64 (n_users,)."""
        newest = np.full(len(self.start) - 1, none, np.int64)
        some = self.start[1:] > self.start[:-1]
        newest[some] = self.ts[self.start[1:][some] - 1]
        return newest

    def kept(self, keep: Bools) -> Facts:
        """Return some of the events; bool (n_facts,)."""
        if keep.all():
            return self
        passed = np.concatenate([[0], np.cumsum(keep)])
        return replace(
            self,
            start=passed[self.start],
            ts=self.ts[keep],
            item=self.item[keep],
            weight=self.weight[keep],
            context=self.context[keep],
        )

    def found(self, user: Ints, ts: Ints, item: Ints) -> tuple[Ints, Bools]:
        """Return where events stand or would be inserted, and whether they are there: (n,) each."""
        at = _search(
            self.start[user],
            self.start[user + 1],
            lambda k: (self.ts[k] < ts) | ((self.ts[k] == ts) & (self.item[k] < item)),
        )
        there = at < self.start[user + 1]
        there[there] = (self.ts[at[there]] == ts[there]) & (self.item[at[there]] == item[there])
        return at, there

    def inserted(self, user: Ints, at: Ints, new: Facts, chosen: Ints) -> Facts:
        """Return the facts with those at ``chosen`` of ``new`` put before the positions ``at``.

        Parameters
        ----------
        user, at, chosen : int64 (n,)
            Ascending by user, time and item. ``new`` has the same contexts.
        """
        added = np.bincount(user, minlength=len(self.start) - 1)
        return Facts(
            self.start + np.concatenate([[0], np.cumsum(added)]),
            np.insert(self.ts, at, new.ts[chosen]),
            np.insert(self.item, at, new.item[chosen]),
            np.insert(self.weight, at, new.weight[chosen]),
            np.insert(self.context, at, new.context[chosen]),
            self.contexts,
        )


@dataclass(frozen=True)
class Picks:
    """What users picked when they joined.

    Attributes
    ----------
    start : int64 (n_users + 1,)
    item, ts : int64 (n_picks,)
        Item key, ascending for each user, each once; when it was picked first.
    """

    start: Ints
    item: Ints
    ts: Ints

    @property
    def user(self) -> Ints:
        """Position of each pick's user: int64 (n_picks,)."""
        return np.repeat(np.arange(len(self.start) - 1), np.diff(self.start))


def one_context_table(a: Facts, b: Facts) -> tuple[Facts, Facts]:
    """Return both with the contexts of either in one table."""
    if a.contexts == b.contexts:
        return a, b
    contexts = tuple(sorted({*a.contexts, *b.contexts}))
    place = {context: k for k, context in enumerate(contexts)}
    both = []
    for facts in (a, b):
        moved = np.array([place[c] for c in facts.contexts], np.int64)
        context = moved[facts.context] if len(moved) else facts.context
        both.append(replace(facts, context=context, contexts=contexts))
    return both[0], both[1]


def first_at_or_after(ts: Ints, start: Ints, end: Ints, moment: Ints) -> Ints:
    """Return the first position of ``[start, end)`` at or after a moment, ``end`` if none: (n,)."""
    return _search(start, end, lambda k: ts[k] < moment)


def first_after(ts: Ints, start: Ints, end: Ints, moment: Ints) -> Ints:
    """Return the first position of ``[start, end)`` after a moment, ``end`` if none: (n,)."""
    return _search(start, end, lambda k: ts[k] <= moment)


def ranges(start: Ints, end: Ints) -> Ints:
    """Return the positions of several ranges ``[start, end)``, one after the other."""
    length = end - start
    before = np.concatenate([[0], np.cumsum(length)])
    positions: Ints = np.arange(before[-1]) + np.repeat(start - before[:-1], length)
    return positions


def run_starts(*columns: Ints) -> Bools:
    """Return where a row differs from the one before it, and the first: bool (n,)."""
    changed = np.ones(len(columns[0]), np.bool_)
    changed[1:] = False
    for column in columns:
        changed[1:] |= column[1:] != column[:-1]
    return changed


def _search(low: Ints, high: Ints, below: Callable[[Ints], Bools]) -> Ints:
    """Return the first position of each ``[low, high)`` that is not below, by bisection: (n,).

    All ranges are halved at once: a Python loop of 17 steps for the longest range of 100,000.
    """
    low, high = low.copy(), high.copy()
    while (open_ := low < high).any():
        middle = (low + high) // 2
        # A range that is done may end at the array's end: any position will do for it.
        less = below(np.where(open_, middle, 0)) & open_
        low = np.where(less, middle + 1, low)
        high = np.where(less | ~open_, high, middle)
    return low
