"""Consumers: which space each downstream model reads, moved one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import bindparam, func, select
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from encoder.errors import LedgerConflict
from materialize.ledger.connection import Connected, now
from materialize.ledger.lookup import bridge_row, consumer_row, space_row, unknown_consumer
from materialize.ledger.records import Consumer, Pin, from_row
from materialize.ledger.states import GONE, READY, SERVING, last_change, record
from materialize.ledger.tables import BridgeRow, ConsumerMoveRow, ConsumerRow, SpaceRow
from transforms.names import bridged_view, stored_view

__all__ = ["ConsumersPart", "pin_of", "pin_query"]

_PIN = (
    select(
        ConsumerRow.space,
        ConsumerRow.bridge,
        ConsumerRow.revision,
        SpaceRow.encoder_version,
        BridgeRow.source,
    )
    .join(SpaceRow, ConsumerRow.space == SpaceRow.number)
    .outerjoin(BridgeRow, ConsumerRow.bridge == BridgeRow.version)
    .where(ConsumerRow.name == bindparam("name"))
)


class ConsumersPart(Connected):
    """What a ledger knows of consumers."""

    def add_consumer(
        self, name: str, space: int, *, bridge: str | None = None, who: str, why: str
    ) -> Consumer:
        """Add a consumer that reads a ready space; with the same pin again: nothing changes.

        Parameters
        ----------
        name : str
        space : int
        bridge : str, optional
            Version of a serving bridge into the space.
        who, why : str

        Raises
        ------
        LedgerConflict
            The name is taken, the space is not ready, or the bridge does not serve it.
        """
        with self._change() as session:
            row = session.get(ConsumerRow, name)
            if row is not None:
                if (row.space, row.bridge) == (space, bridge):
                    return from_row(Consumer, row)
                raise LedgerConflict(
                    f"Consumer {name!r} is there already and reads space "
                    f"{_label(row.space, row.bridge)}{last_change(session, 'consumer', name)}. "
                    f"Move it: `palate consumers move {name} --space {space}`."
                )
            _require_readable(session, name, space, bridge)
            moment = now()
            row = ConsumerRow(
                name=name,
                space=space,
                bridge=bridge,
                revision=_last_revision(session, name) + 1,
                created_at=moment,
                moved_at=moment,
            )
            session.add(row)
            _remember(session, row, previous=None)
            record(session, "consumer", name, None, _label(space, bridge), who=who, why=why)
            return from_row(Consumer, row)

    def move_consumer(
        self,
        name: str,
        space: int,
        *,
        bridge: str | None = None,
        expected_revision: int,
        who: str,
        why: str,
        forced: bool = False,
    ) -> Consumer:
        """Let a consumer read another space; to where it is already: nothing changes.

        Parameters
        ----------
        name : str
        space : int
        bridge : str, optional
            Version of a serving bridge into the space.
        expected_revision : int
            The consumer's revision that the caller saw.
        who, why : str
        forced : bool
            Allow a space that is not ready yet. One that is retiring or retired is refused anyhow.

        Raises
        ------
        LedgerConflict
            The consumer was moved or removed since, the space is not ready, or the bridge does not
            serve it.
        ValueError
            Forced without a reason.
        """
        with self._change() as session:
            row = _as_expected(session, name, expected_revision)
            if (row.space, row.bridge) == (space, bridge):
                return from_row(Consumer, row)
            _require_readable(session, name, space, bridge, forced=forced)
            return _move(
                session,
                row,
                space,
                bridge,
                previous=row.revision,
                who=who,
                why=why,
                forced=forced,
            )

    def roll_back_consumer(
        self, name: str, *, expected_revision: int, who: str, why: str
    ) -> Consumer:
        """Undo a consumer's last move that is not undone yet.

        Raises
        ------
        LedgerConflict
            The consumer was moved or removed since, it has no earlier pin, or the space or bridge
            of that pin is not there any more.
        """
        with self._change() as session:
            row = _as_expected(session, name, expected_revision)
            undone = session.get_one(ConsumerMoveRow, (name, row.revision))
            if undone.previous is None:
                raise LedgerConflict(
                    f"Consumer {name!r} reads space {_label(row.space, row.bridge)} since it was "
                    "added: there is no earlier pin to roll back to. "
                    f"`palate consumers move {name} --space N` moves it."
                )
            target = session.get_one(ConsumerMoveRow, (name, undone.previous))
            # Forced: a pin that was forced then is as good now; what is gone is refused anyhow.
            _require_readable(session, name, target.space, target.bridge, forced=True)
            return _move(
                session,
                row,
                target.space,
                target.bridge,
                previous=target.previous,
                who=who,
                why=why,
            )

    def remove_consumer(self, name: str, *, who: str, why: str) -> None:
        """Remove a consumer; its history stays.

        Raises
        ------
        LedgerConflict
            There is no such consumer.
        """
        with self._change() as session:
            row = consumer_row(session, name)
            record(session, "consumer", name, _label(row.space, row.bridge), None, who=who, why=why)
            session.delete(row)

    def consumers(self, space: int | None = None) -> list[Consumer]:
        """Return the consumers of one space, or all, by name; those of a bridge into it, too."""
        query = select(ConsumerRow).order_by(ConsumerRow.name)
        if space is not None:
            query = query.where(ConsumerRow.space == space)
        with self._read() as session:
            return [from_row(Consumer, row) for row in session.scalars(query)]

    def consumer(self, name: str) -> Consumer:
        """Return one consumer.

        Raises
        ------
        LedgerConflict
            There is none of that name; the message lists those that are known.
        """
        with self._read() as session:
            return from_row(Consumer, consumer_row(session, name))

    def pin(self, name: str) -> Pin:
        """Return what a consumer is to read at this moment, in one query.

        Raises
        ------
        LedgerConflict
            There is no such consumer; the message lists those that are known.
        """
        try:
            return self._pin(name)
        except DBAPIError as exc:
            # A kept connection may have died with its server; the pool drops it when that shows.
            if not exc.connection_invalidated:
                raise
            return self._pin(name)

    def _pin(self, name: str) -> Pin:
        with self._single.connect() as connection:
            found = connection.execute(_PIN, {"name": name}).one_or_none()
        if found is None:
            with self._read() as session:
                raise unknown_consumer(session, name)
        return pin_of(name, found)


def pin_query(dialect: Dialect, name: str) -> tuple[str, Any]:
    """Return the query for a consumer's pin as a driver takes it, with its parameters."""
    compiled = _PIN.compile(dialect=dialect)
    parameters = compiled.construct_params({"name": name})
    if compiled.positional:
        return str(compiled), tuple(parameters[key] for key in compiled.positiontup or ())
    return str(compiled), parameters


