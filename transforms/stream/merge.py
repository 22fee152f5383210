"""Which of new events enter a state, what they push out, and which rows they change."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from transforms.engine import DAY_US
from transforms.stream.facts import (
    Bools,
    Context,
    Facts,
    Floats,
    Ints,
    Picks,
    first_at_or_after,
    one_context_table,
)

__all__ = [
    "APPLIED",
    "DUPLICATE",
    "NONE",
    "OUTCOMES",
    "OUTSIDE",
    "FactsMerged",
    "Limits",
    "earliest",
    "merge_facts",
    "merge_picks",
    "ordered_facts",
    "window_start",
]

NONE = int(np.iinfo(np.int64).min)
"""In place of a time: there is none."""

OUTCOMES = (
    "applied",
    "duplicate",
    "outside",
    "too_late",
    "event_before_sign_up",
    "too_many_events",
)
APPLIED, DUPLICATE, OUTSIDE, _TOO_LATE, _BEFORE_SIGN_UP, _TOO_MANY = range(len(OUTCOMES))


@dataclass(frozen=True)
class Limits:
    """How much of a user's past is kept; see ``UserStates.apply``."""

    longest_window: int
    floor: int | None
    max_events: int
    margin_days: int
    refused_are_gone: bool = False
    """Events beyond ``max_events`` are nobody's dead letters: a row without them is none."""

    @property
    def floor_us(self) -> int:
        """Start of the floor day; ``NONE`` without one."""
        return NONE if self.floor is None else self.floor * DAY_US


@dataclass(frozen=True)
class FactsMerged:
    """What adding events did.

    Attributes
    ----------
    facts : Facts
    gone : int64 (n_users,)
        Time of the newest event that a user may have had and that is not among the facts.
    outcome : int64 (n_new,)
        Position in ``OUTCOMES``, in the order of the new events.
    stored : bool (n_users,)
        Facts were added or replaced, or ``gone`` grew by an event.
    activity : bool (n_users,)
        The newest row is another one, and can be known.
    full : bool (n_users,)
        New events were refused because the user has as many as are kept.
    """

    facts: Facts
    gone: Ints
    outcome: Ints
    stored: Bools
    activity: Bools
    full: Bools


