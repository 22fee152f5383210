"""Texts beside activity, on real Redis: what a stream keeps is what the batch would make."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from encoder.errors import StreamConflict
from materialize.stream.apply import Applier
from materialize.stream.atomic import STATE_FIELD, UserHashes
from materialize.stream.check import StreamCheck, check_stream
from materialize.stream.marker import StreamMarker, read_marker, write_marker
from materialize.stream.seed import SeedReport, seed_states
from materialize.stream.service import require_states
from tests.repositories import write_online
from tests.servers import Server
from tests.stores import PROFILES
from tests.stream_batch import run_batch, write_clean
from tests.streams import (
    DAY,
    LAYOUT,
    NOON,
    TinyStream,
    apply,
    consume,
    deliveries,
    item_vectors,
)
from transforms.layout import ACTIVITY, ONBOARDING, TEXTS
from transforms.names import EMBEDDING_FEATURES, on_demand_view, stored_view
from transforms.stream.circumstances import kept_circumstances
from transforms.stream.events import StreamEvent

USERS = itertools.count(1)
POOLED, SAID, BOTH = stored_view(1), stored_view(2), stored_view(3)
HOUR = DAY // 24
SERVICES = (None, "books", "music", "radio", "")
"""The tokenizer knows books and music."""
PLAIN, BOOKS, MUSIC = 1, 2, 3
"""Guide tokens."""


def settings(server: Server, folder: Path) -> dict[str, Any]:
    return PROFILES["palate-redis"].settings(server, str(folder))


@pytest.fixture(scope="module")
def stream(redis_server: Server, tmp_path_factory: pytest.TempPathFactory) -> TinyStream:
    """Space 1 reads pooled features, 2 texts, both are pinned; 3, the newest, reads both."""
    root = tmp_path_factory.mktemp("texts")
    made = TinyStream.make(root / "repository", settings(redis_server, root), texts=True)
    first = made.add_space()
    second = made.add_text_space()
    made.add_hybrid_space()
    made.pin(first)
    made.pin(second, "of texts")
    return made


@pytest.fixture(scope="module")
def applier(stream: TinyStream) -> Applier:
    return stream.applier()


def seed(stream: TinyStream, **options: Any) -> SeedReport:
    context = stream.context
    return seed_states(context.store, context.settings, context.ledger, progress=False, **options)


def check(stream: TinyStream, users: Sequence[int], events: Sequence[StreamEvent]) -> StreamCheck:
    context = stream.context
    return check_stream(context.store, context.settings, context.ledger, users, events=events)


def drawn(users: Sequence[int], n: int, seed: int) -> list[StreamEvent]:
    """Events of a few days, many of them at one instant; items are met in several services."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    return [
        consume(
            draw.choice(users),
            draw.randrange(12),
            NOON - draw.randrange(6) * DAY + draw.randrange(2),
            weight=draw.choice((0.5, 1.0)),
            service=draw.choice(SERVICES),
        )
        for _ in range(n)
    ]


def distinct(events: Sequence[StreamEvent]) -> list[StreamEvent]:
    """Each user, item and time once: told with two services, the batch keeps the first."""
    found = {(event.user_id, event.item_id, event.timestamp_us): event for event in events}
    return list(found.values())


def item_tokens(stream: TinyStream, guide: int, item: int) -> list[int]:
    texts = item_vectors(texts=True).texts
    assert texts is not None
    return [guide, *(t for t in texts.tokens[item, 1:].tolist() if t)]


