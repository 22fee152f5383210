"""``palate scaling``: how the contrastive encoder's loss falls with compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from materialize.cli_options import DRY_RUN, QUIET, REPO, print_json

if TYPE_CHECKING:
    from materialize.scaling.run import ScalingPlan

__all__ = ["scaling_group"]

_GRID = click.option(
    "--grid", default="cpu", show_default=True, help="Grid of trainings: cpu, gpu or smoke."
)


@click.group("scaling")
def scaling_group() -> None:
    """Train a grid of contrastive encoders, and fit how their loss falls with compute."""


@scaling_group.command("run")
@REPO
@_GRID
@click.option("--only", default="*", help="Runs whose names match, for example 'w64*'.")
@DRY_RUN
@QUIET
def run_command(repo: Path, grid: str, only: str, dry_run: bool, quiet: bool) -> None:
    """Train what is left of the grid.

    No space is made. Safe to kill: repeat it, and it goes on. Each run is a JSON file.
    """
    from materialize.scaling.run import run_scaling

    plan = _plan(repo, grid)
    try:
        told = plan.to_dict(only)
    except ValueError as exc:
        raise click.UsageError(str(exc)) from None
    if dry_run:
        print_json(told)
        return
    runs = run_scaling(plan, only=only, progress=not quiet)
    click.echo(f"{len(runs)} runs in {plan.folder}", err=True)


@scaling_group.command("fit")
@REPO
@_GRID
@click.option(
    "--resamples", type=click.IntRange(2), default=500, show_default=True, help="Of the runs."
)
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
@click.option(
    "--record",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the runs and their fit into one JSON file, too.",
)
def fit_command(repo: Path, grid: str, resamples: int, as_json: bool, record: Path | None) -> None:
    """Fit power laws to the finished runs, and print them beside the paper's."""
    from materialize.publish import write_json
    from materialize.scaling.fit import fit_scaling, markdown

    plan = _plan(repo, grid)
    runs = _finished(plan)
    fit = fit_scaling(runs, n_resamples=resamples)
    if record is not None:
        dataset = plan.settings.dataset.name
        write_json(record, {"grid": grid, "dataset": dataset, "runs": runs, "fit": fit})
    if as_json:
        print_json(fit)
    else:
        click.echo(markdown(fit), nl=False)


@scaling_group.command("plot")
@REPO
@_GRID
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), default=Path("scaling.html"),
    show_default=True, help="Page to write.",
)  # fmt: skip
def plot_command(repo: Path, grid: str, output: Path) -> None:
    """Draw the finished runs, the laws and the paper's points."""
    from materialize.scaling.fit import fit_scaling
    from materialize.scaling.plot import write_page

    plan = _plan(repo, grid)
    runs = _finished(plan)
    fit = fit_scaling(runs)
    (plan.folder / "fit.json").write_text(json.dumps(fit, indent=1), encoding="utf-8")
    write_page(runs, fit, output)
    click.echo(f"Written to {output}", err=True)


def _plan(repo: Path, name: str) -> ScalingPlan:
    from materialize.config import load_settings
    from materialize.scaling.grid import find_grid
    from materialize.scaling.run import plan_scaling

    try:
        grid = find_grid(name)
    except ValueError as exc:
        raise click.UsageError(str(exc)) from None
    return plan_scaling(load_settings(repo), grid)


def _finished(plan: ScalingPlan) -> list[dict[str, Any]]:
    from encoder.errors import DataFault
    from materialize.scaling.run import read_runs

    runs = read_runs(plan)
    if not runs:
        raise DataFault(
            f"No run of grid {plan.grid.name!r} is finished here. "
            f"`palate scaling run --grid {plan.grid.name}` trains them."
        )
    return runs
