"""Who changed what, and who was erased."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import select

from materialize.ledger.connection import Connected, now
from materialize.ledger.records import Erasure, Transition, from_row
from materialize.ledger.tables import ErasureRow, TransitionRow

__all__ = ["AuditPart"]


class AuditPart(Connected):
    """What a ledger remembers."""

    def transitions(self, subject: str | None = None, name: str | None = None) -> list[Transition]:
        """Return the changes of one subject (and name), or all, oldest first.

        Parameters
        ----------
        subject : str, optional
            ``space``, ``consumer``, ``default`` or ``bridge``.
        name : str, optional
            A space's number, a consumer's name or a bridge's version.
        """
        query = select(TransitionRow).order_by(TransitionRow.id)
        if subject is not None:
            query = query.where(TransitionRow.subject == subject)
        if name is not None:
            query = query.where(TransitionRow.name == name)
        with self._read() as session:
            return [from_row(Transition, row) for row in session.scalars(query)]

    def record_erasure(
        self, user_digest: str, counts: Mapping[str, int], *, who: str, why: str
    ) -> Erasure:
        """Record that a user was erased.

        Parameters
        ----------
        user_digest : str
            A digest of the user's id, never the id: the record outlives the user.
        counts : mapping
            Rows that were removed, by place.
        who, why : str
        """
        with self._write() as session:
            row = ErasureRow(
                user_digest=user_digest, counts=dict(counts), who=who, why=why, at=now()
            )
            session.add(row)
            session.flush()  # the database numbers it
            return from_row(Erasure, row)

    def erasures(self) -> list[Erasure]:
        """Return all erasures, oldest first."""
        with self._read() as session:
            rows = session.scalars(select(ErasureRow).order_by(ErasureRow.id))
            return [from_row(Erasure, row) for row in rows]
