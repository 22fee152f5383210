"""What the main job leaves behind is what Feast serves, online, on demand and point-in-time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import requests

from materialize.batch import materialize_space
from materialize.compare import compare_views, sample_users
from materialize.features import build_features
from materialize.source import parquet_files
from materialize.train import train_space
from materialize.validate import validate
from tests.e2e.conftest import END, Story, run
from tests.servers import feast_server
from transforms.clean import CleanTables
from transforms.names import on_demand_view, stored_view

FEATURES = ("embedding", "as_of", "space", "encoder_version", "status", "n_events")


@pytest.fixture(scope="module", params=["plain_story", "clue_story", "hybrid_story"])
def story(request: pytest.FixtureRequest) -> Story:
    """The main job with an encoder of each kind; every test runs over both."""
    found: Story = request.getfixturevalue(request.param)
    return found


def _offline(story: Story) -> pd.DataFrame:
    folder = story.context.settings.offline_dir / stored_view(story.space.number)
    frame = pd.concat(pq.read_table(p).to_pandas() for p in parquet_files(folder))
    return frame.sort_values(["user_id", "event_timestamp", "created_timestamp"])


def _views(story: Story) -> tuple[str, str]:
    return stored_view(story.space.number), on_demand_view(story.space.number)


def _read(story: Story, view: str, users: list[Any]) -> dict[str, list[Any]]:
    answer: dict[str, list[Any]] = story.context.store.get_online_features(
        features=[f"{view}:{name}" for name in FEATURES],
        entity_rows=[{"user_id": user} for user in users],
    ).to_dict()
    return answer


def test_stored_and_on_demand_embeddings_agree_for_every_user(story: Story) -> None:
    users = sample_users(story.context.settings, story.space.number, 10_000)
    comparison = compare_views(story.context.store, story.space.number, users)
    assert comparison.users == len(users) > 300
    assert comparison.missing == 0
    assert comparison.same_as_of
    assert comparison.same_status
    assert comparison.max_abs_diff <= 1e-5


def test_they_agree_in_a_fresh_process_in_another_folder(story: Story, tmp_path: Path) -> None:
    which = ("--space", str(story.space.number), "--repo", str(story.repo))
    printed = run("palate", "spaces", "compare", *which, "--users", "400", cwd=tmp_path)
    answer = json.loads(printed)
    assert answer["users"] > 300
    assert answer["max_abs_diff"] <= 1e-5


def test_every_stored_row_names_its_space_and_encoder(story: Story) -> None:
    users = sample_users(story.context.settings, story.space.number, 20)
    for view in _views(story):
        answer = _read(story, view, users)
        assert set(answer["space"]) == {story.space.number}
        assert set(answer["encoder_version"]) == {story.space.encoder_version}
        assert {len(vector) for vector in answer["embedding"]} == {16}


def test_status_tells_warm_onboarded_and_cold_users_apart(story: Story) -> None:
    clean = CleanTables(story.context.settings.data_dir)
    people = pq.read_table(clean.files("users")).to_pandas().set_index("user_id")
    active = set(pq.read_table(clean.files("events"), columns=["user_id"])["user_id"].to_pylist())
    picked = {user for user, picks in people["onboarding"].items() if len(picks)}
    warm = sorted(active)[:5]
    onboarded = sorted(picked - active)[:5]
    cold = sorted(set(people.index) - active - picked)[:5]
    assert onboarded, "the simulation has users with picks and without events"
    unknown = [type(warm[0])(10**9)]
    reads_picks = "user_onboarding" in story.space.facts["raw_views"]
    for users, expected in (
        (warm, "warm"),
        (onboarded, "onboarded" if reads_picks else "cold"),
        (cold, "cold"),
        (unknown, "cold"),
    ):
        answer = _read(story, on_demand_view(story.space.number), users)
        assert set(answer["status"]) <= {expected}
        assert np.isfinite(np.array(answer["embedding"], float)).all()
    assert _read(story, stored_view(story.space.number), unknown)["embedding"] == [None]


def test_history_holds_what_was_known_at_each_moment(story: Story) -> None:
    rows = _offline(story)
    rng = np.random.default_rng(0)
    chosen = rows.sample(150, random_state=1)
    # A moment between rows, one exactly on a row, one before everything.
    shift = pd.to_timedelta(rng.integers(0, 20 * 86_400, len(chosen)), unit="s")
    entities = pd.concat(
        [
            pd.DataFrame(
                {"user_id": chosen.user_id, "event_timestamp": chosen.event_timestamp + shift}
            ),
            chosen[["user_id", "event_timestamp"]],
            pd.DataFrame(
                {
                    "user_id": chosen.user_id[:10],
                    "event_timestamp": rows.event_timestamp.min() - pd.Timedelta(days=1),
                }
            ),
        ]
    ).reset_index(drop=True)
    entities["row"] = entities.index
    view = stored_view(story.space.number)
    answer = story.context.store.get_historical_features(
        entity_df=entities,
        features=[f"{view}:embedding", f"{view}:as_of"],
    ).to_df()
    assert sorted(answer["row"]) == list(range(len(entities)))
    by_user = dict(tuple(rows.groupby("user_id")))
    for got in answer.itertuples():
        known = by_user[got.user_id]
        known = known[known.event_timestamp <= got.event_timestamp]
        if known.empty:
            assert pd.isna(got.as_of)
            continue
        assert got.as_of == known.iloc[-1].as_of
        assert np.array_equal(got.embedding, known.iloc[-1].embedding)


def test_every_step_repeated_changes_nothing(story: Story) -> None:
    settings, ledger = story.context.settings, story.context.ledger
    files = {p: p.stat().st_mtime_ns for p in settings.data_dir.rglob("*.parquet")}
    assert validate(settings.dataset, settings.data_dir, progress=False).unchanged
    built = build_features(
        settings.dataset, CleanTables(settings.data_dir), settings.features_dir, progress=False
    )
    assert built.status == "up to date"
    trained = train_space(story.context.store, settings, ledger, progress=False)
    assert (trained.new, trained.space.number) == (False, story.space.number)
    for from_history in (True, False):
        again = materialize_space(
            story.context.store,
            settings,
            ledger,
            story.space,
            end=END,
            from_history=from_history,
            progress=False,
        )
        assert again.outcome == "unchanged"
    assert {p: p.stat().st_mtime_ns for p in settings.data_dir.rglob("*.parquet")} == files
    applied = run("feast", "apply", cwd=story.repo)
    assert "Created" not in applied
    assert "Deleted" not in applied


def test_a_dry_run_counts_and_writes_nothing(story: Story) -> None:
    settings = story.context.settings
    before = sorted(settings.data_dir.rglob("*"))
    runs = len(story.context.ledger.runs())
    plan = materialize_space(
        story.context.store,
        settings,
        story.context.ledger,
        story.space,
        end=END.replace(month=3),
        dry_run=True,
        progress=False,
    )
    assert plan.outcome == "planned"
    assert 0 < plan.rows < len(_offline(story))
    assert sorted(settings.data_dir.rglob("*")) == before
    assert len(story.context.ledger.runs()) == runs


def test_feast_materialize_of_the_stored_view_gives_the_same_vectors(story: Story) -> None:
    users = sample_users(story.context.settings, story.space.number, 50)
    view = stored_view(story.space.number)
    before = _read(story, view, users)
    start, end = "2024-01-01T00:00:00", END.strftime("%Y-%m-%dT%H:%M:%S")
    run("feast", "materialize", start, end, "-v", view, cwd=story.repo)
    assert _read(story, view, users) == before


def test_feast_serve_answers_both_views(story: Story, tmp_path: Path) -> None:
    users = sample_users(story.context.settings, story.space.number, 5)
    with feast_server(story.repo, tmp_path) as server:
        for view in _views(story):
            response = requests.post(
                f"{server.url}/get-online-features",
                json={"features": [f"{view}:embedding"], "entities": {"user_id": users}},
                timeout=30,
            )
            assert response.status_code == 200, response.text
            body = response.json()
            served = dict(zip(body["metadata"]["feature_names"], body["results"], strict=True))[
                "embedding"
            ]["values"]
            expected = _read(story, view, users)["embedding"]
            np.testing.assert_allclose(served, expected, rtol=0, atol=1e-5)


def test_the_artifact_knows_its_cut_off_and_its_item_vectors(story: Story) -> None:
    where = (str(story.space.number), "--json", "--repo", str(story.repo))
    printed = json.loads(run("palate", "spaces", "show", *where, cwd=story.repo))
    assert printed["encoder_version"] == story.space.encoder_version
    assert printed["state"] == "ready"
    assert printed["facts"]["cutoff"].startswith("2024-05-30")
    assert {r["state"] for r in printed["runs"]} == {"committed"}


def test_training_saw_nothing_from_the_cut_off_on(story: Story) -> None:
    cutoff = story.context.settings.dataset.evaluation.cutoff
    manifest = json.loads(
        Path(story.space.artifact_url.removeprefix("file://"), "manifest.json").read_text()
    )
    assert manifest["data_cutoff"] == cutoff.isoformat()
    rows = story.space.facts["training_rows"]
    offline = _offline(story).drop_duplicates(["user_id", "event_timestamp"])
    offline = offline[offline.event_timestamp < cutoff]
    # An autoencoder learns from each moment of a user, the contrastive encoder from the newest.
    moments = offline if manifest["model"]["kind"] != "clue" else offline.user_id.unique()
    assert rows == len(moments)


def test_raw_views_are_served_as_they_were_built(story: Story) -> None:
    for view in story.space.facts["raw_views"]:
        _check_raw_view(story, view)


def _check_raw_view(story: Story, view: str) -> None:
    files = parquet_files(story.context.settings.features_dir / view)
    table = pq.ParquetDataset(files).read().sort_by("event_timestamp")
    newest = table.to_pandas().drop_duplicates("user_id", keep="last").tail(20)
    names = [f.name for f in story.context.store.get_feature_view(view).features]
    answer = story.context.store.get_online_features(
        features=[f"{view}:{name}" for name in names],
        entity_rows=[{"user_id": user} for user in newest.user_id],
    ).to_dict()
    for name in names:
        for got, built in zip(answer[name], newest[name], strict=True):
            if isinstance(built, np.ndarray):
                assert np.array_equal(got, built, equal_nan=built.dtype.kind == "f")
            else:
                assert got == built
    assert pc.all(pc.less_equal(table["event_timestamp"], table["created_timestamp"])).as_py()
