"""Bridges: maps between spaces, measured first and served only then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select

from encoder.errors import LedgerConflict
from materialize.ledger.connection import Connected, now
from materialize.ledger.lookup import bridge_row, space_row
from materialize.ledger.records import Bridge, from_row
from materialize.ledger.states import (
    GONE,
    MEASURED,
    READY,
    RETIRED,
    SERVING,
    last_change,
    move_bridge,
    record,
)
from materialize.ledger.tables import BridgeRow, ConsumerRow

__all__ = ["BridgesPart"]


class BridgesPart(Connected):
    """What a ledger knows of bridges."""

    def record_bridge(
        self,
        version: str,
        *,
        source: int,
        target: int,
        url: str,
        figures: Mapping[str, Any],
        who: str,
    ) -> Bridge:
        """Record a measured bridge; the same version again takes over the newer figures only.

        Parameters
        ----------
        version : str
            Content hash of both encoder versions and the map, 12 hex digits.
        source, target : int
            The space whose vectors are mapped, and the one into which.
        url : str
            Where the map lies.
        figures : mapping
            JSON types; what was measured.
        who : str

        Raises
        ------
        LedgerConflict
            A space is unknown, retiring or retired, or the version is another pair's.
        ValueError
            Source and target are the same space.
        """
        if source == target:
            raise ValueError(f"A bridge joins two spaces; source and target are both {source}.")
        with self._change() as session:
            row = session.get(BridgeRow, version)
            if row is not None:
                if (row.source, row.target) != (source, target):
                    raise LedgerConflict(
                        f"Bridge {version} leads from space {row.source} to space {row.target}, "
                        f"not from {source} to {target}. A version is a hash of both; compute it "
                        "again."
                    )
                # Measured again: by then labels or the history of a space may have come.
                row.figures = dict(figures)
                return from_row(Bridge, row)
            for number in (source, target):
                state = space_row(session, number).state
                if state in GONE:
                    raise LedgerConflict(
                        f"A bridge cannot join space {number}: it is {state}"
                        f"{last_change(session, 'space', str(number))}. Run `palate spaces list` "
                        "to see all."
                    )
            row = BridgeRow(
                version=version,
                source=source,
                target=target,
                url=url,
                state=MEASURED,
                figures=dict(figures),
                created_at=now(),
            )
            session.add(row)
            why = f"space {source} to space {target}"
            record(session, "bridge", version, None, MEASURED, who=who, why=why)
            return from_row(Bridge, row)

    def serve_bridge(self, version: str, *, who: str, why: str) -> Bridge:
        """Let consumers read through a bridge; again: nothing changes.

        Raises
        ------
        LedgerConflict
            The bridge is retired, its source is not ready, its target is retiring or retired, or
            another bridge of the same pair serves: both would share one view.
        """
        with self._change() as session:
            row = bridge_row(session, version)
            if row.state == SERVING:
                return from_row(Bridge, row)
            source, target = space_row(session, row.source), space_row(session, row.target)
            for space, wrong in ((source, source.state != READY), (target, target.state in GONE)):
                if wrong:
                    raise LedgerConflict(
                        f"Bridge {version} cannot serve: space {space.number} is {space.state}"
                        f"{last_change(session, 'space', str(space.number))}. It needs a source "
                        "that is ready and a target that is not retired; see `palate spaces list`."
                    )
            other = session.scalars(
                select(BridgeRow).where(
                    BridgeRow.source == row.source,
                    BridgeRow.target == row.target,
                    BridgeRow.state == SERVING,
                )
            ).first()
            if other is not None:
                raise LedgerConflict(
                    f"Bridge {version} cannot serve beside bridge {other.version}, which leads from"
                    f" space {row.source} to space {row.target} too"
                    f"{last_change(session, 'bridge', other.version)}. Retire that one first."
                )
            move_bridge(session, row, SERVING, who=who, why=why)
            return from_row(Bridge, row)

    def retire_bridge(self, version: str, *, who: str, why: str) -> Bridge:
        """End a bridge; again: nothing changes.

        Raises
        ------
        LedgerConflict
            Consumers read through it; the message names them.
        """
        with self._change() as session:
            row = bridge_row(session, version)
            readers = select(ConsumerRow.name).where(ConsumerRow.bridge == version)
            names = session.scalars(readers.order_by(ConsumerRow.name)).all()
            if names:
                raise LedgerConflict(
                    f"Bridge {version} cannot be retired: {', '.join(map(repr, names))} read space "
                    f"{row.target} through it. Move them first: `palate consumers move {names[0]} "
                    "--space N`."
                )
            move_bridge(session, row, RETIRED, who=who, why=why)
            return from_row(Bridge, row)

    def bridges(self, source: int | None = None, target: int | None = None) -> list[Bridge]:
        """Return the bridges of a source, of a target, or all, oldest first."""
        query = select(BridgeRow).order_by(BridgeRow.created_at, BridgeRow.version)
        if source is not None:
            query = query.where(BridgeRow.source == source)
        if target is not None:
            query = query.where(BridgeRow.target == target)
        with self._read() as session:
            return [from_row(Bridge, row) for row in session.scalars(query)]

    def bridge(self, version: str) -> Bridge:
        """Return one bridge.

        Raises
        ------
        LedgerConflict
            There is none of that version; the message lists those that are known.
        """
        with self._read() as session:
            return from_row(Bridge, bridge_row(session, version))
