"""The default space: a pointer that is moved, and moved back."""

from __future__ import annotations

from sqlalchemy.orm import Session

from encoder.errors import LedgerConflict
from materialize.ledger.connection import Connected, now
from materialize.ledger.lookup import default_move, space_row
from materialize.ledger.records import Space, from_row
from materialize.ledger.states import READY, last_change, record
from materialize.ledger.tables import DefaultMoveRow

__all__ = ["DefaultPart"]

_NAME = "default"


class DefaultPart(Connected):
    """What a ledger knows of the default space."""

    def default_space(self) -> Space | None:
        """Return the default space; None: no space was ever promoted."""
        with self._read() as session:
            move = default_move(session)
            return None if move is None else from_row(Space, space_row(session, move.space))

    def promote(self, number: int, *, who: str, why: str, expected: int | None) -> Space:
        """Make a space the default.

        Parameters
        ----------
        number : int
            A ready space. The default again: nothing changes.
        who, why : str
        expected : int or None
            The default that the caller saw; None: there was none.

        Raises
        ------
        LedgerConflict
            The default is another by now, or the space is not ready.
        """
        with self._change() as session:
            row = space_row(session, number)
            current = default_move(session)
            is_now = None if current is None else current.space
            if is_now != expected:
                raise LedgerConflict(
                    f"Space {number} was not promoted: the default is {_named(is_now)} by now"
                    f"{last_change(session, _NAME, _NAME)}, and not {_named(expected)} as expected."
                    " Run `palate spaces list`, then promote again if it is still wanted."
                )
            if is_now == number:
                return from_row(Space, row)
            _require_ready(session, number, row.state)
            last = None if current is None else current.number
            _move(session, current, number, previous=last, who=who, why=why)
            return from_row(Space, row)

    def roll_back_default(self, *, who: str, why: str) -> Space:
        """Undo the last promotion that is not undone yet; return the space that is the default now.

        Raises
        ------
        LedgerConflict
            There is no default before the present one, or that space is not ready any more.
        """
        with self._change() as session:
            current = default_move(session)
            if current is None or current.previous is None:
                found = "none yet" if current is None else f"space {current.space} alone so far"
                raise LedgerConflict(
                    f"There is no default to roll back to: {found}. Promote another space: "
                    "`palate spaces promote N`."
                )
            target = session.get_one(DefaultMoveRow, current.previous)
            row = space_row(session, target.space)
            _require_ready(session, row.number, row.state)
            _move(session, current, row.number, previous=target.previous, who=who, why=why)
            return from_row(Space, row)


def _move(
    session: Session,
    current: DefaultMoveRow | None,
    space: int,
    *,
    previous: int | None,
    who: str,
    why: str,
) -> None:
    number = 1 if current is None else current.number + 1
    session.add(DefaultMoveRow(number=number, space=space, previous=previous, at=now()))
    before = None if current is None else str(current.space)
    record(session, _NAME, _NAME, before, str(space), who=who, why=why)


def _require_ready(session: Session, number: int, state: str) -> None:
    if state != READY:
        raise LedgerConflict(
            f"Space {number} cannot be the default: it is {state}"
            f"{last_change(session, 'space', str(number))}, not ready. `palate materialize --space "
            f"{number}` makes a trained space ready; a retired one does not come back."
        )


def _named(space: int | None) -> str:
    return "none" if space is None else f"space {space}"
