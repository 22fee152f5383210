"""New facts as arrays: from events of a stream, and from the clean tables of the batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from transforms.stream.circumstances import circumstances_of
from transforms.stream.events import CONSUME, ONBOARDING_PICK, SIGN_UP, StreamEvent
from transforms.stream.facts import Context, Facts, Ints, Picks
from transforms.stream.item_keys import item_key, keys_of
from transforms.stream.merge import APPLIED, DUPLICATE, NONE, OUTCOMES, OUTSIDE, ordered_facts
from transforms.stream.profile import Profile
from transforms.texts import ONLY_SERVICE

__all__ = ["NewEvents", "clean_facts", "clean_picks"]

Place = tuple[int, int]
"""Position of a user, and of one of the user's events."""


@dataclass(frozen=True)
class NewEvents:
    """Events of several users, sorted by what they are.

    Attributes
    ----------
    facts : Facts
        What was consumed, ordered by user, time, item, weight, context; repeated where an event is.
    fact_places : list of tuples
        Where each of ``facts`` stands among the events.
    pick_user, pick_item, pick_ts : int64 (n_picks,)
    pick_places : list of tuples
    profiles, sign_up
        Those that were known, with the events' changes.
    outcomes : list of lists of str
        Of each user's events; "" for those of ``fact_places`` and ``pick_places``.
    """

    facts: Facts
    fact_places: list[Place]
    pick_user: Ints
    pick_item: Ints
    pick_ts: Ints
    pick_places: list[Place]
    profiles: tuple[Profile, ...]
    sign_up: Ints
    outcomes: list[list[str]]

    @classmethod
    def of(
        cls,
        events: Sequence[Sequence[StreamEvent]],
        profiles: Sequence[Profile],
        sign_up: Ints,
        *,
        services: bool,
    ) -> NewEvents:
        """Sort the events of users whose profiles and sign-ups are known so far.

        ``services``: what is consumed is kept with its service.

        Raises
        ------
        ValueError
            An event of an item without one.
        """
        fact_places: list[Place] = []
        pick_places: list[Place] = []
        facts: list[StreamEvent] = []
        picks: list[StreamEvent] = []
        changed, signed = list(profiles), sign_up.copy()
        outcomes = [[""] * len(of_user) for of_user in events]
        for user, of_user in enumerate(events):
            for k, event in enumerate(of_user):
                if event.type == CONSUME:
                    facts.append(event)
                    fact_places.append((user, k))
                elif event.type == ONBOARDING_PICK:
                    picks.append(event)
                    pick_places.append((user, k))
                else:
                    code, changed[user] = _profile_change(changed[user], event)
                    if event.type == SIGN_UP:
                        known, moment = int(signed[user]), event.timestamp_us
                        if known == NONE or moment < known:
                            code, signed[user] = APPLIED, moment
                        elif moment > known and code == DUPLICATE:
                            code = OUTSIDE
                    outcomes[user][k] = OUTCOMES[code]
        made, order = _event_facts(
            facts, [user for user, _ in fact_places], len(events), services=services
        )
        return cls(
            made,
            [fact_places[k] for k in order],
            np.array([user for user, _ in pick_places], np.int64),
            _keys(picks),
            np.array([pick.timestamp_us for pick in picks], np.int64),
            pick_places,
            tuple(changed),
            signed,
            outcomes,
        )

    def settled(self, facts: Ints, picks: npt.NDArray[np.bool_]) -> list[list[str]]:
        """Return all outcomes: those of facts are positions in ``OUTCOMES``, True is applied."""
        outcomes = [list(of_user) for of_user in self.outcomes]
        for (user, k), code in zip(self.fact_places, facts.tolist(), strict=True):
            outcomes[user][k] = OUTCOMES[code]
        for (user, k), new in zip(self.pick_places, picks.tolist(), strict=True):
            outcomes[user][k] = OUTCOMES[APPLIED if new else DUPLICATE]
        return outcomes


