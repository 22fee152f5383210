"""`palate stream` on a real repository: from appended events to embeddings, by the command line."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
import requests
import yaml
from click.testing import CliRunner, Result

from materialize.cli import main
from materialize.stream.connect import connect
from materialize.stream.keys import marker_key
from materialize.stream.marker import read_marker, write_marker
from materialize.stream.status import read_lag
from materialize.stream.writer import EventWriter
from tests.e2e.redis_faults import Line, wait_until
from tests.e2e.stream_commands import (
    PARTITIONS,
    STREAM,
    kept,
    lines,
    palate,
    run_to_the_end,
    served,
)
from tests.repositories import TinyRepository
from tests.servers import Server, free_port
from tests.stores import PROFILES
from tests.streams import DAY, LAYOUT, NOON, TinyStream, consume
from transforms.stream.events import StreamEvent, event_payload


@pytest.fixture(scope="module")
def stream(redis_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyStream]:
    root = tmp_path_factory.mktemp("stream_run")
    online = PROFILES["palate-redis"].settings(redis_server, str(root))
    made = TinyStream.make(root / "repository", online, stream=STREAM)
    made.add_space()
    yield made
    gc.unfreeze()  # commands that ran in this process froze what was alive


@pytest.fixture(scope="module")
def client(redis_server: Server) -> Iterator[redis.Redis]:
    with closing(connect(redis_server.url)) as made:
        yield made


@pytest.fixture(scope="module")
def writer(begun: TinyStream, client: redis.Redis) -> EventWriter:
    return EventWriter(client, begun.context.store.project, context=LAYOUT.context)


@pytest.fixture(scope="module")
def begun(stream: TinyStream) -> TinyStream:
    """The states are begun, from nothing; before that the run is refused."""
    result = palate(stream, "run", "--until-idle", code=3)
    assert "holds no users' states" in result.output
    assert "palate stream seed" in result.output
    assert "states: none" not in palate(stream, "append", os.devnull, "--quiet").output
    assert run_to_the_end(stream, "--from-nothing")["events"] == 0
    return stream


def test_appended_events_become_embeddings_and_offline_rows(
    begun: TinyStream, tmp_path: Path
) -> None:
    events = [consume(user, item, NOON + item) for user in (1, 2) for item in range(3)]
    pick = StreamEvent("onboarding_pick", 3, NOON, "item-4")
    appended = palate(begun, "append", str(lines(tmp_path / "e.jsonl", [*events, pick])), "--quiet")
    assert json.loads(appended.stdout) == {"appended": 7}
    status = json.loads(palate(begun, "status", "--json").stdout)
    assert status["undelivered"] == 7
    summary = run_to_the_end(begun)
    assert summary["outcomes"] == {
        "consume": {"applied": 6},
        "onboarding_pick": {"applied": 1},
    }
    assert set(summary["freshness_ms"]) == {"p50", "p95", "p99"}
    found = served(begun, 1, 2, 3, 4)
    assert found["status"] == ["warm", "warm", "onboarded", None]
    assert found["as_of"][0] == NOON + 2
    assert summary["offline_rows"] > 0
    assert {1, 2, 3} <= {user for user, _ in kept(begun)}
    status = json.loads(palate(begun, "status", "--json").stdout)
    assert (status["undelivered"], status["unacknowledged"], status["workers"]) == (0, 0, 0)


def test_dead_letters_are_listed_replayed_and_dropped(begun: TinyStream, tmp_path: Path) -> None:
    good = event_payload(consume(21, 1, NOON), LAYOUT.context)
    bad = [b"nonsense", good.replace(b"consume", b"dance"), good.replace(b"item-1", b"item-x")]
    palate(begun, "append", "-", "--quiet", input=b"\n".join([*bad, good]))
    summary = run_to_the_end(begun)
    reasons = {"not_json": 1, "unknown_type": 1, "unknown_item": 1}
    assert summary["dead_letters"] == reasons
    listed = json.loads(palate(begun, "dead", "list", "--json").stdout)
    assert listed["reasons"] == reasons
    by_reason = {one["reason"]: one for one in listed["letters"]}
    assert by_reason["not_json"]["payload"] == "nonsense"
    table = palate(begun, "dead", "list", "--reason", "unknown_type").output
    assert "dance" in table
    assert "nonsense" not in table
    assert "3" in palate(begun, "status").output.splitlines()[-2]

    chosen = ("--id", by_reason["unknown_type"]["id"])
    dry = json.loads(palate(begun, "dead", "replay", *chosen, "--dry-run").stdout)
    assert dry == {"found": 1, "replayed": 0}
    moved = json.loads(palate(begun, "dead", "replay", *chosen).stdout)
    assert moved == {"found": 1, "replayed": 1}
    assert run_to_the_end(begun)["dead_letters"] == {"unknown_type": 1}

    kept = palate(begun, "dead", "drop", "--all")
    assert json.loads(kept.stdout) == {"found": 3, "dropped": 0}
    assert "--yes" in kept.stderr
    dropped = palate(begun, "dead", "drop", "--all", "--yes")
    assert json.loads(dropped.stdout) == {"found": 3, "dropped": 3}
    assert "no dead letters" in palate(begun, "dead", "list").output
    assert "--reason or --id" in palate(begun, "dead", "drop", "--yes", code=2).output
    assert "partition:entry" in palate(begun, "dead", "list", "--id", "x", code=2).output


def test_a_file_of_clean_events_is_applied_once(begun: TinyStream, tmp_path: Path) -> None:
    path = tmp_path / "clean.parquet"
    moments = [NOON, NOON + 5, NOON + DAY]
    table = pa.table(
        {
            "user_id": [31, 32, 31],
            "item_id": ["item-1", "item-2", "item-3"],
            "ts": pa.array(moments).cast(pa.timestamp("us", "UTC")),
            "weight": pa.array([1.0, 2.0, 1.0], pa.float32()),
            "context": [["BR"], [None], ["CL"]],
        }
    )
    pq.write_table(table, path)
    first = palate(begun, "run", "--source", str(path), "--quiet")
    assert json.loads(first.stdout)["outcomes"] == {"consume": {"applied": 3}}
    assert served(begun, 31, 32)["as_of"] == [NOON + DAY, NOON + 5]
    again = palate(begun, "run", "--source", str(path), "--quiet")
    assert json.loads(again.stdout)["events"] == 0
    palate(begun, "append", str(path), "--quiet", "--rate", "1000")
    assert run_to_the_end(begun)["outcomes"] == {"consume": {"duplicate": 3}}
    refused = palate(begun, "run", "--source", str(path), "--workers", "2", code=2)
    assert "one worker" in refused.output


def while_running(
    stream: TinyStream,
    scenario: Callable[[], None],
    *arguments: str,
    code: int = 0,
    repo: Path | None = None,
) -> Result:
    """Run workers in this process until a scenario, in a thread beside them, is over.

    SIGTERM then ends them, unless they ended by themselves.
    """
    ended = threading.Event()

    def play() -> None:
        try:
            scenario()
        finally:
            if not ended.is_set():
                os.kill(os.getpid(), signal.SIGTERM)

    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(play)
        try:
            result = palate(stream, "run", "--quiet", *arguments, code=code, repo=repo)
        finally:
            ended.set()
        told.result()
    return result


def test_a_signal_ends_a_run_in_order(begun: TinyStream, writer: EventWriter) -> None:
    writer.append([consume(41, 1, NOON)])
    applied = partial(wait_until, lambda: served(begun, 41)["as_of"] == [NOON])
    result = while_running(begun, applied, "--flush-seconds", "600")
    assert json.loads(result.stdout)["outcomes"] == {"consume": {"applied": 1}}
    assert (41, NOON) in kept(begun)
    status = json.loads(palate(begun, "status", "--json").stdout)
    assert (status["unacknowledged"], status["workers"]) == (0, 0)


def test_states_that_are_lost_end_a_run(begun: TinyStream, client: redis.Redis) -> None:
    project = begun.context.store.project
    marker = read_marker(client, project)
    assert marker is not None

    def lose() -> None:
        wait_until(lambda: len(owners(begun, client)) == 1)
        client.delete(marker_key(project))
        wait_until(lambda: not owners(begun, client))

    result = while_running(begun, lose, code=3)
    assert "never seeded, or it lost its data" in result.output
    write_marker(client, project, marker)


def owners(stream: TinyStream, client: redis.Redis) -> set[str]:
    """Return the names of the workers that own partitions."""
    lag = read_lag(client, stream.context.store.project, PARTITIONS)
    return {one.owner for one in lag.partitions if one.owner is not None}


def scraped(port: int) -> str:
    return requests.get(f"http://127.0.0.1:{port}/metrics", timeout=5).text


@pytest.mark.slow
def test_workers_share_are_replaced_when_killed_and_stop_in_order(
    begun: TinyStream, client: redis.Redis, writer: EventWriter
) -> None:
    project, port, users = begun.context.store.project, free_port(2), range(1_000, 1_040)

    def kill_one() -> None:
        wait_until(lambda: len(owners(begun, client)) == 2, 180)
        writer.append([consume(user, 1, NOON) for user in users])
        wait_until(lambda: set(served(begun, *users)["status"]) == {"warm"})
        for each in (port, port + 1):
            wait_until(lambda each=each: "palate_stream_owned_partitions 2.0" in scraped(each))
            assert "palate_stream_freshness_seconds_bucket" in scraped(each)

        victim = min(owners(begun, client))
        os.kill(int(victim.split("-")[-2]), signal.SIGKILL)
        writer.append([consume(user, 2, NOON + 1) for user in users])
        wait_until(lambda: set(served(begun, *users)["as_of"]) == {NOON + 1})
        wait_until(lambda: len(owners(begun, client) - {victim}) == 2)

        writer.append([consume(user, 3, NOON + 2) for user in users])
        wait_until(lambda: set(served(begun, *users)["as_of"]) == {NOON + 2})

    result = while_running(begun, kill_one, "--workers", "2", "--metrics-port", str(port))
    assert json.loads(result.stdout)["outcomes"]["consume"]["applied"] >= 80
    lag = read_lag(client, project, PARTITIONS)
    assert (lag.undelivered, lag.unacknowledged) == (0, 0)
    assert owners(begun, client) == set()
    assert {(user, NOON + n) for user in users for n in range(3)} <= kept(begun)


@pytest.mark.slow
def test_a_worker_that_cannot_begin_because_redis_is_away_is_tried_again(
    begun: TinyStream,
    client: redis.Redis,
    redis_server: Server,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    line = Line(redis_server.port)
    folder = configured(begun, tmp_path / "r", url=f"redis://127.0.0.1:{line.port}")

    def cut_off() -> None:
        wait_until(lambda: len(owners(begun, client)) == 2, 180)
        before = owners(begun, client)
        line.cut()
        os.kill(int(min(before).split("-")[-2]), signal.SIGKILL)
        wait_until(lambda: "ended by stores that do not answer" in caplog.text)
        line.mend()
        wait_until(lambda: len(owners(begun, client) - {min(before)}) == 2)

    try:
        result = while_running(begun, cut_off, "--workers", "2", repo=folder)
    finally:
        line.close()
    assert json.loads(result.stdout)["retries"]
    assert owners(begun, client) == set()


@pytest.mark.slow
def test_workers_that_cannot_go_on_stop_all_of_them(begun: TinyStream) -> None:
    with socket.create_server(("", 0)) as taken:
        port = str(taken.getsockname()[1] - 1)  # the second worker's is the one behind it
        result = palate(begun, "run", "--workers", "2", "--metrics-port", port, code=1)
    assert "Error: A worker of the stream failed, so all were stopped" in result.output


# Refusals.


def configured(stream: TinyStream, folder: Path, **changes: Any) -> Path:
    """Return the repository with other settings of the stream, in a folder of its own."""
    repo = stream.context.settings.repo
    content = yaml.safe_load((repo / "palate.yaml").read_text())
    content["stream"] |= changes
    content |= {"dataset": str(repo / "tiny.yaml"), "data_dir": str(repo / "data")}
    folder.mkdir()
    (folder / "palate.yaml").write_text(yaml.safe_dump(content))
    store = yaml.safe_load((repo / "feature_store.yaml").read_text())
    store["registry"] = stream.context.store.config.registry.model_dump(exclude_none=True) | {
        "path": str(repo / stream.context.store.config.registry.path)
    }
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(store))
    return folder


def refused(folder: Path, *arguments: str, code: int) -> str:
    result = CliRunner().invoke(main, ["stream", *arguments, "--repo", str(folder)])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def test_another_number_of_partitions_says_what_to_do(begun: TinyStream, tmp_path: Path) -> None:
    folder = configured(begun, tmp_path / "r", partitions=8)
    told = refused(folder, "run", "--until-idle", code=3)
    assert "8 partitions given" in told
    assert "Set stream.partitions to 4" in told


def test_a_wrong_password_is_masked(
    begun: TinyStream, redis_server: Server, tmp_path: Path
) -> None:
    url = f"redis://nobody:s3cret@127.0.0.1:{redis_server.port}"
    told = refused(configured(begun, tmp_path / "r", url=url), "status", code=1)
    assert "nobody:***@" in told
    assert "s3cret" not in told


def test_an_event_stream_that_does_not_answer_is_named(begun: TinyStream, tmp_path: Path) -> None:
    url = f"redis://127.0.0.1:{free_port()}"
    told = refused(configured(begun, tmp_path / "r", url=url), "append", os.devnull, code=1)
    assert f"{url} does not answer" in told


def test_another_online_store_is_refused(tmp_path: Path) -> None:
    repository = TinyRepository.make(tmp_path / uuid.uuid4().hex)
    told = refused(repository.path, "run", code=1)
    assert "PalateRedisOnlineStore" in told


def test_a_field_of_the_settings_is_named_when_it_is_wrong(
    begun: TinyStream, tmp_path: Path
) -> None:
    folder = configured(begun, tmp_path / "r", lease_seconds=0.1)
    assert "stream.lease_seconds" in refused(folder, "status", code=1)
