"""What the stream has set of a user's profile: of each column the last writer wins."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from transforms.stream.events import StreamEvent

__all__ = ["NO_PROFILE", "Profile"]

_Value = TypeVar("_Value", str, float)


@dataclass(frozen=True, eq=False)
class Profile:
    """Columns that the stream has set.

    Attributes
    ----------
    categories : dict of str to tuple (int, str)
        When, in microseconds, and to what; "" for a missing value.
    numbers : dict of str to tuple (int, float)
        Rounded to 32 bits; NaN for a missing value.
    """

    categories: dict[str, tuple[int, str]] = field(default_factory=dict)
    numbers: dict[str, tuple[int, float]] = field(default_factory=dict)

    @property
    def newest(self) -> int | None:
        """Time of the newest change; None without any."""
        times = [t for t, _ in self.categories.values()] + [t for t, _ in self.numbers.values()]
        return max(times, default=None)

    def joined(self, other: Profile) -> Profile:
        """Return the later value of each column; of two of one time the larger, NaN the least."""
        if not other.categories and not other.numbers:
            return self
        return Profile(
            _later(self.categories, other.categories), _later(self.numbers, other.numbers)
        )

    def to_bytes(self) -> bytes:
        """Return canonical JSON: equal profiles give equal bytes; b"" for an empty one."""
        if not self.categories and not self.numbers:
            return b""
        numbers = {n: [t, None if math.isnan(v) else v] for n, (t, v) in self.numbers.items()}
        body = [self.categories, numbers]
        return json.dumps(
            body, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False
        ).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Profile:
        """Return what ``to_bytes`` wrote."""
        if not data:
            return NO_PROFILE
        categories, numbers = json.loads(data)
        return cls(
            {name: (t, v) for name, (t, v) in categories.items()},
            {name: (t, math.nan if v is None else v) for name, (t, v) in numbers.items()},
        )

    @classmethod
    def of(cls, event: StreamEvent) -> Profile:
        """Return the columns that one event sets."""
        moment = event.timestamp_us
        return cls(
            {name: (moment, value) for name, value in event.categories.items()},
            # Adding 0 makes -0 a 0: two zeros would be two facts.
            {n: (moment, float(np.float32(v)) + 0.0) for n, v in event.numbers.items()},
        )


NO_PROFILE = Profile()


def _later(
    old: dict[str, tuple[int, _Value]], new: dict[str, tuple[int, _Value]]
) -> dict[str, tuple[int, _Value]]:
    joined = dict(old)
    for name, change in new.items():
        if name not in joined or _order(change) > _order(joined[name]):
            joined[name] = change
    return joined


def _order(change: tuple[int, _Value]) -> tuple[int, bool, _Value | None]:
    moment, value = change
    if isinstance(value, float) and math.isnan(value):
        return moment, False, None
    return moment, True, value