def pin_of(name: str, row: Sequence[Any]) -> Pin:
    """Return the pin that a row of `pin_query` says."""
    space, bridge, revision, encoder_version, source = row
    bridged = bridge is not None
    return Pin(
        consumer=name,
        space=space,
        encoder_version=bridge if bridged else encoder_version,
        view=bridged_view(space, source) if bridged else stored_view(space),
        revision=revision,
    )


def _as_expected(session: Session, name: str, revision: int) -> ConsumerRow:
    row = consumer_row(session, name)
    if row.revision != revision:
        raise LedgerConflict(
            f"Consumer {name!r} was moved by somebody else: it is at revision {row.revision} and "
            f"reads space {_label(row.space, row.bridge)}{last_change(session, 'consumer', name)}; "
            f"revision {revision} was expected. Run `palate consumers show {name}`, then repeat "
            "the command if it is still wanted."
        )
    return row


def _require_readable(
    session: Session, name: str, space: int, bridge: str | None, *, forced: bool = False
) -> None:
    row = space_row(session, space)
    if row.state in GONE or (row.state != READY and not forced):
        remedy = (
            "Choose another space: `palate spaces list`."
            if row.state in GONE
            else f"Run `palate materialize --space {space}` first."
        )
        raise LedgerConflict(
            f"Consumer {name!r} cannot read space {space}: it is {row.state}"
            f"{last_change(session, 'space', str(space))}, not ready. {remedy}"
        )
    if bridge is None:
        return
    found = bridge_row(session, bridge)
    if found.target != space:
        raise LedgerConflict(
            f"Bridge {bridge} leads to space {found.target}, not to space {space}. Name the space "
            "that the consumer's model was trained on."
        )
    if found.state != SERVING:
        raise LedgerConflict(
            f"Consumer {name!r} cannot read through bridge {bridge}: it is {found.state}"
            f"{last_change(session, 'bridge', bridge)}, not serving. "
            "Run `palate spaces bridge` for one that serves."
        )


def _move(
    session: Session,
    row: ConsumerRow,
    space: int,
    bridge: str | None,
    *,
    previous: int | None,
    who: str,
    why: str,
    forced: bool = False,
) -> Consumer:
    before = _label(row.space, row.bridge)
    row.space, row.bridge = space, bridge
    row.revision += 1
    row.moved_at = now()
    _remember(session, row, previous=previous)
    after = _label(space, bridge)
    record(session, "consumer", row.name, before, after, who=who, why=why, forced=forced)
    return from_row(Consumer, row)


def _remember(session: Session, row: ConsumerRow, *, previous: int | None) -> None:
    session.add(
        ConsumerMoveRow(
            consumer=row.name,
            revision=row.revision,
            space=row.space,
            bridge=row.bridge,
            previous=previous,
            at=row.moved_at,
        )
    )


def _last_revision(session: Session, name: str) -> int:
    last = select(func.max(ConsumerMoveRow.revision)).where(ConsumerMoveRow.consumer == name)
    return session.scalar(last) or 0


def _label(space: int, bridge: str | None) -> str:
    return str(space) if bridge is None else f"{space} through {bridge}"
