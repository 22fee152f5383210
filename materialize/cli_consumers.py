"""``palate consumers``: which space each downstream model reads."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from materialize.cli_options import DRY_RUN, REPO, print_json

if TYPE_CHECKING:
    from materialize.ledger import Consumer

__all__ = ["consumers_group"]

_NAME = click.argument("name")
_SPACE = click.option("--space", type=int, required=True, help="The space that its model reads.")
_BRIDGE = click.option(
    "--bridge-from", type=int, metavar="M", help="Through the bridge from space M that serves."
)
_WHY = click.option("--why", default="", help="The reason, for the record.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("consumers")
def consumers_group() -> None:
    """Downstream models and the space that each of them reads."""


@consumers_group.command("add")
@REPO
@_NAME
@_SPACE
@_BRIDGE
@_WHY
def add(repo: Path, name: str, space: int, bridge_from: int | None, why: str) -> None:
    """Add the consumer NAME and a Feast feature service of that name."""
    from materialize.consumers import add_consumer

    who, where = _open(repo)
    try:
        added = add_consumer(*where, name, space, bridge_from=bridge_from, who=who, why=why)
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from exc
    print_json(_row(added))


@consumers_group.command("move")
@REPO
@_NAME
@_SPACE
@_BRIDGE
@click.option("--force", is_flag=True, help="Although users or the ready state are lacking.")
@_WHY
@DRY_RUN
def move(
    repo: Path,
    name: str,
    space: int,
    bridge_from: int | None,
    force: bool,
    why: str,
    dry_run: bool,
) -> None:
    """Let the consumer NAME read another space from its next read on.

    Refused when the space is not ready, or lacks users whom NAME has vectors of now. With
    --dry-run: print what would change; exit with 3 when the move would be refused.
    """
    from materialize.consumers import move_consumer, plan_move

    if force and not why.strip():
        raise click.UsageError("--force needs a reason: --why TEXT.")
    who, where = _open(repo)
    if dry_run:
        plan = plan_move(*where, name, space, bridge_from=bridge_from)
        print_json(plan.to_dict())
        if plan.refused:
            click.echo(f"Would be refused: {plan.refused}", err=True)
            sys.exit(3)
        return
    moved = move_consumer(
        *where, name, space, bridge_from=bridge_from, who=who, why=why, force=force
    )
    print_json(moved.to_dict())


@consumers_group.command("rollback")
@REPO
@_NAME
@_WHY
def roll_back(repo: Path, name: str, why: str) -> None:
    """Return the consumer NAME to what it read before its last move."""
    from materialize.consumers import roll_back_consumer

    who, where = _open(repo)
    print_json(_row(roll_back_consumer(*where, name, who=who, why=why)))


@consumers_group.command("remove")
@REPO
@_NAME
@_WHY
def remove(repo: Path, name: str, why: str) -> None:
    """Remove the consumer NAME and its feature service."""
    from materialize.consumers import remove_consumer

    who, where = _open(repo)
    remove_consumer(*where, name, who=who, why=why)


@consumers_group.command("list")
@REPO
@_JSON
def list_consumers(repo: Path, as_json: bool) -> None:
    """List all consumers by name."""
    from materialize.context import open_ledger

    rows = [_row(consumer) for consumer in open_ledger(repo).consumers()]
    if as_json:
        print_json(rows)
        return
    click.echo(f"{'consumer':<24}  {'space':>5}  {'through':<12}  {'revision':>8}  moved")
    for row in rows:
        click.echo(
            f"{row['consumer']:<24}  {row['space']:>5}  {row['bridge'] or '':<12}  "
            f"{row['revision']:>8}  {row['moved_at'][:19]}"
        )


@consumers_group.command("show")
@REPO
@_NAME
def show(repo: Path, name: str) -> None:
    """Print what the consumer NAME reads and how it came there, as JSON."""
    from dataclasses import asdict

    from materialize.context import open_ledger

    ledger = open_ledger(repo)
    history = [asdict(change) for change in ledger.transitions("consumer", name)]
    pin = asdict(ledger.pin(name))
    print_json(_row(ledger.consumer(name)) | {"reads": pin, "history": history})


@consumers_group.command("apply")
@REPO
def apply(repo: Path) -> None:
    """Make Feast's feature services follow the ledger, after a command that was cut short."""
    from dataclasses import asdict

    from materialize.services import apply_services

    _, where = _open(repo)
    print_json(asdict(apply_services(*where)))


def _open(repo: Path) -> tuple[str, tuple[Any, Any]]:
    """Return who runs the command, and the repository's store and ledger."""
    from materialize.context import Context, operator_name

    context = Context(repo)
    return operator_name(), (context.store, context.ledger)


def _row(consumer: Consumer) -> dict[str, Any]:
    return {
        "consumer": consumer.name,
        "space": consumer.space,
        "bridge": consumer.bridge,
        "revision": consumer.revision,
        "created_at": consumer.created_at.isoformat(),
        "moved_at": consumer.moved_at.isoformat(),
    }
