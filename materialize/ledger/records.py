"""What the ledger answers with: frozen records, moments in UTC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, TypeVar

from materialize.ledger.tables import Base

__all__ = [
    "Bridge",
    "Consumer",
    "Erasure",
    "Pin",
    "Run",
    "Space",
    "Transition",
    "from_row",
]


@dataclass(frozen=True)
class Space:
    """One embedding space: all vectors of one encoder version.

    ``state`` is ``trained``, ``materialising`` from the first run of the space on, ``ready`` from
    its first committed run on, ``retiring`` while it is taken down, then ``retired``.
    """

    number: int
    encoder_version: str
    artifact_url: str
    state: str
    created_at: datetime
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """One materialisation of one feature view: of a space, or (``space`` None) of a raw view.

    ``state`` is ``running``, ``failed`` or ``committed``; only a committed run's counts are facts.
    Besides numbers of rows they hold ``drift``, once it is measured (`materialize.drift`).
    """

    run_id: str
    view: str
    space: int | None
    key: str
    state: str
    plan: Mapping[str, Any]
    counts: Mapping[str, Any]
    error: str | None
    started_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True)
class Consumer:
    """A downstream model and the one space whose vectors it reads.

    ``bridge`` is the version of the bridge through which it reads them, if it does. ``revision``
    grows by one with every move, a roll back included.
    """

    name: str
    space: int
    bridge: str | None
    revision: int
    created_at: datetime
    moved_at: datetime


@dataclass(frozen=True)
class Pin:
    """What a consumer reads: the view, and what each of its rows must carry."""

    consumer: str
    space: int
    encoder_version: str
    """Of a bridged view's rows: the bridge's version."""
    view: str
    revision: int


@dataclass(frozen=True)
class Bridge:
    """A map from the vectors of space ``source`` to those of space ``target``.

    ``state`` is ``measured``, ``serving`` or ``retired``.
    """

    version: str
    source: int
    target: int
    url: str
    state: str
    figures: Mapping[str, Any]
    created_at: datetime


@dataclass(frozen=True)
class Transition:
    """One change: who made it, when and why.

    ``subject`` is ``space``, ``consumer``, ``default`` or ``bridge``; ``before`` is None for what
    was new, ``after`` is None for what was removed. A consumer's pin is written as its space, or as
    ``SPACE through BRIDGE``.
    """

    id: int
    subject: str
    name: str
    before: str | None
    after: str | None
    who: str
    why: str
    forced: bool
    at: datetime


@dataclass(frozen=True)
class Erasure:
    """One user's erasure: a digest of the id, never the id, and how many rows went where."""

    id: int
    user_digest: str
    counts: Mapping[str, int]
    who: str
    why: str
    at: datetime


_Record = TypeVar("_Record", Space, Run, Consumer, Bridge, Transition, Erasure)


def from_row(record: type[_Record], row: Base) -> _Record:
    """Return a table's row as its record, whose fields are named as the row's columns."""
    return record(**{field.name: getattr(row, field.name) for field in fields(record)})