def test_streamed_texts_and_their_embeddings_equal_a_recomputation(
    stream: TinyStream, applier: Applier
) -> None:
    users = [next(USERS) for _ in range(6)]
    events = distinct(drawn(users, 150, seed=0))
    write_clean(stream, [consume(next(USERS), 0, NOON)])
    for start in range(0, len(events), 7):
        apply(applier, *events[start : start + 9], *events[max(0, start - 3) : start])
    found = check(stream, users, events)
    assert found.agrees, found.differences
    assert {found.rows[view] for view in (ACTIVITY, TEXTS, POOLED, SAID, BOTH)} == {6}
    texts = stream.online(TEXTS, users)
    assert max(map(len, texts["texts_tokens"])) > 40, "the newest of several services"
    activity = stream.online(ACTIVITY, users)
    assert texts["texts_as_of"] == activity["activity_as_of"]
    made, on_demand = stream.online(SAID, users), stream.online(on_demand_view(2), users)
    for name in EMBEDDING_FEATURES:
        assert made[name] == on_demand[name], name
    both = (stream.online(view, users)["embedding"] for view in (BOTH, on_demand_view(3)))
    np.testing.assert_allclose(*both, rtol=0, atol=1e-6)
    # The check sees a service that differs.
    strange = [*events[:-1], consume(events[-1].user_id, 0, NOON + 1, service="music")]
    apply(applier, consume(events[-1].user_id, 0, NOON + 1, service="books"))
    assert TEXTS in {one.view for one in check(stream, users, strange).differences}


def test_a_row_says_the_newest_of_each_service(stream: TinyStream, applier: Applier) -> None:
    user = next(USERS)
    report = apply(
        applier,
        *(consume(user, k, NOON + k, service="music") for k in range(6)),
        consume(user, 7, NOON, service="books"),
        consume(user, 7, NOON + 3, service="radio"),
        consume(user, 8, NOON + 2),
    )
    assert {len(report.offline[view]) for view in (ACTIVITY, TEXTS, SAID)} == {1}
    (row,) = report.offline[TEXTS].to_pylist()
    expected = [
        *item_tokens(stream, BOOKS, 7),
        *(token for k in (5, 4, 3, 2) for token in item_tokens(stream, MUSIC, k)),
        *item_tokens(stream, PLAIN, 7),
        *item_tokens(stream, PLAIN, 8),
    ]
    assert row["texts_tokens"] == expected
    assert (row["texts_count"], row["texts_as_of"]) == ([9.0], NOON + 5)
    assert stream.online(TEXTS, [user])["texts_tokens"] == [expected]
    late = consume(user, 11, NOON + 4, service="books")
    (row,) = apply(applier, late).offline[TEXTS].to_pylist()
    tokens = [*item_tokens(stream, BOOKS, 11), *expected]
    assert (row["texts_tokens"], row["texts_as_of"]) == (tokens, NOON + 5)
    assert apply(applier, late).offline == {}


def test_a_pick_alone_makes_no_texts(stream: TinyStream, applier: Applier) -> None:
    user = next(USERS)
    apply(applier, StreamEvent("onboarding_pick", user, NOON, "item-1"))
    assert stream.online(TEXTS, [user])["texts_as_of"] == [None]
    assert stream.online(SAID, [user])["status"] == ["cold"]
    assert stream.online(POOLED, [user])["status"] == ["onboarded"]


def test_redelivered_events_give_their_texts_again(stream: TinyStream, applier: Applier) -> None:
    user = next(USERS)
    events = [
        consume(user, k, NOON + k, service=name) for k, name in enumerate(("books", "music", None))
    ]
    reports = [apply(applier, event) for event in events]
    again = applier.apply(deliveries(events, redelivered=True))
    assert again.written == 0
    for view in (ACTIVITY, TEXTS, POOLED, SAID, BOTH):
        then = [row for report in reports for row in report.offline[view].to_pylist()]
        now = sorted(again.offline[view].to_pylist(), key=lambda row: row["event_timestamp"])
        assert now[-1] == then[-1], "the newest row with its own times"
        blank = {"created_timestamp": None}
        assert [row | blank for row in now] == [row | blank for row in then]


