"""States of spaces and bridges, which follow which, and the record of every change."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from encoder.errors import LedgerConflict
from materialize.ledger.connection import now
from materialize.ledger.tables import BridgeRow, SpaceRow, TransitionRow

__all__ = [
    "GONE",
    "MATERIALISING",
    "MEASURED",
    "READY",
    "RETIRED",
    "RETIRING",
    "SERVING",
    "TRAINED",
    "job_operator",
    "last_change",
    "move_bridge",
    "move_space",
    "record",
]

TRAINED, MATERIALISING, READY = "trained", "materialising", "ready"
RETIRING, RETIRED = "retiring", "retired"
GONE = (RETIRING, RETIRED)
"""A space in one of these is written and pinned no more."""
MEASURED, SERVING = "measured", "serving"

_SPACE_NEXT = {
    TRAINED: {MATERIALISING, RETIRING},
    MATERIALISING: {READY, RETIRING},
    READY: {RETIRING},
    RETIRING: {RETIRED},
    RETIRED: set[str](),
}
_BRIDGE_NEXT = {MEASURED: {SERVING, RETIRED}, SERVING: {RETIRED}, RETIRED: set[str]()}


def move_space(session: Session, row: SpaceRow, after: str, *, who: str, why: str) -> None:
    """Bring a space into its next state, with the transition; nothing when it is there already.

    Raises
    ------
    LedgerConflict
        The state does not follow the present one.
    """
    name = str(row.number)
    if row.state == after:
        return
    if after not in _SPACE_NEXT[row.state]:
        raise LedgerConflict(
            f"Space {name} is {row.state}{last_change(session, 'space', name)}; it cannot become "
            f"{after}. Run `palate spaces list` to see all."
        )
    record(session, "space", name, row.state, after, who=who, why=why)
    row.state = after


def move_bridge(session: Session, row: BridgeRow, after: str, *, who: str, why: str) -> None:
    """Bring a bridge into its next state, as `move_space` does a space."""
    if row.state == after:
        return
    if after not in _BRIDGE_NEXT[row.state]:
        raise LedgerConflict(
            f"Bridge {row.version} is {row.state}{last_change(session, 'bridge', row.version)}; it "
            f"cannot become {after}. Measure a new one: `palate spaces stability {row.source} "
            f"--against {row.target}`."
        )
    record(session, "bridge", row.version, row.state, after, who=who, why=why)
    row.state = after


def record(
    session: Session,
    subject: str,
    name: str,
    before: str | None,
    after: str | None,
    *,
    who: str,
    why: str,
    forced: bool = False,
) -> None:
    """Add a change's transition to its transaction.

    Raises
    ------
    ValueError
        Nobody is named, or a forced change has no reason.
    """
    if not who.strip():
        raise ValueError("`who` is empty: a change of the ledger names who made it.")
    if forced and not why.strip():
        raise ValueError("`why` is empty: a forced change says why it was forced.")
    session.add(
        TransitionRow(
            subject=subject,
            name=name,
            before=before,
            after=after,
            who=who,
            why=why,
            forced=forced,
            at=now(),
        )
    )


def last_change(session: Session, subject: str, name: str) -> str:
    """Return who changed something last, as a part of a message: `` (by X on ...: why)``."""
    row = session.scalars(
        select(TransitionRow)
        .where(TransitionRow.subject == subject, TransitionRow.name == name)
        .order_by(TransitionRow.id.desc())
        .limit(1)
    ).first()
    if row is None:
        return ""
    why = f": {row.why}" if row.why else ""
    return f" (by {row.who} on {row.at:%Y-%m-%d %H:%M:%S} UTC{why})"


def job_operator() -> str:
    """Return who runs this process, for changes that a job makes by itself."""
    from materialize.context import operator_name  # it imports the ledger

    return operator_name()
