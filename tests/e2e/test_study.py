"""Studies of simulated listeners: trained and judged for real, killed, and gone on with."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from encoder.artifact import EncoderArtifact
from materialize.cli import main
from materialize.config import RepoSettings
from materialize.evaluate.cohort_build import build_cohort
from materialize.evaluate.run import measure_units
from materialize.study import run as running
from materialize.study.fit import Unit, fit_unit
from materialize.study.plan import Judging, StudyPlan, plan_study
from materialize.study.run import read_study, run_study, study_path
from materialize.study.studies import STUDIES, find_study
from materialize.study.variant import Variant
from tests.e2e.conftest import Story

JUDGING = Judging(("probe",), max_rows=2_000, n_resamples=50)
VARIANTS = ("no_7d", "no_profile")


@pytest.fixture(scope="module")
def settings(story: Story) -> RepoSettings:
    """Of the story's repository; what studies leave there is nobody else's."""
    return story.context.settings


def _plan(
    story: Story,
    study: str,
    variants: tuple[str, ...],
    seeds: tuple[int, ...],
    max_training_rows: int = 500_000,
) -> StudyPlan:
    return plan_study(
        story.context.store,
        story.context.settings,
        study,
        variants=variants,
        seeds=seeds,
        judging=JUDGING,
        max_training_rows=max_training_rows,
    )


def _without_times(summary: dict[str, Any]) -> dict[str, Any]:
    for variant in summary["variants"]:
        assert variant.pop("seconds") > 0
    return summary


@pytest.fixture(scope="module")
def ablated(story: Story, settings: RepoSettings) -> dict[str, Any]:
    plan = _plan(story, "ablations", VARIANTS, (0,))
    summary = run_study(settings, plan, progress=False)
    assert read_study(settings, "ablations") == summary
    # What only the trainings needed is gone.
    assert not plan.rows.folder.exists()
    return summary


def test_a_study_compares_each_variant_with_the_default(ablated: dict[str, Any]) -> None:
    summary = ablated
    assert [variant["name"] for variant in summary["variants"]] == ["default", *VARIANTS]
    rows = [r for r in summary["results"] if (r["metric"], r["group"]) == ("auc_micro", "all")]
    assert [row["variant"] for row in rows] == ["default", *VARIANTS]
    for row in rows[1:]:
        against = row["against_default"]["difference"]
        assert against["value"] == pytest.approx(row["value"] - rows[0]["value"])
        assert against["low"] <= against["value"] <= against["high"]


def test_a_variant_reads_fewer_inputs_and_makes_no_space(
    ablated: dict[str, Any], story: Story
) -> None:
    default, no_week, no_profile = ablated["variants"]
    assert no_week["n_inputs"] < default["n_inputs"]
    assert no_profile["n_inputs"] < default["n_inputs"]
    assert default["training_rows"] == no_week["training_rows"]
    versions = {v for variant in ablated["variants"] for v in variant["encoder_versions"]}
    assert len(versions) == 3
    # The default variant is what `palate train` trained, to the bit; the others are no spaces.
    assert default["encoder_versions"] == [story.space.encoder_version]
    assert [s.encoder_version for s in story.context.ledger.spaces()] == default["encoder_versions"]


def test_a_variant_without_a_block_cannot_tell_users_apart_by_it(story: Story) -> None:
    plan = _plan(story, "ablations", ("no_profile",), (0,), max_training_rows=300_000)
    (default, without) = (fit_unit(unit, plan.rows, plan.config) for unit in plan.units)
    cohort = build_cohort(story.context.settings, max_rows=500, progress=False)
    profile = [name for name in cohort.raw.column_names if name.startswith("user_profile__")]
    assert profile
    order = np.roll(np.arange(len(cohort)), 1)
    swapped = cohort.raw
    for name in profile:
        column = cohort.raw.column(name).take(order)
        swapped = swapped.set_column(swapped.column_names.index(name), name, column)
    strangers = replace(cohort, raw=swapped)  # everybody with a stranger's demographics
    assert np.array_equal(cohort.encode(without), strangers.encode(without))
    assert not np.array_equal(cohort.encode(default), strangers.encode(default))
    shutil.rmtree(plan.rows.folder)


def test_a_killed_study_goes_on_and_ends_with_the_same_summary(
    ablated: dict[str, Any],
    story: Story,
    settings: RepoSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = _without_times(json.loads(json.dumps(ablated)))
    study_path(settings, "ablations").unlink()
    # A limit that no data set here reaches, and another folder: nothing is finished in it.
    plan = _plan(story, "ablations", VARIANTS, (0,), max_training_rows=400_000)
    trained: list[str] = []

    def killed(*args: Any, **kwargs: Any) -> Any:
        if len(trained) == 2:  # the second unit is trained, and not judged
            raise KeyboardInterrupt
        return measure_units(*args, **kwargs)

    def told(unit: Unit, *args: Any) -> EncoderArtifact:
        trained.append(unit.name)
        return fit_unit(unit, *args)

    monkeypatch.setattr(running, "fit_unit", told)
    with monkeypatch.context() as patch:
        patch.setattr(running, "measure_units", killed)
        with pytest.raises(KeyboardInterrupt):
            run_study(settings, plan, progress=False)
    assert read_study(settings, "ablations") is None
    assert [unit.name for unit in plan.to_do()] == ["no_7d.s0", "no_profile.s0"]
    checkpoint = plan.rows.folder / "training" / "no_7d.s0" / "checkpoint"
    assert list(checkpoint.glob("checkpoint*"))
    summary = run_study(settings, plan, progress=False)
    # The default was not trained again, the second went on where it was.
    assert trained == ["default.s0", "no_7d.s0", "no_7d.s0", "no_profile.s0"]
    assert _without_times(summary) == expected


def test_another_seed_adds_to_what_is_there(
    ablated: dict[str, Any], story: Story, settings: RepoSettings
) -> None:
    plan = _plan(story, "ablations", ("no_7d",), (0, 1))
    assert {unit.name for unit in plan.to_do()} <= {"default.s1", "no_7d.s1"}
    summary = run_study(settings, plan, progress=False)
    seeds = {variant["name"]: variant["seeds"] for variant in summary["variants"]}
    assert seeds == {"default": [0, 1], "no_7d": [0, 1], "no_profile": [0]}


def test_an_aged_encoder_knows_fewer_rows_and_its_drift_is_told(
    story: Story, settings: RepoSettings
) -> None:
    summary = run_study(settings, _plan(story, "cadence", ("age-30d",), (0,)), progress=False)
    default, aged = summary["variants"]
    assert aged["training_rows"] < default["training_rows"]
    (drift,) = summary["drift"]
    assert (drift["variant"], drift["days"]) == ("age-30d", 30)
    assert 0 <= drift["unchanged"] < 1
    assert drift["cosine"]["low"] <= drift["cosine"]["value"] <= 1
    assert drift["two_sample_auc"]["value"] > 0.4


def test_an_age_that_the_data_hardly_reach_is_left_out_with_the_reason(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 200 days of data, cut off three weeks before their end: none of them is 1,000 days old.
    ages = [Variant("age-7d", "7 days", age_days=7), Variant("age-1000d", "!", age_days=1000)]
    study = replace(find_study("cadence"), make=lambda *_: ages)
    monkeypatch.setitem(STUDIES, "cadence", study)
    plan = _plan(story, "cadence", (), (0,))
    assert [unit.variant.name for unit in plan.units] == ["default", "age-7d"]
    assert "training rows are so old" in plan.left_out["age-1000d"]
    with pytest.raises(ValueError, match=r"'age-1000d' cannot be trained here: \d+ of"):
        _plan(story, "cadence", ("age-1000d",), (0,))


def _palate(story: Story, *arguments: object) -> Result:
    line = ["study", *arguments, "--repo", story.repo]
    return CliRunner().invoke(main, [str(a) for a in line])


def test_the_plan_is_printed_and_nothing_is_written(story: Story) -> None:
    result = _palate(story, "run", "hidden", "--seeds", 3, "--dry-run", "--task", "probe")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    n_variants = len(plan["variants"])
    assert (plan["units"], plan["units_to_do"]) == (3 * n_variants, 3 * n_variants)
    assert plan["estimated_minutes"] >= 0
    assert plan["training_rows"] > 0
    assert not Path(plan["folder"]).exists()


@pytest.mark.parametrize(
    ("arguments", "choices"),
    [
        (("run", "nope"), ["ablations", "seeds"]),
        (("show", "nope"), ["ablations", "seeds"]),
        (("run", "hidden", "--variant", "huge"), ["default", "1024-512"]),
        (("run", "hidden", "--task", "nope"), ["probe", "clusters"]),
        (("run", "hidden", "--task", "cost"), ["palate evaluate"]),
    ],
)
def test_what_is_not_known_is_refused_with_the_choices(
    story: Story, arguments: tuple[str, ...], choices: list[str]
) -> None:
    result = _palate(story, *arguments)
    assert result.exit_code == 2
    assert [choice for choice in choices if choice not in result.output] == []


def test_show_prints_tables_or_says_what_to_run(
    ablated: dict[str, Any], story: Story, settings: RepoSettings
) -> None:
    shown = _palate(story, "show", "ablations", "--metric", "auc_micro", "--group", "all")
    assert shown.exit_code == 0, shown.output
    assert "| without window of 7 days |" in shown.stdout
    assert shown.stdout.count("| variant |") == 1
    missing = _palate(story, "show", "weighting")
    assert missing.exit_code == 1
    assert "palate study run weighting" in missing.stderr
    assert study_path(settings, "ablations").exists()


def test_list_shows_studies_and_the_variants_of_this_data_set(story: Story) -> None:
    assert find_study("cadence").question in _palate(story, "list").stdout
    assert "no_onboarding" in _palate(story, "list", "ablations").stdout
