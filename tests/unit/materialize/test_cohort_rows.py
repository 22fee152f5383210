from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from encoder.errors import DataFault, EvaluationFault
from materialize.config import RepoSettings, load_settings
from materialize.evaluate.cohort_build import build_cohort
from materialize.evaluate.cohort_files import load_cohort
from materialize.evaluate.moments import choose_rows, open_events
from materialize.evaluate.split import training_users
from materialize.features import build_features, current_modalities
from tests.unit.materialize.feature_tables import DAY_US, dataset, write_clean
from transforms.clean import CleanTables
from transforms.layout import ACTIVITY, ONBOARDING, PROFILE

ROWS = ["user_id", "us", "newcomer", "training"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> RepoSettings:
    """40 users of 20 days, with every optional part of the raw features, snapshots every 2 days."""
    root = tmp_path_factory.mktemp("rows")
    found = dataset(evaluation={"cutoff": "2020-01-11T00:00:00Z", "horizon_days": 4})
    (root / "small.yaml").write_text(yaml.safe_dump(found.model_dump(mode="json")))
    (root / "palate.yaml").write_text("dataset: small.yaml\n")
    settings = load_settings(root)
    write_clean(settings.data_dir)
    build_features(
        settings.dataset, CleanTables(settings.data_dir), settings.features_dir, progress=False
    )
    return settings


def test_folded_in_rows_equal_the_materialised_ones_at_a_snapshot(settings: RepoSettings) -> None:
    # The cut-off and four days later are snapshots: what the batch made for them is what folding
    # in must give, bit by bit, in every view.
    cohort = build_cohort(settings, population="known", progress=False)
    assert len(cohort) > 30
    moments = cohort.moment.astype(np.int64).tolist()
    assert len(set(moments)) == 2
    for view in (ACTIVITY, PROFILE, ONBOARDING):
        stored = pq.read_table(settings.features_dir / view)
        names = [n for n in cohort.raw.column_names if n.startswith(f"{view}__")]
        assert names
        newest: dict[tuple[str, int], dict[str, object]] = {}
        for row in sorted(stored.to_pylist(), key=lambda r: r["event_timestamp"]):
            for moment in set(moments):
                if row["event_timestamp"].timestamp() * 1e6 <= moment:
                    newest[row["user_id"], moment] = row
        for name in names:
            field = name.removeprefix(f"{view}__")
            asked = zip(cohort.user_id, moments, strict=True)
            expected = [newest.get(one, {}).get(field) for one in asked]
            # As text, because a missing number is NaN, which equals nothing.
            assert repr(cohort.raw[name].to_pylist()) == repr(expected), name


def test_encoders_of_another_version_do_not_load_a_cohort(settings: RepoSettings) -> None:
    cohort = build_cohort(settings, progress=False)
    encoders = current_modalities(settings.features_dir)
    other = type(encoders)(
        encoders.item_ids,
        encoders.modalities,
        encoders.fitted,
        encoders.config | {"seed": 7},
        encoders.content,
    )
    folder = settings.data_dir / "evaluations" / f"cohort-{cohort.fingerprint}"
    with pytest.raises(EvaluationFault, match="Build the cohort again"):
        load_cohort(folder, other)


def test_sample_takes_users_whole_in_an_order_that_does_not_depend_on_its_size(
    settings: RepoSettings,
) -> None:
    chosen = {n: _rows(settings, n) for n in (5, 10, 20, 1000)}
    for fewer, more in ((5, 10), (10, 20), (20, 1000)):
        assert set(chosen[fewer]) < set(chosen[more])
        assert len(chosen[fewer]) <= fewer
    times = {user: [r for r in chosen[1000] if r[0] == user] for user, *_ in chosen[1000]}
    for n in (5, 10, 20):
        for user in {row[0] for row in chosen[n]}:
            assert [r for r in chosen[n] if r[0] == user] == times[user]


def test_sample_is_the_same_however_many_users_are_looked_at_first(
    settings: RepoSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _rows(settings, 10)
    # A share of 40 users so small that it must be widened several times.
    monkeypatch.setattr("materialize.evaluate.moments._FIRST_SHARE", 0.01)
    assert _rows(settings, 10) == expected


def test_users_of_a_sample_stay_when_the_data_grow(settings: RepoSettings, tmp_path: Path) -> None:
    before = _rows(settings, 10)
    grown = RepoSettings(settings.repo, settings.file.model_copy(update={"data_dir": tmp_path}))
    events = pq.read_table(settings.data_dir / "clean" / "events")
    others = pa.array([f"other {u}" for u in events["user_id"].to_pylist()])
    more = events.set_column(events.schema.get_field_index("user_id"), "user_id", others)
    for name in ("users", "items"):
        (tmp_path / "clean" / name).mkdir(parents=True)
        table = pq.read_table(settings.data_dir / "clean" / name)
        pq.write_table(table, tmp_path / "clean" / name / "part-0.parquet")
    (tmp_path / "clean" / "events").mkdir()
    pq.write_table(pa.concat_tables([events, more]), tmp_path / "clean/events/part-0.parquet")
    after = _rows(grown, 10)
    old = [row for row in after if not row[0].startswith("other")]
    assert 0 < len(old) < len(after)
    assert set(old) <= set(before)


def test_active_days_give_up_to_three_rows_a_user_after_an_earlier_active_day(
    settings: RepoSettings,
) -> None:
    rows = _rows(settings, 1000, label_times="active_days")
    per_user = {user: [us for u, us, new, _ in rows if u == user and not new] for user, *_ in rows}
    assert max(map(len, per_user.values())) == 3
    assert all(us % DAY_US == 0 for _, us, new, _ in rows if not new)


@pytest.mark.parametrize("label_times", ["cutoff", "active_days"])
def test_what_is_fitted_on_ends_where_what_is_judged_begins(
    settings: RepoSettings, label_times: str
) -> None:
    rows = _rows(settings, 1000, label_times=label_times)
    evaluation = settings.dataset.evaluation
    cutoff = round(evaluation.cutoff.timestamp()) * 1_000_000
    fitted = {us for _, us, _, training in rows if training}
    judged = {us for _, us, _, training in rows if not training}
    assert min(fitted) >= cutoff
    assert max(fitted) + evaluation.horizon_days * DAY_US == min(judged)
    users = np.array([user for user, *_ in rows])
    assert [training for *_, training in rows] == training_users(users).tolist()


@pytest.mark.parametrize("label_times", ["cutoff", "active_days"])
def test_cut_off_behind_the_last_event_is_refused(settings: RepoSettings, label_times: str) -> None:
    late = {"cutoff": "2020-02-11T00:00:00Z", "horizon_days": 4, "label_times": label_times}
    found, clean = dataset(evaluation=late), CleanTables(settings.data_dir)
    with (
        pytest.raises(DataFault, match="reaches beyond the end of the data"),
        open_events(found, clean, memory_limit_mb=256, seed=0),
    ):
        pass


def _rows(
    settings: RepoSettings, max_rows: int, label_times: str = "cutoff"
) -> list[tuple[str, int, bool, bool]]:
    clean = CleanTables(settings.data_dir)
    with open_events(settings.dataset, clean, memory_limit_mb=256, seed=0) as db:
        table = choose_rows(db, label_times, "returning", max_rows)
    return list(zip(*(table[name].to_pylist() for name in ROWS), strict=True))
