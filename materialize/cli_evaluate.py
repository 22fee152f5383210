"""``palate evaluate``: a space judged by tasks, with intervals and paired comparisons."""

from __future__ import annotations

from pathlib import Path

import click

from materialize.cli_options import DRY_RUN, QUIET, REPO, SPACE, print_json
from materialize.evaluate.task import MAX_ROWS, RESAMPLES, SEEDS

__all__ = ["evaluate_command"]


@click.command("evaluate")
@REPO
@SPACE
@click.option(
    "--task", "tasks", multiple=True,
    help="Run this task only; repeatable. Default: all that extras and data allow.",
)  # fmt: skip
@click.option(
    "--model", "models", multiple=True,
    help="Compare with this baseline only; repeatable. Default: all.",
)  # fmt: skip
@click.option(
    "--beside", multiple=True, type=int, metavar="N",
    help="Judge space N on the same users, too, under the same heads; repeatable.",
)  # fmt: skip
@click.option(
    "--seeds", type=click.IntRange(1), default=SEEDS, show_default=True,
    help="Number of seeds, from 0 on, of fits and samples.",
)  # fmt: skip
@click.option(
    "--max-rows", type=click.IntRange(1), default=MAX_ROWS, show_default=True,
    help="Users at moments to judge on at most.",
)  # fmt: skip
@click.option(
    "--resamples", type=click.IntRange(2), default=RESAMPLES, show_default=True,
    help="Resamples of the users for each interval.",
)  # fmt: skip
@click.option("--no-resume", is_flag=True, help="Measure again what an earlier run finished.")
@click.option("--metric", "metrics", multiple=True, help="Show this one only; repeatable.")
@click.option("--group", "groups", multiple=True, help="Show this group only; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print everything, as JSON.")
@DRY_RUN
@QUIET
def evaluate_command(
    repo: Path,
    space: int | None,
    tasks: tuple[str, ...],
    models: tuple[str, ...],
    beside: tuple[int, ...],
    seeds: int,
    max_rows: int,
    resamples: int,
    no_resume: bool,
    metrics: tuple[str, ...],
    groups: tuple[str, ...],
    as_json: bool,
    dry_run: bool,
    quiet: bool,
) -> None:
    """Judge a space by tasks, against baselines, with intervals over users.

    Checks for leaks run first, and refuse (exit status 3). Prints tables in Markdown. Safe to kill:
    repeat it, and it goes on; repeated once more, it prints the tables again.
    """
    from encoder.errors import EvaluationFault
    from materialize.adopt import OTHER_USERS
    from materialize.context import Context
    from materialize.evaluate.models.registry import MODELS, of_space
    from materialize.evaluate.run import chosen_tasks, evaluate, space_folder
    from materialize.evaluate.table import markdown
    from materialize.results import save_evaluation
    from transforms.runtime import load_encoder

    unknown = [name for name in models if name not in MODELS]
    if unknown:
        raise click.UsageError(
            f"Unknown model {', '.join(map(repr, unknown))}. Known: {', '.join(sorted(MODELS))}."
        )
    try:
        names, left_out = chosen_tasks(tasks or None)
    except ValueError as exc:
        raise click.UsageError(str(exc)) from None
    context = Context(repo)
    settings, chosen = context.settings, context.ledger.space(space)
    folder = space_folder(settings, chosen)
    others = [context.ledger.space(number) for number in dict.fromkeys(beside)]
    if dry_run:
        print_json(
            {
                "space": chosen.number,
                "encoder_version": chosen.encoder_version,
                "beside": [other.number for other in others],
                "tasks": names,
                "left_out": left_out,
                "seeds": list(range(seeds)),
                "max_rows": max_rows,
                "resamples": resamples,
                "folder": str(folder),
            }
        )
        return
    result = evaluate(
        settings,
        load_encoder(settings.artifacts_url, chosen.encoder_version),
        folder=folder,
        tasks=tasks or None,
        models=models or None,
        beside={
            of_space(other.number): load_encoder(settings.artifacts_url, other.encoder_version)
            for other in others
        },
        other_users={
            each.encoder_version for each in (chosen, *others) if each.facts.get(OTHER_USERS)
        },
        seeds=range(seeds),
        max_rows=max_rows,
        n_resamples=resamples,
        resume=not no_resume,
        progress=not quiet,
        facts={
            "space": chosen.number,
            "command": _command(chosen.number, tasks, models, beside, seeds, max_rows, resamples),
        },
    )
    if not result.units:
        raise EvaluationFault(f"No task can run here: {result.summary['tasks']}.")
    probe = result.summary["tasks"].get("probe", {})
    if "details" in probe and not models and not beside:
        # What the report of the space shows of the probe, as `palate demo` leaves it.
        save_evaluation(settings, chosen, probe["details"]["report"])
    if as_json:
        print_json(result.summary)
    else:
        try:
            click.echo(markdown(result.summary, metrics=metrics, groups=groups), nl=False)
        except ValueError as exc:
            raise click.UsageError(str(exc)) from None
    click.echo(f"Written to {result.folder}", err=True)


def _command(
    space: int,
    tasks: tuple[str, ...],
    models: tuple[str, ...],
    beside: tuple[int, ...],
    seeds: int,
    max_rows: int,
    resamples: int,
) -> str:
    """Return the command that gives these figures, without what is the default."""
    words = ["palate evaluate", f"--space {space}"]
    words += [f"--task {name}" for name in tasks]
    words += [f"--model {name}" for name in models]
    words += [f"--beside {number}" for number in beside]
    given = {"seeds": seeds, "max-rows": max_rows, "resamples": resamples}
    default = {option.name: option.default for option in evaluate_command.params}
    words += [
        f"--{name} {value}"
        for name, value in given.items()
        if value != default[name.replace("-", "_")]
    ]
    return " ".join(words)
