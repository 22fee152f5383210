"""Units, and an evaluation that is killed and goes on, on a planted cohort."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from encoder.artifact import EncoderArtifact
from encoder.errors import EvaluationFault
from encoder.resampling import mean_replicates, user_draws
from materialize.evaluate.cohort import Cohort
from materialize.evaluate.measurement import EMBEDDING, Measurement
from materialize.evaluate.run import chosen_tasks, measure_units
from materialize.evaluate.summary import summarise, with_earlier_tasks
from materialize.evaluate.task import Progress
from materialize.evaluate.tasks import TASKS, TaskEntry
from materialize.evaluate.units import Unit, read_unit, unit_path, write_unit
from tests.cohorts import tiny_cohort


class Spread:
    """A task in earnest, and quick: the mean length of embeddings on resampled users."""

    def __init__(self, name: str, stop_after: int | None = None) -> None:
        self.name, self.stop_after, self.calls = name, stop_after, 0

    def unavailable(self, cohort: Cohort) -> str | None:
        return None

    def measure(
        self,
        cohort: Cohort,
        encoder: EncoderArtifact,
        seed: int,
        *,
        models: Sequence[str] | None,
        n_resamples: int,
        progress: Progress,
    ) -> list[Measurement]:
        if self.calls == self.stop_after:
            raise KeyboardInterrupt
        self.calls += 1
        draws = user_draws(cohort.user_id, n_resamples)
        noise = np.random.default_rng(seed).standard_normal(len(cohort))
        length = np.linalg.norm(cohort.encode(encoder), axis=1)
        progress.skip("other", "not here")
        progress.detail("seed", seed)
        progress.step("done")
        return [
            Measurement.of(
                mean_replicates(values, draws),
                draws,
                task=self.name,
                metric="length",
                group="all",
                model=model,
                seed=seed,
            )
            for model, values in ((EMBEDDING, length), ("noise", noise))
        ]


def run(folder: Path, tasks: list[Spread], **options: Any) -> tuple[list[Unit], int]:
    tiny = tiny_cohort()
    return measure_units(
        tiny.cohort,
        tiny.encoder,
        tasks,
        [0, 1],
        folder=folder,
        n_resamples=20,
        progress=False,
        **options,
    )


def figures(units: list[Unit]) -> dict[str, Any]:
    """The summary without wall times, which no two runs share."""
    found = summarise(units, {})
    for task in found["tasks"].values():
        del task["seconds"]
    return found


def test_killed_evaluation_goes_on_to_the_same_summary(tmp_path: Path) -> None:
    whole, measured = run(tmp_path / "whole", [Spread("a"), Spread("b")])
    assert measured == 4
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", [Spread("a", stop_after=1), Spread("b")])
    done = sorted(path.name for path in (tmp_path / "killed").glob("*.json"))
    assert done == ["a-0.json", "b-0.json"]
    tasks = [Spread("a"), Spread("b")]
    resumed, measured = run(tmp_path / "killed", tasks)
    assert (measured, [task.calls for task in tasks]) == (2, [1, 1])
    assert figures(resumed) == figures(whole)
    assert [(u.task, u.seed) for u in resumed] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]


def test_finished_evaluation_measures_nothing_and_no_resume_measures_all(tmp_path: Path) -> None:
    first, _ = run(tmp_path, [Spread("a")])
    again, measured = run(tmp_path, [Spread("a")])
    assert measured == 0
    assert figures(again) == figures(first)
    _, measured = run(tmp_path, [Spread("a")], resume=False)
    assert measured == 2


def test_unit_without_its_second_file_is_measured_again(tmp_path: Path) -> None:
    run(tmp_path, [Spread("a")])
    path = unit_path(tmp_path, "a", 1)
    assert path.with_suffix(".npz").exists()
    path.unlink()  # as after a kill between the two files
    assert read_unit(tmp_path, "a", 1) is None
    _, measured = run(tmp_path, [Spread("a")])
    assert measured == 1


def test_unit_survives_the_disk_whatever_its_figures(tmp_path: Path) -> None:
    odd = [
        Measurement("t", "m", "g", "a", 3, np.nan, np.array([0.1, np.nan]), 1, 2),
        Measurement("t", "bytes", "g", "a", 3, 480.0, np.empty(0), 0, 0, higher_is_better=False),
        Measurement("t", "m", "g", "b", 3, 0.25, np.array([0.5, 1.5]), 1, 2),
    ]
    write_unit(tmp_path, Unit("t", 3, odd, {"b": "why"}, {"x": [1, None]}, 1.5))
    found = read_unit(tmp_path, "t", 3)
    assert found is not None
    assert (found.skipped, found.details, found.seconds) == ({"b": "why"}, {"x": [1, None]}, 1.5)
    for one, other in zip(found.measurements, odd, strict=True):
        assert np.array_equal(one.replicates, other.replicates, equal_nan=True)
        assert repr(one).split("replicates")[0] == repr(other).split("replicates")[0]
        assert one.higher_is_better == other.higher_is_better
    write_unit(tmp_path, Unit("t", 3, [], {}, {}, 0.0))
    empty = read_unit(tmp_path, "t", 3)
    assert empty is not None
    assert list(empty.measurements) == []


def test_unit_with_details_that_json_does_not_know_is_refused_and_nothing_is_left(
    tmp_path: Path,
) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_unit(tmp_path, Unit("t", 0, [], {}, {"x": float("nan")}, 0.0))
    assert list(tmp_path.iterdir()) == []


def test_tasks_whose_extra_is_missing_are_left_out_unless_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without = {
        "probe": TASKS["probe"],
        "other": TaskEntry("nowhere", "None", "?", packages=("fairlearn_of_tomorrow",)),
    }
    monkeypatch.setattr("materialize.evaluate.run.TASKS", without)
    monkeypatch.setattr("materialize.evaluate.tasks._EXTRAS", {"fairlearn_of_tomorrow": "evaluate"})
    names, left_out = chosen_tasks(None)
    assert names == ["probe"]
    assert left_out["other"].endswith("not installed: pip install 'palate[evaluate]'")
    with pytest.raises(EvaluationFault, match="'other' cannot run"):
        chosen_tasks(["other"])
    with pytest.raises(ValueError, match=r"Unknown task 'cluster'\. Known: other, probe"):
        chosen_tasks(["cluster"])


def test_summary_keeps_the_tasks_of_an_earlier_run(tmp_path: Path) -> None:
    units, _ = run(tmp_path, [Spread("first"), Spread("second")])
    both = summarise(units, {})
    first, second = (
        summarise([u for u in units if u.task == name], {}, left_out={other: "not asked for"})
        for name, other in (("first", "second"), ("second", "first"))
    )
    kept = with_earlier_tasks(second, first)
    assert kept["tasks"] == both["tasks"]
    by_task = sorted(kept["results"], key=lambda one: str(one["task"]))
    assert by_task == both["results"]
    # A task that runs again replaces what it had found.
    assert with_earlier_tasks(first, kept)["results"] == both["results"]
    assert with_earlier_tasks(first, None) == first
