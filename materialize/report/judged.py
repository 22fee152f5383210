"""An evaluation as tables and plots: what each task found, beside every baseline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from materialize.evaluate.measurement import EMBEDDING
from materialize.report.tables import (
    Cell,
    MetricView,
    Row,
    Series,
    by_group,
    by_metric,
    colours,
    dots_figure,
    shown_groups,
    told_against,
    verdict,
)
from materialize.report.words import (
    group_title,
    is_bar,
    metric_title,
    model_title,
    number,
    task_question,
)

__all__ = ["Headline", "HeadlineCell", "Mark", "TaskView", "headlines", "task_views"]

Result = Mapping[str, Any]

_COST = "cost"
_BEYOND = "beyond"
"""Its figures are compared by differences: many are close to zero, where a ratio says nothing."""
_LOWER = " (lower is better)"

PAPER_GAINS = {"established": 0.152, "cold": 0.262}
"""Highest relative gains that the paper reports for future listening, by group."""

_HEADLINES = {
    "future": ("auc@popularity", "auc@uniform", "kind_auc@popularity"),
    "ranking": ("recall@10", "ndcg@10"),
    "universal": ("churn_auroc", "category_score", "item_score"),
    "probe": ("auc_macro",),
    "cost": ("fields", "value_bytes", "read_ms", "train_s", "auc"),
    "beyond": ("ece@popularity", "diversity@10", "p90_coverage@10"),
}
"""Metrics that stand for a task; of other tasks all do."""


@dataclass(frozen=True)
class TaskView:
    """What the page shows of a task.

    Attributes
    ----------
    name, question : str
    facts : str
        Seeds and time.
    metrics : sequence of MetricView
        Empty where it did not run.
    skipped : mapping of str to str
        Title of a model -> why it did not run.
    left_out : str
        Why the task did not run, or "".
    notes : sequence of str
        What a reader must know beside the figures.
    """

    name: str
    question: str
    facts: str
    metrics: Sequence[MetricView]
    skipped: Mapping[str, str]
    left_out: str
    notes: Sequence[str] = ()

    @property
    def has_bar(self) -> bool:
        """Whether a model among its baselines was trained for the task alone."""
        return any(row.kind == "bar" for view in self.metrics for row in view.rows)


@dataclass(frozen=True)
class Mark:
    """How the embedding compares to one model, and what tells more when it is pointed at."""

    text: str
    verdict: str
    tooltip: str


@dataclass(frozen=True)
class HeadlineCell:
    """One figure of the embedding on one group of users.

    Attributes
    ----------
    embedding : Cell
    marks : sequence of Mark
        Against the best rival, a model that like the embedding was not trained for the task alone,
        and against the best model that was.
    won, lost, n_rivals : int
        Over how many rivals the embedding is significantly better, and worse.
    """

    embedding: Cell
    marks: Sequence[Mark]
    won: int
    lost: int
    n_rivals: int


@dataclass(frozen=True)
class Headline:
    """A line of the summary: one metric of a task; ``cells`` by group, None where not measured."""

    task: str
    metric: str
    first: bool
    cells: Sequence[HeadlineCell | None]


def task_views(summary: Mapping[str, Any]) -> list[TaskView]:
    """Return the tasks of an evaluation, those that did not run last.

    Parameters
    ----------
    summary : mapping
        ``materialize.evaluate.summary.summarise``.
    """
    found = []
    for name, told in summary["tasks"].items():
        results = [r for r in summary["results"] if r["task"] == name]
        facts = ""
        if "left_out" not in told:
            seeds = len(told["seeds"])
            facts = f"{seeds} seed{'s' if seeds != 1 else ''}, {told['seconds']:,.0f} s"
        found.append(
            TaskView(
                name,
                task_question(name),
                facts,
                _cost_views(results)
                if name == _COST
                else [_metric_view(name, metric, rows) for metric, rows in by_metric(results)],
                {model_title(m): why for m, why in told.get("skipped", {}).items()},
                told.get("left_out", ""),
                list(_cost_notes(told.get("details", {}))) if name == _COST else [],
            )
        )
    return sorted(found, key=lambda view: bool(view.left_out))


def headlines(summary: Mapping[str, Any]) -> tuple[list[str], list[Headline]]:
    """Return the summary: titles of its groups of users, and its lines."""
    chosen = [
        (task, metric, by_group(rows, "model"))
        for task in summary["tasks"]
        for metric, rows in by_metric([r for r in summary["results"] if r["task"] == task])
        if metric in _HEADLINES.get(task, (metric,))
    ]
    groups = shown_groups({group: None for _, _, grouped in chosen for group in grouped})
    told: set[str] = set()
    lines = []
    for task, metric, grouped in chosen:
        cells = [_headline_cell(grouped.get(group, {})) for group in groups]
        if any(cells):
            lower = not next(iter(grouped.values()))[EMBEDDING]["higher_is_better"]
            title = metric_title(metric) + (_LOWER if lower else "")
            lines.append(Headline(task, title, task not in told, cells))
            told.add(task)
    return [group_title(group) for group in groups], lines


def _headline_cell(models: Mapping[str, Result]) -> HeadlineCell | None:
    if EMBEDDING not in models:
        return None
    others = {m: r for m, r in models.items() if m != EMBEDDING and r["value"] is not None}
    rivals = {m: r for m, r in others.items() if not is_bar(m)}
    bars = {m: r for m, r in others.items() if is_bar(m)}
    verdicts = [_verdict(r) for r in rivals.values()]
    marks = []
    for best, star in ((_best(rivals), ""), (_best(bars), " *")):
        if best is not None:
            cell = _cell(others[best])
            told = cell.note.removeprefix("embedding ")
            text = f"{told} on {model_title(best)}{star}"
            marks.append(Mark(text, cell.verdict, f"{cell.text}. {cell.tooltip}"))
    return HeadlineCell(
        Cell.of(models[EMBEDDING]),
        marks,
        verdicts.count("better"),
        verdicts.count("worse"),
        len(rivals),
    )


def _best(models: Mapping[str, Result]) -> str | None:
    if not models:
        return None
    sign = 1 if next(iter(models.values()))["higher_is_better"] else -1
    return max(models, key=lambda m: sign * models[m]["value"])


def _metric_view(task: str, metric: str, results: Sequence[Result]) -> MetricView:
    grouped = by_group(results, "model")
    groups = list(grouped)
    models = list(dict.fromkeys(r["model"] for r in results))
    models.sort(key=lambda m: (m != EMBEDDING, is_bar(m)))
    rows = []
    for model in models:
        kind = "own" if model == EMBEDDING else "bar" if is_bar(model) else ""
        found = [grouped[group].get(model) for group in groups]
        rows.append(
            Row(model_title(model, task), kind, [None if r is None else _cell(r) for r in found])
        )
    columns = [(group_title(g), _users(grouped[g])) for g in groups]
    lower = not results[0]["higher_is_better"]
    return MetricView(
        f"{task}-{metric}",
        metric_title(metric) + (_LOWER if lower else ""),
        columns,
        rows,
        _gains_figure(task, metric, grouped, [m for m in models if m != EMBEDDING]),
        ("Embedding minus" if task == _BEYOND else "Relative gain of the embedding over")
        + " each model, with 95% intervals"
        + (": less than zero is better here" if lower else "")
        + ("; dashed: the paper's highest, on its own data" if _beside_paper(task, metric) else ""),
    )


def _cost_views(results: Sequence[Result]) -> list[MetricView]:
    """Return one table with a row for each kind of cost, and their relative savings."""
    models = list(dict.fromkeys(r["model"] for r in results))
    rows, names, gains = [], [], []
    for metric, found in by_metric(results):
        by_model = {r["model"]: r for r in found}
        cells = [_cell(by_model[m]) if m in by_model else None for m in models]
        rows.append(Row(metric_title(metric), "", cells))
        against = [r["embedding_against"] for r in found if r["embedding_against"]]
        if against:
            names.append(metric_title(metric))
            gains.append(against[0]["gain"])
    if not rows:
        return []
    series = [Series("embedding against raw features", colours(1)[0], gains)]
    return [
        MetricView(
            _COST,
            "all costs",
            [("embedding" if m == EMBEDDING else "raw features", "") for m in models],
            rows,
            dots_figure(names, series, "embedding against raw features", percent=True)
            if names
            else None,
            "What the embedding adds or saves, with 95% intervals where there are repeats",
        )
    ]


def _cost_notes(details: Mapping[str, Any]) -> Iterator[str]:
    training, reads = details.get("training", {}), details.get("reads", {})
    if "raw_chosen" in training:
        quality = (
            "whose AUC is not significantly worse than the head's on the embedding"
            if training["equal_quality"]
            else "the best of them, though significantly worse than the head on the embedding"
        )
        yield f"The model on raw features is {training['raw_chosen']}, {quality}."
        tasks = training["break_even_tasks"]
        if tasks is not None:
            yield f"Training the encoder once is paid back by {tasks:,} downstream trainings."
    for name in ("online_left_out", "training_set_left_out"):
        if name in reads:
            yield f"Not measured: {reads[name]}"


def _beside_paper(task: str, metric: str) -> bool:
    return task == "future" and metric.removeprefix("kind_").startswith("auc@")


def _users(models: Mapping[str, Result]) -> str:
    n = max(r["n_users"] for r in models.values())
    return f"{n:,} users" if n else "no users"


def _gains_figure(
    task: str, metric: str, grouped: Mapping[str, Mapping[str, Result]], models: Sequence[str]
) -> dict[str, Any] | None:
    """Return the forest plot of relative gains; None where there is nothing to compare with."""
    groups = shown_groups(grouped)
    what = "difference" if task == _BEYOND else "gain"
    series = []
    for group, colour in zip(groups, colours(len(groups)), strict=True):
        compared = [grouped[group].get(m) for m in models]
        points = [r["embedding_against"][what] if r and r["embedding_against"] else None
                  for r in compared]  # fmt: skip
        if any(p and p["value"] is not None for p in points):
            series.append(Series(group_title(group), colour, points))
    if not series:
        return None
    marks = {}
    if _beside_paper(task, metric):
        marks = {
            f"paper, {group}: up to {gain:+.1%}": (gain, colours(len(groups))[groups.index(group)])
            for group, gain in PAPER_GAINS.items()
            if group in groups
        }
    names = [model_title(m, task) + (" *" if is_bar(m) else "") for m in models]
    if task == _BEYOND:
        return dots_figure(names, series, "embedding minus the other model")
    return dots_figure(names, series, "relative gain of the embedding", marks=marks, percent=True)


def _cell(result: Result) -> Cell:
    """Return a model's figure; of a baseline, with how the embedding compares to it."""
    against = result["embedding_against"]
    if against is None:
        return Cell.of(result)
    gain, difference = against["gain"]["value"], against["difference"]["value"]
    as_difference = gain is None or result["task"] == _BEYOND
    told = number(difference, sign=True) if as_difference else f"{gain:+.1%}"
    return Cell.of(
        result,
        note=f"embedding {told}",
        verdict=_verdict(result),
        tooltip=told_against(against, "Embedding minus this model"),
    )


def _verdict(result: Result) -> str:
    against = result["embedding_against"]
    return "open" if against is None else verdict(against, result["higher_is_better"])
