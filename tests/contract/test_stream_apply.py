"""Events become state, raw rows and embeddings on real Redis: whole, exact, beside others."""

from __future__ import annotations

import itertools
import random
import select
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from encoder.errors import DataFault, TransientError
from materialize.stores.wire import Place, event_times, integers
from materialize.stream.apply import Applier, ApplyReport
from materialize.stream.atomic import REVISION_FIELD, STATE_FIELD, UserHashes
from materialize.stream.offline import OfflineRows
from materialize.stream.restarts import Restarts
from materialize.stream.targets import StoredView
from tests.e2e.redis_faults import Line
from tests.repositories import INSTANT, TinyRepository, write_online
from tests.servers import Server
from tests.servers import redis_server as start_redis
from tests.stores import PROFILES
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
from transforms.layout import ACTIVITY, ONBOARDING, PROFILE
from transforms.names import EMBEDDING_FEATURES, bridged_view, on_demand_view, stored_view
from transforms.stream.events import StreamEvent

FIRST, SECOND, BRIDGED = stored_view(1), stored_view(2), bridged_view(1, 2)
USERS = itertools.count(1)
HOUR = DAY // 24


def online_settings(server: Server, folder: Path, **more: Any) -> dict[str, Any]:
    return PROFILES["palate-redis"].settings(server, str(folder)) | more


@pytest.fixture(scope="module")
def stream(redis_server: Server, tmp_path_factory: pytest.TempPathFactory) -> TinyStream:
    """Space 1 is pinned, space 2 is the newest and stored as int8; 1 is served from 2, too."""
    root = tmp_path_factory.mktemp("stream")
    made = TinyStream.make(root / "repository", online_settings(redis_server, root))
    first = made.add_space()
    second = made.add_space(1, vectors="int8")
    made.pin(first)
    made.bridge(second, first)
    return made


@pytest.fixture(scope="module")
def applier(stream: TinyStream) -> Applier:
    return stream.applier()


@pytest.fixture(scope="module")
def hashes(stream: TinyStream) -> Iterator[UserHashes]:
    found = UserHashes(stream.context.store)
    yield found
    found.client.close()


def stored(stream: TinyStream, view: str) -> StoredView:
    store = stream.context.store
    return StoredView.of(store.get_feature_view(view), store)


def field_of(stream: TinyStream, view: str, feature: str) -> bytes:
    one = stored(stream, view)
    return one.fields[one.features.index(feature)]


def everything(hashes: UserHashes, user: Any) -> dict[bytes, bytes]:
    (key,) = hashes.keys([user])
    found: dict[bytes, bytes] = hashes.client.hgetall(key)
    return found


def pick(user: Any, item: int, at: int) -> StreamEvent:
    return StreamEvent("onboarding_pick", user, at, f"item-{item}")


def change(user: Any, at: int, **columns: Any) -> StreamEvent:
    categories = {name: value for name, value in columns.items() if isinstance(value, str)}
    numbers = {name: value for name, value in columns.items() if not isinstance(value, str)}
    return StreamEvent("profile_change", user, at, categories=categories, numbers=numbers)


def rejected(report: ApplyReport) -> list[str]:
    return [one.reason for one in report.rejected]


def write_raw(stream: TinyStream, view: str, table: pa.Table, *, at: int, created: int) -> None:
    """Write a row of a report as the batch job would, at another time."""
    for name, moment in (("event_timestamp", at), ("created_timestamp", created)):
        index = table.column_names.index(name)
        table = table.set_column(index, name, pa.array([moment] * len(table)).cast(INSTANT))
    name = {ACTIVITY: "activity_as_of", PROFILE: "profile_as_of"}.get(view)
    if name is not None:
        index = table.column_names.index(name)
        table = table.set_column(index, name, pa.array([at] * len(table)))
    write_online(stream.context.store, view, table.combine_chunks().to_batches())


