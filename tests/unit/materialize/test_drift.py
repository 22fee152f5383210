"""A space's newest run against the one before it: planted drift is found, faults stop no run."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from encoder.errors import DataFault, LedgerConflict
from materialize.cli import main
from materialize.drift import DriftReport, after_run, measure_drift
from materialize.embedding_rows import embedding_schema
from materialize.ledger import Run, Space
from materialize.space_record import space_lines, space_record
from materialize.view_run import run_folder
from tests.repositories import VIEWS, raw_rows
from tests.sinks import close
from tests.spaces import Spaces
from transforms.names import stored_view

DIM = 6
DAY_US = 86_400_000_000
USERS = range(200)


@pytest.fixture
def spaces(tmp_path: Path) -> Iterator[Spaces]:
    made = Spaces.make(tmp_path / "repo", dim=DIM)
    made.register()
    yield made
    close(made.context.store._get_provider().online_store)


def _vectors(users: Sequence[Any] = USERS) -> npt.NDArray[np.float64]:
    """Return vectors that the user decides."""
    rows = [np.random.default_rng(int(user)).standard_normal(DIM) for user in users]
    return np.array(rows) + 0.5


def _run(
    spaces: Spaces,
    vectors: npt.NDArray[Any],
    users: Sequence[Any] = USERS,
    *,
    day: int | Sequence[int] = 0,
    plan: dict[str, Any] | None = None,
) -> Run:
    """Write and commit a run of space 1, offline; ``day`` decides each user's ``as_of``."""
    view, space, n = stored_view(1), spaces.ledger.space(1), len(users)
    as_of = pa.array(np.broadcast_to(np.asarray(day) * DAY_US, n))
    table = spaces.rows(space, users)
    changed = {
        "embedding": pa.array(list(vectors.astype(np.float32)), pa.list_(pa.float32())),
        "as_of": as_of,
        "event_timestamp": as_of.cast(pa.timestamp("us", "UTC")),
    }
    for name, column in changed.items():
        table = table.set_column(table.column_names.index(name), name, column)
    run_id = uuid.uuid4().hex[:16]
    spaces.ledger.begin_run(run_id, view, run_id, plan or {"from_history": False}, space=1)
    folder = run_folder(spaces.settings, view, run_id)
    folder.mkdir(parents=True)
    pq.write_table(table.cast(embedding_schema(spaces.user_type)), folder / "rows.parquet")
    return spaces.ledger.commit_run(run_id, {"rows": n})


def _measure(spaces: Spaces, **how: Any) -> DriftReport:
    space = spaces.ledger.space(1)
    return measure_drift(spaces.settings, spaces.ledger, space, n_bootstrap=100, **how)


def _after(spaces: Spaces) -> DriftReport | None:
    return after_run(spaces.settings, spaces.ledger, spaces.ledger.space(1))


# --- the figures


