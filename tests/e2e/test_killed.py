"""A run that is killed anywhere leaves the earlier state served, and completes when repeated."""

from __future__ import annotations

import datetime as dt
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from tqdm import tqdm

from materialize.batch import materialize_space, open_source
from materialize.cli import main
from materialize.embedding_rows import encode_rows
from materialize.source import parquet_files
from tests.e2e.conftest import Raw, Story, build_story, run
from tests.e2e.killable import FORKS
from tests.e2e.steps import Step
from transforms.runtime import load_encoder

BEGIN = dt.datetime(2024, 5, 1, tzinfo=dt.timezone.utc)
_KILLED_SECONDS = 200.0


@pytest.fixture(scope="module")
def early(raw: Raw, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """A repository that is materialised up to the day before the runs that are killed."""
    return build_story(tmp_path_factory.mktemp("early") / "repo", raw, BEGIN)


@pytest.fixture(scope="module")
def steps_done() -> list[str]:
    return []


STEPS = {
    "encoding": Step("materialize.partition", "encode_rows", "after"),
    "a partition is encoded": Step("os", "replace", "before"),
    "a partition is offline": Step("os", "replace", "after"),
    "a partition is online": Step("materialize.online", "OnlineWriter.write", "after"),
    "a partition is recorded": Step("materialize.ledger", "Ledger.partition_done", "after"),
    "offline rows are counted": Step("materialize.view_run", "verify_count", "after"),
    "online rows are verified": Step("materialize.view_run", "verify_online", "after"),
    "published": Step("os", "replace", "after", 2),
    "the ledger commits": Step("materialize.ledger", "Ledger.commit_run", "before"),
}


def _run_killed(step: Step, *arguments: str, cwd: Path) -> None:
    """Run `palate` in a process that is killed at a step."""
    process = FORKS.Process(target=_run_armed, args=(step, arguments, cwd))
    process.start()
    process.join(_KILLED_SECONDS)
    code = process.exitcode
    if code is None:
        process.kill()
    assert code == -signal.SIGKILL, f"palate {arguments} ended with {code} and not at {step}"


def _run_armed(step: Step, arguments: tuple[str, ...], cwd: Path) -> None:
    # Its own lock is a named semaphore here, which a killed process would leave behind.
    tqdm.set_lock(threading.RLock())
    os.chdir(cwd)
    step.arm()
    main(arguments)


def _online(story: Story, users: list[Any]) -> pd.DataFrame:
    answer = story.context.store.get_online_features(
        features=[f"user_embedding_s1:{n}" for n in ("embedding", "as_of", "space")],
        entity_rows=[{"user_id": user} for user in users],
    ).to_dict()
    return pd.DataFrame(answer).set_index("user_id")


def _expected(story: Story, start: dt.datetime, end: dt.datetime) -> dict[Any, Any]:
    """Encode what a run over [start, end) sees, without a store in between."""
    settings = story.context.settings
    schema = load_encoder(settings.artifacts_url, story.space.encoder_version).preprocessor.schema
    source = open_source(story.context.store, settings, schema, start=start, end=end)
    rows = {}
    for batch in source.batches():
        for row in encode_rows(batch, story.space, settings.artifacts_url).to_pylist():
            rows[row["user_id"]] = row
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("step", sorted(STEPS))
def test_a_killed_run_leaves_the_earlier_state_served_and_completes_when_repeated(
    early: Story, steps_done: list[str], step: str
) -> None:
    story = early
    # Each step takes the next three days: its run is new, and what it writes is newer.
    start = BEGIN + dt.timedelta(days=3 * len(steps_done))
    end = start + dt.timedelta(days=3)
    steps_done.append(step)
    settings, ledger = story.context.settings, story.context.ledger
    expected = _expected(story, start, end)
    users = sorted(expected)
    assert len(users) > 30
    before = _online(story, users)
    committed = {r.run_id for r in ledger.runs() if r.state == "committed"}
    entities = pd.DataFrame(
        {"user_id": users, "event_timestamp": pd.Timestamp(start) - pd.Timedelta(hours=1)}
    )

    def history() -> pd.DataFrame:
        job = story.context.store.get_historical_features(
            entity_df=entities, features=["user_embedding_s1:embedding", "user_embedding_s1:as_of"]
        )
        return job.to_df().sort_values("user_id").reset_index(drop=True)

    known = history()
    which = ("--space", "1", "--start", f"{start:%Y-%m-%d}", "--end", f"{end:%Y-%m-%d}")
    _run_killed(STEPS[step], "materialize", "--no-raw", "--quiet", *which, cwd=story.repo)

    # Nothing that was served is gone: each user's row is whole, of this space, old or new.
    assert {r.run_id for r in ledger.runs() if r.state == "committed"} == committed
    served = _online(story, users)
    for user in users:
        vector = served.embedding[user]
        if vector is None:
            assert before.embedding[user] is None
            continue
        assert served.space[user] == 1
        earlier = np.array_equal(vector, before.embedding[user])
        assert earlier or np.allclose(vector, expected[user]["embedding"], atol=1e-6)
    during = history()
    pd.testing.assert_frame_equal(during, known)

    report = materialize_space(
        story.context.store,
        settings,
        ledger,
        story.space,
        start=start,
        end=end,
        progress=False,
    )
    assert (report.outcome, report.rows) == ("committed", len(users))
    after = _online(story, users)
    for user in users:
        assert after.as_of[user] == expected[user]["as_of"]
        assert np.allclose(after.embedding[user], expected[user]["embedding"], atol=1e-6)
    published = settings.offline_dir / "user_embedding_s1" / f"run-{report.run_id}"
    rows = pq.ParquetDataset(parquet_files(published)).read().to_pylist()
    assert sorted(r["user_id"] for r in rows) == users
    assert not any((settings.offline_dir / "_staging").iterdir())


TRAINING_STEPS = {
    "what came next is written": Step("materialize.training_rows", "os.replace", "before"),
    "training rows are written": Step("materialize.training_rows", "os.replace", "before", 2),
    "an epoch is done": Step("encoder.progress", "write_checkpoint", "after", 2),
    "the artifact is saved": Step("encoder.store", "ArtifactStore.save", "before"),
    "the space is registered": Step("materialize.ledger", "Ledger.register", "before"),
    "its view becomes readable": Step("materialize.train", "ensure_readable", "before"),
}


@pytest.mark.slow
def test_a_training_killed_at_every_step_ends_in_one_space_with_the_same_encoder(
    early: Story,
) -> None:
    story = early
    ledger, repo = story.context.ledger, story.repo
    config = repo / "palate.yaml"
    original = config.read_text()
    assert len(ledger.spaces()) == 1
    try:
        config.write_text(original + "seed: 1\n")
        for step in TRAINING_STEPS.values():
            _run_killed(step, "train", "--quiet", cwd=repo)
            served = _online(story, _some_users(story))
            assert set(served.space) == {1}
        killed = _trained(repo)
        assert [s.number for s in ledger.spaces()] == [1, 2]
        assert ledger.space(2).encoder_version == killed
        # The uninterrupted training of the same rows and settings gives the same bits.
        assert _trained(repo, "--no-resume") == killed
        assert [s.number for s in ledger.spaces()] == [1, 2]
    finally:
        config.write_text(original)


def _some_users(story: Story) -> list[Any]:
    folder = story.context.settings.offline_dir / "user_embedding_s1"
    users = pq.read_table(parquet_files(folder)[-1], columns=["user_id"])["user_id"]
    return sorted(set(users.to_pylist()))[:20]


def _trained(repo: Path, *options: str) -> str:
    version: str = json.loads(run("palate", "train", "--quiet", *options, cwd=repo))[
        "encoder_version"
    ]
    return version