def assert_as_on_demand(stream: TinyStream, users: Sequence[Any]) -> None:
    """Stored rows are what an on-demand read makes of the raw rows beside them, bit for bit."""
    stored_rows = stream.online(FIRST, users)
    on_demand = stream.online(on_demand_view(1), users)
    for name in EMBEDDING_FEATURES:
        assert stored_rows[name] == on_demand[name], name
    compact, exact = stream.online(SECOND, users), stream.online(on_demand_view(2), users)
    for name in EMBEDDING_FEATURES[1:]:
        assert compact[name] == exact[name], name
    np.testing.assert_allclose(compact["embedding"], exact["embedding"], atol=0.05)
    bridged = stream.online(BRIDGED, users)
    assert bridged["as_of"] == compact["as_of"]
    assert bridged["space"] == [1] * len(users)
    assert np.isfinite(np.array(bridged["embedding"])).all()


def test_events_make_raw_rows_and_the_embeddings_of_every_live_view(
    stream: TinyStream, applier: Applier
) -> None:
    one, two, three = (next(USERS) for _ in range(3))
    report = apply(
        applier,
        *(consume(one, 3, NOON), consume(one, 4, NOON + 1), consume(two, 5, NOON, weight=2.5)),
        *(pick(two, 1, NOON - HOUR), change(two, NOON - HOUR, gender="f", age=31.0)),
        *(pick(three, 2, NOON), pick(three, 3, NOON + 5)),
    )
    assert report.outcomes == {
        ("consume", "applied"): 3,
        ("onboarding_pick", "applied"): 3,
        ("profile_change", "applied"): 1,
    }
    assert (report.users, report.written, report.conflicts) == (3, 3, 0)
    assert report.newest_event_us == NOON + 5
    assert stream.online(ACTIVITY, [one, two, three])["activity_as_of"] == [NOON + 1, NOON, None]
    profile = stream.online(PROFILE, [one, two])
    assert profile["profile_categories"] == [None, ["f"]]
    assert profile["profile_numbers"] == [None, [31.0]]
    picks = stream.online(ONBOARDING, [one, two, three])
    assert picks["onboarding_as_of"] == [None, NOON - HOUR, NOON + 5]
    assert [row[-1] for row in picks["onboarding_pooled"][1:]] == [1.0, 2.0]
    assert stream.online(FIRST, [one, two, three])["status"] == ["warm", "warm", "onboarded"]
    assert_as_on_demand(stream, [one, two, three])


def test_order_repetition_and_grouping_of_events_change_nothing(
    stream: TinyStream, applier: Applier, hashes: UserHashes
) -> None:
    """Everything but created times and revisions is equal, byte for byte."""
    draw = random.Random(7)  # noqa: S311 - no secret
    first, second = next(USERS), next(USERS)

    def events(user: int) -> list[StreamEvent]:
        rng = random.Random(3)  # noqa: S311 - no secret
        consumed = [
            consume(user, rng.randrange(12), NOON - rng.randrange(6 * DAY), weight=rng.random() + 1)
            for _ in range(30)
        ]
        changes = [change(user, NOON - k, gender="fm"[k % 2], age=float(k)) for k in range(4)]
        return [*consumed, *(pick(user, k, NOON - k * HOUR) for k in range(4)), *changes]

    apply(applier, *events(first))
    shuffled = events(second) * 2
    draw.shuffle(shuffled)
    while shuffled:
        size = draw.randrange(1, 9)
        apply(applier, *shuffled[:size])
        shuffled = shuffled[size:]
    times = {stored(stream, view).stamp for view in (*LAYOUT.views, FIRST, SECOND, BRIDGED)}
    left, right = everything(hashes, first), everything(hashes, second)
    assert left.keys() == right.keys()
    for name in left.keys() - times - {REVISION_FIELD}:
        assert left[name] == right[name], name
    for name in times:
        moments, _ = event_times([left[name], right[name]], Place("any", "time"))
        assert moments[0] == moments[1]


def test_a_duplicate_writes_nothing(
    stream: TinyStream, applier: Applier, hashes: UserHashes
) -> None:
    user = next(USERS)
    apply(applier, consume(user, 1, NOON))
    before = everything(hashes, user)
    report = apply(applier, consume(user, 1, NOON))
    assert report.outcomes == {("consume", "duplicate"): 1}
    assert (report.written, report.offline) == (0, {})
    assert everything(hashes, user) == before


