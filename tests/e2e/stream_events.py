"""Events of some users as producers send them, drawn from a seed, and what is true once all are in.

Nothing here knows how the stream keeps or applies events.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

__all__ = ["DAY_US", "NEW_ITEMS", "START_US", "Facts", "Sent", "Traffic", "items"]

DAY_US = 86_400_000_000
_HOUR_US = 3_600_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
START_US = (datetime(2024, 3, 1, tzinfo=timezone.utc) - _EPOCH) // timedelta(microseconds=1)
"""Midnight at which the stream begins; the past, so that no event lies in the future."""

NEW_ITEMS = ("brought-0", "brought-1")
"""Items that the catalogue learns of while the stream runs; their events are bad until then."""
_COUNTRIES, _DEVICES = ("", "BR", "DE", "JP"), ("phone", "desk", "ü")
_GENDERS = ("", "f", "m", "x")


def items() -> list[str]:
    """Return the ids of the catalogue."""
    return [f"item-{k:02d}" for k in range(40)]


@dataclass(frozen=True)
class Sent:
    """One event as a producer sends it.

    Attributes
    ----------
    payload : bytes
    event : dict, optional
        What a good event says; None: it is to be rejected whatever happens.
    reasons : tuple of str
        Why it is rejected now, one of these; empty for a good one.
    """

    payload: bytes
    event: dict[str, Any] | None
    reasons: tuple[str, ...] = ()


@dataclass
class Facts:
    """All that happened, each thing once; order and repetition leave no trace.

    Attributes
    ----------
    consumed : dict of (user, item, time in us) to (weight, context)
    picked : set of (user, item, time in us)
    changed : set of (user, column, time, value)
        Of the profile; the last one counts, by time, then value.
    signed_up : dict of user to time
        The earliest.
    """

    consumed: dict[tuple[int, str, int], tuple[float, tuple[str, str]]] = field(
        default_factory=dict
    )
    picked: set[tuple[int, str, int]] = field(default_factory=set)
    changed: set[tuple[int, str, int, Any]] = field(default_factory=set)
    signed_up: dict[int, int] = field(default_factory=dict)

    def copy(self) -> Facts:
        """Return the same facts, to be added to."""
        return Facts(dict(self.consumed), set(self.picked), set(self.changed), dict(self.signed_up))

    def add(self, event: Mapping[str, Any]) -> None:
        """Add what an event says; again: nothing changes."""
        user, at = event["user_id"], event["timestamp"]
        if event["type"] == "consume":
            context = event.get("context", {})
            named = (context.get("country") or "", context.get("device") or "")
            self.consumed[user, event["item_id"], at] = event.get("weight", 1.0), named
        elif event["type"] == "onboarding_pick":
            self.picked.add((user, event["item_id"], at))
        else:
            if event["type"] == "sign_up":
                self.signed_up[user] = min(at, self.signed_up.get(user, at))
            values = {**event.get("categories", {}), **event.get("numbers", {})}
            self.changed |= {(user, name, at, value) for name, value in values.items()}

    def users(self) -> list[int]:
        """Return everybody of whom something is known."""
        seen = {user for user, _, _ in self.consumed} | {user for user, _, _ in self.picked}
        return sorted(seen | {user for user, _, _, _ in self.changed} | set(self.signed_up))

    def columns(self) -> dict[int, dict[str, Any]]:
        """Return everybody's profile, as far as it is known."""
        found: dict[int, dict[str, Any]] = {}
        for user, name, _, value in sorted(self.changed, key=lambda one: (one[2], one[1], one[3])):
            found.setdefault(user, {})[name] = value
        return found

    @property
    def distinct(self) -> int:
        """Number of different things that were consumed or picked."""
        return len(self.consumed) + len(self.picked)


