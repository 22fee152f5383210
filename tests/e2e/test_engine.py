"""`feast materialize` with the compute engine plugin runs the same jobs as `palate materialize`."""

from __future__ import annotations

import datetime as dt
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from materialize.batch import materialize_space, materialize_view
from materialize.source import parquet_files
from materialize.view_run import RunReport
from tests.e2e.conftest import Raw, Story, build_story, run

pytestmark = pytest.mark.slow

BEGIN = dt.datetime(2024, 6, 1, tzinfo=dt.timezone.utc)


@pytest.fixture(scope="module")
def plugged(raw: Raw, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """A repository materialised up to ``BEGIN``."""
    story = build_story(tmp_path_factory.mktemp("plugged") / "repo", raw, BEGIN)
    config = yaml.safe_load((story.repo / "feature_store.yaml").read_text())
    assert config["batch_engine"]["type"] == "materialize.engine.PalateComputeEngine"
    return story


def _as_of(story: Story, users: list[Any]) -> dict[Any, int]:
    answer = story.context.store.get_online_features(
        features=["user_embedding_s1:as_of", "user_activity:activity_as_of"],
        entity_rows=[{"user_id": user} for user in users],
    ).to_dict()
    return dict(
        zip(users, zip(answer["as_of"], answer["activity_as_of"], strict=True), strict=True)
    )


def _newest(story: Story, end: dt.datetime) -> dict[Any, int]:
    files = parquet_files(story.context.settings.features_dir / "user_activity")
    table = pq.ParquetDataset(files).read(["user_id", "activity_as_of", "event_timestamp"])
    table = table.filter(pc.less(table["event_timestamp"], pa.scalar(end)))
    newest = table.group_by("user_id").aggregate([("activity_as_of", "max")])
    return dict(zip(*(column.to_pylist() for column in newest.columns), strict=True))


def test_feast_materialize_brings_views_and_space_up_to_its_end(plugged: Story) -> None:
    end = BEGIN + dt.timedelta(days=10)
    runs = len(plugged.context.ledger.runs())
    run(
        *("feast", "materialize", f"{BEGIN:%Y-%m-%dT%H:%M:%S}", f"{end:%Y-%m-%dT%H:%M:%S}"),
        cwd=plugged.repo,
    )
    expected = _newest(plugged, end)
    moved = {u: a for u, a in expected.items() if a >= BEGIN.timestamp() * 1e6}
    assert len(moved) > 50
    served = _as_of(plugged, sorted(moved))
    # Tests come in any order: a later run may have brought newer rows already, never older ones.
    assert all(activity >= moved[user] for user, (_, activity) in served.items())
    # A profile or onboarding row can be newer than the activity; never older.
    assert all(as_of >= moved[user] for user, (as_of, _) in served.items())
    done = plugged.context.ledger.runs()[runs:]
    assert {r.view for r in done} == {
        *("user_activity", "user_profile", "user_onboarding"),
        *("item_vectors", "user_embedding_s1"),
    }
    assert {r.state for r in done} == {"committed"}


def _write_late_row(story: Story) -> tuple[Any, int]:
    """Give a user who has only signed up a first event, a minute after that, written now."""
    features = story.context.settings.features_dir
    folder = features / "user_activity"
    known = _newest(story, dt.datetime(2100, 1, 1, tzinfo=dt.timezone.utc))
    people = pq.ParquetDataset(parquet_files(features / "user_profile")).read(
        ["user_id", "profile_as_of"]
    )
    joined = dict(zip(*(column.to_pylist() for column in people.columns), strict=True))
    user = min(set(joined) - set(known), key=lambda u: joined[u])
    late = joined[user] + 60_000_000
    source = parquet_files(folder)[0]
    row = pq.read_table(source).slice(0, 1).to_pylist()[0] | {
        "user_id": user,
        "activity_as_of": late,
        "event_timestamp": dt.datetime.fromtimestamp(late / 1e6, dt.timezone.utc),
        "created_timestamp": dt.datetime.now(dt.timezone.utc),
    }
    pq.write_table(
        pa.Table.from_pylist([row], pq.read_schema(source)), folder / f"late-{user}.parquet"
    )
    return user, late


def test_a_row_that_came_late_reaches_raw_view_and_space(plugged: Story) -> None:
    end = BEGIN + dt.timedelta(days=20)
    run("feast", "materialize-incremental", f"{end:%Y-%m-%dT%H:%M:%S}", cwd=plugged.repo)
    user, late = _write_late_row(plugged)
    later = end + dt.timedelta(days=1)
    run("feast", "materialize-incremental", f"{later:%Y-%m-%dT%H:%M:%S}", cwd=plugged.repo)
    assert _as_of(plugged, [user]) == {user: (late, late)}


def test_a_space_that_cannot_be_encoded_fails_the_command(plugged: Story, tmp_path: Path) -> None:
    artifact = Path(plugged.space.artifact_url.removeprefix("file://"))
    kept = tmp_path / "artifact"
    shutil.move(artifact, kept)
    try:
        with pytest.raises(AssertionError, match="Unknown encoder version"):
            run(
                *("feast", "materialize", "2024-01-01T00:00:00", "2024-06-28T00:00:00"),
                *("-v", "user_embedding_s1"),
                cwd=plugged.repo,
            )
    finally:
        shutil.move(kept, artifact)


def test_a_committed_run_is_written_again_only_when_forced(plugged: Story) -> None:
    context = plugged.context
    end = BEGIN + dt.timedelta(days=30)

    def materialize(*, force: bool) -> int:
        return materialize_view(
            context.store,
            context.settings,
            context.ledger,
            "user_profile",
            end=end,
            force=force,
            progress=False,
        ).online_rows

    rows = materialize(force=False)
    assert rows > 300
    with sqlite3.connect(plugged.repo / "data" / "online.db") as lost:
        lost.execute("DELETE FROM palate_user_profile")
    lost.close()
    user = pq.read_table(
        parquet_files(context.settings.features_dir / "user_profile")[0], columns=["user_id"]
    )["user_id"][0].as_py()

    def served() -> Any:
        return context.store.get_online_features(
            features=["user_profile:profile_as_of"], entity_rows=[{"user_id": user}]
        ).to_dict()["profile_as_of"][0]

    assert materialize(force=False) == rows
    assert served() is None
    assert materialize(force=True) == rows
    assert served() is not None


def test_a_forced_run_over_a_range_sees_the_rows_it_saw_before(plugged: Story) -> None:
    context = plugged.context
    # Written before the first run of this range began: not new to a run that began after it.
    _, late = _write_late_row(plugged)
    start = dt.datetime.fromtimestamp(late / 1e6, dt.timezone.utc) + dt.timedelta(days=1)

    def materialize(*, force: bool) -> RunReport:
        return materialize_space(
            context.store,
            context.settings,
            context.ledger,
            plugged.space,
            start=start,
            end=start + dt.timedelta(days=4),
            force=force,
            progress=False,
        )

    first = materialize(force=False)
    again = materialize(force=True)
    assert first.outcome == again.outcome == "committed"
    assert first.rows == again.rows > 0
    assert materialize(force=False).outcome == "unchanged"
