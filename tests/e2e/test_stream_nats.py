"""`palate stream` with its events on NATS: from appended events to embeddings."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from encoder.errors import StreamConflict
from materialize.stream.broker import open_broker
from tests.e2e.stream_commands import (
    PARTITIONS,
    STREAM,
    kept,
    lines,
    palate,
    run_to_the_end,
    served,
)
from tests.servers import Server
from tests.stores import PROFILES
from tests.streams import DAY, LAYOUT, NOON, TinyStream, consume
from transforms.stream.events import event_payload


@pytest.fixture(scope="module")
def stream(
    redis_server: Server, nats_server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TinyStream]:
    root = tmp_path_factory.mktemp("stream_nats")
    online = PROFILES["palate-redis"].settings(redis_server, str(root))
    settings = {**STREAM, "nats": nats_server.url}
    made = TinyStream.make(root / "repository", online, stream=settings)
    made.add_space()
    yield made
    gc.unfreeze()  # commands that ran in this process froze what was alive


def test_events_on_nats_become_embeddings_and_faults_dead_letters_that_come_back(
    stream: TinyStream, tmp_path: Path
) -> None:
    good = event_payload(consume(3, 1, NOON), LAYOUT.context)
    bad = good.replace(b"item-1", b"item-x")
    events = [consume(user, item, NOON + item * DAY) for user in (1, 2) for item in range(3)]
    file = lines(tmp_path / "e.jsonl", [*events, bad])
    assert json.loads(palate(stream, "append", str(file), "--quiet").stdout) == {"appended": 7}
    status = json.loads(palate(stream, "status", "--json").stdout)
    assert (status["undelivered"], len(status["partitions"])) == (7, PARTITIONS)
    summary = run_to_the_end(stream, "--from-nothing")
    assert summary["outcomes"]["consume"] == {"applied": 6}
    assert summary["dead_letters"] == {"unknown_item": 1}
    found = served(stream, 1, 2, 3)
    assert found["status"] == ["warm", "warm", None]
    assert found["as_of"][:2] == [NOON + 2 * DAY] * 2
    assert {(1, NOON + 2 * DAY), (2, NOON + 2 * DAY)} <= kept(stream)
    status = json.loads(palate(stream, "status", "--json").stdout)
    assert (status["undelivered"], status["unacknowledged"], status["dead_letters"]) == (0, 0, 1)

    moved = json.loads(palate(stream, "dead", "replay", "--all").stdout)
    assert moved == {"found": 1, "replayed": 1}
    assert run_to_the_end(stream)["dead_letters"] == {"unknown_item": 1}
    palate(stream, "append", str(file), "--quiet")
    assert run_to_the_end(stream)["outcomes"]["consume"] == {"duplicate": 6}


def test_another_number_of_partitions_is_refused_by_producers_too(stream: TinyStream) -> None:
    store, settings = stream.context.store, stream.context.settings
    with closing(open_broker(store, settings)) as broker:
        broker.writer()
    with (
        closing(open_broker(store, settings.with_stream(partitions=8))) as broker,
        pytest.raises(StreamConflict, match=f"Set stream.partitions to {PARTITIONS}"),
    ):
        broker.writer()