def test_texts_of_a_moment_are_given_again_where_only_they_moved_on(
    stream: TinyStream, applier: Applier
) -> None:
    """A batch wrote newer texts, and not yet the activity beside them."""
    user = next(USERS)
    event = consume(user, 1, NOON, service="books")
    table = apply(applier, event).offline[TEXTS]
    newer = {"texts_as_of": [NOON + HOUR], "event_timestamp": [NOON + HOUR]}
    for name, values in newer.items():
        at = table.column_names.index(name)
        table = table.set_column(at, name, pa.array(values).cast(table.schema.field(name).type))
    write_online(stream.context.store, TEXTS, table.to_batches())
    again = applier.apply(deliveries([event], redelivered=True)).offline
    assert sorted(again[TEXTS]["texts_as_of"].to_pylist()) == [NOON, NOON + HOUR]
    assert set(again[ACTIVITY]["activity_as_of"].to_pylist()) == {NOON}


def test_texts_that_are_missing_or_of_another_tokenizer_are_made_beside_a_pick(
    redis_server: Server, tmp_path: Path
) -> None:
    made = TinyStream.make(tmp_path / "repository", settings(redis_server, tmp_path), texts=True)
    applier = made.applier()
    apply(applier, consume(1, 1, NOON, service="books"), consume(2, 2, NOON, service="music"))
    hashes = UserHashes(made.context.store)
    (key,) = hashes.keys([1])
    with closing(hashes.client):
        fields = [f for f in hashes.client.hkeys(key) if b"texts" in f]
        hashes.client.hdel(key, *fields)
    assert made.online(TEXTS, [1, 2])["texts_as_of"] == [None, NOON]
    pick = StreamEvent("onboarding_pick", 1, NOON, "item-4")
    report = apply(applier, pick, StreamEvent("onboarding_pick", 2, NOON, "item-4"))
    assert report.offline[ONBOARDING]["user_id"].to_pylist() == [1, 2]
    assert report.offline[TEXTS]["user_id"].to_pylist() == [1]
    assert made.online(TEXTS, [1])["texts_tokens"] == [item_tokens(made, BOOKS, 1)]
    # The same item vectors, and texts that were taken anew.
    anew = item_vectors(texts=True)
    anew.texts = item_vectors(1, texts=True).texts
    made.publish(anew)
    applier.refresh()
    report = apply(applier, StreamEvent("onboarding_pick", 2, NOON, "item-5"))
    assert anew.texts_version != item_vectors(texts=True).texts_version
    assert report.offline[TEXTS]["texts_modality"].to_pylist() == [anew.texts_version]
    assert report.offline[ACTIVITY]["activity_modality"].to_pylist() == [anew.version]


def test_batch_and_stream_know_the_same_of_each_service(stream: TinyStream) -> None:
    users = [next(USERS) for _ in range(5)]
    events = distinct(drawn(users, 120, seed=1))
    batch, streamed = events[:80], events[40:]
    write_clean(stream, batch)
    run_batch(stream, users)
    client, project = UserHashes(stream.context.store).client, stream.context.store.project
    names = kept_circumstances(stream.layout)
    write_marker(client, project, StreamMarker(None, 7, "", 0, names))
    applier = stream.applier()
    apply(applier, *streamed[:40])
    assert seed(stream, force=True).outcome == "seeded"
    marker = read_marker(client, project)
    assert marker is not None
    assert marker.circumstances == ("country", "service")
    applier.refresh()
    apply(applier, *streamed[40:])
    found = check(stream, users, streamed)
    assert found.agrees, found.differences
    assert found.rows[TEXTS] == 5
    assert seed(stream, force=True).written == 0


@pytest.fixture
def grown(redis_server: Server, tmp_path: Path) -> Iterator[tuple[TinyStream, UserHashes]]:
    """A stream whose states were made before its data set named texts; users 1 to 4."""
    old = TinyStream.make(tmp_path / "repository", settings(redis_server, tmp_path))
    marker = StreamMarker(None, 7, "", 0)
    hashes = UserHashes(old.context.store)
    write_marker(hashes.client, old.context.store.project, marker)
    require_states(hashes.client, old.context.store.project, old.layout)
    apply(old.applier(), *(consume(user, user, NOON - user * HOUR) for user in (1, 2, 3, 4)))
    yield old.with_texts(), hashes
    hashes.client.close()


