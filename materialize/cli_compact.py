"""``palate compact``: one command of the command line, in a file of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from materialize.cli_options import DRY_RUN, QUIET, REPO, print_json

__all__ = ["compact_command"]


@click.command("compact")
@REPO
@click.argument("views", nargs=-1, metavar="[VIEW]...")
@click.option(
    "--below-mb",
    type=click.FloatRange(0, min_open=True),
    default=64.0,
    show_default=True,
    help="Files of at least this size (MiB) stay as they are.",
)
@click.option(
    "--wait",
    type=click.FloatRange(0),
    default=60.0,
    show_default=True,
    help="Seconds to wait for readers before the old files are left to the next call.",
)
@DRY_RUN
@QUIET
def compact_command(
    repo: Path, views: tuple[str, ...], below_mb: float, wait: float, dry_run: bool, quiet: bool
) -> None:
    """Merge the small files that pushes left in each VIEW's folder (default: all views).

    Every row stays. Safe beside readers, pushes and jobs; after a kill, repeat it.
    """
    from dataclasses import asdict

    from materialize.compact_views import compactable_views
    from materialize.compaction import compact, plan
    from materialize.context import Context

    done: list[dict[str, Any]] = []
    for view, folder in compactable_views(Context(repo).store, views).items():
        if dry_run:
            done.append({"view": view} | asdict(plan(folder, below_mb=below_mb)))
            continue
        report = compact(folder, below_mb=below_mb, wait_seconds=wait, progress=not quiet)
        done.append({"view": view} | asdict(report))
        if report.pending:
            click.echo(
                f"{view}: readers follow the merged file; the old files were still being read "
                f"after {wait:g} s. Run `palate compact` again to remove them.",
                err=True,
            )
    print_json(done)
