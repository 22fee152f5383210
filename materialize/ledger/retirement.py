"""The end of a space: refused while anybody needs it, then final."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from encoder.errors import LedgerConflict
from materialize.ledger.connection import Connected
from materialize.ledger.lookup import default_move, space_row
from materialize.ledger.records import Space, from_row
from materialize.ledger.states import (
    GONE,
    READY,
    RETIRED,
    RETIRING,
    SERVING,
    last_change,
    move_space,
)
from materialize.ledger.tables import BridgeRow, ConsumerRow, SpaceRow

__all__ = ["RetirementPart"]


class RetirementPart(Connected):
    """How a space is taken down."""

    def needed_by(self, number: int) -> list[str]:
        """Return who needs a space and what to do about each, as `start_retiring` names them.

        Empty: the space may go, as of this moment. Reads only.
        """
        with self._read() as session:
            row = space_row(session, number)
            return [] if row.state in GONE else _needed_by(session, row)

    def start_retiring(self, number: int, *, who: str, why: str) -> Space:
        """Decide that a space goes; from then on it is neither written nor pinned. Safe to repeat.

        Raises
        ------
        LedgerConflict
            A consumer pins it, directly or through a bridge; it is the default or the only ready
            space; or a serving bridge leads from or to it. The message names them all.
        """
        with self._change() as session:
            row = space_row(session, number)
            if row.state == RETIRED:
                raise LedgerConflict(
                    f"Space {number} is retired{last_change(session, 'space', str(number))}. "
                    "There is nothing left to retire."
                )
            needed = [] if row.state == RETIRING else _needed_by(session, row)
            if needed:
                raise LedgerConflict(f"Space {number} cannot be retired: {'; '.join(needed)}.")
            move_space(session, row, RETIRING, who=who, why=why)
            return from_row(Space, row)

    def finish_retiring(self, number: int, freed: Mapping[str, int], *, who: str) -> Space:
        """Record that nothing of a retiring space is left; safe to repeat.

        Parameters
        ----------
        number : int
        freed : mapping
            Bytes that were freed, by place; kept as the fact ``freed``.
        who : str

        Raises
        ------
        LedgerConflict
            The space is not retiring.
        """
        with self._change() as session:
            row = space_row(session, number)
            if row.state != RETIRED:
                why = f"freed {sum(freed.values())} bytes"
                move_space(session, row, RETIRED, who=who, why=why)
                row.facts = {**row.facts, "freed": dict(freed)}
            return from_row(Space, row)


def _needed_by(session: Session, row: SpaceRow) -> list[str]:
    """Return who needs a space and what to do about each."""
    number = row.number
    needed = []
    pinned = select(ConsumerRow).where(ConsumerRow.space == number).order_by(ConsumerRow.name)
    for consumer in session.scalars(pinned):
        how = "" if consumer.bridge is None else f" through bridge {consumer.bridge}"
        needed.append(
            f"consumer {consumer.name!r} reads it{how}"
            f"{last_change(session, 'consumer', consumer.name)}, move it with "
            f"`palate consumers move {consumer.name} --space N`"
        )
    serving = select(BridgeRow).where(
        or_(BridgeRow.source == number, BridgeRow.target == number), BridgeRow.state == SERVING
    )
    needed += [
        f"bridge {bridge.version} serves space {bridge.target} from space {bridge.source}"
        f"{last_change(session, 'bridge', bridge.version)}, retire the bridge"
        for bridge in session.scalars(serving.order_by(BridgeRow.version))
    ]
    move = default_move(session)
    if move is not None and move.space == number:
        needed.append(
            f"it is the default{last_change(session, 'default', 'default')}, promote another with "
            "`palate spaces promote N`"
        )
    others = select(SpaceRow.number).where(SpaceRow.state == READY, SpaceRow.number != number)
    if row.state == READY and session.scalars(others.limit(1)).first() is None:
        needed.append("no other space is ready, make one so with `palate materialize --space N`")
    return needed
