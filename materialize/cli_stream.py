"""``palate stream``: apply events as they come, and look after the stream."""

from __future__ import annotations

import sys
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from materialize.cli_options import DRY_RUN, QUIET, REPO, print_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from materialize.stream.dead_letters import DeadLetter, DeadLetters

__all__ = ["stream_group"]

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_REASON = click.option(
    "--reason", "reasons", multiple=True, help="Only of this reason; repeatable."
)
_ID = click.option("--id", "ids", multiple=True, help="Only this one, as listed; repeatable.")


@click.group("stream")
def stream_group() -> None:
    """Apply events as they come: raw features and embeddings within a breath."""


@stream_group.command("run")
@REPO
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes.")
@click.option("--until-idle", is_flag=True, help="End when every event is applied and kept.")
@click.option(
    "--from-nothing", is_flag=True, help="Begin without states: the stream has every event."
)
@click.option(
    "--source",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Apply this file's events instead: JSON lines, or Parquet of clean events.",
)
@click.option("--batch-events", type=click.IntRange(1), help="Events of a micro-batch at most.")
@click.option("--linger-ms", type=click.FloatRange(0, 10_000), help="Wait for a fuller one.")
@click.option(
    "--flush-seconds", type=click.FloatRange(0, min_open=True), help="Between offline files."
)
@click.option("--metrics-port", type=click.IntRange(0, 65_535), help="Of the first worker.")
@click.option("--quiet", is_flag=True, help="No progress line.")
def run_command(
    repo: Path,
    workers: int,
    until_idle: bool,
    from_nothing: bool,
    source: Path | None,
    quiet: bool,
    **changes: Any,
) -> None:
    """Apply events until SIGTERM or Ctrl-C: raw features, embeddings, offline rows.

    The micro-batch in hand is then finished and acknowledged. Options that are not given are taken
    from the section "stream" of palate.yaml. Prints what was done as JSON.
    """
    from materialize.context import Context
    from materialize.stream.service import RunOptions
    from materialize.stream.supervisor import run_stream

    if source is not None and workers > 1:
        raise click.UsageError("--source is read by one worker; leave --workers out.")
    context = Context(repo)
    context.settings = context.settings.with_stream(**changes)
    options = RunOptions(until_idle, source, from_nothing)
    print_json(run_stream(context, options, workers, quiet=quiet))


@stream_group.command("seed")
@REPO
@click.option(
    "--force", is_flag=True, help="Also data that were seeded before; replace unreadable states."
)
@DRY_RUN
@QUIET
def seed_command(repo: Path, force: bool, dry_run: bool, quiet: bool) -> None:
    """Put the history of the clean tables into the users' states; safe while workers run.

    Run it before the first `palate stream run`, after each nightly build if you like, and again
    when the online Redis has lost its data. Goes on where it stopped.
    """
    from materialize.context import Context
    from materialize.stream.seed import seed_states

    context = Context(repo)
    report = seed_states(
        context.store,
        context.settings,
        context.ledger,
        force=force,
        dry_run=dry_run,
        progress=not quiet,
    )
    print_json(report.to_dict())


@stream_group.command("check")
@REPO
@click.option(
    "--users", type=click.IntRange(1), default=1000, show_default=True, help="How many, by hash."
)
@click.option(
    "--limit", type=click.FloatRange(0), default=1e-4, show_default=True, help="Of a number."
)
@_JSON
def check_command(repo: Path, users: int, limit: float, as_json: bool) -> None:
    """Compare online rows with a batch recomputation from clean tables and event streams.

    Exit status 1 when a row differs by more than --limit, is missing, or is of another moment.
    """
    from materialize.context import Context
    from materialize.stream.broker import open_broker
    from materialize.stream.check import check_stream

    context = Context(repo)
    store = context.store
    with closing(open_broker(store, context.settings)) as broker:
        found = check_stream(
            store,
            context.settings,
            context.ledger,
            users,
            stream=broker.payloads() if broker.used else (),
            limit=limit,
        )
    if as_json:
        print_json(found.to_dict())
    else:
        rows = [
            (view, f"{n:,}", f"{found.max_abs_diff[view]:.2g}") for view, n in found.rows.items()
        ]
        _print_table([("view", "rows", "largest difference"), *rows])
        why = ", ".join(f"{n:,} {name}" for name, n in found.counts().items()) or "none differs"
        click.echo(f"{found.users:,} users: {why}; lowest cosine {found.min_cosine:.7f}")
    if not found.agrees:
        sys.exit(1)


@stream_group.command("append")
@REPO
@click.argument(
    "file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)
)
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Events a second.")
@QUIET
def append_command(repo: Path, file: Path, rate: float | None, quiet: bool) -> None:
    """Append the events of FILE to the stream: JSON lines (- for stdin) or clean Parquet."""
    from materialize.context import Context
    from materialize.stream.append import append_payloads
    from materialize.stream.broker import open_broker

    context = Context(repo)
    settings = context.settings
    with closing(open_broker(context.store, settings)) as broker:
        payloads = _payloads(file, settings.dataset.events.context)
        appended = append_payloads(broker.writer(), payloads, rate=rate, progress=not quiet)
    print_json({"appended": appended})