def clean_facts(users: Sequence[int | str], events: pa.Table, *, services: bool) -> Facts:
    """Return the events of clean tables; see ``UserStates.of``."""
    user = _positions(users, events["user_id"])
    items = events["item_id"].combine_chunks().dictionary_encode()
    item = keys_of(items.dictionary)[items.indices.to_numpy()]
    ts = events["ts"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
    weight = events["weight"].to_numpy().astype(np.float32)
    service = pc.fill_null(events["service"], ONLY_SERVICE) if services else None
    codes, contexts = _clean_contexts(events["context"].combine_chunks(), service)
    facts, _ = ordered_facts(len(users), user, ts, item, weight, codes, contexts)
    return facts


def clean_picks(n_users: int, picks: pa.Array | None, times: Ints | None) -> Picks:
    """Return the picks of clean users, each item once; see ``UserStates.of``.

    Raises
    ------
    ValueError
        Picks without a time.
    """
    if picks is None:
        none = np.zeros(0, np.int64)
        return Picks(np.zeros(n_users + 1, np.int64), none, none)
    user = np.repeat(np.arange(n_users), picks.value_lengths().to_numpy(zero_copy_only=False))
    if times is None or (times[user] == -1).any():
        raise ValueError("Picks without a time were given. Pass pick_times for every such user.")
    pairs = np.stack([user, keys_of(picks.flatten())], axis=1)  # (n_picks, 2)
    pairs = np.unique(pairs, axis=0)
    start = np.concatenate([[0], np.cumsum(np.bincount(pairs[:, 0], minlength=n_users))])
    return Picks(start, pairs[:, 1].copy(), times[pairs[:, 0]].astype(np.int64))


def _event_facts(
    events: Sequence[StreamEvent], users: Sequence[int], n_users: int, *, services: bool
) -> tuple[Facts, Ints]:
    """Return events of ``users`` in order, and the position of each among the given."""
    number: dict[Context, int] = {}
    codes = [
        number.setdefault(circumstances_of(event, services=services), len(number))
        for event in events
    ]
    contexts = sorted(number)
    place = np.zeros(len(contexts), np.int64)
    place[[number[context] for context in contexts]] = np.arange(len(contexts))
    return ordered_facts(
        n_users,
        np.array(users, np.int64),
        np.array([event.timestamp_us for event in events], np.int64),
        _keys(events),
        np.array([event.weight for event in events], np.float32),
        place[np.array(codes, np.int64)],
        tuple(contexts),
    )


def _keys(events: Iterable[StreamEvent]) -> Ints:
    keys = []
    for event in events:
        if event.item_id is None:
            raise ValueError(f"{event!r} was given, an item_id expected in a {event.type} event.")
        keys.append(item_key(event.item_id))
    return np.array(keys, np.int64)


def _profile_change(known: Profile, event: StreamEvent) -> tuple[int, Profile]:
    """Return the outcome of the columns that an event sets, and the profile after it."""
    change = Profile.of(event)
    joined = known.joined(change)
    if joined.to_bytes() != known.to_bytes():
        return APPLIED, joined
    # Nothing new: said before, or before something newer was said of the same columns.
    said = Profile(
        {name: known.categories[name] for name in change.categories},
        {name: known.numbers[name] for name in change.numbers},
    )
    return (DUPLICATE if said.to_bytes() == change.to_bytes() else OUTSIDE), known


def _positions(users: Sequence[int | str], ids: pa.ChunkedArray) -> Ints:
    found = pc.index_in(ids, value_set=pa.array(users, ids.type))
    if found.null_count:
        stranger = ids.filter(pc.is_null(found))[0].as_py()
        raise ValueError(
            f"Events of user {stranger!r} were given, only events of the {len(users)} users "
            "expected. Give every user that has events."
        )
    return np.asarray(found.to_numpy(), np.int64)


def _clean_contexts(
    column: pa.ListArray, service: pa.ChunkedArray | None
) -> tuple[Ints, tuple[Context, ...]]:
    """Return where each event's circumstances stand among the distinct ones, ascending."""
    codes = np.zeros(len(column), np.int64)
    flat = column.flatten()
    width = len(flat) // max(len(column), 1)
    columns = [
        flat.take(pa.array(np.arange(k, len(flat), width))).dictionary_encode()
        for k in range(width)
    ]
    if service is not None:
        columns.append(service.combine_chunks().dictionary_encode())
    for encoded in columns:
        codes = codes * len(encoded.dictionary) + encoded.indices.to_numpy()
        # Dense again after each column, so that many columns of many values do not overflow.
        codes = np.unique(codes, return_inverse=True)[1].astype(np.int64)
    _, first, codes = np.unique(codes, return_index=True, return_inverse=True)
    contexts = [
        tuple(
            encoded.dictionary[int(encoded.indices[int(row)].as_py())].as_py()
            for encoded in columns
        )
        for row in first
    ]
    order = sorted(range(len(contexts)), key=contexts.__getitem__)
    place = np.zeros(len(contexts), np.int64)
    place[order] = np.arange(len(order))
    return place[codes], tuple(contexts[k] for k in order)
