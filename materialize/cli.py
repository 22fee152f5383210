"""The ``palate`` command: the steps of the main job, one by one.

Heavy modules are imported inside the commands, so that ``palate --help`` answers at once.
"""

from __future__ import annotations

import gc
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from materialize.cli_compact import compact_command
from materialize.cli_consumers import consumers_group
from materialize.cli_evaluate import evaluate_command
from materialize.cli_ledger import ledger_group
from materialize.cli_materialize import materialize_command
from materialize.cli_options import DRY_RUN, QUIET, REPO, SPACE, print_json
from materialize.cli_scaling import scaling_group
from materialize.cli_similar import neighbours_group, similar_command
from materialize.cli_spaces import spaces_group
from materialize.cli_stream import stream_group
from materialize.cli_study import study_group

if TYPE_CHECKING:
    from materialize.context import Context

__all__ = ["main"]

_EXTRAS = {
    **dict.fromkeys(("jinja2", "onnx", "onnxscript", "plotly", "torch"), "train"),
    "faiss": "neighbours",
    "tokenizers": "clue",
}
"""Package that serving does without -> the extra that brings it."""


class _Group(click.Group):
    """Prints Palate's own errors as a message, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        from encoder.errors import EmbeddingError, EvaluationFault, LedgerConflict, StreamConflict

        try:
            return super().invoke(ctx)
        except (EvaluationFault, LedgerConflict, StreamConflict) as exc:
            click.echo(f"Refused: {exc}", err=True)
            sys.exit(3)
        except EmbeddingError as exc:
            click.echo(f"Error: {exc}", err=True)
            sys.exit(1)
        except ModuleNotFoundError as exc:
            if exc.name not in _EXTRAS:
                raise
            click.echo(
                f"Error: this command needs the package {exc.name!r}, which serving does not. "
                f"Install it with pip install 'palate[{_EXTRAS[exc.name]}]'.",
                err=True,
            )
            sys.exit(1)
        finally:
            _drop_ibis_backend()


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="palate")
@click.option("-v", "--verbose", is_flag=True, help="Log to stderr what each step does.")
def main(verbose: bool) -> None:
    """Learn one user embedding from raw features and serve it as a Feast feature.

    Exit status: 0 done, 1 failed, 2 wrong usage, 3 refused (a check did not pass).
    """
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        stream=sys.stderr,
        format="%(levelname)s %(name)s: %(message)s",
    )


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--dataset", default="my_data", show_default=True, help="Shipped data set to name.")
def init(folder: Path, dataset: str) -> None:
    """Write a feature repository into FOLDER for your own data."""
    from materialize.template import init_repository

    for path in init_repository(folder, dataset):
        click.echo(path)
    click.echo(
        f"\nNext: fill in {folder}/datasets/{dataset}.yaml, then\n"
        f"  palate data validate --repo {folder}"
    )


@main.group()
def data() -> None:
    """Check or fetch data."""


@data.command()
@REPO
@DRY_RUN
@QUIET
def validate(repo: Path, dry_run: bool, quiet: bool) -> None:
    """Check events, users and items; keep the good rows, set the faulty ones aside."""
    from materialize.config import load_settings
    from materialize.validate import validate as run

    settings = load_settings(repo)
    report = run(
        settings.dataset,
        settings.data_dir,
        dry_run=dry_run,
        memory_limit_mb=settings.file.memory_limit_mb,
        progress=not quiet,
    )
    click.echo("\n".join(report.as_table()))


@data.command()
@click.argument("name")
@click.option(
    "--to", type=click.Path(path_type=Path), default=Path("raw"), show_default=True, help="Folder."
)
@click.option("--url", help="Mirror to use instead of the official address.")
@QUIET
def fetch(name: str, to: Path, url: str | None, quiet: bool) -> None:
    """Download the public data set NAME from its official address."""
    from materialize.fetch import KNOWN
    from materialize.fetch import fetch as run

    if name not in KNOWN:
        raise click.BadParameter(f"{name!r} is not known; known: {', '.join(sorted(KNOWN))}.")
    click.echo(run(name, to, url=url, progress=not quiet))


@main.group()
def features() -> None:
    """Raw features."""


@features.command()
@REPO
@DRY_RUN
@QUIET
def build(repo: Path, dry_run: bool, quiet: bool) -> None:
    """Fit item vectors, then build the raw feature views' Parquet; goes on where it stopped."""
    from materialize.config import load_settings
    from materialize.features import build_features
    from transforms.clean import CleanTables

    settings = load_settings(repo)
    report = build_features(
        settings.dataset,
        CleanTables(settings.data_dir),
        settings.features_dir,
        memory_limit_mb=settings.file.memory_limit_mb,
        seed=settings.file.seed,
        progress=not quiet,
        dry_run=dry_run,
    )
    print_json(report.to_dict())


