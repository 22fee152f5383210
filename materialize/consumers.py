"""Consumers: each downstream model reads one space, and moves to another when it is ready.

Each operation changes the ledger first, in one transaction, and Feast's registry after it. A crash
in between leaves the ledger right and a service behind; repeating the command, or any other of
them, repairs it.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from encoder.errors import DataFault, LedgerConflict
from materialize.coverage import Coverage, compare_coverage
from materialize.ledger import Consumer, Ledger, Space
from materialize.services import apply_services
from materialize.source import applied_view
from transforms.names import EMBEDDING_ALIAS, bridged_view, stored_view

if TYPE_CHECKING:
    from feast import FeatureStore, FeatureView

__all__ = [
    "Move",
    "Side",
    "add_consumer",
    "move_consumer",
    "plan_move",
    "promote_space",
    "remove_consumer",
    "roll_back_consumer",
    "roll_back_default",
]

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class Side:
    """What a consumer reads before or after a move.

    Attributes
    ----------
    space : int
    view : str
    encoder_version : str
        What the view's rows carry: of a bridged view, the bridge's version.
    embedding_dim : int or None
        Width of the vectors, where the ledger knows it.
    users : int
        Users whom the view covers (`materialize.coverage.compare_coverage`).
    newest_as_of : datetime or None
        Of the newest raw feature in any of its vectors (UTC).
    """

    space: int
    view: str
    encoder_version: str
    embedding_dim: int | None
    users: int
    newest_as_of: datetime | None


@dataclass(frozen=True)
class Move:
    """A move of a consumer, or of the default (``consumer`` is then ``user_embedding``).

    Attributes
    ----------
    consumer, outcome : str
        ``planned``, ``moved`` or ``unchanged``.
    revision : int or None
        The consumer's, after the move; of a plan, before it. The default has none.
    before : Side or None
        None: the first default.
    after : Side
    users_both, users_lost : int
        Users whom both sides cover, and whom only the side before does: these would get no vector
        any more.
    features : tuple of str
        Full names of what the consumer's service offers; a move keeps them.
    refused : str or None
        Of a plan: why the move would be refused.
    """

    consumer: str
    outcome: Literal["planned", "moved", "unchanged"]
    revision: int | None
    before: Side | None
    after: Side
    users_both: int
    users_lost: int
    features: tuple[str, ...]
    refused: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain types; moments stay datetimes."""
        return asdict(self)


@dataclass(frozen=True)
class _Target:
    """A space, read directly or through a bridge."""

    space: Space
    bridge: str | None
    view: str
    encoder_version: str


def add_consumer(
    store: FeatureStore,
    ledger: Ledger,
    name: str,
    space: int,
    *,
    bridge_from: int | None = None,
    who: str,
    why: str = "",
) -> Consumer:
    """Add a consumer and its feature service; repeated with the same space: repairs the service.

    Parameters
    ----------
    store : FeatureStore
    ledger : Ledger
    name : str
        Of the consumer and its service.
    space : int
        The space that the consumer's model was trained on.
    bridge_from : int or None
        Read it from this space's vectors, through the bridge that serves.
    who, why : str
        For the record.

    Raises
    ------
    LedgerConflict
        The consumer reads another space already, the space is not ready, its view is not applied,
        or no such bridge serves.
    ValueError
        The name cannot be a consumer's.
    """
    if _NAME.fullmatch(name) is None or name == EMBEDDING_ALIAS:
        raise ValueError(
            f"Consumer name {name!r} was given; a letter, then up to 99 letters, digits, '_', '.' "
            f"or '-' are expected, and not {EMBEDDING_ALIAS!r}, the default space's service."
        )
    target = _target(ledger, space, bridge_from)
    _require_applied(store, target)
    consumer = ledger.add_consumer(name, space, bridge=target.bridge, who=who, why=why)
    apply_services(store, ledger)
    return consumer