def test_a_late_event_replaces_the_row_of_the_same_as_of(
    stream: TinyStream, applier: Applier
) -> None:
    user = next(USERS)
    apply(applier, consume(user, 1, NOON))
    before = stream.online(ACTIVITY, [user])
    apply(applier, consume(user, 2, NOON - DAY))
    after = stream.online(ACTIVITY, [user])
    assert before["activity_as_of"] == after["activity_as_of"] == [NOON]
    assert after["activity_counts"][0][0] == before["activity_counts"][0][0] + 1
    assert_as_on_demand(stream, [user])


def test_a_row_that_was_created_by_a_clock_ahead_is_replaced(
    stream: TinyStream, applier: Applier
) -> None:
    user, ahead = next(USERS), (time.time_ns() // 1000) + 10 * DAY
    made = apply(applier, consume(user, 1, NOON)).offline[ACTIVITY]
    write_raw(stream, ACTIVITY, made, at=NOON, created=ahead)
    report = apply(applier, consume(user, 2, NOON - HOUR))
    assert stream.online(ACTIVITY, [user])["activity_counts"][0][0] == 2.0
    (created,) = report.offline[ACTIVITY]["created_timestamp"].cast(pa.int64()).to_pylist()
    assert created == ahead + 1
    assert report.offline[FIRST]["created_timestamp"].cast(pa.int64()).to_pylist() == [created]


def test_a_newer_row_of_the_batch_stays_and_the_embedding_is_made_of_it(
    stream: TinyStream, applier: Applier, hashes: UserHashes
) -> None:
    user = next(USERS)
    made = apply(applier, consume(user, 1, NOON)).offline[ACTIVITY]
    write_raw(stream, ACTIVITY, made, at=NOON + HOUR, created=NOON + HOUR)
    before = everything(hashes, user)
    report = apply(applier, consume(user, 2, NOON + 1))
    assert report.outcomes == {("consume", "applied"): 1}
    assert ACTIVITY not in report.offline
    assert stream.online(ACTIVITY, [user])["activity_as_of"] == [NOON + HOUR]
    assert stream.online(FIRST, [user])["as_of"] == [NOON + HOUR]
    assert everything(hashes, user)[STATE_FIELD] != before[STATE_FIELD]
    assert_as_on_demand(stream, [user])
    apply(applier, consume(user, 3, NOON + 2 * HOUR))
    assert stream.online(ACTIVITY, [user])["activity_counts"][0][0] == 3.0


def test_a_newer_embedding_stays(stream: TinyStream, applier: Applier) -> None:
    user = next(USERS)
    made = apply(applier, consume(user, 1, NOON)).offline[FIRST]
    write_raw(stream, FIRST, made, at=NOON + HOUR, created=NOON + HOUR)
    report = apply(applier, consume(user, 2, NOON + 1))
    assert FIRST not in report.offline
    assert SECOND in report.offline
    assert stream.online(SECOND, [user])["as_of"] == [NOON + 1]
    view = stored(stream, FIRST)
    online = UserHashes(stream.context.store)
    (row,) = online.read(online.keys([user]), [view.stamp])
    online.client.close()
    assert event_times(row, Place(FIRST, "time"))[0].tolist() == [NOON + HOUR]


def test_a_profile_change_lies_over_the_stored_row(stream: TinyStream, applier: Applier) -> None:
    user, pattern = next(USERS), next(USERS)
    report = apply(applier, change(pattern, NOON, gender="f", age=20.0))
    table = report.offline[PROFILE]
    batch = table.set_column(0, "user_id", pa.array([user]))
    write_raw(stream, PROFILE, batch, at=NOON, created=NOON)
    apply(applier, change(user, NOON + 1, age=44.0), consume(user, 1, NOON + 2))
    profile = stream.online(PROFILE, [user])
    assert profile["profile_categories"] == [["f"]]
    assert profile["profile_numbers"] == [[44.0]]
    assert profile["profile_as_of"] == [NOON + 1]
    assert_as_on_demand(stream, [user])


def test_faults_of_one_user_reject_its_events_and_leave_the_others(
    stream: TinyStream, applier: Applier, hashes: UserHashes
) -> None:
    good, state, value, width, moment, revision = users = [next(USERS) for _ in range(6)]
    apply(applier, *(consume(user, 1, NOON) for user in users))
    apply(applier, *(pick(user, 1, NOON) for user in users))
    pooled = field_of(stream, ONBOARDING, "onboarding_pooled")
    short = everything(hashes, good)[field_of(stream, ACTIVITY, "activity_counts")]
    broken = {
        state: (STATE_FIELD, everything(hashes, state)[STATE_FIELD][:-3]),
        value: (pooled, b"no value"),
        width: (pooled, short),
        moment: (stored(stream, SECOND).stamp, b"\xff\xff"),
        revision: (REVISION_FIELD, b"yesterday"),
    }
    for user, (name, content) in broken.items():
        hashes.client.hset(hashes.keys([user])[0], name, content)
    before = {user: everything(hashes, user) for user in broken}
    report = apply(applier, b"{", *(consume(user, 2, NOON + 1) for user in users))
    assert report.outcomes == {
        ("unknown", "not_json"): 1,
        ("consume", "applied"): 1,
        ("consume", "corrupt_state"): 1,
        ("consume", "corrupt_value"): 4,
    }
    named = {one.delivery.payload: one.detail for one in report.rejected}
    assert len(named) == 6
    assert all("expected" in detail or "seed" in detail for detail in named.values()), named
    assert {user: everything(hashes, user) for user in broken} == before
    assert stream.online(FIRST, [good])["as_of"] == [NOON + 1]
    assert set(report.offline[FIRST]["user_id"].to_pylist()) == {good}


def test_what_no_state_takes_is_rejected_with_what_to_do(
    stream: TinyStream, applier: Applier
) -> None:
    user = next(USERS)
    apply(applier, StreamEvent("sign_up", user, NOON))
    report = apply(applier, consume(user, 1, NOON - 1), consume(user, 1, NOON + 1))
    assert rejected(report) == ["event_before_sign_up"]
    assert "2026-01-01T11:59:59.999999Z" in report.rejected[0].detail
    assert report.outcomes["consume", "applied"] == 1


def test_embeddings_of_hundreds_of_users_are_those_of_on_demand_reads_of_one(
    stream: TinyStream, applier: Applier
) -> None:
    users = [next(USERS) for _ in range(230)]
    rng = random.Random(0)  # noqa: S311 - no secret
    apply(
        applier,
        *(consume(u, rng.randrange(12), NOON - rng.randrange(3 * DAY)) for u in users * 3),
    )
    stored_rows = stream.online(FIRST, users)
    for position in (0, 99, 100, 229):
        one = stream.online(on_demand_view(1), [users[position]])
        assert stored_rows["embedding"][position] == one["embedding"][0]
    assert_as_on_demand(stream, users)


def test_racing_appliers_lose_no_event_and_no_reader_sees_a_mix(
    stream: TinyStream, hashes: UserHashes
) -> None:
    """State, raw row and embeddings of each read fit together, with a batch writer in between."""
    users = [next(USERS) for _ in range(30)]
    rng = random.Random(1)  # noqa: S311 - no secret
    events = [consume(u, rng.randrange(12), NOON + rng.randrange(DAY)) for u in users * 20]
    rng.shuffle(events)
    halves = (events[::2], events[1::2])
    template = apply(stream.applier(), *(consume(u, 0, NOON - HOUR) for u in users))
    rows = template.offline[FIRST]
    done, mixes, reports = threading.Event(), [], []
    raw, first, second = (
        field_of(stream, ACTIVITY, "activity_as_of"),
        field_of(stream, FIRST, "as_of"),
        field_of(stream, SECOND, "as_of"),
    )
    stamps = [stored(stream, view).stamp for view in (ACTIVITY, FIRST, SECOND)]
    keys = hashes.keys(users)
    failures: list[TransientError] = []

    def run(half: list[StreamEvent]) -> None:
        try:
            applier = stream.applier()
            reports.extend(apply(applier, *half[k : k + 40]) for k in range(0, len(half), 40))
        except TransientError as exc:
            failures.append(exc)

    def write_batches() -> None:
        """Write embedding rows of the first event again and again, always newly created."""
        while not done.wait(0.02):  # else nobody else ever had its turn
            now = time.time_ns() // 1000
            some = rows.slice(rng.randrange(len(rows)), 3)
            write_raw(stream, FIRST, some, at=NOON - HOUR, created=now)

    def read() -> None:
        reader, seen = UserHashes(stream.context.store), [0] * len(users)
        while not done.is_set():
            for at, row in enumerate(
                reader.read(keys, [REVISION_FIELD, raw, first, second, *stamps])
            ):
                of_rows = integers(row[1:4], Place("any", "as_of"))[0].tolist()
                moments = event_times(row[4:], Place("any", "time"))[0].tolist()
                revision = int(row[0] or 0)
                if len({*of_rows, *moments}) != 1 or revision < seen[at]:
                    mixes.append((users[at], of_rows, moments, revision, seen[at]))
                seen[at] = revision
        reader.client.close()

    threads = [threading.Thread(target=run, args=(half,)) for half in halves]
    others = [threading.Thread(target=write_batches), threading.Thread(target=read)]
    for thread in (*others, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    for thread in others:
        thread.join()
    assert failures == []
    assert mixes == []
    assert sum(report.outcomes["consume", "applied"] for report in reports) == len(
        {(e.user_id, e.item_id, e.timestamp_us) for e in events}
    )
    assert sum(report.conflicts for report in reports) > 0
    once = [next(USERS) for _ in users]
    mapped = dict(zip(users, once, strict=True))
    apply(
        stream.applier(),
        *(consume(u, 0, NOON - HOUR) for u in once),
        *(
            StreamEvent(
                "consume", mapped[e.user_id], e.timestamp_us, e.item_id, e.weight, e.context
            )
            for e in events
        ),
    )
    for name in ("activity_pooled", "activity_counts"):
        assert stream.online(ACTIVITY, users)[name] == stream.online(ACTIVITY, once)[name]
    assert_as_on_demand(stream, users)


def test_redelivered_events_give_their_offline_rows_again(
    stream: TinyStream, applier: Applier
) -> None:
    user = next(USERS)
    events = [consume(user, k, NOON + k) for k in range(3)]
    reports = [apply(applier, event) for event in events]
    again = applier.apply(deliveries([*events, pick(user, 4, NOON)], redelivered=True))
    assert again.outcomes == {("consume", "duplicate"): 3, ("onboarding_pick", "applied"): 1}
    fresh = next(USERS)
    newer = applier.apply(deliveries([consume(fresh, 1, NOON)], redelivered=True))
    assert newer.outcomes == {("consume", "applied"): 1}
    assert len(newer.offline[ACTIVITY]) == 1
    rows = {row["event_timestamp"]: row for row in again.offline[ACTIVITY].to_pylist()}
    for report in reports:
        (row,) = report.offline[ACTIVITY].to_pylist()
        twin = rows.pop(row["event_timestamp"], None)
        if twin is not None:
            assert twin | {"created_timestamp": None} == row | {"created_timestamp": None}
    assert rows == {}
    embedded = again.offline[FIRST].to_pylist()
    assert {row["as_of"] for row in embedded} == {NOON, NOON + 1, NOON + 2}
    made_then = {
        row["as_of"]: row["embedding"]
        for report in reports
        for row in report.offline[FIRST].to_pylist()
    }
    # At its time the user had not picked yet, except at the first event, which is of the same time.
    assert {r["as_of"]: r["n_events"] for r in embedded} == {NOON: 1, NOON + 1: 2, NOON + 2: 3}
    assert made_then.keys() == {row["as_of"] for row in embedded}


def test_redelivery_alone_writes_nothing_and_returns_what_is_online(
    stream: TinyStream, applier: Applier, hashes: UserHashes
) -> None:
    user = next(USERS)
    events = [consume(user, k, NOON + k) for k in range(3)]
    reports = [apply(applier, event) for event in events]
    before = everything(hashes, user)
    again = applier.apply(deliveries(events, redelivered=True))
    assert again.written == 0
    assert everything(hashes, user) == before
    for view in (ACTIVITY, FIRST, SECOND, BRIDGED):
        then = [row for report in reports for row in report.offline[view].to_pylist()]
        now = sorted(again.offline[view].to_pylist(), key=lambda row: row["event_timestamp"])
        assert now[-1] == then[-1], "the newest row with its own times"
        blank = {"created_timestamp": None}
        assert [row | blank for row in now] == [row | blank for row in then]


def test_a_redelivered_profile_change_is_kept_offline_beside_a_new_event_of_the_user(
    stream: TinyStream, applier: Applier
) -> None:
    """The new event writes other views: what they have at hand is not the profile's row."""
    user = next(USERS)
    changed = change(user, NOON, gender="f", age=20.0)
    (row,) = apply(applier, changed).offline[PROFILE].to_pylist()
    again = applier.apply(deliveries([changed, consume(user, 1, NOON)], redelivered=True))
    assert again.outcomes == {("profile_change", "duplicate"): 1, ("consume", "applied"): 1}
    assert again.offline[PROFILE].to_pylist() == [row]


def test_a_row_that_is_made_again_is_created_now_because_it_knows_what_came_late(
    stream: TinyStream, applier: Applier
) -> None:
    user = next(USERS)
    first, newest, late = (consume(user, k, NOON + at) for k, at in ((1, 1), (2, 2), (3, 0)))
    before = apply(applier, first).offline[ACTIVITY].to_pylist()
    apply(applier, newest)
    apply(applier, late)
    again = applier.apply(deliveries([first], redelivered=True)).offline[ACTIVITY].to_pylist()
    rows = [row for row in before + again if row["activity_as_of"] == NOON + 1]
    then, now = sorted(rows, key=lambda row: row["created_timestamp"])
    assert (then["activity_counts"][0], now["activity_counts"][0]) == (1, 2)


class LosesAnswer(Line):
    """A line that, once armed, passes the next script call on and breaks instead of its answer."""

    def __init__(self, port: int) -> None:
        self.armed = threading.Event()
        self._called = threading.Event()
        super().__init__(port)

    def _pass_on(self, here: socket.socket, there: socket.socket) -> None:
        from_client = here.getsockname()[1] == self.port
        with suppress(OSError, ValueError):  # it was closed
            while not self._closed:
                if not select.select([here], [], [], 0.05)[0]:
                    continue
                data = here.recv(65_536)
                if not data:
                    break
                if from_client and self.armed.is_set() and b"EVALSHA" in data:
                    self._called.set()
                elif not from_client and self._called.is_set():
                    self._called.clear()
                    self.armed.clear()
                    break
                there.sendall(data)
        for one in (here, there):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def test_a_step_whose_answer_was_lost_keeps_its_offline_rows(
    tmp_path: Path, redis_server: Server
) -> None:
    """The same deliveries are duplicates then, and nobody has kept their rows yet."""
    with closing(LosesAnswer(redis_server.port)) as line:
        server = Server("127.0.0.1", line.port, f"redis://127.0.0.1:{line.port}")
        stream = TinyStream.make(tmp_path / "repository", online_settings(server, tmp_path))
        stream.add_space()
        applier, hand = stream.applier(), deliveries([consume(1, 1, NOON)])
        apply(applier, consume(2, 1, NOON))  # the script is known to the server
        line.armed.set()
        with pytest.raises(TransientError, match="does not take part"):
            applier.apply(hand)
        assert stream.online(FIRST, [1])["as_of"] == [NOON]
        report = applier.apply(hand)
        assert report.outcomes == {("consume", "duplicate"): 1}
        assert len(report.offline[ACTIVITY]) == len(report.offline[FIRST]) == 1
        assert applier.apply(hand).offline == {}, "nothing is in doubt any more"


def test_a_redis_that_is_gone_is_transient_and_loses_nothing(tmp_path: Path) -> None:
    with start_redis(tmp_path, "--dir", str(tmp_path)) as server:
        stream = TinyStream.make(tmp_path / "repository", online_settings(server, tmp_path))
        stream.add_space()
        applier = stream.applier()
        apply(applier, consume(1, 1, NOON))
    with pytest.raises(TransientError):
        apply(applier, consume(1, 2, NOON + 1))
    with pytest.raises(TransientError):
        applier.refresh()


def test_offline_rows_answer_at_each_moment_what_was_readable_online(
    tmp_path: Path, redis_server: Server
) -> None:
    stream = TinyStream.make(tmp_path / "repository", online_settings(redis_server, tmp_path))
    first, second = stream.add_space(), stream.add_space(1, vectors="int8")
    stream.pin(first)
    store = stream.context.store
    applier, offline = stream.applier(), OfflineRows(store, flush_seconds=30, flush_rows=10_000)
    readable: list[tuple[datetime, dict[str, list[Any]]]] = []
    base = time.time_ns() // 1000 - 3 * DAY
    views = (ACTIVITY, PROFILE, ONBOARDING, FIRST, SECOND)
    for k in range(4):
        report = apply(
            applier,
            *(consume(user, k + user, base + k * HOUR) for user in (1, 2)),
            *(consume(1, 9, base - DAY), change(2, base + k, age=float(k)), pick(1, k, base + k)),
        )
        for view, table in report.offline.items():
            offline.add(view, table, now=float(k))
        found: dict[str, list[Any]] = {}
        for view in views:
            found |= {f"{view}__{n}": v for n, v in stream.online(view, [1, 2]).items()}
        readable.append((datetime.now(timezone.utc), found))
    assert not offline.due(29.9)
    assert offline.due(30.0)
    held = len(offline)
    assert held > 0
    assert offline.flush() == 0, "nothing was set off"
    offline.set_off()
    assert offline.flush() == held
    assert len(offline) == 0
    assert not offline.due(1e9)
    for view in (FIRST, SECOND):
        folder = stream.offline(first if view == FIRST else second)
        assert len(list(folder.glob("push-*.parquet"))) == 1
    frame = pd.DataFrame(
        [(user, moment) for moment, _ in readable for user in (1, 2)],
        columns=["user_id", "event_timestamp"],
    )
    names = [f"{view}:{f.name}" for view in views for f in store.get_feature_view(view).features]
    table = store.get_historical_features(frame, names, full_feature_names=True).to_arrow()
    for row, (_, found) in enumerate(readable):
        for at in (0, 1):
            for name, values in found.items():
                if not name.endswith("__user_id"):
                    answer = table[name].to_pylist()[2 * row + at]
                    assert answer == values[at], (name, row, at)


def test_offline_rows_stay_held_while_a_view_cannot_be_written(
    stream: TinyStream, applier: Applier, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline = OfflineRows(stream.context.store, flush_seconds=30, flush_rows=2)
    report = apply(applier, consume(next(USERS), 1, NOON))
    offline.add(ACTIVITY, report.offline[ACTIVITY], 0.0)
    offline.add("user_embedding_s99", report.offline[FIRST], 0.0)
    assert offline.due(0.0), "two rows"
    offline.set_off()
    folder = stream.context.settings.features_dir / ACTIVITY
    before = len(list(folder.glob("push-*.parquet")))
    for _ in range(2):
        with pytest.raises(DataFault, match="user_embedding_s99"):
            offline.flush()
    assert len(list(folder.glob("push-*.parquet"))) == before + 1


def test_what_becomes_live_is_taken_up_without_a_restart(
    tmp_path: Path, redis_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    stream = TinyStream.make(tmp_path / "repository", online_settings(redis_server, tmp_path))
    applier = stream.applier()
    assert set(apply(applier, consume(1, 1, NOON)).offline) == {ACTIVITY}
    first = stream.add_space()
    applier.refresh()
    assert set(apply(applier, consume(1, 2, NOON)).offline) == {ACTIVITY, FIRST}
    second = stream.add_space(1, applied=False)
    for _ in range(3):
        applier.refresh()
    assert caplog.text.count("leaves out user_embedding_s2: it is not applied") == 1
    assert set(apply(applier, consume(1, 3, NOON)).offline) == {ACTIVITY}, "1 is no longer live"
    stream.apply_space(second)
    stream.context.ledger.promote(first.number, who="test", why="a test", expected=None)
    applier.refresh()
    assert set(apply(applier, consume(1, 4, NOON)).offline) == {ACTIVITY, FIRST, SECOND}
    stream.bridge(second, first)
    applier.refresh()
    live = {ACTIVITY, FIRST, SECOND, BRIDGED}
    assert set(apply(applier, consume(1, 5, NOON)).offline) == live


def test_new_item_vectors_are_taken_up_and_old_rows_made_anew(
    tmp_path: Path, redis_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    stream = TinyStream.make(tmp_path / "repository", online_settings(redis_server, tmp_path))
    stream.add_space()
    applier = stream.applier()
    apply(applier, pick(1, 1, NOON), pick(1, 2, NOON + 1), consume(1, 3, NOON), pick(2, 1, NOON))
    rebuilt = item_vectors(5)
    stream.publish(rebuilt)
    applier.refresh()
    assert "leaves out user_embedding_s1" in caplog.text
    report = apply(applier, consume(1, 4, NOON + HOUR))
    assert set(report.offline) == {ACTIVITY, ONBOARDING}, "of space 1 nothing can be made"
    assert report.offline[ONBOARDING]["onboarding_modality"].to_pylist() == [rebuilt.version]
    stream.add_space(1, encoders=rebuilt)
    applier.refresh()
    # A pick makes the row of what was consumed anew as well.
    report = apply(applier, consume(2, 1, NOON + HOUR), change(1, NOON + HOUR, age=3.0))
    assert set(report.offline[SECOND]["user_id"].to_pylist()) == {1, 2}
    for user in (1, 2):
        stored_row, made = stream.online(SECOND, [user]), stream.online(on_demand_view(2), [user])
        assert stored_row == made


def test_rows_of_other_item_vectors_that_stay_give_no_embedding(
    stream: TinyStream, applier: Applier
) -> None:
    """The batch was ahead, and of other vectors: the state moves on, no vector is made up."""
    user = next(USERS)
    made = apply(applier, consume(user, 1, NOON)).offline[ACTIVITY]
    index = made.column_names.index("activity_modality")
    other = made.set_column(index, "activity_modality", pa.array(["f" * 12]))
    write_raw(stream, ACTIVITY, other, at=NOON + HOUR, created=NOON + HOUR)
    report = apply(applier, consume(user, 2, NOON + 1))
    assert report.outcomes == {("consume", "applied"): 1}
    assert report.written == 1
    assert report.offline == {}
    assert stream.online(FIRST, [user])["as_of"] == [NOON]


def test_users_with_text_ids_and_an_expiry(tmp_path: Path, redis_server: Server) -> None:
    settings = online_settings(redis_server, tmp_path, key_ttl_seconds=500)
    stream = TinyStream.make(tmp_path / "repository", settings, user_type="STRING")
    stream.add_space()
    applier = stream.applier()
    apply(applier, consume("ü", 1, NOON), consume("b", 1, NOON))
    assert stream.online(FIRST, ["ü", "b", "c"])["as_of"] == [NOON, NOON, None]
    hashes = UserHashes(stream.context.store)
    assert all(490 < hashes.client.ttl(key) <= 500 for key in hashes.keys(["ü", "b"]))
    hashes.client.close()


def test_on_a_cluster_steps_are_grouped_by_slot(
    tmp_path: Path, redis_server: Server, cluster: Server
) -> None:
    settings = online_settings(cluster, tmp_path, redis_type="redis_cluster")
    stream = TinyStream.make(tmp_path / "repository", settings)
    stream.add_space()
    users = list(range(150))
    applier = stream.applier()
    report = apply(applier, *(consume(user, user % 12, NOON + user) for user in users))
    assert report.written == len(users)
    assert stream.online(FIRST, users)["as_of"] == [NOON + user for user in users]
    report = apply(applier, *(consume(user, user % 12, NOON + user) for user in users))
    assert report.outcomes == {("consume", "duplicate"): len(users)}
    assert not Restarts([UserHashes(stream.context.store).client])()


def test_a_forgotten_script_is_loaded_again(stream: TinyStream, applier: Applier) -> None:
    users = [next(USERS) for _ in range(250)]
    for k in range(2):
        applier._hashes.client.script_flush()
        report = apply(applier, *(consume(user, 1, NOON + k) for user in users))
        assert report.written == len(users)


def test_another_online_store_is_refused(tmp_path: Path) -> None:
    tiny = TinyRepository.make(tmp_path / "repository")
    with pytest.raises(DataFault, match="PalateRedisOnlineStore"):
        UserHashes(tiny.store)


def test_without_raw_features_there_is_nothing_to_stream(
    tmp_path: Path, redis_server: Server
) -> None:
    online = online_settings(redis_server, tmp_path)
    stream = TinyStream.make(tmp_path / "repository", online)
    (stream.context.settings.features_dir / "state.json").unlink()
    with pytest.raises(DataFault, match="palate features build"):
        stream.applier()
