"""What is known of each user: a set of facts, so that applying an event twice changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from encoder.errors import CorruptState
from transforms.stream.blob import decode_blobs, encode_blobs
from transforms.stream.circumstances import fitting
from transforms.stream.collect import NewEvents, clean_facts, clean_picks
from transforms.stream.events import StreamEvent
from transforms.stream.facts import Bools, Facts, Ints, Picks
from transforms.stream.merge import (
    NONE,
    Limits,
    earliest,
    merge_facts,
    merge_picks,
    window_start,
)
from transforms.stream.profile import NO_PROFILE, Profile

__all__ = ["MARGIN_DAYS", "Applied", "UserStates"]

MARGIN_DAYS = 7
"""Events so many days older than any window of the newest row are kept too: rows of moments a
little earlier can still be made."""


@dataclass(frozen=True, eq=False)
class UserStates:
    """States of some users, as arrays over all their facts; equal states have equal blobs.

    Attributes
    ----------
    users : tuple of int or str (n_users,)
    facts : Facts
        What they consumed.
    picks : Picks
    profiles : tuple of Profile (n_users,)
    sign_up : int64 (n_users,)
        Microseconds; the least int64 where none is known.
    gone : int64 (n_users,)
        Time of the newest event that the user may have had and that is not among the facts,
        because no window of the newest row reaches it, or because it is older than the floor; the
        least int64 for none. A row that needs nothing up to there can be made.
    """

    users: tuple[int | str, ...]
    facts: Facts
    picks: Picks
    profiles: tuple[Profile, ...]
    sign_up: Ints
    gone: Ints

    @classmethod
    def decode(
        cls,
        users: Sequence[int | str],
        blobs: Sequence[bytes | None],
        faults: dict[int, CorruptState],
    ) -> UserStates:
        """Return the states in some blobs.

        Parameters
        ----------
        users : sequence of int or str (n_users,), distinct
        blobs : sequence of bytes or None (n_users,)
            None, or an empty one: nothing is known of the user yet.
        faults : dict
            Is filled with the positions of blobs that cannot be read; these users' states are
            empty, and must not be written.
        """
        return cls(tuple(users), *decode_blobs(users, blobs, faults))

    @classmethod
    def of(
        cls,
        users: Sequence[int | str],
        events: pa.Table,
        picks: pa.Array | None = None,
        signed_up: Ints | None = None,
        pick_times: Ints | None = None,
        *,
        services: bool = False,
    ) -> UserStates:
        """Return the states that clean tables hold; ``union`` prunes them.

        Parameters
        ----------
        users : sequence of int or str (n_users,), distinct
        events : pyarrow.Table
            Columns of the clean events ``user_id``, ``item_id``, ``ts``, ``weight``, ``context``,
            in any order; with services also ``service``.
        picks : pyarrow list array (n_users,), optional
            Item ids, as ``onboarding`` of the clean users.
        signed_up : int64 (n_users,), optional
            Microseconds; -1 where there is none. Only for data sets that name
            ``users.signed_up_at``: elsewhere clean users carry their first event, and an earlier
            event would count as one before the sign-up.
        pick_times : int64 (n_users,), optional
            When the picks were made; default: ``signed_up``.
        services : bool
            See ``apply``.

        Raises
        ------
        ValueError
            Events of a user who is not in ``users``, or picks without a time.
        """
        n = len(users)
        sign_up = np.full(n, NONE, np.int64)
        if signed_up is not None:
            sign_up[signed_up != -1] = signed_up[signed_up != -1]
        return cls(
            tuple(users),
            clean_facts(users, events, services=services),
            clean_picks(n, picks, signed_up if pick_times is None else pick_times),
            (NO_PROFILE,) * n,
            sign_up,
            np.full(n, NONE, np.int64),
        )

    def apply(
        self,
        events: Sequence[Sequence[StreamEvent]],
        *,
        longest_window: int,
        floor: int | None,
        max_events: int,
        margin_days: int = MARGIN_DAYS,
        services: bool = False,
    ) -> Applied:
        """Return the states with some events added; see ``Applied``.

        Parameters
        ----------
        events : sequence of sequences of StreamEvent (n_users,)
            In any order; an event may be given again.
        longest_window : int
            Days.
        floor : int or None
            Day (since 1970-01-01) from which on all events are in the states; None: the stream
            began with nothing.
        max_events : int
            More are not kept of one user: then none of a call's new events of that user enters.
        margin_days : int
            See ``MARGIN_DAYS``.
        services : bool
            Keep the service of each event, behind its context: where raw features carry texts.

        Notes
        -----
        The result depends on which events were applied, not on their order, repetition or grouping
        into calls. Two things are decided when they come, and depend on it: what is a fault of an
        event, and which events of a user with more than ``max_events`` enter.
        """
        new = NewEvents.of(events, self.profiles, self.sign_up, services=services)
        limits = Limits(longest_window, floor, max_events, margin_days)
        return self._joined(new, self.gone, limits)

    def union(
        self,
        other: UserStates,
        *,
        longest_window: int,
        floor: int | None,
        max_events: int,
        margin_days: int = MARGIN_DAYS,
    ) -> Applied:
        """Return what both know of the same users; parameters as in ``apply``.

        ``outcomes`` is empty: whose events did not enter, ``full`` says. These are remembered as
        gone, so that no row is made as if the user had not had them.

        Raises
        ------
        ValueError
            ``other`` has other users, or in another order.
        """
        if self.users != other.users:
            raise ValueError("States of other users were given, states of the same expected.")
        new = NewEvents(
            other.facts,
            [],
            other.picks.user,
            other.picks.item,
            other.picks.ts,
            [],
            tuple(a.joined(b) for a, b in zip(self.profiles, other.profiles, strict=True)),
            earliest(self.sign_up, other.sign_up),
            [],
        )
        limits = Limits(longest_window, floor, max_events, margin_days, refused_are_gone=True)
        return self._joined(new, np.maximum(self.gone, other.gone), limits)

    def encode(self) -> list[bytes]:
        """Return each user's blob; equal states have equal blobs."""
        return encode_blobs(self.facts, self.picks, self.profiles, self.sign_up, self.gone)

    def known(self, longest_window: int) -> Bools:
        """Return whose newest row of ``user_activity`` can be made: bool (n_users,)."""
        newest = self.facts.newest(NONE)
        some = newest != NONE
        window = window_start(np.where(some, newest, 0), longest_window)
        known: Bools = some & (self.gone < window)
        return known

    def misfits(self, names: Sequence[str]) -> dict[int, CorruptState]:
        """Return who has events of other circumstances, and what to do about it, by position.

        Parameters
        ----------
        names : sequence of str
            What is kept of an event (`transforms.stream.circumstances.kept_circumstances`).
        """
        wrong = np.flatnonzero(~fitting(self.facts, names))
        found: dict[int, CorruptState] = {}
        if not len(wrong):
            return found
        for user, at in zip(*np.unique(self.facts.user[wrong], return_index=True), strict=True):
            given = self.facts.contexts[int(self.facts.context[wrong[at]])]
            found[int(user)] = CorruptState(
                f"State of user {self.users[user]!r}: {len(given)} value(s) of an event's "
                f"circumstances found, {list(given)}, {len(names)} expected "
                f"({', '.join(names) or 'none'}): dataset.yaml was another one. Run `palate stream "
                "seed` once the clean tables hold the event; with --force the event is dropped.",
                user=self.users[user],
            )
        return found

    def fitted(self, names: Sequence[str], known_to: UserStates | None = None) -> UserStates:
        """Return the states without events of other circumstances.

        Parameters
        ----------
        names : sequence of str
            As in ``misfits``.
        known_to : UserStates, optional
            Of the same users: only events that are known there are left out here.
        """
        facts = self.facts
        keep = fitting(facts, names)
        if known_to is not None and not keep.all():
            keep |= ~known_to.facts.found(facts.user, facts.ts, facts.item)[1]
        return replace(self, facts=facts.kept(keep))

    def _joined(self, new: NewEvents, gone: Ints, limits: Limits) -> Applied:
        signed = new.sign_up != self.sign_up
        merged = merge_facts(self.facts, new.facts, new.sign_up, signed, gone, limits)
        picks, picked = merge_picks(self.picks, new.pick_user, new.pick_item, new.pick_ts)
        onboarding = np.zeros(len(self.users), np.bool_)
        onboarding[new.pick_user[picked]] = True
        profile = signed | np.array(
            [
                a is not b and a.to_bytes() != b.to_bytes()
                for a, b in zip(self.profiles, new.profiles, strict=True)
            ],
            np.bool_,
        )
        states = UserStates(self.users, merged.facts, picks, new.profiles, new.sign_up, merged.gone)
        return Applied(
            states,
            changed=merged.stored | onboarding | profile,
            activity=merged.activity,
            onboarding=onboarding,
            profile=profile,
            full=merged.full,
            outcomes=new.settled(merged.outcome, picked) if new.outcomes else [],
        )


@dataclass(frozen=True)
class Applied:
    """What applying events did.

    Attributes
    ----------
    states : UserStates
    changed : bool (n_users,)
        The state is another one and must be written.
    activity, onboarding, profile : bool (n_users,)
        That raw row must be made anew. ``activity`` is False where the row cannot be known
        because it would need events from before the floor.
    full : bool (n_users,)
        Events did not enter because the user has ``max_events``.
    outcomes : list of lists of str
        Of each user's events: ``applied``, ``duplicate``, ``outside`` (older than any window of the
        newest row, or than what the profile holds), or why it is a fault: ``too_late``,
        ``event_before_sign_up``, ``too_many_events``. A ``too_late`` event is a fault because no
        row can be made of it; it is in the state all the same where later rows need it.
    """

    states: UserStates
    changed: Bools
    activity: Bools
    onboarding: Bools
    profile: Bools
    full: Bools
    outcomes: list[list[str]]
