"""Evaluations, studies and drift as tables and plots."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
import pytest

from materialize.evaluate.tasks import TASKS
from materialize.report.details import exposure_figure, group_figures, reliability_figures
from materialize.report.judged import PAPER_GAINS, headlines, task_views
from materialize.report.moved import drift_view
from materialize.report.studied import study_views
from materialize.report.tables import MetricView, shown_groups, verdict
from materialize.report.theme import scale
from materialize.report.words import group_title, metric_title, model_title, number
from tests.unit.materialize.lineage_records import bridge, record
from tests.unit.materialize.report_records import evaluation, study


def _view(views: Any, key: str) -> MetricView:
    (found,) = (view for task in views for view in task.metrics if view.key == key)
    assert isinstance(found, MetricView)
    return found


def _result(summary: dict[str, Any], **wanted: str) -> dict[str, Any]:
    (found,) = (r for r in summary["results"] if all(r[k] == v for k, v in wanted.items()))
    return dict(found)


# --- evaluations


def test_a_task_has_a_row_for_each_model_and_a_column_for_each_group() -> None:
    summary = evaluation()
    view = _view(task_views(summary), "future-auc@popularity")
    assert [row.kind for row in view.rows] == ["own", "", "", "", "bar"]
    assert view.rows[0].title == "Embedding"
    assert view.columns[0] == ("all users", "1,200 users")
    for row, model in zip(view.rows, ("embedding", "mean_vectors", "popularity"), strict=False):
        for cell, group in zip(row.cells, ("all", "established", "cold"), strict=True):
            result = _result(summary, metric="auc@popularity", group=group, model=model)
            assert cell is not None
            assert cell.value == result["value"]
            assert cell.interval == f"{result['low']:.3f} to {result['high']:.3f}"


def test_the_forest_plot_shows_relative_gains_beside_the_papers() -> None:
    summary = evaluation()
    figure = _view(task_views(summary), "future-auc@popularity").figure
    assert figure is not None
    names = figure["layout"]["yaxis"]["ticktext"]
    cold = next(t for t in figure["data"] if t["name"].startswith("cold"))
    gains = {names[round(y)]: x for x, y in zip(cold["x"], cold["y"], strict=True)}
    for model, title in (("popularity", "Popularity"), ("raw", "Network on raw features *")):
        against = _result(summary, metric="auc@popularity", group="cold", model=model)
        assert gains[title] == against["embedding_against"]["gain"]["value"]
    marks = {t["name"]: t["x"] for t in figure["data"] if t["mode"] == "lines"}
    assert marks == {
        "paper, established: up to +15.2%": [PAPER_GAINS["established"]] * 2,
        "paper, cold: up to +26.2%": [PAPER_GAINS["cold"]] * 2,
    }


def test_the_summary_names_the_best_rival_and_counts_those_that_were_beaten() -> None:
    summary = evaluation()
    groups, lines = headlines(summary)
    assert groups == [group_title(group) for group in ("all", "established", "cold")]
    line = lines[0]
    assert (line.task, line.metric) == ("future", metric_title("auc@popularity"))
    cell = line.cells[0]
    assert cell is not None
    own = _result(summary, metric="auc@popularity", group="all", model="embedding")
    assert cell.embedding.text == number(own["value"])
    # Rivals .66, .5 and .712 against .71: two are beaten, the third is too close to tell.
    assert (cell.won, cell.lost, cell.n_rivals) == (2, 0, 3)
    rival, bar = cell.marks
    assert (rival.text, rival.verdict) == ("-0.3% on Matrix factorisation (ALS)", "open")
    assert (bar.text, bar.verdict) == ("-2.7% on Network on raw features *", "worse")
    assert [line.first for line in lines if line.task == "future"] == [True, False]


@pytest.mark.parametrize(
    ("value", "p", "higher", "expected"),
    [
        (0.1, 0.01, True, "better"),
        (0.1, 0.01, False, "worse"),
        (-0.1, 0.01, False, "better"),
        (0.1, 0.05, True, "open"),
        (0.1, None, True, "open"),
        (None, None, True, "open"),
    ],
)
def test_only_what_is_significant_after_correction_is_better_or_worse(
    value: float | None, p: float | None, higher: bool, expected: str
) -> None:
    assert verdict({"difference": {"value": value}, "p_holm": p}, higher) == expected


def test_costs_stand_in_one_table_with_what_the_embedding_saves() -> None:
    summary = evaluation()
    (view,) = next(task for task in task_views(summary) if task.name == "cost").metrics
    assert view.columns == [("embedding", ""), ("raw features", "")]
    assert [cell.value for cell in view.rows[0].cells if cell] == [
        _result(summary, metric="read_ms", model=model)["value"] for model in ("embedding", "raw")
    ]
    cell = view.rows[0].cells[1]
    assert cell is not None
    assert (cell.note, cell.verdict) == ("embedding -81.2%", "better")  # 1.2 ms against 6.4


def test_what_did_not_run_is_told_with_its_reason() -> None:
    views = {view.name: view for view in task_views(evaluation("too few users"))}
    assert views["ranking"].left_out == "too few users"
    assert views["future"].skipped == {"CoLES": "too few users"}


def test_details_are_plots_with_every_model() -> None:
    summary = evaluation()
    figure = reliability_figures(summary)["uniform"]
    (own,) = (trace for trace in figure["data"] if trace["name"] == "Embedding")
    assert own["x"][0] == pytest.approx(0.05)
    assert own["y"][0] == pytest.approx(0.08)
    exposure = exposure_figure(summary)
    assert exposure is not None
    assert exposure["data"][-1]["y"][9] == pytest.approx(0.2)
    assert list(group_figures(summary)) == ["gender"]
    assert reliability_figures({"tasks": {}}) == group_figures({"tasks": {}}) == {}
    assert exposure_figure({"tasks": {}}) is None


def test_every_metric_of_the_tasks_has_words() -> None:
    told = [metric_title(name) for name in (
        "auc@popularity", "auc_row@uniform", "kind_accuracy@uniform", "ndcg@50_taste", "recall@10",
        "p90_coverage@10_items", "churn_auroc", "item_score", "ece@uniform", "gini@10",
        "ndcg_gap@10_age", "exposure_gap_tags@10", "read_ms",
    )]  # fmt: skip
    assert not [text for text in told if "@" in text.replace("nDCG@10", "") or "_" in text]
    assert metric_title("quite_new") == "quite new"
    assert model_title("quite_new", "future") == "Quite new"
    assert set(TASKS) >= {view.name for view in task_views(evaluation())}


# --- studies


def test_a_study_with_an_axis_is_a_line_plot_in_its_order() -> None:
    summary = study()
    (view,) = study_views([summary])[0].metrics
    assert view.figure is not None
    line = view.figure["data"][0]
    assert line["x"] == [30.0, 120.0, 240.0]
    values = {r["variant"]: r["value"] for r in summary["results"] if r["group"] == "all"}
    assert line["y"] == [values["30d"], values["default"], values["240d"]]


def test_a_study_without_an_axis_is_a_forest_plot_of_differences_to_the_default() -> None:
    summary = study("ablations", None)
    (view,) = study_views([summary])[0].metrics
    assert [row.kind for row in view.rows] == ["own", "", ""]
    cell = view.rows[1].cells[0]
    assert cell is not None
    assert (cell.note, cell.verdict) == ("-0.060", "worse")
    assert view.figure is not None
    dots = view.figure["data"][0]
    names = view.figure["layout"]["yaxis"]["ticktext"]
    assert names == ["240 numbers", "30 numbers"]
    expected = _result(summary, group="all", variant="30d")["against_default"]["difference"]
    assert dots["x"][0] == expected["value"]
    assert dots["error_x"]["arrayminus"][0] == pytest.approx(expected["value"] - expected["low"])


# --- drift


def test_bridges_and_runs_are_rows_of_dots() -> None:
    interval = {"value": 0.9, "low": 0.8, "high": 0.95}
    run = {
        "run_id": "07854a39cb1f7051",
        "cosine": {"mean": interval, "p5": 0.5},
        "two_sample_auc": interval,
        "as_of_gap_days": {"median": 7.0, "max": 8.0},
    }
    failed = {"run_id": "1" * 16, "not_measured": "too few users"}
    loss = {"bridged": interval}
    measured = bridge(3, 2)
    measured["figures"] = {**measured["figures"], "probe": {"loss": loss}}
    found = drift_view(record(3, bridges=[measured], drift=[run, failed]))
    assert found.between_spaces is not None
    assert found.between_spaces["layout"]["yaxis"]["ticktext"] == ["space 3 read as 2: cosine"]
    before, after = found.between_spaces["data"]
    assert (before["x"], after["x"]) == ([], [0.93])
    ((title, raw, bridged),) = found.old_heads
    assert (title, raw, bridged.value) == ("space 3 read as 2", None, 0.9)
    assert found.between_runs is not None
    assert found.between_runs["layout"]["yaxis"]["ticktext"] == ["07854a39cb, 7.0 days on"]
    assert list(found.not_measured) == [f"{'1' * 16}: too few users"]


def test_a_space_alone_has_no_drift() -> None:
    found = drift_view(record(3))
    assert (found.between_spaces, found.between_runs) == (None, None)


def test_figures_of_views_are_valid_for_plotly() -> None:
    views = [*task_views(evaluation()), *study_views([study(), study("ablations", None)])]
    plots = [view.figure for shown in views for view in shown.metrics]  # type: ignore[attr-defined]
    drift = study_views([study()])[0].drift
    for figure in (*plots, drift, *reliability_figures(evaluation()).values()):
        assert figure is not None
        assert len(go.Figure(figure).data) == len(figure["data"])


def test_newcomers_are_shown_by_onboarding_where_it_is_known() -> None:
    groups = dict.fromkeys(("cold", "newcomer", "newcomer_skipped", "newcomer_onboarded", "all"))
    assert shown_groups(groups) == ["all", "cold", "newcomer_onboarded", "newcomer_skipped"]
    assert shown_groups({"newcomer": None, "other": None}) == ["newcomer"]


def test_a_scale_has_as_many_colours_as_values() -> None:
    assert len(set(scale(7))) == 7
    assert len(scale(1)) == 1
