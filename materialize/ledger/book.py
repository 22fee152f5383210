"""The one door to the ledger: each part of it lives in a file of its own."""

from __future__ import annotations

from materialize.ledger.audit import AuditPart
from materialize.ledger.bridges import BridgesPart
from materialize.ledger.consumers import ConsumersPart
from materialize.ledger.default import DefaultPart
from materialize.ledger.retirement import RetirementPart
from materialize.ledger.runs import RunsPart
from materialize.ledger.spaces import SpacesPart

__all__ = ["Ledger"]


class Ledger(
    SpacesPart, RunsPart, DefaultPart, ConsumersPart, BridgesPart, RetirementPart, AuditPart
):
    """Spaces, runs, consumers, bridges and their history, kept in SQL.

    Parameters
    ----------
    url : str
        SQLAlchemy URL. An empty database gets its tables; a SQLite file's folder is made too.
    pooled : bool
        Keep connections open for the next call, as a serving process wants that reads pins.
        Default: a connection a transaction, as suits a job that asks a few times an hour.

    Raises
    ------
    LedgerConflict
        The database is of another revision than this Palate's; the message says what to run.

    Notes
    -----
    Each method is one transaction. What changes a state, a pin or the default is written together
    with its `Transition`, and one such change follows another: none sees half of another, and of
    two that exclude each other one is refused.

    State: connections only, and those only with ``pooled``; nothing that was read is remembered.
    """
