"""A study's summary and tables, on figures whose answer is known."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from materialize.evaluate.measurement import EMBEDDING, Measurement
from materialize.study.summary import VariantResult, summarise
from materialize.study.table import markdown
from materialize.study.variant import Variant

FACTS = {
    "study": "dimensions",
    "question": "How long must the embedding be?",
    "axis": "numbers",
    "command": "palate study run dimensions",
    "dataset": "planted",
    "cohort": {"cutoff": "2026-01-01T00:00:00", "horizon_days": 7},
    "drift": [],
    "left_out": {},
}
NOISE = np.random.default_rng(0).standard_normal(999) * 0.01


def _measured(seed: int, value: float, extra: float = 0.0) -> Measurement:
    replicates = value + NOISE + extra * np.sign(NOISE)
    return Measurement("probe", "auc", "all", EMBEDDING, seed, value, replicates, 50, 80)


def _result(name: str, values: dict[int, float], **variant: Any) -> VariantResult:
    facts = {
        "embedding_dim": 8,
        "n_inputs": 20,
        "n_parameters": 100,
        "training_rows": 1000,
        "epochs": 3,
        "validation_loss": 0.5,
        "seconds": 2.0,
        "encoder_version": "abc",
    }
    training = {seed: facts for seed in values}
    return VariantResult(
        Variant(name, f"{name}!", **variant),
        training,
        [_measured(seed, value) for seed, value in values.items()],
    )


def _row(summary: dict[str, Any], variant: str) -> dict[str, Any]:
    (row,) = [row for row in summary["results"] if row["variant"] == variant]
    return dict(row)


def test_a_difference_is_paired_over_users_and_common_seeds() -> None:
    summary = summarise(
        FACTS,
        [_result("default", {0: 0.70, 1: 0.72}), _result("30d", {1: 0.69, 2: 0.9}, x=30)],
    )
    row = _row(summary, "30d")
    assert row["value"] == pytest.approx(0.795)  # (.69 + .9) / 2
    # Seed 1 is common: .69 - .72. Both have the same noise, so there is no width.
    difference = row["against_default"]["difference"]
    assert [difference[k] for k in ("value", "low", "high")] == pytest.approx([-0.03] * 3)
    assert row["against_default"]["gain"]["value"] == pytest.approx(0.69 / 0.72 - 1)
    assert row["against_default"]["p"] == pytest.approx(2 / 1000)
    assert _row(summary, "default")["against_default"] is None


def test_the_default_is_shown_with_the_seeds_that_others_have() -> None:
    default = _result("default", {0: 0.70, 1: 0.72, 2: 0.78})
    summary = summarise(FACTS, [default, _result("30d", {0: 0.69, 1: 0.69})])
    assert _row(summary, "default")["value"] == pytest.approx(0.71)  # (.70 + .72) / 2
    assert summary["variants"][0]["seeds"] == [0, 1]
    alone = summarise(FACTS, [default])
    assert _row(alone, "default")["value"] == pytest.approx(2.2 / 3)


def test_p_is_corrected_for_all_variants() -> None:
    others = [_result(f"{k}d", {0: 0.6}) for k in range(4)]
    summary = summarise(FACTS, [_result("default", {0: 0.7}), *others])
    assert _row(summary, "2d")["against_default"]["p_holm"] == pytest.approx(4 * 2 / 1000)


def test_an_unfinished_variant_is_left_out_and_the_rest_is_json() -> None:
    summary = summarise(FACTS, [_result("default", {0: 0.7}), _result("30d", {})])
    assert [variant["name"] for variant in summary["variants"]] == ["default"]
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_what_is_written_of_a_variant_is_what_is_read() -> None:
    changed = _result("x", {0: 0.7}, drop=("a", "b"), drop_elements={"c": (0, 1)})
    (told,) = summarise(FACTS, [changed])["variants"]
    assert told["changes"] == {"drop": ["a", "b"], "drop_elements": {"c": [0, 1]}}


def test_changes_tell_what_a_variant_changes_and_nothing_else() -> None:
    summary = summarise(
        FACTS,
        [_result("default", {0: 0.7}), _result("30d", {0: 0.7}, model={"embedding_dim": 30}, x=30)],
    )
    default, other = summary["variants"]
    assert default["changes"] == {}
    assert other["changes"] == {"model": {"embedding_dim": 30}}
    assert other["x"] == 30


def test_what_is_not_defined_is_none_and_shown_as_such() -> None:
    result = _result("30d", {0: float("nan")})
    summary = summarise(FACTS, [_result("default", {0: 0.7}), result])
    assert _row(summary, "30d")["value"] is None
    assert "| 30d! | 20 | not defined | not defined |" in markdown(summary)


def test_the_table_shows_interval_difference_and_corrected_p() -> None:
    summary = summarise(FACTS, [_result("default", {0: 0.7}), _result("30d", {0: 0.65})])
    table = markdown(summary, digits=2)
    assert "| default! | 20 | 0.70 [0.68, 0.72] |  |  |" in table
    assert "| 30d! | 20 | 0.65 [0.63, 0.67] | -0.05 [-0.05, -0.05] | 0.002 |" in table
    assert "| over seeds |" not in table


def test_three_seeds_get_a_standard_deviation() -> None:
    summary = summarise(FACTS, [_result("default", {0: 0.70, 1: 0.71, 2: 0.72})])
    assert _row(summary, "default")["seed_spread"] == pytest.approx(0.01)
    assert "±0.010 |" in markdown(summary)


def test_drift_gets_a_table() -> None:
    figure = {"value": 0.6, "low": 0.55, "high": 0.65}
    drift = {"variant": "age-7d", "seed": 0, "days": 7, "users": 1200, "unchanged": 0.25}
    drift |= {"two_sample_auc": figure, "cosine": figure}
    results = [_result("default", {0: 0.7}), _result("age-7d", {0: 0.7}, age_days=7, x=7)]
    summary = {**summarise(FACTS, results), "drift": [drift]}
    expected = "| age-7d! | 0 | 1,200 | 25% | 0.600 [0.550, 0.650] | 0.600 [0.550, 0.650] |"
    assert expected in markdown(summary)


def test_what_was_left_out_is_told_with_its_reason() -> None:
    facts = {**FACTS, "left_out": {"age-90d": "3 of 900 training rows are so old."}}
    table = markdown(summarise(facts, [_result("default", {0: 0.7})]))
    assert table.endswith("Left out: age-90d. 3 of 900 training rows are so old.\n")


def test_a_metric_or_group_that_is_not_there_is_refused_with_the_choices() -> None:
    summary = summarise(FACTS, [_result("default", {0: 0.7})])
    with pytest.raises(ValueError, match=r"no metric 'ndcg'\. It has: auc"):
        markdown(summary, metrics=["ndcg"])
    with pytest.raises(ValueError, match=r"no group 'cold'\. It has: all"):
        markdown(summary, groups=["cold"])