def plan_move(
    store: FeatureStore, ledger: Ledger, name: str, space: int, *, bridge_from: int | None = None
) -> Move:
    """Return what a move would change, and in ``refused`` what stands against it; writes nothing.

    A move is refused when the space is not ready, when its view is not applied, and when the view
    lacks users whom the present one covers: they would get no vector any more.

    Raises
    ------
    LedgerConflict
        There is no such consumer, space or serving bridge.
    """
    target = _target(ledger, space, bridge_from)
    return _plan_consumer(store, ledger, ledger.consumer(name), target)


def move_consumer(
    store: FeatureStore,
    ledger: Ledger,
    name: str,
    space: int,
    *,
    bridge_from: int | None = None,
    who: str,
    why: str = "",
    force: bool = False,
) -> Move:
    """Let a consumer read another space from its next read on; repeated: repairs the service.

    Parameters
    ----------
    store : FeatureStore
    ledger : Ledger
    name : str
    space : int
    bridge_from : int or None
        Read the space from this one's vectors, through the bridge that serves.
    who, why : str
        For the record.
    force : bool
        Move although the space is not ready or lacks users; asks for a reason. A view that is not
        applied cannot be read, so that stays refused.

    Raises
    ------
    LedgerConflict
        Refused, as `plan_move` says; or somebody else moved the consumer meanwhile.
    ValueError
        Forced without a reason.
    """
    if force and not why.strip():
        raise ValueError("A forced move needs a reason: `why` is empty.")
    consumer, target = ledger.consumer(name), _target(ledger, space, bridge_from)
    plan = _plan_consumer(store, ledger, consumer, target)
    if (consumer.space, consumer.bridge) == (space, target.bridge):
        apply_services(store, ledger)
        return replace(plan, outcome="unchanged", refused=None)
    _require_applied(store, target)
    if plan.refused and not force:
        raise LedgerConflict(
            f"{plan.refused} `--dry-run` prints the figures; `--force --why TEXT` moves anyhow."
        )
    moved = ledger.move_consumer(
        name,
        space,
        bridge=target.bridge,
        expected_revision=consumer.revision,
        who=who,
        why=why,
        forced=plan.refused is not None,
    )
    apply_services(store, ledger)
    return replace(plan, outcome="moved", revision=moved.revision, refused=None)


def roll_back_consumer(
    store: FeatureStore, ledger: Ledger, name: str, *, who: str, why: str = ""
) -> Consumer:
    """Return a consumer to what it read before its last move that is not rolled back yet.

    Never refused for users that the earlier view lacks: a roll back ends an incident.

    Raises
    ------
    LedgerConflict
        There is no such consumer or no earlier space, that space is being retired, or somebody
        else moved the consumer meanwhile.
    """
    revision = ledger.consumer(name).revision
    consumer = ledger.roll_back_consumer(name, expected_revision=revision, who=who, why=why)
    apply_services(store, ledger)
    return consumer


def remove_consumer(
    store: FeatureStore, ledger: Ledger, name: str, *, who: str, why: str = ""
) -> None:
    """Remove a consumer and its service; its history stays in the ledger.

    Raises
    ------
    LedgerConflict
        There is no such consumer.
    """
    ledger.remove_consumer(name, who=who, why=why)
    apply_services(store, ledger)


def promote_space(
    store: FeatureStore,
    ledger: Ledger,
    number: int,
    *,
    who: str,
    why: str,
    dry_run: bool = False,
) -> Move:
    """Make a space the default, and let the service ``user_embedding`` read it.

    Parameters
    ----------
    store : FeatureStore
    ledger : Ledger
    number : int
        A ready space. The default again: repairs the service.
    who, why : str
        For the record.
    dry_run : bool
        Return the plan; write nothing.

    Raises
    ------
    LedgerConflict
        The space is unknown or not ready, its view is not applied, or somebody else moved the
        default meanwhile.
    """
    present, target = ledger.default_space(), _target(ledger, number, None)
    before = None if present is None else _target(ledger, present.number, None)
    plan = _plan(store, ledger, EMBEDDING_ALIAS, None, before, target)
    if dry_run:
        return plan
    _require_applied(store, target)
    expected = None if present is None else present.number
    ledger.promote(number, who=who, why=why, expected=expected)
    apply_services(store, ledger)
    outcome: Literal["moved", "unchanged"] = "unchanged" if expected == number else "moved"
    return replace(plan, outcome=outcome, refused=None)


