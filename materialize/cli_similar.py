"""``palate similar`` and ``palate neighbours``: who is near whom, and the index that knows it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from materialize.cli_options import DRY_RUN, QUIET, REPO, SPACE, print_json
from transforms.names import stored_view

if TYPE_CHECKING:
    from materialize.context import Context
    from materialize.ledger import Space

__all__ = ["neighbours_group", "similar_command"]


@click.group("neighbours")
def neighbours_group() -> None:
    """Keep the index of nearest users."""


@neighbours_group.command("build")
@REPO
@SPACE
@DRY_RUN
@QUIET
def build_command(repo: Path, space: int | None, dry_run: bool, quiet: bool) -> None:
    """Index the users of a space; does nothing when the index is of the space's present rows.

    The former index serves until the new one is complete.
    """
    from materialize.context import Context
    from materialize.neighbours.build import build_neighbours

    context = Context(repo)
    chosen = context.ledger.space(space)
    report = build_neighbours(
        context.settings, context.ledger, chosen, dry_run=dry_run, progress=not quiet
    )
    print_json(report.to_dict())


@click.command("similar")
@REPO
@SPACE
@click.option(
    "--user",
    "users",
    multiple=True,
    required=True,
    metavar="ID",
    help="A user; several: nearest to their mean, for an audience.",
)
@click.option("--top", type=click.IntRange(1), default=10, show_default=True, metavar="K")
@click.option("--items", is_flag=True, help="Nearest items, not users.")
@click.option("--modality", help="Of the items.  [default: the first one of the encoder]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def similar_command(
    repo: Path,
    space: int | None,
    users: tuple[str, ...],
    top: int,
    items: bool,
    modality: str | None,
    as_json: bool,
) -> None:
    """Print the users, or items, nearest to a user in a space.

    The user's vector is the one that the online store has now; the users are those of the index.
    """
    from materialize.context import Context

    if modality is not None and not items:
        raise click.UsageError("--modality goes with --items.")
    context = Context(repo)
    chosen = context.ledger.space(space)
    asked = _ids(context, chosen, users)
    if items:
        rows = _similar_items(context, chosen, asked, top, modality)
    else:
        rows = _similar_users(context, chosen, asked, top)
    if as_json:
        print_json(
            {
                "space": chosen.number,
                "encoder_version": chosen.encoder_version,
                "of": asked,
                "items" if items else "users": rows,
            }
        )
        return
    for row in rows:
        cosine = f"{row.pop('cosine'):.4f}"
        click.echo("  ".join([cosine, *map(str, row.values())]))


def _similar_users(
    context: Context, space: Space, users: list[Any], top: int
) -> list[dict[str, Any]]:
    from materialize.neighbours.build import is_current
    from materialize.neighbours.index import NeighbourIndex
    from materialize.neighbours.manifest import index_folder
    from materialize.neighbours.similar import similar_users

    folder = index_folder(context.settings, space.number)
    index = NeighbourIndex.open(folder, space.number, space.encoder_version)
    if not is_current(context.settings, context.ledger, space, index.manifest):
        click.echo(
            f"The index is of {index.manifest.created_at[:19]}; the space has other rows since. "
            f"`palate neighbours build --space {space.number}` renews it.",
            err=True,
        )
    return [asdict(found) for found in similar_users(context.store, index, space, users, top)]


def _similar_items(
    context: Context, space: Space, users: list[Any], top: int, modality: str | None
) -> list[dict[str, Any]]:
    from materialize.neighbours.items import ItemNeighbours
    from materialize.neighbours.similar import similar_items
    from transforms.runtime import load_encoder

    artifact = load_encoder(context.settings.artifacts_url, space.encoder_version)
    try:
        items = ItemNeighbours(artifact, modality)
    except ValueError as exc:
        raise click.BadParameter(str(exc), param_hint="--modality") from exc
    return [asdict(found) for found in similar_items(context.store, items, space, users, top)]


def _ids(context: Context, space: Space, users: tuple[str, ...]) -> list[Any]:
    """Return ids as the user entity has them."""
    from materialize.source import applied_view

    (column,) = applied_view(context.store, stored_view(space.number)).entity_columns
    if column.dtype.to_value_type().name == "STRING":
        return list(users)
    try:
        return [int(user) for user in users]
    except ValueError as exc:
        raise click.BadParameter(
            f"{exc}; ids of this repository's users are whole numbers.", param_hint="--user"
        ) from exc