class Traffic:
    """Draws what users do, each by a clock of their own; equal seeds draw equal events.

    Parameters
    ----------
    seed : int
    known : sequence of int
        Users of the batch, who do not sign up again.
    new : sequence of int
        Users who sign up in the stream; every fourth does so nowhere.
    picked : iterable of (user, item, time)
        What was picked before.
    """

    def __init__(
        self,
        seed: int,
        known: Iterable[int],
        new: Iterable[int],
        picked: Iterable[tuple[int, str, int]] = (),
    ) -> None:
        self._draw = random.Random(seed)  # noqa: S311 - no secret
        self._known = set(known)
        self._users = [*self._known, *new]
        self._clock = {user: START_US + self._draw.randrange(DAY_US) for user in self._users}
        self._begun = {user: START_US - 2 * DAY_US for user in self._known}
        self._picked = {(user, item) for user, item, _ in picked}
        self._consumed: set[tuple[int, str, int]] = set()
        self._items = items()

    def draw(self) -> list[Sent]:
        """Return what the next user does: mostly one event, or two at one time, in order."""
        draw = self._draw
        user = draw.choice(self._users)
        if user not in self._begun:
            self._begun[user] = self._clock[user]
            if user % 4:
                return [self._good(self._sign_up(user))]
        kind = draw.random()
        if kind < 0.02:
            return [self._bad(user)]
        if kind < 0.03:
            return [self._early(user)]
        at = self._time(user)
        if kind < 0.10:
            return [self._good(self._profile(user, at))]
        if kind < 0.17:
            free = [item for item in self._items if (user, item) not in self._picked]
            if free:
                item = draw.choice(free)
                self._picked.add((user, item))
                return [self._good(_event("onboarding_pick", user, at, item_id=item))]
        two = draw.random() < 0.05
        return [
            self._good(self._consume(user, item, at)) for item in draw.sample(self._items, 1 + two)
        ]

    def _time(self, user: int) -> int:
        """Move the user's clock; return its time, or one that is late by less than two days."""
        draw = self._draw
        kind = draw.random()
        now = self._clock[user]
        if kind < 0.1:
            return max(self._begun[user], now - draw.randrange(2 * DAY_US))
        if kind < 0.25:  # the last or the first moments of a day
            midnight = now - now % DAY_US + DAY_US * draw.choice((1, 2))
            now = max(now + 2, midnight + draw.choice((-1, 0, 1, -1_000_000, 1_000_000)))
        elif kind < 0.255:  # away for longer than any window
            now += 40 * DAY_US
        else:
            now += draw.randrange(1, 5 * _HOUR_US)
        self._clock[user] = now
        return now

    def _consume(self, user: int, item: str, at: int) -> dict[str, Any]:
        draw = self._draw
        while (user, item, at) in self._consumed:  # one thing is not told in two ways
            at += 1
        self._consumed.add((user, item, at))
        event = _event("consume", user, at, item_id=item)
        if draw.random() < 0.9:
            event["weight"] = draw.choice((0.1, 0.5, 1.0, 2.75, 1 / 3))
        if draw.random() < 0.9:
            event["context"] = {"country": draw.choice(_COUNTRIES), "device": draw.choice(_DEVICES)}
        return event

    def _sign_up(self, user: int) -> dict[str, Any]:
        event = _event("sign_up", user, self._clock[user])
        return event | self._columns() if self._draw.random() < 0.5 else event

    def _profile(self, user: int, at: int) -> dict[str, Any]:
        return _event("profile_change", user, at) | self._columns()

    def _columns(self) -> dict[str, Any]:
        draw = self._draw
        gender = {"categories": {"gender": draw.choice(_GENDERS)}}
        age = {"numbers": {"age": draw.choice((17.5, 30.0, 64.25))}}
        return draw.choice((gender, age, gender | age))

    def _bad(self, user: int) -> Sent:
        """Return an event that no fix makes good."""
        at, item = self._clock[user], self._draw.choice(self._items)
        good = _event("consume", user, at, item_id=item)
        return self._draw.choice(
            [
                Sent(b'{"type": "consume", "user_id": %d,' % user, None, ("not_json",)),
                _rejected(good | {"type": "dance"}, "unknown_type"),
                _rejected(good | {"weight": -1.0}, "invalid_weight", "wrong_field"),
                _rejected(good | {"timestamp": "yesterday"}, "wrong_field"),
                _rejected(good | {"timestamp": 2**61}, "timestamp_in_future", "wrong_field"),
                _rejected(good | {"colour": "red"}, "wrong_field"),
            ]
        )

    def _early(self, user: int) -> Sent:
        """Return a good event of an item that the catalogue does not have yet."""
        item = self._draw.choice(NEW_ITEMS)
        event = self._consume(user, item, self._time(user))
        return Sent(json.dumps(event).encode(), event, ("unknown_item",))

    def _good(self, event: dict[str, Any]) -> Sent:
        written = dict(event)
        if self._draw.random() < 0.2:
            at = _EPOCH + timedelta(microseconds=event["timestamp"])
            written["timestamp"] = at.isoformat(timespec="microseconds")
        return Sent(json.dumps(written).encode(), event)


def _event(kind: str, user: int, at: int, **more: Any) -> dict[str, Any]:
    return {"type": kind, "user_id": user, "timestamp": at, **more}


def _rejected(event: dict[str, Any], *reasons: str) -> Sent:
    return Sent(json.dumps(event).encode(), None, reasons)