@stream_group.command("status")
@REPO
@_JSON
def status_command(repo: Path, as_json: bool) -> None:
    """Print what is left to do in each partition, who does it, and how many dead letters lie."""
    from materialize.context import Context
    from materialize.stream.status import stream_status

    status = stream_status(Context(repo))
    if as_json:
        print_json(status)
        return
    columns = ("partition", "owner", "undelivered", "unacknowledged", "oldest", "dead letters")
    rows = [
        (
            str(one["partition"]),
            one["owner"] or "-",
            f"{one['undelivered']:,}",
            f"{one['unacknowledged']:,}",
            f"{one['oldest_age_seconds']:.1f} s",
            f"{one['dead_letters']:,}",
        )
        for one in status["partitions"]
    ]
    _print_table([columns, *rows])
    states = status["states"]
    click.echo(
        f"workers {status['workers']}  undelivered {status['undelivered']:,}  "
        f"unacknowledged {status['unacknowledged']:,}  "
        f"oldest {status['oldest_age_seconds']:.1f} s  dead letters {status['dead_letters']:,}"
    )
    if states is None:
        click.echo("states: none; run `palate stream seed`")
    else:
        floor = states["floor_day"] or "the first event"
        click.echo(f"states: every event from {floor} on, of {states['at'][:19]}Z")


@stream_group.group("dead")
def dead_group() -> None:
    """Look at dead letters: events that could not be applied, with the reason."""


@dead_group.command("list")
@REPO
@_REASON
@_ID
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="At most.")
@_JSON
def dead_list_command(
    repo: Path, reasons: tuple[str, ...], ids: tuple[str, ...], limit: int, as_json: bool
) -> None:
    """List dead letters with reason and payload, and count them by reason."""
    from datetime import datetime, timezone
    from itertools import islice

    with _dead_letters(repo) as letters:
        found = list(islice(_found(letters, reasons, ids), limit))
        counts = letters.counts()
    if as_json:
        print_json({"reasons": counts, "letters": [letter.to_dict() for letter in found]})
        return
    for letter in found:
        at = datetime.fromtimestamp(letter.rejected_ms / 1000, timezone.utc)
        click.echo(f"{letter.id}  {at:%Y-%m-%d %H:%M:%S}Z  {letter.reason}: {letter.detail}")
        click.echo(f"    {letter.to_dict()['payload']}")
    for reason, count in counts.items():
        click.echo(f"{count:,} {reason}")
    if not counts:
        click.echo("no dead letters")


@dead_group.command("replay")
@REPO
@_REASON
@_ID
@click.option("--all", "everything", is_flag=True, help="Without --reason and --id: all of them.")
@DRY_RUN
def dead_replay_command(
    repo: Path, reasons: tuple[str, ...], ids: tuple[str, ...], everything: bool, dry_run: bool
) -> None:
    """Append dead letters to the stream again, once what was wrong is mended.

    What was applied meanwhile is a duplicate and changes nothing.
    """
    _require_choice(reasons, ids, everything)
    with _dead_letters(repo) as letters:
        found = list(_found(letters, reasons, ids))
        moved = 0 if dry_run else letters.replay(found)
    print_json({"found": len(found), "replayed": moved})


@dead_group.command("drop")
@REPO
@_REASON
@_ID
@click.option("--all", "everything", is_flag=True, help="Without --reason and --id: all of them.")
@click.option("--yes", is_flag=True, help="Delete; without it, only count.")
def dead_drop_command(
    repo: Path, reasons: tuple[str, ...], ids: tuple[str, ...], everything: bool, yes: bool
) -> None:
    """Delete dead letters for good."""
    _require_choice(reasons, ids, everything)
    with _dead_letters(repo) as letters:
        found = list(_found(letters, reasons, ids))
        dropped = letters.drop(found) if yes else 0
    print_json({"found": len(found), "dropped": dropped})
    if found and not yes:
        click.echo("Nothing was deleted: add --yes to delete them for good.", err=True)


def _payloads(file: Path, context: Any) -> Iterator[bytes]:
    from materialize.stream.payloads import is_parquet, line_payloads, parquet_payloads

    if str(file) == "-":
        found = line_payloads(sys.stdin.buffer)
    elif is_parquet(file):
        found = parquet_payloads(file, context)
    else:
        with file.open("rb") as lines:
            yield from (payload for _, payload in line_payloads(lines))
        return
    yield from (payload for _, payload in found)


@contextmanager
def _dead_letters(repo: Path) -> Iterator[DeadLetters]:
    from materialize.context import Context
    from materialize.stream.broker import open_broker

    context = Context(repo)
    with closing(open_broker(context.store, context.settings)) as broker:
        yield broker.dead_letters()


def _found(
    letters: DeadLetters, reasons: tuple[str, ...], ids: tuple[str, ...]
) -> Iterator[DeadLetter]:
    try:
        yield from letters.find(reasons, ids)
    except ValueError as exc:
        raise click.BadParameter(str(exc), param_hint="--id") from exc


def _require_choice(reasons: tuple[str, ...], ids: tuple[str, ...], everything: bool) -> None:
    if everything == bool(reasons or ids):
        raise click.UsageError("Name letters by --reason or --id, or all of them by --all.")


def _print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
