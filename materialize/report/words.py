"""What names of tasks, metrics, groups and models mean, for tables and plots."""

from __future__ import annotations

import re

from materialize.evaluate.measurement import EMBEDDING
from materialize.evaluate.models.registry import MODELS
from materialize.evaluate.tasks import TASKS

__all__ = ["group_title", "is_bar", "metric_title", "model_title", "number", "task_question"]

_GROUPS = {
    "all": "all users",
    "established": "established (20 or more events)",
    "cold": "cold start (10 events or fewer)",
    "newcomer": "first four hours",
    "newcomer_onboarded": "first four hours, onboarding done",
    "newcomer_skipped": "first four hours, onboarding skipped",
}

_SAMPLINGS = {"popularity": "drawn by popularity", "uniform": "drawn uniformly"}

_WITH_HEAD = {"future", "ranking", "beyond"}
"""Tasks in which vectors are read by the light head; elsewhere they stand for themselves."""

# (pattern of the whole name, what it means); groups of the pattern fill the text.
_METRICS: tuple[tuple[str, str], ...] = (
    (r"auc@(\w+)", "AUC over all pairs, negatives {sampling}"),
    (r"auc_row@(\w+)", "AUC inside a user's pairs, mean over users, negatives {sampling}"),
    (r"accuracy@(\w+)", "balanced accuracy, negatives {sampling}"),
    (r"auc_micro", "AUC over all pairs of user and kind of item"),
    (r"auc_macro", "AUC, mean over kinds of item"),
    (r"ece@(\w+)", "expected calibration error, negatives {sampling}"),
    (r"diversity@(\d+)", "diversity of a list of {0}: mean distance of its items' tags"),
    (r"novelty@(\d+)", "novelty of a list of {0}, bits"),
    (r"miscalibration@(\d+)", "tags of a list of {0} against those of the user's past, bits apart"),
    (r"coverage@(\d+)", "share of the items that anybody gets, lists of {0}"),
    (r"p90_coverage@(\d+)", "share of the items that fills 90% of the places, lists of {0}"),
    (r"gini@(\d+)", "how unequally places go to items (Gini), lists of {0}"),
    (r"top_exposure@(\d+)", "share of the exposure of the most popular tenth, lists of {0}"),
    (r"exposure_gap_(\w+)@(\d+)", "exposure against consumption by {0}: total variation"),
    (r"ndcg_gap@(\d+)_(\w+)", "nDCG@{0}: gap between groups by {1}"),
    (r"least_ndcg@(\d+)_(\w+)", "nDCG@{0} of the worst served group by {1}"),
    (r"fields", "features of a request"),
    (r"numbers", "numbers and texts of a user's features"),
    (r"value_bytes", "bytes of a user's values in the online store"),
    (r"read_ms", "milliseconds to read 100 users online"),
    (r"training_set_s", "seconds to read a training set, point-in-time"),
    (r"model_numbers", "inputs of the downstream model"),
    (r"parameters", "weights of the downstream model"),
    (r"train_s", "seconds to train the downstream model"),
    (r"auc", "AUC of the downstream model (higher is better)"),
    (r"ndcg@(\d+)_(\w+)", "nDCG of the {0} nearest users: do they share {1}?"),
    (r"p90_coverage@(\d+)_items", "share of the items that fills 90% of top-{0} lists"),
    (r"p90_coverage@(\d+)_users", "share of the users who fill 90% of the {0} nearest"),
    (r"recall@(\d+)", "recall of new items among the first {0}"),
    (r"ndcg@(\d+)", "nDCG of new items among the first {0}"),
    (r"churn_auroc", "churn: AUROC"),
    (r"(\w+)_auroc", "{0} propensity: AUROC, mean over targets"),
    (r"(\w+)_novelty", "{0} propensity: novelty of the first ten"),
    (r"(\w+)_diversity", "{0} propensity: diversity of the predicted shares"),
    (r"(\w+)_score", "{0} propensity: 0.8 AUROC + 0.1 novelty + 0.1 diversity"),
)


def task_question(task: str) -> str:
    """Return what a task asks, its name where it is unknown."""
    return TASKS[task].question if task in TASKS else _plain(task)


def model_title(model: str, task: str = "") -> str:
    """Return a model's title in a task's table.

    Examples
    --------
    >>> model_title("coles", "future"), model_title("coles", "clusters")
    ('CoLES, light head', 'CoLES')
    """
    if model == EMBEDDING:
        return "Embedding"
    title = MODELS[model].title if model in MODELS else _plain(model).capitalize()
    return title if task in _WITH_HEAD else title.removesuffix(", light head")


def is_bar(model: str) -> bool:
    """Return whether a model was trained end to end for one task: the bar, not a rival in kind."""
    return model != EMBEDDING and model in MODELS and MODELS[model].task_specific


def group_title(group: str) -> str:
    """Return who is in a group of users."""
    return _GROUPS.get(group, _plain(group))


def metric_title(metric: str) -> str:
    """Return what a metric measures.

    Examples
    --------
    >>> metric_title("recall@10"), metric_title("kind_auc@uniform")
    ('recall of new items among the first 10', 'kinds of item: AUC over all pairs, negatives drawn \
uniformly')
    """
    if metric.startswith("kind_"):
        return f"kinds of item: {metric_title(metric.removeprefix('kind_'))}"
    for pattern, text in _METRICS:
        found = re.fullmatch(pattern, metric)
        if found:
            sampling = _SAMPLINGS.get(found.group(1), found.group(1)) if found.groups() else ""
            return text.format(*map(_plain, found.groups()), sampling=sampling)
    return _plain(metric)


def number(value: float | None, *, sign: bool = False) -> str:
    """Return a figure with as many digits as a reader needs.

    Examples
    --------
    >>> number(0.71234), number(0.00421), number(52.37), number(12345.6), number(487.0)
    ('0.712', '0.0042', '52.4', '12,346', '487')
    >>> number(0.031, sign=True)
    '+0.031'
    """
    if value is None:
        return "undefined"
    plus = "+" if sign else ""
    size = abs(value)
    if size == 0.0:
        return "0"
    if value == int(value):
        return format(int(value), f"{plus},")
    if size < 0.01:
        return format(value, f"{plus}.2g")
    if size < 10:
        return format(value, f"{plus}.3f")
    return format(value, f"{plus}.1f" if size < 1_000 else f"{plus},.0f")


def _plain(name: str) -> str:
    # Columns of the profile and of the context are named by their view.
    return re.sub(r"^(profile|context)_+", "", name).replace("_", " ").strip()
