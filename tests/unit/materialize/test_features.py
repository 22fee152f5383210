from __future__ import annotations

import os
import shutil
import signal
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encoder.errors import DataFault
from materialize.features import build_features, current_modalities
from materialize.publish import Publication
from tests.forks import FORKS, preload
from tests.unit.materialize.feature_tables import (
    DAY_US,
    FIRST_DAY,
    N_ITEMS,
    N_USERS,
    dataset,
    write_clean,
)
from transforms.clean import CleanTables
from transforms.layout import RawLayout
from transforms.tables import view_schema

VIEWS = ("item_vectors", "user_activity", "user_onboarding", "user_profile")

preload(__name__)


def build(root: Path, **options: object):
    options = {"progress": False, "memory_limit_mb": 256} | options
    data = options.pop("data", None) or dataset()
    return build_features(data, CleanTables(root), root / "features", **options)


def read(root: Path, view: str) -> pa.Table:
    files = sorted((root / "features" / view).glob("*.parquet"))
    return pa.concat_tables([pq.read_table(f) for f in files])


def rows(root: Path, view: str) -> dict:
    """Return {(id, event time): the row without its created timestamp}, the newest created one."""
    table = read(root, view).sort_by("created_timestamp").drop_columns(["created_timestamp"])
    return {(next(iter(r.values())), r["event_timestamp"]): repr(r) for r in table.to_pylist()}


def everything(root: Path) -> dict:
    return {view: rows(root, view) for view in VIEWS}


