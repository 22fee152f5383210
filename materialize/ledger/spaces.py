"""Spaces: their numbers, their facts, and which of them are kept fresh."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import func, or_, select

from encoder.errors import LedgerConflict
from materialize.ledger.connection import Connected, now
from materialize.ledger.lookup import space_row
from materialize.ledger.records import Space, from_row
from materialize.ledger.states import (
    GONE,
    SERVING,
    TRAINED,
    job_operator,
    last_change,
    record,
)
from materialize.ledger.tables import BridgeRow, ConsumerRow, DefaultMoveRow, SpaceRow

__all__ = ["SpacesPart"]


class SpacesPart(Connected):
    """What a ledger knows of spaces."""

    def register(self, encoder_version: str, artifact_url: str, facts: Mapping[str, Any]) -> Space:
        """Return the space of an encoder version, numbered next when it is new.

        Processes that register one version at once get the same space; different versions get
        different numbers.

        Parameters
        ----------
        encoder_version : str
            Content hash, 12 hex digits.
        artifact_url : str
            Where the artifact lies.
        facts : mapping
            JSON types; what `palate spaces show` prints (cut-off, modality version, training
            figures).

        Raises
        ------
        LedgerConflict
            The version's space is being retired, or was.
        """
        known = select(SpaceRow).where(SpaceRow.encoder_version == encoder_version)
        with self._change() as session:
            row = session.scalars(known).first()
            if row is None:
                last = session.scalar(select(func.max(SpaceRow.number)))
                row = SpaceRow(
                    number=(last or 0) + 1,
                    encoder_version=encoder_version,
                    artifact_url=artifact_url,
                    state=TRAINED,
                    created_at=now(),
                    facts=dict(facts),
                )
                session.add(row)
                name = str(row.number)
                record(session, "space", name, None, TRAINED, who=job_operator(), why="registered")
            elif row.state in GONE:
                raise LedgerConflict(
                    f"Encoder version {encoder_version!r} is that of space {row.number}, which is "
                    f"{row.state}{last_change(session, 'space', str(row.number))} and does not "
                    "come back. Train with other data, settings or another seed."
                )
            return from_row(Space, row)

    def spaces(self) -> list[Space]:
        """Return all spaces, oldest first."""
        with self._read() as session:
            rows = session.scalars(select(SpaceRow).order_by(SpaceRow.number))
            return [from_row(Space, row) for row in rows]

    def space(self, number: int | None = None) -> Space:
        """Return one space; without a number, the newest.

        Raises
        ------
        LedgerConflict
            There is no such space, or none at all.
        """
        with self._read() as session:
            return from_row(Space, space_row(session, number))

    def live_spaces(self) -> list[Space]:
        """Return the spaces that are to be kept fresh, oldest first.

        Those that a consumer reads directly, the default, the sources of serving bridges, and the
        newest; none that is retiring or retired.
        """
        present = SpaceRow.state.not_in(GONE)
        newest = select(func.max(SpaceRow.number)).where(present).scalar_subquery()
        default = (
            select(DefaultMoveRow.space)
            .order_by(DefaultMoveRow.number.desc())
            .limit(1)
            .scalar_subquery()
        )
        pinned = select(ConsumerRow.space).where(ConsumerRow.bridge.is_(None))
        mapped = select(BridgeRow.source).where(BridgeRow.state == SERVING)
        number = SpaceRow.number
        # One statement: what it reads is one moment's.
        live = (
            select(SpaceRow)
            .where(
                present,
                or_(number == newest, number == default, number.in_(pinned), number.in_(mapped)),
            )
            .order_by(number)
        )
        with self._read() as session:
            return [from_row(Space, row) for row in session.scalars(live)]

    def update_facts(self, number: int, facts: Mapping[str, Any]) -> Space:
        """Add facts to a space, over those of the same names; safe to repeat.

        Parameters
        ----------
        number : int
        facts : mapping
            JSON types.

        Raises
        ------
        LedgerConflict
            There is no such space.
        """
        with self._change() as session:
            row = space_row(session, number)
            row.facts = {**row.facts, **facts}
            return from_row(Space, row)
