"""``palate ledger``: the ledger's tables and its history."""

from __future__ import annotations

from pathlib import Path

import click

from materialize.cli_options import DRY_RUN, REPO, print_json

__all__ = ["ledger_group"]

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("ledger")
def ledger_group() -> None:
    """Revision of the ledger's tables, and who changed what."""


@ledger_group.command("status")
@REPO
@_JSON
def status_command(repo: Path, as_json: bool) -> None:
    """Print the revision of the ledger's tables and what an upgrade would do."""
    from dataclasses import asdict

    from materialize.config import load_settings
    from materialize.ledger.migrate import status

    found = status(load_settings(repo).ledger_url)
    if as_json:
        print_json(asdict(found))
        return
    click.echo(f"{found.database}: {_revision(found.revision)}, newest {found.newest}")
    for step in found.pending:
        click.echo(f"  pending {step.revision}: {step.what}")
    if found.pending and found.revision is not None:
        click.echo("Next: copy the database, then `palate ledger upgrade`.", err=True)


@ledger_group.command("upgrade")
@REPO
@DRY_RUN
def upgrade_command(repo: Path, dry_run: bool) -> None:
    """Bring the ledger's tables to the newest revision, in one transaction.

    There is no way back but a copy of the database: make one first.
    """
    from materialize.config import load_settings
    from materialize.ledger.migrate import status, upgrade

    url = load_settings(repo).ledger_url
    before = status(url) if dry_run else upgrade(url)
    done = "would run" if dry_run else "ran"
    for step in before.pending:
        click.echo(f"{done} {step.revision}: {step.what}")
    if not before.pending:
        click.echo(f"{before.database}: {_revision(before.revision)}, nothing to do")


@ledger_group.command("transitions")
@REPO
@click.option(
    "--subject",
    type=click.Choice(["space", "consumer", "default", "bridge"]),
    help="Only changes of these; default: all.",
)
@click.option("--name", help="Only changes of this space number, consumer or bridge version.")
@_JSON
def transitions_command(repo: Path, subject: str | None, name: str | None, as_json: bool) -> None:
    """List who changed a space, a consumer, the default or a bridge, oldest first."""
    from dataclasses import asdict

    from materialize.context import open_ledger

    rows = open_ledger(repo).transitions(subject, name)
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    for row in rows:
        forced = ", forced" if row.forced else ""
        click.echo(
            f"{row.at:%Y-%m-%d %H:%M:%S}  {row.subject} {row.name}: {row.before or '-'} -> "
            f"{row.after or '-'}  by {row.who}{forced}  {row.why}".rstrip()
        )


def _revision(revision: str | None) -> str:
    return "no ledger yet" if revision is None else f"revision {revision}"
