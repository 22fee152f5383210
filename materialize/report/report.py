"""A run's results on one self-contained HTML page."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from materialize.evaluate.probe import EMBEDDING
from materialize.report import figures
from materialize.report.details import exposure_figure, group_figures, reliability_figures
from materialize.report.judged import TaskView, headlines, task_views
from materialize.report.lineage import Picture
from materialize.report.moved import DriftView, drift_view
from materialize.report.studied import StudyView, study_views
from materialize.report.theme import Figure
from materialize.report.users import Neighbours, UserMap, user_data

__all__ = ["ReportInput", "write_report"]

logger = logging.getLogger(__name__)

_CONTENTS = (
    ("evaluation", "evaluation"),
    ("map", "map of the users"),
    ("neighbours", "neighbours of a user"),
    ("probe", "the next days"),
    ("training", "training"),
    ("studies", "studies"),
    ("drift", "drift"),
    ("way", "way of the data"),
    ("lineage", "lineage"),
    ("steps", "steps"),
    ("validation", "validation"),
)
"""Place and name of what the page links to at its top."""

_SOURCES = {
    "repository": "The repository's own data.",
    "given": "Real data, read from the folder that was given.",
    "fetched": "Real data, fetched from the data set's official address.",
    "simulated": "Simulated listeners with planted tastes, not real people: the figures say that "
    "the machinery works, and nothing about real users.",
}


@dataclass(frozen=True)
class ReportInput:
    """Everything a report shows; a part that is empty or None says that it was not run.

    Attributes
    ----------
    summary : mapping
        ``dataset`` and ``source`` ("repository", "given", "fetched" or "simulated"); optional:
        ``space``, ``encoder_version``, ``embedding_dim``, ``created_at``, ``counts`` (name to
        number), ``max_abs_diff`` (stored against on-demand), ``pit_rows_in``, ``pit_rows_out``, and
        ``steps``, a sequence of {name, seconds, peak_memory_mb, counts} as of ``StepMeter``.
    history : sequence of mapping
        ``encoder.training.EpochRecord`` as dicts.
    probe : mapping or None
        ``materialize.evaluate.probe.ProbeReport.to_dict()``.
    user_map : UserMap or None
    neighbours : Neighbours or None
        Of the users of the map.
    validation : mapping or None
        ``materialize.validation.report.ValidationReport.to_dict()``.
    lineage : Picture or None
    evaluation : mapping or None
        ``materialize.evaluate.summary.summarise``.
    studies : sequence of mapping
        ``materialize.study.summary.summarise``.
    record : mapping or None
        ``materialize.space_record.space_record`` of the space: drift.
    """

    summary: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]] = ()
    probe: Mapping[str, Any] | None = None
    user_map: UserMap | None = None
    neighbours: Neighbours | None = None
    validation: Mapping[str, Any] | None = None
    lineage: Picture | None = None
    evaluation: Mapping[str, Any] | None = None
    studies: Sequence[Mapping[str, Any]] = ()
    record: Mapping[str, Any] | None = None


def write_report(data: ReportInput, path: str | Path) -> Path:
    """Write the report to ``path``, replacing an earlier one in one step, and return the path.

    Parameters
    ----------
    data : ReportInput
    path : str or Path
        Missing parent folders are made.

    Raises
    ------
    ValueError
        ``summary["source"]`` is none of the four, or a figure is NaN or infinite.

    Notes
    -----
    Plotly's script is part of the file, once. The page's content security policy forbids every
    request, so nothing is fetched even by mistake; all text from the data is escaped.
    """
    source = data.summary["source"]
    if source not in _SOURCES:
        raise ValueError(f"source {source!r} given, one of {sorted(_SOURCES)} expected.")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # NaN is no JSON: the browser would refuse the whole page.
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    environment.filters["thousands"] = lambda number: f"{number:,}"
    tasks = [] if data.evaluation is None else task_views(data.evaluation)
    studies = study_views(data.studies)
    drift = None if data.record is None else drift_view(data.record)
    plots = _figures(data) | _plots_of_views(tasks, studies, drift)
    html = environment.get_template("template.html.j2").render(
        summary=data.summary,
        source=_SOURCES[source],
        contents=_CONTENTS,
        cards=list(_cards(data)),
        stations=list(_stations(data.summary)),
        steps=data.summary.get("steps", ()),
        validation=data.validation,
        lineage=data.lineage,
        probe=data.probe,
        differences=list(_differences(data.probe)),
        evaluation=data.evaluation,
        headlines=([], []) if data.evaluation is None else headlines(data.evaluation),
        tasks=tasks,
        reliability=_named(plots, "reliability-"),
        group_columns=_named(plots, "group-"),
        studies=studies,
        drift=drift,
        figures=plots,
        user_map=data.user_map,
        users=None if data.user_map is None else user_data(data.user_map, data.neighbours),
        plotly=get_plotlyjs(),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(html, encoding="utf-8")
    os.replace(partial, path)
    logger.info("report: %s, %.1f MB", path, path.stat().st_size / 1e6)
    return path


def _figures(data: ReportInput) -> dict[str, Figure]:
    found: dict[str, Figure] = {}
    if data.history:
        found["loss"] = figures.loss_figure(data.history)
        if "block_errors" in data.history[0]:
            found["blocks"] = figures.blocks_figure(data.history)
    if data.probe is not None:
        found["micro"] = figures.probe_figure(data.probe, "auc_micro")
        found["macro"] = figures.probe_figure(data.probe, "auc_macro")
        found["targets"] = figures.targets_figure(data.probe)
    if data.evaluation is not None:
        exposure = exposure_figure(data.evaluation)
        found |= {} if exposure is None else {"exposure": exposure}
        for prefix, plots in (
            ("reliability", reliability_figures(data.evaluation)),
            ("group", group_figures(data.evaluation)),
        ):
            found |= {f"{prefix}-{name}": plot for name, plot in plots.items()}
    return found


def _plots_of_views(
    tasks: Sequence[TaskView], studies: Sequence[StudyView], drift: DriftView | None
) -> dict[str, Figure]:
    """Return the plots of tasks, studies and drift, by the name of their place on the page."""
    of_tasks = [view for task in tasks for view in task.metrics]
    of_studies = [view for study in studies for view in study.metrics]
    found = {view.key: view.figure for view in (*of_tasks, *of_studies)}
    found |= {f"study-{study.name}-drift": study.drift for study in studies}
    if drift is not None:
        found |= {"between-spaces": drift.between_spaces, "between-runs": drift.between_runs}
    return {name: plot for name, plot in found.items() if plot is not None}


def _named(plots: Mapping[str, Figure], prefix: str) -> list[str]:
    return [name.removeprefix(prefix) for name in plots if name.startswith(prefix)]


def _cards(data: ReportInput) -> Iterator[dict[str, str]]:
    """Yield label, value and note of each key figure that is known."""
    summary = data.summary
    for name, number in summary.get("counts", {}).items():
        yield {"label": name.replace("_", " "), "value": f"{number:,}", "note": ""}
    if "space" in summary:
        version = f"encoder {summary.get('encoder_version', 'unknown')}"
        dim = f", {summary['embedding_dim']} dimensions" if "embedding_dim" in summary else ""
        yield {"label": "space", "value": str(summary["space"]), "note": version + dim}
    if data.probe is not None:
        models = data.probe["groups"]["all"]["models"]
        for model in (m for m in (EMBEDDING, "raw_pooled") if m in models):
            auc = models[model]["auc_macro"]
            yield {
                "label": f"macro AUC, {figures.model_name(model)}",
                "value": _number(auc["value"]),
                "note": f"95%: {_number(auc['low'])} to {_number(auc['high'])}",
            }
    if "max_abs_diff" in summary:
        yield {
            "label": "stored against on demand",
            "value": f"{summary['max_abs_diff']:.1e}",
            "note": "largest difference of an element",
        }
    if "pit_rows_in" in summary:
        yield {
            "label": "point-in-time rows",
            "value": f"{summary['pit_rows_out']:,}",
            "note": f"of {summary['pit_rows_in']:,} asked for",
        }
    steps = summary.get("steps", ())
    if steps:
        peak = max(step["peak_memory_mb"] for step in steps)
        yield {
            "label": "time",
            "value": f"{sum(step['seconds'] for step in steps):,.0f} s",
            "note": f"peak memory {peak:,.0f} MB",
        }


def _stations(summary: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Yield the stations of the data's way, with what is known of this run."""
    space = summary.get("space")
    named = "space" if space is None else f"space {space}"
    view = "user_embedding_s" + ("N" if space is None else str(space))
    yield {"name": "events, users, items", "text": "validated, faults set aside"}
    yield {"name": "raw features", "text": "profile, activity windows, onboarding"}
    yield {"name": "encoder", "text": summary.get("encoder_version", "denoising autoencoder")}
    yield {"name": named, "text": view}
    yield {"name": "stores", "text": "offline for training, online for serving"}
    yield {"name": "consumers", "text": "linear probe of this report"}


def _differences(probe: Mapping[str, Any] | None) -> Iterator[dict[str, str]]:
    """Yield rows of the table: embedding minus baseline, by group of users."""
    if probe is None:
        return
    for group, result in probe["groups"].items():
        for baseline, difference in result["differences"].items():
            row = {
                "group": group,
                "users": f"{result['n_users']:,}",
                "baseline": figures.model_name(baseline),
            }
            for metric in ("auc_micro", "auc_macro"):
                found = difference[metric]
                row[metric] = _signed(found)
                row[f"{metric}_verdict"] = _verdict(found)
            yield row


def _verdict(difference: Mapping[str, float | None]) -> str:
    low, high = difference["low"], difference["high"]
    if low is None or high is None:
        return "undefined"
    if low > 0:
        return "better"
    return "worse" if high < 0 else "open"


def _signed(difference: Mapping[str, float | None]) -> str:
    value, low, high = (difference[k] for k in ("value", "low", "high"))
    if value is None or low is None or high is None:
        return "undefined"
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
