"""`palate demo stream`: what it shows is true, and the demo's repository stays as it is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.e2e.conftest import Story, run
from tests.servers import Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Shown:
    """A finished `palate demo stream` over a small repository of simulated listeners."""

    printed: str
    summary: dict[str, Any]
    before: set[Path]
    after: set[Path]


def _files(repo: Path) -> set[Path]:
    return {path for path in (repo / "data").rglob("*.parquet") if path.is_file()}


@pytest.fixture(scope="module")
def shown(story: Story) -> Shown:
    if shutil.which("redis-server") is None and shutil.which("valkey-server") is None:
        pytest.skip("redis-server is not in PATH")
    output, before = story.repo.parent, _files(story.repo)
    printed = run(
        *("palate", "demo", "stream", "--output", str(output)),
        *("--events", "600", "--rate", "200"),
        cwd=output,
    )
    summary = json.loads((output / "stream" / "summary.json").read_text())
    return Shown(printed, summary, before, _files(story.repo))


def test_a_new_user_is_cold_then_onboarded_then_warm(shown: Shown) -> None:
    moments = shown.summary["moments"]
    assert [(one["step"], one["status"]) for one in moments] == [
        ("sign-up", "cold"),
        ("first onboarding pick", "onboarded"),
        ("first plays", "warm"),
        ("an established user plays", "warm"),
    ]
    assert all(one["freshness_ms"] > 0 for one in moments)
    assert moments[0]["cosine_to_before"] is None
    assert all(one["cosine_to_before"] < 1 for one in moments[1:])
    assert shown.summary["without_onboarding"] is False


def test_few_plays_bring_a_new_user_near_those_who_like_the_same(shown: Shown) -> None:
    pick, plays = (one["near"] for one in shown.summary["moments"][1:3])
    assert pick["tag"] == plays["tag"]
    # Three epochs of training: what one pick says is not asked of it.
    assert plays["nearest_share"] > 1.2 * plays["everybody_share"] > 0


def test_replayed_real_events_give_the_rows_of_the_batch(shown: Shown) -> None:
    replay, check = shown.summary["replay"], shown.summary["check"]
    assert replay["events"] >= 600
    assert replay["probes"] == -(-replay["events"] // 20)
    assert 0 < replay["p50"] <= replay["p99"]
    assert check["agrees"]
    assert check["users"] >= 100
    assert check["rows"]["user_activity"] >= 100
    assert max(check["max_abs_diff"].values()) <= 1e-4
    assert check["min_cosine"] > 0.999999


def test_the_demos_own_repository_is_only_read(shown: Shown) -> None:
    assert shown.before == shown.after


def test_the_table_says_what_was_measured(shown: Shown) -> None:
    assert "first onboarding pick" in shown.printed
    assert "streamed = batch" in shown.printed
    assert "summary.json" in shown.printed


def _refused(story: Story, *options: str, **environment: str) -> str:
    done = subprocess.run(
        [Path(sys.executable).parent / "palate", "demo", "stream", *options],
        cwd=story.repo.parent,
        env={**os.environ, "PALATE_REPO": "", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    return done.stderr


def test_without_redis_it_says_what_to_install(story: Story, tmp_path: Path) -> None:
    stderr = _refused(story, "--output", str(story.repo.parent), PATH=str(tmp_path))
    assert "redis-server" in stderr
    assert "--redis host:port" in stderr


def test_a_redis_that_holds_something_is_refused(story: Story, redis_server: Server) -> None:
    with redis.Redis(redis_server.host, redis_server.port) as client:
        client.set("somebody's", "data")
    address = f"{redis_server.host}:{redis_server.port}"
    stderr = _refused(story, "--output", str(story.repo.parent), "--redis", address)
    assert "needs an empty one" in stderr


def test_another_data_set_than_the_demos_is_refused(story: Story) -> None:
    stderr = _refused(story, "--output", str(story.repo.parent), "--dataset", "ml1m")
    assert "Name another --output" in stderr