def files(root: Path) -> dict:
    return {
        str(p.relative_to(root)): (p.stat().st_mtime_ns, p.read_bytes())
        for view in VIEWS
        for p in sorted((root / "features" / view).glob("*.parquet"))
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """All days, built at once; read only."""
    root = tmp_path_factory.mktemp("built")
    write_clean(root)
    build(root)
    return root


def test_every_view_has_the_fields_of_the_layout(built):
    layout = RawLayout.of(dataset(), {"audio": 5})
    for view in VIEWS:
        table = read(built, view)
        assert table.schema.equals(view_schema(view, layout, "string"))
        assert table.num_rows
    activity = read(built, "user_activity")
    widths = {"pooled": 2 * 12, "histogram": 2 * 8, "counts": 2 * 4 + 2, "context": 1}
    for name, width in widths.items():
        lengths = {len(v) for v in activity[f"activity_{name}"].to_pylist()}
        assert lengths == {width}
    assert set(read(built, "user_onboarding")["onboarding_pooled"].combine_chunks()
               .value_lengths().to_pylist()) == {13}  # fmt: skip


def test_profiles_are_one_row_a_user_and_onboarding_only_those_with_picks(built):
    assert read(built, "user_profile").num_rows == N_USERS
    assert read(built, "user_onboarding").num_rows == N_USERS // 2
    assert read(built, "item_vectors").num_rows == N_ITEMS
    signed_up = datetime.fromtimestamp(FIRST_DAY * 86_400, tz=timezone.utc)
    for view in ("user_profile", "user_onboarding"):
        assert set(read(built, view)["event_timestamp"].to_pylist()) == {signed_up}


def test_snapshots_run_through_the_cutoff_and_end_after_the_last_day(built):
    # Events 2020-01-01 to 20, cut-off 11: every second day from 3 on, and the 21st is on the grid.
    report = build(built, dry_run=True, until=datetime(2020, 1, 15, tzinfo=timezone.utc))
    assert report.status == "planned"
    assert report.snapshots == []
    newest = max(read(built, "user_activity")["event_timestamp"].to_pylist())
    assert newest.date().isoformat() == "2020-01-20"
    state = Publication(built / "features").state()
    assert state is not None
    assert [d - FIRST_DAY + 1 for d in state["snapshots"]] == list(range(3, 22, 2))


def test_an_item_without_a_vector_is_null_in_the_view(built):
    table = read(built, "item_vectors").sort_by("item_id")
    assert table["item_id"][0].as_py() == "i0"
    assert table["audio"][0].as_py() is None
    assert len(table["audio"][1].as_py()) == 5


def test_the_published_encoders_are_those_of_the_rows(built):
    version = current_modalities(built / "features").version
    assert set(read(built, "user_activity")["activity_modality"].to_pylist()) == {version}
    assert set(read(built, "item_vectors")["modality_version"].to_pylist()) == {version}


def test_a_repeated_build_writes_nothing(tmp_path):
    write_clean(tmp_path)
    assert build(tmp_path).status == "built"
    before = files(tmp_path)
    assert build(tmp_path).status == "up to date"
    assert files(tmp_path) == before


def test_a_dry_run_writes_nothing(tmp_path):
    write_clean(tmp_path)
    report = build(tmp_path, dry_run=True)
    assert len(report.snapshots) == 10
    assert not (tmp_path / "features").exists()


def test_new_days_add_rows_and_leave_earlier_files_alone(tmp_path, built):
    write_clean(tmp_path, days=12)
    build(tmp_path)
    before = files(tmp_path)
    write_clean(tmp_path)
    report = build(tmp_path)
    after = files(tmp_path)
    assert before.items() <= after.items()
    assert report.rows["user_profile"] == report.rows["item_vectors"] == 0
    assert report.snapshots[0] == "2020-01-15"
    told = report.to_dict()["snapshots"]
    assert told == {
        "added": len(report.snapshots), "first": "2020-01-15", "last": report.snapshots[-1]
    }  # fmt: skip
    # The first build ended on the 13th, which lies on the grid: nothing differs from one build.
    assert everything(tmp_path) == everything(built)


def test_until_hides_later_events_and_later_builds_add_them(tmp_path, built):
    write_clean(tmp_path)
    build(tmp_path, until=datetime(2020, 1, 13, tzinfo=timezone.utc))
    newest = max(read(tmp_path, "user_activity")["event_timestamp"].to_pylist())
    assert newest < datetime(2020, 1, 13, tzinfo=timezone.utc)
    build(tmp_path)
    assert everything(tmp_path) == everything(built)


def test_until_must_be_midnight(tmp_path):
    with pytest.raises(ValueError, match="00:00 UTC of a day expected"):
        build(tmp_path, until=datetime(2020, 1, 13, 5, tzinfo=timezone.utc))


def test_late_events_after_the_cutoff_add_corrected_rows(tmp_path):
    for name in ("a", "b"):
        write_clean(tmp_path / name)
    build(tmp_path / "a")
    for name in ("a", "b"):
        first = pq.read_table(tmp_path / name / "clean" / "events" / "part-0.parquet")
        late = first.slice(0, 1).set_column(
            2, "ts", pa.array([(FIRST_DAY + 14) * DAY_US]).cast(pa.timestamp("us", "UTC"))
        )
        pq.write_table(late, tmp_path / name / "clean" / "events" / "part-1.parquet")
    before = files(tmp_path / "a")
    report = build(tmp_path / "a")
    assert before.items() <= files(tmp_path / "a").items()
    # Rows are made anew for users with events on that day only.
    days = pq.read_table(tmp_path / "a" / "clean" / "events", columns=["user_id", "ts"]).to_pylist()
    active = {r["user_id"] for r in days if r["ts"].date().isoformat() == "2020-01-15"}
    table = read(tmp_path / "a", "user_activity")
    created = table["created_timestamp"].to_pylist()
    anew = table.filter(pa.array([c == max(created) for c in created]))
    assert anew.num_rows == report.rows["user_activity"] > 0
    assert set(anew["user_id"].to_pylist()) <= active < set(table["user_id"].to_pylist())
    build(tmp_path / "b")
    ours, whole = rows(tmp_path / "a", "user_activity"), rows(tmp_path / "b", "user_activity")
    assert {key: ours[key] for key in whole} == whole


def test_a_new_item_after_the_cutoff_keeps_the_version_and_gets_a_vector(tmp_path):
    write_clean(tmp_path)
    version = build(tmp_path).modality_version
    path = tmp_path / "clean" / "items" / "part-0.parquet"
    items = pq.read_table(path)
    new = pa.table(
        {
            "item_id": ["new"],
            "text": ["title 1"],
            "tags": [["genre 1"]],
            "vec_audio": [[1.0, 0.0, 0.0, 0.0, 0.0]],
        }
    )
    pq.write_table(pa.concat_tables([items, new.cast(items.schema)]), path)
    report = build(tmp_path)
    assert report.modality_version == version
    assert report.rows["item_vectors"] == 1
    assert report.rows["user_activity"] == 0
    encoders = current_modalities(tmp_path / "features")
    position = encoders.index_of(["new"])[0]
    assert encoders.modalities[1].vectors[position].any()
    assert encoders.modalities[1].cluster_of[position] >= 0
    assert not encoders.modalities[0].vectors[position].any()


def test_another_configuration_replaces_everything(tmp_path):
    write_clean(tmp_path)
    build(tmp_path)
    before = set(files(tmp_path))
    build(tmp_path, data=dataset(windows=[2, 5]))
    assert not before & set(files(tmp_path))
    assert read(tmp_path, "user_profile").num_rows == N_USERS


def test_item_vectors_may_stay_while_the_cutoff_moves_on(tmp_path):
    write_clean(tmp_path)
    first = build(tmp_path).modality_version
    later = {"evaluation": {"cutoff": "2020-01-13T00:00:00Z"}}
    kept = build(tmp_path, data=dataset(item_vectors_until="2020-01-11T00:00:00Z", **later))
    assert (kept.status, kept.modality_version) == ("built", first)
    assert set(read(tmp_path, "user_activity")["activity_modality"].to_pylist()) == {first}
    anew = build(tmp_path, data=dataset(**later))
    assert anew.modality_version != first


def test_no_event_before_the_cutoff_is_a_fault(tmp_path):
    write_clean(tmp_path)
    early = dataset(evaluation={"cutoff": "2019-12-01T00:00:00Z"})
    with pytest.raises(DataFault, match=r"No event lies before the cut-off"):
        build(tmp_path, data=early)


def test_missing_clean_tables_name_the_command(tmp_path):
    with pytest.raises(DataFault, match="palate data validate"):
        build(tmp_path)
    with pytest.raises(DataFault, match="palate features build"):
        current_modalities(tmp_path / "features")


def killed_build(root: Path, rename: int, moment: str) -> bool:
    """Let another process build, and die at its n-th rename; return whether it did."""
    process = FORKS.Process(target=build_and_die, args=(root, rename, moment))
    process.start()
    process.join(120)
    code = process.exitcode
    if code is None:
        process.kill()
    assert code in (0, -signal.SIGKILL), f"the build ended with {code}"
    return code != 0


def build_and_die(root: Path, left: int, moment: str) -> None:
    replace = os.replace

    def die_at_rename(source, target):
        nonlocal left
        left -= 1
        if left == 0 and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = die_at_rename
    build(root)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "moment"), [("append", "before"), ("replace", "after")])
