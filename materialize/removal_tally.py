"""How much a retirement has removed so far, kept in the ledger so that a kill loses no figure."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from materialize.ledger import Ledger

__all__ = ["TALLY_FACT", "Tally", "bytes_by_kind"]

TALLY_FACT = "retirement"
"""Fact of a space that is or was taken down: place -> figure -> number."""

_SECONDS = 1.0


class Tally:
    """Numbers by place (``online user_embedding_s2``) and figure (``rows``, ``bytes``, ``files``).

    What is counted as it is removed is added; what is measured before it is removed is kept from
    the first attempt, because a later one finds less.

    State: the numbers, as the ledger has them, up to a second behind.

    Parameters
    ----------
    ledger : Ledger
    space : int
    """

    def __init__(self, ledger: Ledger, space: int) -> None:
        self._ledger, self._space = ledger, space
        kept = ledger.space(space).facts.get(TALLY_FACT, {})
        self.places: dict[str, dict[str, int]] = {name: dict(n) for name, n in kept.items()}
        self._written = 0.0

    def measured(self, place: str, **figures: int | None) -> None:
        """Keep figures of a place about to be removed, unless an earlier attempt has told them."""
        if place not in self.places:
            self.places[place] = _known(figures)
            self.write()

    def add(self, place: str, **figures: int | None) -> None:
        """Add to a place's figures; written at most once a second."""
        numbers = self.places.setdefault(place, {})
        for name, value in _known(figures).items():
            numbers[name] = numbers.get(name, 0) + value
        if time.monotonic() - self._written >= _SECONDS:
            self.write()

    def write(self) -> None:
        """Write the numbers to the ledger."""
        self._ledger.update_facts(self._space, {TALLY_FACT: self.places})
        self._written = time.monotonic()

    def freed(self) -> dict[str, int]:
        """Return the bytes by kind of place, that is, by its first word."""
        return bytes_by_kind(self.places)


def bytes_by_kind(places: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Return the bytes by the first word of each place's name."""
    freed: dict[str, int] = {}
    for place, numbers in places.items():
        kind = place.split()[0]
        freed[kind] = freed.get(kind, 0) + numbers.get("bytes", 0)
    return freed


def _known(figures: Mapping[str, Any]) -> dict[str, int]:
    return {name: value for name, value in figures.items() if value is not None}
