"""``palate materialize``: the batch job, for one space or for all that are live."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from materialize.cli_options import DRY_RUN, QUIET, REPO, print_json

__all__ = ["materialize_command"]


@click.command("materialize")
@REPO
@click.option(
    "--space",
    "numbers",
    type=int,
    multiple=True,
    show_default="all live ones",
    help="Number of a space; may be repeated.",
)
@click.option("--start", type=click.DateTime(), help="UTC, inclusive; default: all users.")
@click.option("--end", type=click.DateTime(), help="UTC, exclusive; default: now.")
@click.option(
    "--from-history", is_flag=True, help="Fill one row per user and snapshot, offline only."
)
@click.option("--raw/--no-raw", default=True, show_default=True, help="Raw views online, too.")
@click.option(
    "--stability/--no-stability",
    default=True,
    show_default=True,
    help="Measure a new space against the one before, once.",
)
@click.option(
    "--drift/--no-drift",
    default=True,
    show_default=True,
    help="Measure a run over all users against the space's one before.",
)
@click.option("--force", is_flag=True, help="Write again what was committed before.")
@click.option("--engine", type=click.Choice(["local", "ray"]), help="Default: palate.yaml's.")
@click.option("--workers", type=click.IntRange(1), help="Partitions at the same time.")
@click.option(
    "--online-rows-per-second", type=click.FloatRange(0, min_open=True), help="Upper bound."
)
@click.option("--metrics-port", type=click.IntRange(0, 65_535), help="Answer Prometheus meanwhile.")
@DRY_RUN
@QUIET
def materialize_command(
    repo: Path,
    numbers: tuple[int, ...],
    start: datetime | None,
    end: datetime | None,
    from_history: bool,
    raw: bool,
    stability: bool,
    drift: bool,
    force: bool,
    dry_run: bool,
    quiet: bool,
    **job: Any,
) -> None:
    """Encode users and write their embeddings offline and online.

    Without --space: every space that a consumer pins, the default one, the newest one, and what
    consumers read through bridges, in one pass over the raw features. Options that are not given
    are taken from the section "materialize" of palate.yaml.
    """
    from dataclasses import asdict

    from materialize.batch import materialize_spaces, materialize_view
    from materialize.context import Context
    from materialize.live import LiveTargets, live_targets

    context = Context(repo)
    if numbers:
        targets = LiveTargets([context.ledger.space(n) for n in dict.fromkeys(numbers)], [], {})
    else:
        context.ledger.space()  # if there is none, it says what to do
        targets = live_targets(context.settings, context.ledger)
    for reason in targets.skipped.values():
        click.echo(f"Left as it is: {reason}.", err=True)
    where = (context.store, context.settings.with_job(**job), context.ledger)
    until = _utc(end) or datetime.now(timezone.utc)
    how: dict[str, Any] = {"start": _utc(start), "end": until, "force": force, "dry_run": dry_run}
    how["progress"] = not quiet
    read = dict.fromkeys(view for space in targets.spaces for view in space.facts["raw_views"])
    views = [] if from_history or not raw else list(read)
    raw_views = [asdict(materialize_view(*where, view, **how)) for view in views]
    reports = materialize_spaces(
        *where, targets.spaces, targets.bridges, **how, from_history=from_history
    )
    if drift and not dry_run:
        from materialize.drift import after_run

        for space in targets.spaces:
            after_run(context.settings, context.ledger, space)
    if stability and not dry_run:
        from materialize.stability import after_first_run

        for space in targets.spaces:
            after_first_run(*where, space, progress=not quiet)
    print_json(
        {
            "spaces": [asdict(report) for report in reports],
            "raw_views": raw_views,
            "skipped": targets.skipped,
        }
    )


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(tzinfo=timezone.utc)