@main.command()
@REPO
@click.option(
    "--encoder",
    "kind",
    type=click.Choice(["autoencoder", "clue", "hybrid"]),
    help="Kind of encoder; default: `encoder` of palate.yaml.",
)
@click.option("--no-resume", is_flag=True, help="Start over instead of using a checkpoint.")
@QUIET
def train(repo: Path, kind: str | None, no_resume: bool, quiet: bool) -> None:
    """Train an encoder on everything before the cut-off and register it as a new space.

    An autoencoder's embedding learns to rebuild a user's raw features from a part of them, and to
    predict what the user does next (`training: prediction_weight` in palate.yaml; 0: only to
    rebuild). One of kind clue learns to know a user of one service by the texts of another. One of
    kind hybrid is an autoencoder that reads a contrastive encoder's vector, too (`hybrid: space`).
    """
    from materialize.train import train_space

    context = _context(repo)
    report = train_space(
        context.store,
        context.settings.with_encoder(kind),
        context.ledger,
        resume=not no_resume,
        progress=not quiet,
    )
    last = report.history[-1]
    print_json(
        {
            "space": report.space.number,
            "encoder_version": report.space.encoder_version,
            "new": report.new,
            "training_rows": report.rows,
            "epochs": len(report.history),
            "validation_loss": last["validation_loss"],
        }
    )
    click.echo("Next: `feast apply`, then `palate materialize`.", err=True)


main.add_command(materialize_command)
main.add_command(compact_command)
main.add_command(consumers_group)
main.add_command(evaluate_command)
main.add_command(ledger_group)
main.add_command(neighbours_group)
main.add_command(similar_command)
main.add_command(spaces_group)
main.add_command(stream_group)
main.add_command(scaling_group)
main.add_command(study_group)


@main.command()
@REPO
@SPACE
@click.option("--output", type=click.Path(path_type=Path), default=Path("report.html"))
def report(repo: Path, space: int | None, output: Path) -> None:
    """Write a self-contained HTML report of a space."""
    from materialize.report.space import report_space

    context = _context(repo)
    ledger = context.ledger
    click.echo(report_space(context.settings, ledger.space(space), output, ledger=ledger))


@main.command()
@REPO
def doctor(repo: Path) -> None:
    """Check the installation, the repository and the stores; say what to do about each fault."""
    from materialize.doctor import examine

    checks = examine(repo)
    for check in checks:
        click.echo(f"{check.outcome:<5} {check.name}: {check.detail}")
        if check.remedy:
            click.echo(f"      -> {check.remedy}")
    if any(check.outcome == "FAIL" for check in checks):
        sys.exit(1)


_OUTPUT = click.option(
    "--output", type=click.Path(path_type=Path), default=Path("demo-output"), show_default=True
)


@main.group(invoke_without_command=True)
@_OUTPUT
@click.option("--dataset", help="Shipped data set under PALATE_DATA, or `simulated`.")
@click.pass_context
def demo(ctx: click.Context, output: Path, dataset: str | None) -> None:
    """Run the whole main job with embedded stores, from raw events to a report."""
    ctx.obj = (output, dataset)
    if ctx.invoked_subcommand is None:
        from materialize.demo import run_demo

        click.echo(run_demo(output, dataset))


@demo.command("stream")
@click.option("--output", type=click.Path(path_type=Path), help="Of `palate demo`.")
@click.option("--dataset", help="Where `palate demo` has not been run; default: `simulated`.")
@click.option("--redis", help="host:port of an empty Redis; default: one is started.")
@click.option("--events", type=click.IntRange(100), default=5_000, show_default=True, help="About.")
@click.option(
    "--rate", type=click.FloatRange(0, min_open=True), default=500.0, show_default=True,
    help="Replayed events a second.",
)  # fmt: skip
@click.pass_obj
def demo_stream(
    given: tuple[Path, str | None],
    output: Path | None,
    dataset: str | None,
    redis: str | None,
    events: int,
    rate: float,
) -> None:
    """Stream into a copy of the demo's repository: a new user, an old one, the last days' events.

    Starts a private redis-server from PATH. Runs `palate demo` first when it has not been run.
    """
    from materialize.demo_stream import run_stream_demo

    click.echo(
        run_stream_demo(output or given[0], dataset or given[1], redis, events=events, rate=rate)
    )


def _drop_ibis_backend() -> None:
    """Let go of the DuckDB connection that Feast's offline store keeps in ibis.

    One that is still open when Python ends makes DuckDB 2.0 print a page about leaked objects.
    """
    ibis = sys.modules.get("ibis")
    if ibis is not None:
        ibis.options.default_backend = None
        gc.collect()


def _context(repo: Path) -> Context:
    from materialize.context import Context

    return Context(repo)
