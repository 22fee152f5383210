"""What is known of each user: a set of facts, so that applying an event twice changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from encoder.errors import CorruptState
from transforms.stream.events import StreamEvent

__all__ = ["MARGIN_DAYS", "Applied", "UserStates"]

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

MARGIN_DAYS = 7
"""Events so many days older than any window of the newest row are kept too: rows of moments a
little earlier can still be made."""


@dataclass(frozen=True)
class UserStates:
    """States of some users, as arrays over all their facts.

    Attributes
    ----------
    users : tuple of int or str (n_users,)
    """

    users: tuple[int | str, ...]

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
        raise NotImplementedError

    @classmethod
    def of(
        cls,
        users: Sequence[int | str],
        events: pa.Table,
        picks: pa.Array | None = None,
        signed_up: Ints | None = None,
        pick_times: Ints | None = None,
    ) -> UserStates:
        """Return the states that clean tables hold; ``union`` prunes them.

        Parameters
        ----------
        users : sequence of int or str (n_users,), distinct
        events : pyarrow.Table
            Columns of the clean events ``user_id``, ``item_id``, ``ts``, ``weight``, ``context``,
            in any order; users that are not in ``users`` are an error.
        picks : pyarrow list array (n_users,), optional
            Item ids, as ``onboarding`` of the clean users.
        signed_up : int64 (n_users,), optional
            Microseconds; -1 where there is none. Only for data sets that name
            ``users.signed_up_at``: elsewhere clean users carry their first event, and an earlier
            event would count as one before the sign-up.
        pick_times : int64 (n_users,), optional
            When the picks were made; default: ``signed_up``.
        """
        raise NotImplementedError

    def apply(
        self,
        events: Sequence[Sequence[StreamEvent]],
        *,
        longest_window: int,
        floor: int | None,
        max_events: int,
        margin_days: int = MARGIN_DAYS,
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
            More are not kept of one user.
        margin_days : int
            See ``MARGIN_DAYS``.
        """
        raise NotImplementedError

    def union(
        self,
        other: UserStates,
        *,
        longest_window: int,
        floor: int | None,
        max_events: int,
        margin_days: int = MARGIN_DAYS,
    ) -> Applied:
        """Return what both know of the same users, in the same order; outcomes are empty."""
        raise NotImplementedError

    def encode(self) -> list[bytes]:
        """Return each user's blob; equal states have equal blobs."""
        raise NotImplementedError


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
    outcomes : list of lists of str
        Of each user's events: ``applied``, ``duplicate``, ``outside`` (older than any window of the
        newest row), or why it is a fault: ``too_late``, ``event_before_sign_up``,
        ``too_many_events``. A ``too_late`` event is a fault because no row can be made of it; it is
        in the state all the same where later rows need it.
    """

    states: UserStates
    changed: Bools
    activity: Bools
    onboarding: Bools
    profile: Bools
    outcomes: list[list[str]]
