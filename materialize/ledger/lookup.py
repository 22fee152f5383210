"""Finding one row, or saying which ones there are."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import select
from sqlalchemy.orm import Session

from encoder.errors import LedgerConflict
from materialize.ledger.states import last_change
from materialize.ledger.tables import BridgeRow, ConsumerRow, DefaultMoveRow, SpaceRow

__all__ = ["bridge_row", "consumer_row", "default_move", "space_row", "unknown_consumer"]

_NO_SPACE = "The ledger holds no space yet. Run `palate train` first."


def space_row(session: Session, number: int | None) -> SpaceRow:
    """Return one space; without a number, the newest.

    Raises
    ------
    LedgerConflict
        There is no such space, or none at all.
    """
    if number is None:
        newest = select(SpaceRow).order_by(SpaceRow.number.desc()).limit(1)
        row = session.scalars(newest).first()
    else:
        row = session.get(SpaceRow, number)
    if row is not None:
        return row
    known = session.scalars(select(SpaceRow.number).order_by(SpaceRow.number)).all()
    if not known:
        raise LedgerConflict(_NO_SPACE)
    raise LedgerConflict(
        f"Unknown space {number}. Known: {_listed(known)}. Run `palate spaces list` to see all."
    )


def consumer_row(session: Session, name: str) -> ConsumerRow:
    """Return one consumer.

    Raises
    ------
    LedgerConflict
        There is none of that name; the message lists those that are known.
    """
    row = session.get(ConsumerRow, name)
    if row is None:
        raise unknown_consumer(session, name)
    return row


def unknown_consumer(session: Session, name: str) -> LedgerConflict:
    """Return the error for a consumer that is not there."""
    known = session.scalars(select(ConsumerRow.name).order_by(ConsumerRow.name)).all()
    return LedgerConflict(
        f"Unknown consumer {name!r}. Known: {_listed(map(repr, known))}"
        f"{last_change(session, 'consumer', name)}. "
        f"`palate consumers add {name} --space N` adds it."
    )


def bridge_row(session: Session, version: str) -> BridgeRow:
    """Return one bridge.

    Raises
    ------
    LedgerConflict
        There is none of that version; the message lists those that are known.
    """
    row = session.get(BridgeRow, version)
    if row is None:
        known = session.scalars(select(BridgeRow.version).order_by(BridgeRow.version)).all()
        raise LedgerConflict(
            f"Unknown bridge {version!r}. Known: {_listed(map(repr, known))}. "
            "`palate spaces stability SOURCE --against TARGET` measures one."
        )
    return row


def default_move(session: Session) -> DefaultMoveRow | None:
    """Return the move that made the default of this moment; None: there is no default."""
    newest = select(DefaultMoveRow).order_by(DefaultMoveRow.number.desc()).limit(1)
    return session.scalars(newest).first()


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values)) or "none"