def test_equal_runs_have_cosine_one_and_cannot_be_told_apart(spaces: Spaces) -> None:
    earlier, later = _run(spaces, _vectors()), _run(spaces, _vectors())
    report = _measure(spaces)
    figures = report.figures
    assert (report.space, report.run_id, figures["against"]) == (1, later.run_id, earlier.run_id)
    assert figures["cosine"]["mean"]["value"] == pytest.approx(1.0)
    assert figures["cosine"]["p5"] == pytest.approx(1.0)
    assert figures["two_sample_auc"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert figures["as_of_gap_days"] == {"median": 0.0, "max": 0.0}
    assert (figures["users"], figures["unchanged"]) == (200, 1.0)


def test_a_shifted_population_is_told_from_the_earlier_one(spaces: Spaces) -> None:
    _run(spaces, _vectors())
    _run(spaces, _vectors() + np.array([5.0, 0, 0, 0, 0, 0]), day=1)
    figures = _measure(spaces).figures
    assert figures["two_sample_auc"]["low"] > 0.98
    assert figures["cosine"]["mean"]["high"] < 0.7
    assert figures["cosine"]["p5"] < figures["cosine"]["mean"]["value"]


def test_a_shift_dealt_out_to_both_runs_is_none(spaces: Spaces) -> None:
    """The control: the same vectors, but which run has the shifted one is drawn for each user."""
    shifted = _vectors() + np.array([5.0, 0, 0, 0, 0, 0])
    drawn = np.random.default_rng(0).random((200, 1)) < 0.5
    _run(spaces, np.where(drawn, shifted, _vectors()))
    _run(spaces, np.where(drawn, _vectors(), shifted), day=1)
    figures = _measure(spaces).figures
    assert figures["two_sample_auc"]["low"] <= 0.5 <= figures["two_sample_auc"]["high"]
    assert figures["cosine"]["mean"]["high"] < 0.7, "every user moved all the same"


def test_the_percentile_and_the_gap_are_those_of_the_users(spaces: Spaces) -> None:
    """20 of 200 users turn to the opposite, 10%: cosine -1 up to the 5th percentile, mean 0.8.

    They are the ones whose moment is 3 days later.
    """
    turned = np.arange(200) < 20
    _run(spaces, _vectors(), day=2)
    _run(spaces, np.where(turned[:, None], -1, 1) * _vectors(), day=np.where(turned, 5, 2).tolist())
    figures = _measure(spaces).figures
    assert figures["cosine"]["mean"]["value"] == pytest.approx(0.8)
    assert figures["cosine"]["p5"] == pytest.approx(-1.0)
    assert figures["as_of_gap_days"] == {"median": 0.0, "max": 3.0}
    assert figures["unchanged"] == pytest.approx(0.9)


def test_users_are_those_of_both_runs_whatever_their_order(spaces: Spaces) -> None:
    _run(spaces, _vectors(range(0, 60)), range(0, 60))
    late = list(range(99, 19, -1))
    _run(spaces, _vectors(late), late)
    figures = _measure(spaces).figures
    assert figures["users"] == 40
    assert figures["cosine"]["p5"] == pytest.approx(1.0)


def test_the_draw_is_bounded_and_the_seeds(spaces: Spaces) -> None:
    _run(spaces, _vectors())
    _run(spaces, _vectors() + np.random.default_rng(0).standard_normal((200, DIM)))
    first, again, other = (_measure(spaces, users=50, seed=seed).figures for seed in (0, 0, 1))
    assert [one["users"] for one in (first, again, other)] == [50, 50, 50]
    assert first["cosine"] == again["cosine"]
    assert first["two_sample_auc"] == again["two_sample_auc"]
    assert first["cosine"] != other["cosine"]


def test_users_may_be_strings(tmp_path: Path) -> None:
    spaces = Spaces.make(tmp_path / "repo", user_type="STRING", dim=DIM)
    spaces.register()
    names = [str(k) for k in range(30)]
    for _ in range(2):
        _run(spaces, _vectors(names), names)
    assert _measure(spaces).figures["users"] == 30
    close(spaces.context.store._get_provider().online_store)


# --- which runs


def test_ranges_and_history_are_not_compared(spaces: Spaces) -> None:
    earlier = _run(spaces, _vectors())
    some = {"start": "2026-01-01T00:00:00+00:00", "from_history": False}
    _run(spaces, -_vectors(), plan=some)
    later = _run(spaces, _vectors())
    _run(spaces, -_vectors(), plan={"start": None, "from_history": True})
    report = _measure(spaces)
    assert (report.run_id, report.figures["against"]) == (later.run_id, earlier.run_id)
    assert report.figures["cosine"]["p5"] == pytest.approx(1.0)


def test_one_run_is_no_drift_and_the_message_says_what_to_do(spaces: Spaces) -> None:
    _run(spaces, _vectors())
    assert _after(spaces) is None
    assert all("drift" not in run.counts for run in spaces.ledger.runs(1))
    with pytest.raises(DataFault, match=r"Space 1 has 1 committed run.*palate materialize --space"):
        _measure(spaces)


def test_a_run_is_measured_once_and_again_when_it_is_asked_for(spaces: Spaces) -> None:
    _run(spaces, _vectors())
    later = _run(spaces, _vectors() + 1.0, day=1)
    report = _after(spaces)
    assert report is not None
    assert spaces.ledger.runs(1)[-1].counts == {"rows": 200, "drift": report.figures}
    assert _after(spaces) is None
    assert _measure(spaces, users=20).run_id == later.run_id
    assert spaces.ledger.runs(1)[-1].counts["drift"]["users"] == 20
    # The next run is measured against this one.
    _run(spaces, _vectors() + 1.0, day=2)
    following = _after(spaces)
    assert following is not None
    assert following.figures["against"] == later.run_id
    assert following.figures["as_of_gap_days"]["median"] == 1.0


# --- what stops it


def _gone(spaces: Spaces, run: Run) -> None:
    shutil.rmtree(run_folder(spaces.settings, stored_view(1), run.run_id))


def _damaged(spaces: Spaces, run: Run) -> None:
    folder = run_folder(spaces.settings, stored_view(1), run.run_id)
    (folder / "rows.parquet").write_bytes(b"PAR1 and nothing else PAR1")


@pytest.mark.parametrize(
    ("spoil", "reason"), [(_gone, "has no files any more"), (_damaged, "rows.parquet")]
)
def test_what_stops_the_measurement_is_recorded_and_stops_no_run(
    spaces: Spaces, caplog: pytest.LogCaptureFixture, spoil: Any, reason: str
) -> None:
    earlier, later = _run(spaces, _vectors()), _run(spaces, _vectors())
    spoil(spaces, earlier)
    assert _after(spaces) is None
    drift = spaces.ledger.runs(1)[-1].counts["drift"]
    assert set(drift) == {"against", "not_measured"}
    assert drift["against"] == earlier.run_id
    assert reason in drift["not_measured"]
    assert f"run {later.run_id} of space 1: no drift is measured" in caplog.text


def test_too_few_common_users_are_refused(spaces: Spaces) -> None:
    _run(spaces, _vectors(range(20)), range(20))
    _run(spaces, _vectors(range(11, 31)), range(11, 31))
    with pytest.raises(DataFault, match=r"9 user\(s\) have a row of both runs.* at least 10"):
        _measure(spaces)


def test_a_run_that_is_repeated_meanwhile_gets_no_figures(
    spaces: Spaces, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _run(spaces, _vectors())
    later = _run(spaces, _vectors())
    from materialize import drift

    def repeated(*arguments: Any, **how: Any) -> Any:
        spaces.ledger.begin_run(later.run_id, later.view, later.key, {}, space=1, again=True)
        return 0.5 * np.ones(200)

    monkeypatch.setattr(drift, "cosines", repeated)
    assert _after(spaces) is None
    assert f"Run {later.run_id} is running, a committed one expected" in caplog.text
    assert spaces.ledger.commit_run(later.run_id, {"rows": 200}).counts == {"rows": 200}
    with pytest.raises(LedgerConflict, match="Run nobody is not there"):
        spaces.ledger.record_drift("nobody", {})


# --- real runs, and what is printed


def _real_space(spaces: Spaces) -> Space:
    version = spaces.tiny.save_encoder()
    url = f"{spaces.settings.artifacts_url}/{version}"
    space = spaces.ledger.register(version, url, {"raw_views": list(VIEWS), "embedding_dim": 8})
    spaces.apply(space)
    return space


def test_the_command_compares_two_real_runs(spaces: Spaces) -> None:
    space = _real_space(spaces)
    view = stored_view(space.number)
    for day in (1, 2):
        spaces.tiny.write_raw(raw_rows(range(40 + day), seed=day), offline=True)
        options = ("--space", space.number, "--no-raw", "--quiet", "--end", f"2036-01-0{day}")
        for outcome in ("committed", "unchanged"):
            (report,) = json.loads(_palate(spaces, "materialize", *options))["spaces"]
            assert (report["outcome"], report["rows"]) == (outcome, 40 + day)
    first, second = [run for run in spaces.ledger.runs(space.number) if run.view == view]
    assert "drift" not in first.counts
    assert second.counts["drift"]["against"] == first.run_id
    assert second.counts["drift"]["users"] == 41, "who is in both"
    assert second.counts["drift"]["cosine"]["mean"]["value"] < 0.9, "other raw rows, other vectors"
    spaces.tiny.write_raw(raw_rows(range(43), seed=3), offline=True)
    _palate(spaces, "materialize", *options, "--no-drift")
    assert "drift" not in spaces.ledger.runs(space.number)[-1].counts


def _palate(spaces: Spaces, *arguments: object) -> str:
    repo = str(spaces.settings.repo)
    result = CliRunner().invoke(main, [*map(str, arguments), "--repo", repo])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_show_prints_each_runs_drift(spaces: Spaces) -> None:
    assert "drift: none" in _palate(spaces, "spaces", "show", 1)
    earlier, later = _run(spaces, _vectors()), _run(spaces, _vectors() + 1.0, day=1)
    printed = json.loads(_palate(spaces, "spaces", "drift", 1, "--users", 100))
    assert (printed["space"], printed["run_id"], printed["users"]) == (1, later.run_id, 100)
    record = json.loads(_palate(spaces, "spaces", "show", 1, "--json"))
    (told,) = record["drift"]
    assert told == {name: value for name, value in printed.items() if name != "space"}
    assert all("drift" not in run["counts"] for run in record["runs"])
    text = _palate(spaces, "spaces", "show", 1)
    auc = told["two_sample_auc"]
    expected = (
        f"  {later.run_id} against {earlier.run_id}: cosine {told['cosine']['mean']['value']:.3f}"
    )
    assert expected in text
    assert f"two-sample AUC {auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}]" in text
    assert "1.0 days apart, 0% unchanged, 100 users" in text


def test_show_says_why_a_drift_is_not_measured(spaces: Spaces) -> None:
    earlier, _ = _run(spaces, _vectors()), _run(spaces, _vectors())
    _gone(spaces, earlier)
    _after(spaces)
    lines = list(space_lines(space_record(spaces.settings, spaces.ledger, 1)))
    (line,) = [line for line in lines if "not measured" in line]
    assert f"against {earlier.run_id}: not measured: Run {earlier.run_id} of space 1 has no" in line