def test_a_build_killed_at_any_rename_serves_the_earlier_rows_and_completes(
    tmp_path, built, kind, moment
):
    """Killed at each of its file renames, a build leaves the earlier rows, and a repeat ends it."""
    undecided = 0
    earlier = tmp_path / "earlier"
    write_clean(earlier, days=12)
    # With other windows first, the second build replaces everything.
    build(earlier, data=dataset(windows=[2, 5]) if kind == "replace" else None)
    before, state = everything(earlier), Publication(earlier / "features").state()
    write_clean(earlier)
    for rename in range(1, 40):
        root = tmp_path / str(rename)
        shutil.copytree(earlier, root)
        killed = killed_build(root, rename, moment)
        decided = (root / "features" / "publish.json").exists()
        if killed and not decided:
            undecided += 1
            assert everything(root) == before
            assert Publication(root / "features").state() == state
        build(root)
        assert everything(root) == everything(built)
        assert not list((root / "features").rglob("*.tmp"))
        assert not (root / "features" / ".staging").exists()
        if not killed:
            break
    # Not vacuous: killed before the change was decided, and killed while it was carried out.
    assert undecided >= 4
    assert rename > undecided + 2


def test_activity_is_bit_equal_for_any_memory_limit(tmp_path, built, monkeypatch):
    write_clean(tmp_path)
    monkeypatch.setattr("materialize.features.bytes_per_day", lambda _: 2**22)
    build(tmp_path)
    assert len(list((tmp_path / "features" / "user_activity").glob("*.parquet"))) > 4
    assert everything(tmp_path) == everything(built)


def test_vectors_of_users_with_different_tastes_differ(built):
    table = read(built, "user_activity")
    taste = np.array([int(u[1:]) % 3 for u in table["user_id"].to_pylist()])
    pooled = np.array(table["activity_pooled"].to_pylist())[:, :4]
    means = np.array([pooled[taste == k].mean(axis=0) for k in range(3)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    assert (np.abs(means @ means.T - np.eye(3)) < 0.3).all()
