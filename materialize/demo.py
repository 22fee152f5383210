"""``palate demo``: the main job from raw events to a served embedding, with embedded stores."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import click

from encoder.errors import DataFault, TransientError, VerificationFailed
from materialize.batch import materialize_space, materialize_view
from materialize.compare import Comparison, compare_views, sample_users
from materialize.context import Context
from materialize.evaluate.job import evaluate_space
from materialize.features import build_features
from materialize.fetch import fetch
from materialize.meter import StepMeter
from materialize.report.space import report_space
from materialize.results import save_evaluation
from materialize.template import init_repository, shipped_datasets
from materialize.train import train_space
from materialize.validate import validate
from materialize.validation.report import ValidationReport
from transforms.clean import CleanTables

__all__ = ["feast_apply", "run_demo", "write_summary"]

_log = logging.getLogger(__name__)

_LIMIT = 1e-5
_SAMPLE = 500
_DATA = "PALATE_DATA"


@dataclass(frozen=True)
class _Chosen:
    dataset: str
    source: str
    folder: Path


def run_demo(output: Path, dataset: str | None = None) -> str:
    """Run the main job into ``output`` and return a short table of what happened.

    Parameters
    ----------
    output : Path
        Receives ``repo/`` (the feature repository with its data), ``summary.json``,
        ``report.html``.
        A repository of another data set in it is refused; of the same one, the job goes on.
    dataset : str or None
        A shipped data set, read under ``PALATE_DATA``; ``simulated``; None: ``ml1m`` when it is
        under ``PALATE_DATA``, else ml100k from its official address, else simulated listeners.

    Raises
    ------
    DataFault
        Unknown data set, or ``output`` holds another one.
    VerificationFailed
        Stored and on-demand embeddings differ.
    """
    output = output.resolve()
    meter = StepMeter()
    with meter.step("data") as step:
        chosen = _choose_data(output, dataset)
        step.counts = {"dataset": chosen.dataset, "source": chosen.source}
    click.echo(f"Data set {chosen.dataset} ({chosen.source}) in {chosen.folder}", err=True)
    # The data set's paths hold ${PALATE_DATA}; `feast apply` reads them in a process of its own.
    os.environ[_DATA] = str(chosen.folder)
    repo = output / "repo"
    _prepare(repo, chosen.dataset)
    summary = _run(repo, output, chosen, meter)
    return _table(summary, output)


def _choose_data(output: Path, dataset: str | None) -> _Chosen:
    given = os.environ.get(_DATA)
    if dataset is not None and dataset not in shipped_datasets():
        raise DataFault(f"Unknown data set {dataset!r}. Shipped: {', '.join(shipped_datasets())}.")
    if dataset != "simulated" and given:
        wanted = dataset or "ml1m"
        if (Path(given) / wanted).is_dir():
            return _Chosen(wanted, "given", Path(given).resolve())
        if dataset is not None:
            raise DataFault(f"{_DATA} is {given}, which has no folder {dataset!r}.")
    raw = output / "raw"
    if dataset != "simulated":
        wanted = dataset or "ml100k"
        try:
            return _Chosen(wanted, "fetched", fetch(wanted, raw).parent)
        except TransientError as exc:
            if dataset is not None:
                raise
            click.echo(f"{exc}\nGoing on with simulated listeners.", err=True)
    from encoder.synthetic import simulate_listeners

    if not (raw / "simulated" / "events.parquet").exists():
        simulate_listeners(raw / "simulated")
    return _Chosen("simulated", "simulated", raw)


def _prepare(repo: Path, dataset: str) -> None:
    if not repo.exists():
        # Written beside its place and moved, so that a killed demo leaves no half repository.
        with tempfile.TemporaryDirectory(dir=_made(repo.parent)) as folder:
            init_repository(Path(folder) / "repo", dataset)
            shutil.move(Path(folder) / "repo", repo)
    held = Context(repo).settings.dataset.name
    if held != dataset:
        raise DataFault(
            f"{repo} holds the data set {held!r}, {dataset!r} was asked for. Name another --output."
        )


def _run(repo: Path, output: Path, chosen: _Chosen, meter: StepMeter) -> dict[str, Any]:
    context = Context(repo)
    settings, dataset = context.settings, context.settings.dataset
    with meter.step("validate") as step:
        validation = validate(
            dataset, settings.data_dir, memory_limit_mb=settings.file.memory_limit_mb
        )
        step.counts = {name: table.kept for name, table in validation.tables.items()}
    with meter.step("features") as step:
        built = build_features(
            dataset,
            CleanTables(settings.data_dir),
            settings.features_dir,
            memory_limit_mb=settings.file.memory_limit_mb,
            seed=settings.file.seed,
        )
        step.counts = dict(built.rows)
    with meter.step("apply"):
        feast_apply(repo)
    with meter.step("train") as step:
        trained = train_space(context.store, settings, context.ledger)
        step.counts = {"rows": trained.rows, "epochs": len(trained.history)}
    space = trained.space
    with meter.step("apply space"):
        feast_apply(repo)
        context.store.refresh_registry()  # type: ignore[no-untyped-call]
    # The data's end, not today: the day after the newest raw feature.
    end = _data_end(validation)
    with meter.step("materialise history") as step:
        history = materialize_space(
            context.store, settings, context.ledger, space, end=end, from_history=True
        )
        step.counts = {"rows": history.rows}
    with meter.step("materialise") as step:
        raw_rows = {
            view: materialize_view(
                context.store, settings, context.ledger, view, end=end
            ).online_rows
            for view in space.facts["raw_views"]
        }
        newest = materialize_space(context.store, settings, context.ledger, space, end=end)
        step.counts = {"rows": newest.rows, "online_rows": newest.online_rows, **raw_rows}
    with meter.step("read") as step:
        users = sample_users(settings, space.number, _SAMPLE)
        comparison = compare_views(context.store, space.number, users)
        fresh = _compare_elsewhere(repo, space.number)
        step.counts = {"users": comparison.users}
        for where, found in (("this", comparison), ("a fresh", fresh)):
            if not found.agrees(_LIMIT):
                raise VerificationFailed(
                    f"Stored and on-demand embeddings of space {space.number} do not agree within "
                    f"{_LIMIT} in {where} process: {found}."
                )
    with meter.step("evaluate") as step:
        evaluation = evaluate_space(context.store, settings, space)
        save_evaluation(settings, space, evaluation.probe.to_dict())
        rows = evaluation.training_set
        step.counts = {"pit_rows_in": rows.rows_in, "pit_rows_out": rows.rows_out}
    summary: dict[str, Any] = {
        "dataset": chosen.dataset,
        "source": chosen.source,
        "created_at": datetime.now(timezone.utc).isoformat(),
        "space": space.number,
        "encoder_version": space.encoder_version,
        "max_abs_diff": max(comparison.max_abs_diff, fresh.max_abs_diff),
        "max_abs_diff_in_process": comparison.max_abs_diff,
        "max_abs_diff_fresh_process": fresh.max_abs_diff,
        "compared_users": comparison.users,
        "pit_rows_in": rows.rows_in,
        "pit_rows_out": rows.rows_out,
        "probe": evaluation.probe.to_dict(),
    }
    with meter.step("report"):
        facts = summary | {"steps": meter.to_list()}
        report_space(settings, space, output / "report.html", facts, ledger=context.ledger)
    summary["steps"] = meter.to_list()
    write_summary(output / "summary.json", summary)
    return summary


def _data_end(validation: ValidationReport) -> datetime:
    """Return the day after the newest event: what the jobs of that night would take as now."""
    assert validation.last_event is not None  # noqa: S101  # no event at all is a fatal fault
    return validation.last_event.astimezone(timezone.utc) + timedelta(days=1)


def feast_apply(repo: Path) -> None:
    """Run `feast apply` as a user would: in a process of its own, in the repository."""
    command = [sys.executable, "-c", "from feast.cli.cli import cli; cli()", "apply"]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise DataFault(f"`feast apply` in {repo} failed:\n{done.stdout}{done.stderr}")


def _compare_elsewhere(repo: Path, space: int) -> Comparison:
    """Compare both views in a fresh process in another folder, after a registry round trip."""
    command = [
        sys.executable, "-c", "from materialize.cli import main; main()", "spaces", "compare",
        "--repo", str(repo), "--space", str(space),
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as elsewhere:
        done = subprocess.run(  # noqa: S603
            command, cwd=elsewhere, capture_output=True, text=True, check=False
        )
    if not done.stdout.startswith("{"):
        raise VerificationFailed(f"Reading in a fresh process failed:\n{done.stderr}")
    return Comparison(**json.loads(done.stdout))


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_summary(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON under a name at which it appears whole; what JSON does not know, as text."""
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(value, indent=2, default=str), encoding="utf-8")
    os.replace(temporary, path)