def test_states_without_services_are_refused_once_there_are_texts(
    grown: tuple[TinyStream, UserHashes],
) -> None:
    stream, hashes = grown
    project = stream.context.store.project
    expected = r"keep no services.*country, service expected.*palate stream seed"
    with pytest.raises(StreamConflict, match=expected):
        require_states(hashes.client, project, stream.layout)
    write_marker(hashes.client, project, StreamMarker(None, 7, "", 0, ("country",)))
    with pytest.raises(StreamConflict, match="keep country of an event's"):
        require_states(hashes.client, project, stream.layout)
    before = hashes.read(hashes.keys([1]), [STATE_FIELD])
    report = apply(stream.applier(), consume(1, 5, NOON), consume(9, 5, NOON))
    assert report.outcomes == {("consume", "corrupt_state"): 1, ("consume", "applied"): 1}
    assert "1 value(s) of an event's circumstances" in report.rejected[0].detail
    assert hashes.read(hashes.keys([1]), [STATE_FIELD]) == before


def test_a_seed_gives_the_states_their_services_and_others_wait_for_the_next(
    grown: tuple[TinyStream, UserHashes],
) -> None:
    stream, hashes = grown
    project = stream.context.store.project
    events = [consume(user, user, NOON - user * HOUR, service="music") for user in (1, 2, 3, 4)]
    elsewhere = consume(4, 9, NOON - 2 * DAY, service="books")
    write_clean(stream, [*events[:3], elsewhere])
    run_batch(stream, [1, 2, 3])
    report = seed(stream)
    assert (report.outcome, report.written, report.failed) == ("seeded", 3, {"CorruptState": 1})
    require_states(hashes.client, project, stream.layout)
    new = [consume(user, 7, NOON, service="books") for user in (1, 2, 4)]
    applied = apply(stream.applier(), *new)
    assert applied.outcomes == {("consume", "applied"): 2, ("consume", "corrupt_state"): 1}
    assert check(stream, [1, 2, 3], new).agrees
    # The next night's tables hold the rest.
    write_clean(stream, [*events, elsewhere])
    run_batch(stream, [4])
    assert seed(stream).failed == {}
    again = apply(stream.applier(), *new)
    assert again.outcomes == {("consume", "duplicate"): 2, ("consume", "applied"): 1}
    found = check(stream, [1, 2, 3, 4], new)
    assert found.agrees, found.differences
    assert found.rows[TEXTS] == 4


def test_a_forced_seed_drops_events_whose_service_nobody_knows(
    grown: tuple[TinyStream, UserHashes],
) -> None:
    stream, _ = grown
    write_clean(stream, [consume(4, 9, NOON - 2 * DAY, service="books")])
    report = seed(stream, force=True)
    assert (report.written, report.failed) == (1, {})
    applied = apply(stream.applier(), consume(4, 7, NOON, service="music"))
    (row,) = applied.offline[TEXTS].to_pylist()
    assert row["texts_tokens"] == item_tokens(stream, BOOKS, 9) + item_tokens(stream, MUSIC, 7)


def test_a_seed_of_another_data_set_takes_the_mark_away_until_it_is_done(
    grown: tuple[TinyStream, UserHashes], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, hashes = grown
    project = stream.context.store.project
    write_clean(stream, [consume(1, 1, NOON - HOUR, service="music")])
    marks: list[StreamMarker | None] = []
    split = "materialize.stream.history.History.split"

    def stopped(*_: object) -> None:
        marks.append(read_marker(hashes.client, project))
        raise KeyboardInterrupt

    monkeypatch.setattr(split, stopped)
    with pytest.raises(KeyboardInterrupt):
        seed(stream)
    assert marks == [None]
    with pytest.raises(StreamConflict, match="holds no users' states"):
        require_states(hashes.client, project, LAYOUT)
