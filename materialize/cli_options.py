"""Options that several commands have, and how their answers are printed."""

from __future__ import annotations

import json
from pathlib import Path

import click

REPO = click.option(
    "--repo",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(),
    envvar="PALATE_REPO",
    show_default="current folder",
    help="Feature repository (holds palate.yaml).",
)
SPACE = click.option("--space", type=int, show_default="newest", help="Number of the space.")
DRY_RUN = click.option("--dry-run", is_flag=True, help="Print the plan; write nothing.")
QUIET = click.option("--quiet", is_flag=True, help="No progress bars.")


def print_json(value: object) -> None:
    """Print a value to stdout as indented JSON; what JSON does not know, as text."""
    click.echo(json.dumps(value, indent=2, default=str))