def _table(summary: Mapping[str, Any], output: Path) -> str:
    lines = [
        f"data set {summary['dataset']} ({summary['source']}), space {summary['space']}, "
        f"encoder {summary['encoder_version']}",
        "",
        f"{'step':<22}{'seconds':>9}{'peak MB':>9}  counts",
    ]
    for step in summary["steps"]:
        counts = ", ".join(f"{k} {v}" for k, v in step["counts"].items())
        lines.append(
            f"{step['name']:<22}{step['seconds']:>9.1f}{step['peak_memory_mb']:>9.0f}  {counts}"
        )
    total = sum(step["seconds"] for step in summary["steps"])
    lines += [
        f"{'total':<22}{total:>9.1f}",
        "",
        f"stored = on demand: {summary['compared_users']} users, largest difference "
        f"{summary['max_abs_diff']:.2g}",
        f"point-in-time rows: {summary['pit_rows_in']} in, {summary['pit_rows_out']} out",
    ]
    for model, figures in summary["probe"]["groups"]["all"]["models"].items():
        auc = figures["auc_macro"]
        lines.append(
            f"probe {model:<12} macro AUC {auc['value']:.4f} [{auc['low']:.4f}, {auc['high']:.4f}]"
        )
    lines += ["", f"report: {output / 'report.html'}"]
    return "\n".join(lines)