def roll_back_default(store: FeatureStore, ledger: Ledger, *, who: str, why: str) -> Space:
    """Return the default to the space before it, and its service with it; that space is returned.

    Raises
    ------
    LedgerConflict
        There is no earlier default, or its space is not ready any more.
    """
    space = ledger.roll_back_default(who=who, why=why)
    apply_services(store, ledger)
    return space


def _target(ledger: Ledger, number: int, bridge_from: int | None) -> _Target:
    space = ledger.space(number)
    if bridge_from is None:
        return _Target(space, None, stored_view(number), space.encoder_version)
    for bridge in ledger.bridges(source=bridge_from, target=number):
        if bridge.state == "serving":
            view = bridged_view(number, bridge_from)
            return _Target(space, bridge.version, view, bridge.version)
    raise LedgerConflict(
        f"No bridge serves space {number} from space {bridge_from}. "
        f"`palate spaces bridge {bridge_from} --to {number}` measures one."
    )


def _plan_consumer(
    store: FeatureStore, ledger: Ledger, consumer: Consumer, target: _Target
) -> Move:
    pin = ledger.pin(consumer.name)
    present = _Target(ledger.space(pin.space), consumer.bridge, pin.view, pin.encoder_version)
    return _plan(store, ledger, consumer.name, consumer.revision, present, target)


def _plan(
    store: FeatureStore,
    ledger: Ledger,
    name: str,
    revision: int | None,
    before: _Target | None,
    after: _Target,
) -> Move:
    view = _view(store, after)
    present = before.view if before is not None and _view(store, before) is not None else None
    counts = Coverage(0, 0, 0, None, None)
    if view is not None:
        counts = compare_coverage(store, ledger, present, after.view)
    refused = None
    if after.space.state != "ready":
        refused = f"Space {after.space.number} is {after.space.state}, not ready."
    elif view is None:
        refused = _not_applied(after)
    elif counts.lost:
        refused = (
            f"{after.view} lacks {counts.lost} of the {counts.before} users whom {name!r} reads "
            f"from {present}: they would get no vector. Run `palate materialize --space "
            f"{after.space.number}` over all users first."
        )
    return Move(
        consumer=name,
        outcome="planned",
        revision=revision,
        before=None if before is None else _side(before, counts.before, counts.newest_before),
        after=_side(after, counts.after, counts.newest_after),
        users_both=counts.both,
        users_lost=counts.lost,
        features=tuple(f"{EMBEDDING_ALIAS}__{field.name}" for field in view.features)
        if view is not None
        else (),
        refused=refused,
    )


def _side(target: _Target, users: int, newest: datetime | None) -> Side:
    return Side(
        space=target.space.number,
        view=target.view,
        encoder_version=target.encoder_version,
        embedding_dim=target.space.facts.get("embedding_dim"),
        users=users,
        newest_as_of=newest,
    )


def _view(store: FeatureStore, target: _Target) -> FeatureView | None:
    try:
        return applied_view(store, target.view)
    except DataFault:
        return None


def _require_applied(store: FeatureStore, target: _Target) -> None:
    if _view(store, target) is None:
        raise LedgerConflict(_not_applied(target))


def _not_applied(target: _Target) -> str:
    return (
        f"Feast's registry has no view {target.view!r}, so nobody could read space "
        f"{target.space.number} from it. Run `feast apply` in the repository first."
    )
