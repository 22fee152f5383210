"""``palate spaces``: embedding spaces, from training to retirement."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from materialize.cli_options import DRY_RUN, QUIET, REPO, SPACE, print_json

if TYPE_CHECKING:
    from materialize.context import Context
    from materialize.retirement import RetirementReport

__all__ = ["spaces_group"]

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_NUMBER = click.argument("number", type=int)
_WHY = click.option("--why", default="", help="The reason, for the record.")


@click.group("spaces")
def spaces_group() -> None:
    """Embedding spaces."""


@spaces_group.command("list")
@REPO
@_JSON
def list_command(repo: Path, as_json: bool) -> None:
    """List all spaces, oldest first."""
    from materialize.context import open_ledger
    from materialize.space_record import space_row

    rows = [space_row(space) for space in open_ledger(repo).spaces()]
    if as_json:
        print_json(rows)
        return
    click.echo(f"{'space':>5}  {'encoder':<12}  {'state':<13}  {'created':<20}  data set")
    for row in rows:
        click.echo(
            f"{row['space']:>5}  {row['encoder_version']:<12}  {row['state']:<13}  "
            f"{row['created_at'][:19]:<20}  {row['facts'].get('dataset', '')}"
        )


@spaces_group.command("show")
@REPO
@_NUMBER
@_JSON
def show_command(repo: Path, number: int, as_json: bool) -> None:
    """Print what space NUMBER came from, its runs, their drift, consumers, bridges, history."""
    from materialize.context import Context
    from materialize.space_record import space_lines, space_record

    context = Context(repo)
    record = space_record(context.settings, context.ledger, number)
    if as_json:
        print_json(record)
        return
    for line in space_lines(record):
        click.echo(line)


@spaces_group.command("diff")
@REPO
@click.argument("first", type=int)
@click.argument("second", type=int)
@_JSON
def diff_command(repo: Path, first: int, second: int, as_json: bool) -> None:
    """Print what changed from space FIRST to space SECOND, and what follows from it."""
    from materialize.context import Context
    from materialize.lineage import diff_spaces
    from materialize.space_record import diff_lines

    context = Context(repo)
    ledger = context.ledger
    diff = diff_spaces(context.settings, ledger.space(first), ledger.space(second))
    if as_json:
        print_json(diff.to_dict())
        return
    for line in diff_lines(diff):
        click.echo(line)


@spaces_group.command("compare")
@REPO
@SPACE
@click.option("--users", "n_users", type=int, default=200, show_default=True)
@click.option("--limit", type=float, default=1e-5, show_default=True, help="Largest difference.")
def compare_command(repo: Path, space: int | None, n_users: int, limit: float) -> None:
    """Read the same users stored and on demand; exit with 3 when they differ."""
    from materialize.compare import compare_views, sample_users

    context = _context(repo)
    number = context.ledger.space(space).number
    users = sample_users(context.settings, number, n_users)
    comparison = compare_views(context.store, number, users)
    print_json(comparison.to_dict())
    if not comparison.agrees(limit):
        sys.exit(3)


@spaces_group.command("promote")
@REPO
@_NUMBER
@_WHY
@DRY_RUN
def promote_command(repo: Path, number: int, why: str, dry_run: bool) -> None:
    """Make space NUMBER the default, which the service `user_embedding` reads."""
    from materialize.consumers import promote_space
    from materialize.context import operator_name

    context = _context(repo)
    move = promote_space(
        *(context.store, context.ledger, number), who=operator_name(), why=why, dry_run=dry_run
    )
    print_json(move.to_dict())
    if move.refused:
        click.echo(f"Would be refused: {move.refused}", err=True)
        sys.exit(3)


@spaces_group.command("rollback")
@REPO
@_WHY
def rollback_command(repo: Path, why: str) -> None:
    """Return the default to the space before it."""
    from materialize.consumers import roll_back_default
    from materialize.context import operator_name

    context = _context(repo)
    space = roll_back_default(context.store, context.ledger, who=operator_name(), why=why)
    print_json({"default": space.number, "encoder_version": space.encoder_version})


@spaces_group.command("stability")
@REPO
@_NUMBER
@click.option(
    "--against", type=int, metavar="M", show_default="the space before", help="Earlier space."
)
@click.option("--anchors", type=click.IntRange(2), default=10_000, show_default=True, help="Users.")
@click.option("--seed", type=int, default=0, show_default=True)
@QUIET
def stability_command(
    repo: Path, number: int, against: int | None, anchors: int, seed: int, quiet: bool
) -> None:
    """Measure how far space NUMBER lies from an earlier one, and the bridge between them."""
    from materialize.stability import measure_stability

    context = _context(repo)
    space = context.ledger.space(number)
    previous = context.ledger.space(number - 1 if against is None else against)
    where = (context.store, context.settings, context.ledger, space, previous)
    report = measure_stability(*where, anchors=anchors, seed=seed, progress=not quiet)
    print_json(report.to_dict())


@spaces_group.command("drift")
@REPO
@_NUMBER
@click.option(
    "--users", type=click.IntRange(10), default=10_000, show_default=True, help="Users at most."
)
@click.option("--seed", type=int, default=0, show_default=True)
def drift_command(repo: Path, number: int, users: int, seed: int) -> None:
    """Measure how far the last run of space NUMBER over all users lies from the one before."""
    from materialize.drift import measure_drift

    context = _context(repo)
    space = context.ledger.space(number)
    report = measure_drift(context.settings, context.ledger, space, users=users, seed=seed)
    print_json(report.to_dict())


@spaces_group.command("bridge")
@REPO
@click.argument("source", type=int)
@click.option("--to", "target", type=int, required=True, help="The space that is to be served.")
@click.option(
    "--max-loss",
    type=click.FloatRange(0),
    default=0.01,
    show_default=True,
    help="Macro AUC that an old head may lose, upper end of its 95% interval.",
)
@click.option("--force", is_flag=True, help="Although the loss is higher, or was not measured.")
@_WHY
@DRY_RUN
def bridge_command(
    repo: Path,
    source: int,
    target: int,
    max_loss: float,
    force: bool,
    why: str,
    dry_run: bool,
) -> None:
    """Let consumers of another space read vectors of space SOURCE through the measured map."""
    from materialize.bridges import serve_bridge
    from materialize.context import operator_name

    if force and not why.strip():
        raise click.UsageError("--force needs a reason: --why TEXT.")
    context = _context(repo)
    served = serve_bridge(
        *(context.store, context.settings, context.ledger, source, target),
        max_loss=max_loss,
        who=operator_name(),
        why=why,
        force=force,
        dry_run=dry_run,
    )
    print_json(served.to_dict())
    if not dry_run:
        click.echo("Next: `feast apply`, then `palate materialize`.", err=True)


@spaces_group.command("quantise")
@REPO
@_NUMBER
@click.option(
    "--rows",
    type=click.IntRange(1),
    default=8192,
    show_default=True,
    help="Users to take the ranges of numbers from, and as many others to measure with.",
)
@DRY_RUN
@QUIET
def quantise_command(repo: Path, number: int, rows: int, dry_run: bool, quiet: bool) -> None:
    """Make an int8 form of space NUMBER's encoder, as the next space, and measure its error."""
    from materialize.quantise import quantise_space

    context = _context(repo)
    report = quantise_space(
        *(context.store, context.settings, context.ledger, number),
        rows=rows,
        dry_run=dry_run,
        progress=not quiet,
    )
    print_json(report.to_dict())
    if report.new and not dry_run:
        click.echo("Next: `feast apply`, then `palate materialize`.", err=True)