def window_start(newest: Ints, days: int) -> Ints:
    """Return where windows of so many days begin that end with the day of ``newest``: (n,)."""
    return (newest // DAY_US - days + 1) * DAY_US


def earliest(a: Ints, b: Ints) -> Ints:
    """Return the earlier of two times each, ``NONE`` where there is neither: int64 (n,)."""
    return np.where(a == NONE, b, np.where(b == NONE, a, np.minimum(a, b)))


def ordered_facts(
    n_users: int,
    user: Ints,
    ts: Ints,
    item: Ints,
    weight: Floats,
    context: Ints,
    contexts: tuple[Context, ...],
) -> tuple[Facts, Ints]:
    """Return events in the order that ``merge_facts`` needs of new ones, and each one's position.

    Parameters
    ----------
    user, ts, item, context : int64 (n,)
    weight : float32 (n,)
    contexts : tuple of tuples of str, ascending
    """
    # Of equal events the first given comes last: it enters, and the others are its duplicates.
    order = np.lexsort((-np.arange(len(user)), context, weight, item, ts, user))
    start = np.concatenate([[0], np.cumsum(np.bincount(user, minlength=n_users))])
    facts = Facts(start, ts[order], item[order], weight[order], context[order], contexts)
    return facts, order


def merge_facts(
    old: Facts, new: Facts, sign_up: Ints, signed: Bools, gone: Ints, limits: Limits
) -> FactsMerged:
    """Return the union of two sets of events, without what no longer matters.

    Parameters
    ----------
    old : Facts
    new : Facts
        Ordered by user, time, item, weight, context; here an event may stand several times.
    sign_up : int64 (n_users,)
        The earliest known; ``NONE`` without one.
    signed : bool (n_users,)
        Users whose sign-up has just become known, or earlier.
    gone : int64 (n_users,)
    limits : Limits

    Notes
    -----
    Of two events of one user, item and time the larger (weight, context) stays, so that the union
    does not depend on the order. Who was signed up later than an event, did not have it.
    """
    old, new = one_context_table(old, new)
    user = new.user
    early = new.ts < sign_up[user]
    if signed.any():
        old = old.kept(old.ts >= sign_up[old.user])
    gone = np.maximum(gone, limits.floor_us - (limits.floor is not None))
    gone = np.where(gone < sign_up, NONE, gone)

    step = _enter(old, new, user, ~early, limits)
    outcome = step.outcome
    full = step.full
    if full.any():
        # Nothing of such a user's new events enters, so that nothing old is pushed out either.
        step = _enter(old, new, user, ~early & ~full[user], limits)
        refused = full[user] & (outcome != DUPLICATE)
        outcome = np.where(full[user], outcome, step.outcome)
        outcome[refused] = _TOO_MANY
    left_out = step.left_out & ~early
    grown = gone.copy()
    np.maximum.at(grown, user[left_out], new.ts[left_out])
    if limits.refused_are_gone:
        refused = outcome == _TOO_MANY
        np.maximum.at(grown, user[refused], new.ts[refused])
    stored = grown > gone
    first = first_at_or_after(old.ts, old.start[:-1], old.start[1:], step.keep_from)
    pushed = first > old.start[:-1]
    grown[pushed] = np.maximum(grown[pushed], old.ts[first[pushed] - 1])

    facts = _joined(old, new, user, step)
    some = facts.per_user > 0
    window = window_start(np.where(some, step.newest, 0), limits.longest_window)
    known = some & (grown < window)
    late = ~known[user] & (new.ts >= step.outside_from[user]) & (outcome != _TOO_MANY)
    outcome[late] = _TOO_LATE
    outcome[early] = _BEFORE_SIGN_UP
    entered = user[step.added | step.replaced]
    stored[entered] = True
    activity = signed.copy()
    inside = (outcome == APPLIED) & (new.ts >= window[user])
    activity[user[inside]] = True
    return FactsMerged(
        _pruned(facts, step.keep_from), grown, outcome, stored, activity & known, full
    )


@dataclass(frozen=True)
class _Step:
    """Which new events enter; ``added`` and ``replaced`` are bool (n_new,)."""

    newest: Ints
    outside_from: Ints
    keep_from: Ints
    left_out: Bools
    added: Bools
    replaced: Bools
    at: Ints
    outcome: Ints
    full: Bools


def _enter(old: Facts, new: Facts, user: Ints, alive: Bools, limits: Limits) -> _Step:
    n_users = len(old.start) - 1
    newest = old.newest(NONE)
    np.maximum.at(newest, user[alive], new.ts[alive])
    days = limits.longest_window + limits.margin_days
    outside_from = window_start(np.where(newest == NONE, 0, newest), days)
    keep_from = np.maximum(outside_from, limits.floor_us)
    left_out = alive & (new.ts < keep_from[user])
    same = (np.diff(user) == 0) & (np.diff(new.ts) == 0) & (np.diff(new.item) == 0)
    chosen = np.flatnonzero(alive & ~left_out & ~np.append(same, False)[: len(user)])
    at, there = old.found(user[chosen], new.ts[chosen], new.item[chosen])
    larger = np.zeros(len(chosen), np.bool_)
    a, b = chosen[there], at[there]
    larger[there] = (new.weight[a] > old.weight[b]) | (
        (new.weight[a] == old.weight[b]) & (new.context[a] > old.context[b])
    )
    added, replaced = (np.zeros(len(user), np.bool_) for _ in range(2))
    added[chosen[~there]] = True
    replaced[chosen[larger]] = True
    place = np.zeros(len(user), np.int64)
    place[chosen] = at
    outcome = np.full(len(user), DUPLICATE, np.int64)
    outcome[added | replaced] = APPLIED
    outcome[left_out] = OUTSIDE
    more = np.bincount(user[added], minlength=n_users)
    kept = old.start[1:] - first_at_or_after(old.ts, old.start[:-1], old.start[1:], keep_from)
    full = (more > 0) & (kept + more > limits.max_events)
    return _Step(newest, outside_from, keep_from, left_out, added, replaced, place, outcome, full)


def _joined(old: Facts, new: Facts, user: Ints, step: _Step) -> Facts:
    if step.replaced.any():
        weight, context = old.weight.copy(), old.context.copy()
        weight[step.at[step.replaced]] = new.weight[step.replaced]
        context[step.at[step.replaced]] = new.context[step.replaced]
        old = replace(old, weight=weight, context=context)
    chosen = np.flatnonzero(step.added)
    if not len(chosen):
        return old
    return old.inserted(user[chosen], step.at[chosen], new, chosen)


def _pruned(facts: Facts, keep_from: Ints) -> Facts:
    first = first_at_or_after(facts.ts, facts.start[:-1], facts.start[1:], keep_from)
    if (first == facts.start[:-1]).all():
        return facts
    drop = np.repeat(first, facts.per_user) > np.arange(len(facts.ts))
    return facts.kept(~drop)


def merge_picks(old: Picks, user: Ints, item: Ints, ts: Ints) -> tuple[Picks, Bools]:
    """Return the union with new picks, and which of these changed it: bool (n_new,).

    An item that is picked again keeps the time of its first pick.
    """
    if not len(user):
        return old, np.zeros(0, np.bool_)
    n_old = len(old.ts)
    users = np.concatenate([old.user, user])
    items = np.concatenate([old.item, item])
    times = np.concatenate([old.ts, ts])
    order = np.lexsort((times, items, users))  # stable: of equal picks the old one comes first
    first = np.ones(len(order), np.bool_)
    first[1:] = (np.diff(users[order]) != 0) | (np.diff(items[order]) != 0)
    chosen = order[first]
    counts = np.bincount(users[chosen], minlength=len(old.start) - 1)
    applied = np.zeros(len(user), np.bool_)
    applied[chosen[chosen >= n_old] - n_old] = True
    start = np.concatenate([[0], np.cumsum(counts)])
    return Picks(start, items[chosen], times[chosen]), applied
