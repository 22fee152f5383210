from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from encoder.errors import EvaluationFault
from materialize.evaluate import probe as probe_module
from materialize.evaluate.checks import check_no_leak
from materialize.evaluate.labels import Labels
from materialize.evaluate.probe import run_probe
from materialize.evaluate.probe_results import ProbeReport
from materialize.evaluate.split import training_users

CUTOFF = np.datetime64("2024-03-10", "us")
TARGETS = ("jazz", "rock", "folk", "soul")


def planted(n: int = 1200, seed: int = 0) -> tuple[Labels, Any, Any, Any]:
    """Labels that follow a taste; an embedding that holds it, raw features that blur it."""
    rng = np.random.default_rng(seed)
    users = np.arange(n) // 2  # two rows a user
    taste = rng.standard_normal((n // 2, len(TARGETS)))[users]
    y = taste + 0.7 * rng.logistic(size=taste.shape) > np.array([0.0, 0.8, 1.2, 1.6])
    embedding = taste @ rng.standard_normal((4, 8)) + 0.1 * rng.standard_normal((n, 8))
    raw = np.hstack([taste[:, :2] + rng.standard_normal((n, 2)), rng.standard_normal((n, 20))])
    times = np.where(np.arange(n) % 2 == 0, CUTOFF, CUTOFF + np.timedelta64(1, "D"))
    labels = Labels(users, times, y, TARGETS, y.mean(axis=0), CUTOFF, 7)
    return labels, embedding.astype(np.float32), raw.astype(np.float32), times - 1


@pytest.fixture(scope="module")
def report() -> ProbeReport:
    labels, embedding, raw, as_of = planted()
    n_events = np.arange(len(raw)) % 40
    return run_probe(labels, embedding, raw, as_of=as_of, n_events=n_events, n_bootstrap=200)


def test_embedding_that_holds_the_taste_beats_both_baselines(report: ProbeReport) -> None:
    found = report.groups["all"]
    assert found.models["embedding"].auc_macro.value > 0.8
    for baseline in ("raw_pooled", "popularity"):
        difference = found.differences[baseline]
        assert difference.auc_macro.low > 0.03
        assert difference.auc_micro.low > 0.03
        expected = found.models["embedding"].auc_micro.value
        expected -= found.models[baseline].auc_micro.value
        assert difference.auc_micro.value == pytest.approx(expected)


def test_popularity_orders_targets_but_not_users(report: ProbeReport) -> None:
    found = report.groups["all"].models["popularity"]
    assert found.auc_macro.value == 0.5
    assert found.auc_micro.value > 0.6


def test_shuffled_control_is_at_chance(report: ProbeReport) -> None:
    assert report.control.low < 0.5 < report.control.high


def test_groups_hold_the_test_rows_with_so_many_events(report: ProbeReport) -> None:
    labels, *_ = planted()
    n_events = (np.arange(len(labels.user_id)) % 40)[~training_users(labels.user_id)]
    assert report.groups["all"].n_rows == len(n_events)
    assert report.groups["established"].n_rows == (n_events >= 20).sum()
    assert report.groups["cold"].n_rows == (n_events <= 10).sum()


def test_report_survives_json(report: ProbeReport) -> None:
    as_dict = report.to_dict()
    assert json.loads(json.dumps(as_dict, allow_nan=False)) == as_dict
    assert set(as_dict["groups"]["all"]["models"]) == {"embedding", "raw_pooled", "popularity"}
    assert [row["target"] for row in as_dict["per_target"]] == list(TARGETS)


def test_same_seed_gives_the_same_report(report: ProbeReport) -> None:
    labels, embedding, raw, as_of = planted()
    n_events = np.arange(len(raw)) % 40
    again = run_probe(labels, embedding, raw, as_of=as_of, n_events=n_events, n_bootstrap=200)
    assert again == report


def test_users_without_features_are_kept() -> None:
    labels, embedding, raw, as_of = planted()
    cold = np.arange(len(embedding)) % 5 == 0
    embedding[cold] = np.nan
    as_of[cold] = np.datetime64("NaT")
    found = run_probe(labels, embedding, raw, as_of=as_of, n_bootstrap=20)
    assert found.missing == {"embedding": int(cold.sum()), "raw_pooled": 0}
    assert found.groups["all"].n_rows == (~training_users(labels.user_id)).sum()
    complete = run_probe(*planted()[:3], as_of=as_of, n_bootstrap=20)
    macro = [r.groups["all"].models["embedding"].auc_macro.value for r in (found, complete)]
    assert 0.6 < macro[0] < macro[1]


def test_missingness_that_tells_the_label_is_used() -> None:
    labels, embedding, raw, as_of = planted()
    noise = np.random.default_rng(0).standard_normal(embedding.shape).astype(np.float32)
    noise[labels.y[:, 0]] = np.nan
    found = run_probe(labels, noise, raw, as_of=as_of, n_bootstrap=20)
    assert found.per_target[0]["embedding"] == 1.0


def test_labels_before_the_cutoff_are_refused() -> None:
    labels, embedding, raw, as_of = planted()
    early = labels.event_timestamp.copy()
    early[4] = CUTOFF - 1
    with pytest.raises(EvaluationFault, match=r"1 label time\(s\) lie before .* user .*2"):
        run_probe(
            dataclasses.replace(labels, event_timestamp=early), embedding, raw, as_of=as_of - 1
        )


def test_features_newer_than_the_label_are_refused_and_equal_ones_are_not() -> None:
    labels, embedding, raw, as_of = planted()
    as_of[6] = labels.event_timestamp[6]
    run_probe(labels, embedding, raw, as_of=as_of, n_bootstrap=2)
    as_of[6] += 1
    with pytest.raises(EvaluationFault, match=r"1 row.s. have features newer .* user .*3"):
        run_probe(labels, embedding, raw, as_of=as_of)


def test_a_user_on_both_sides_is_refused() -> None:
    labels, _, _, as_of = planted()
    training = training_users(labels.user_id)
    training[0] = ~training[0]
    with pytest.raises(EvaluationFault, match=r"1 user.s. are in training and test"):
        check_no_leak(labels, as_of, training)
    with pytest.raises(EvaluationFault, match=r"0 training and 1200 test row"):
        check_no_leak(labels, as_of, np.zeros(1200, bool))


def test_rows_that_do_not_fit_are_refused() -> None:
    labels, embedding, raw, as_of = planted()
    with pytest.raises(EvaluationFault, match=r"embedding of shape \(1199, 8\) given"):
        run_probe(labels, embedding[1:], raw, as_of=as_of)
    raw[10, 3] = np.nan
    with pytest.raises(EvaluationFault, match=r"raw_pooled: 1 row.*user .*5.*element 3"):
        run_probe(labels, embedding, raw, as_of=as_of)


def test_labels_of_one_class_are_refused() -> None:
    labels, embedding, raw, as_of = planted()
    constant = dataclasses.replace(labels, y=np.ones_like(labels.y))
    with pytest.raises(EvaluationFault, match=r"No target has both classes among the .* training"):
        run_probe(constant, embedding, raw, as_of=as_of)


def test_control_that_beats_chance_stops_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    # The fault it exists for: an evaluation in which labels reach the features anyway. Here the
    # shuffle is broken, so that the control still sees the true labels.
    monkeypatch.setattr(probe_module, "_shuffled_within", lambda y, training, seed: y)
    labels, embedding, raw, as_of = planted()
    with pytest.raises(EvaluationFault, match=r"shuffled labels .* macro AUC 0\.8"):
        run_probe(labels, embedding, raw, as_of=as_of, n_bootstrap=50)