@spaces_group.command("adopt")
@REPO
@click.argument("artifact")
@click.option(
    "--other-users",
    is_flag=True,
    help="It was trained on none of the users here: evaluations do not compare cut-offs.",
)
@DRY_RUN
def adopt_command(repo: Path, artifact: str, other_users: bool, dry_run: bool) -> None:
    """Make a space of an encoder that was trained elsewhere: ARTIFACT is its folder or URL."""
    from materialize.adopt import adopt_space

    context = _context(repo)
    report = adopt_space(
        *(context.store, context.settings, context.ledger, artifact),
        other_users=other_users,
        dry_run=dry_run,
    )
    print_json(report.to_dict())
    if report.new and not dry_run:
        click.echo("Next: `feast apply`, then `palate materialize`.", err=True)


@spaces_group.command("retire")
@REPO
@_NUMBER
@_WHY
@click.option(
    "--dry-run/--no-dry-run", default=True, show_default=True, help="Print what would go, only."
)
@click.option(
    "--online-keys-per-second",
    type=click.FloatRange(0, min_open=True),
    help="Upper bound of the scan on Redis; default: as fast as it answers.",
)
@click.option(
    "--wait",
    type=click.FloatRange(0),
    default=60.0,
    show_default=True,
    help="Seconds to wait for readers of the space's files.",
)
@QUIET
@_JSON
def retire_command(
    repo: Path,
    number: int,
    why: str,
    dry_run: bool,
    online_keys_per_second: float | None,
    wait: float,
    quiet: bool,
    as_json: bool,
) -> None:
    """Remove space NUMBER for good: views, online values, offline files, at last its artifact.

    Refused while anybody reads it. After a kill, repeat the command: it goes on.
    """
    from materialize.context import operator_name
    from materialize.retirement import plan_retirement, retire_space

    context = _context(repo)
    where = (context.store, context.settings, context.ledger, number)
    how: dict[str, Any] = {"keys_per_second": online_keys_per_second, "progress": not quiet}
    report = (
        plan_retirement(*where, **how)
        if dry_run
        else retire_space(*where, who=operator_name(), why=why, wait_seconds=wait, **how)
    )
    if as_json:
        from dataclasses import asdict

        print_json(asdict(report))
    else:
        _print_retirement(report)
    if report.refused:
        click.echo(f"Would be refused: {report.refused}", err=True)
        sys.exit(3)
    if report.outcome == "planned":
        click.echo("Nothing was changed. Next: the same with --no-dry-run.", err=True)


def _print_retirement(report: RetirementReport) -> None:
    from materialize.space_record import size

    done = {"planned": "would go", "retired": "gone", "unchanged": "was retired before"}
    click.echo(f"space {report.space}: {done[report.outcome]}")
    for place, numbers in report.removed.items():
        told = [size(n) if name == "bytes" else f"{n:,} {name}" for name, n in numbers.items() if n]
        click.echo(f"  {place:<44}  {', '.join(told) or 'nothing'}")
    click.echo(f"  {'together':<44}  {size(sum(report.freed.values()))}")


def _context(repo: Path) -> Context:
    from materialize.context import Context

    return Context(repo)
