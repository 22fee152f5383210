"""``palate study``: encoders with one thing changed each, judged side by side."""

from __future__ import annotations

from pathlib import Path

import click

from materialize.cli_options import DRY_RUN, QUIET, REPO, print_json

__all__ = ["study_group"]


@click.group("study")
def study_group() -> None:
    """Train encoders with one thing changed each, and judge them side by side."""


@study_group.command("list")
@REPO
@click.argument("name", required=False)
def list_command(repo: Path, name: str | None) -> None:
    """List the studies, or the variants of the study NAME on this data set."""
    from materialize.study.studies import STUDIES, find_study

    if name is None:
        for study in STUDIES.values():
            click.echo(f"{study.name:<12}{study.question}")
        return
    from materialize.config import load_settings
    from materialize.features import current_modalities
    from materialize.recipes import training_config
    from materialize.training_rows import raw_schema

    try:
        study = find_study(name)
    except ValueError as exc:
        raise click.UsageError(str(exc)) from None
    settings = load_settings(repo)
    schema = raw_schema(settings, current_modalities(settings.features_dir))
    for variant in study.variants(schema, training_config(settings)):
        click.echo(f"{variant.name:<20}{variant.title}")


@study_group.command("run")
@REPO
@click.argument("name")
@click.option(
    "--variant", "variants", multiple=True, help="Train this one only, and the default; repeatable."
)
@click.option(
    "--seeds", type=click.IntRange(1), help="Number of seeds, from 0 on; default: the study's own."
)
@click.option(
    "--task", "tasks", multiple=True, show_default="probe, clusters",
    help="Judge by this task of `palate evaluate`; repeatable.",
)  # fmt: skip
@click.option(
    "--max-rows", type=click.IntRange(1), default=20_000, show_default=True,
    help="Rows to judge on at most.",
)  # fmt: skip
@click.option(
    "--training-rows", type=click.IntRange(1), default=500_000, show_default=True,
    help="About so many rows to train on; users are drawn whole.",
)  # fmt: skip
@click.option(
    "--resamples", type=click.IntRange(2), default=500, show_default=True, help="Of each interval."
)
@click.option("--no-resume", is_flag=True, help="Train and judge again what was finished.")
@DRY_RUN
@QUIET
def run_command(
    repo: Path,
    name: str,
    variants: tuple[str, ...],
    seeds: int | None,
    tasks: tuple[str, ...],
    max_rows: int,
    training_rows: int,
    resamples: int,
    no_resume: bool,
    dry_run: bool,
    quiet: bool,
) -> None:
    """Train and judge the variants of the study NAME (`palate study list`).

    No space is made. Safe to kill: repeat it, and it goes on. Prints the tables; `palate study
    show NAME` prints them again.
    """
    from materialize.context import Context
    from materialize.study.plan import DEFAULT_TASKS, Judging, plan_study

    context = Context(repo)
    try:
        plan = plan_study(
            context.store,
            context.settings,
            name,
            variants=variants,
            seeds=range(seeds or 0),
            judging=Judging(tasks or DEFAULT_TASKS, max_rows, resamples),
            max_training_rows=training_rows,
        )
    except ValueError as exc:
        raise click.UsageError(str(exc)) from None
    if dry_run:
        print_json(plan.to_dict())
        return
    from materialize.study.run import run_study, study_path
    from materialize.study.table import markdown

    summary = run_study(context.settings, plan, resume=not no_resume, progress=not quiet)
    click.echo(markdown(summary), nl=False)
    click.echo(f"Written to {study_path(context.settings, name)}", err=True)


@study_group.command("show")
@REPO
@click.argument("name")
@click.option("--metric", "metrics", multiple=True, help="Show this one only; repeatable.")
@click.option("--group", "groups", multiple=True, help="Show this group only; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
def show_command(
    repo: Path, name: str, metrics: tuple[str, ...], groups: tuple[str, ...], as_json: bool
) -> None:
    """Print what the study NAME found, as Markdown."""
    from encoder.errors import DataFault
    from materialize.config import load_settings
    from materialize.study.run import read_study
    from materialize.study.studies import find_study
    from materialize.study.table import markdown

    try:
        find_study(name)
    except ValueError as exc:
        raise click.UsageError(str(exc)) from None
    summary = read_study(load_settings(repo), name)
    if summary is None:
        raise DataFault(f"Study {name!r} was not run to its end here: `palate study run {name}`.")
    if as_json:
        print_json(summary)
        return
    try:
        click.echo(markdown(summary, metrics=metrics, groups=groups), nl=False)
    except ValueError as exc:
        raise click.UsageError(str(exc)) from None
