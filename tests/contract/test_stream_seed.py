"""States are seeded from clean tables: no gap, no double count, whenever the seed runs."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoder.errors import DataFault, StreamConflict
from materialize.stream import seed as seed_module
from materialize.stream.atomic import REVISION_FIELD, STATE_FIELD, UserHashes
from materialize.stream.check import StreamCheck, check_stream
from materialize.stream.history import History
from materialize.stream.keys import marker_key
from materialize.stream.marker import StreamMarker, read_marker, write_marker
from materialize.stream.seed import SeedReport, seed_states
from tests.servers import Server
from tests.stores import PROFILES
from tests.stream_batch import run_batch, users_of, write_clean
from tests.streams import DAY, NOON, TinyStream, apply, consume
from transforms.layout import ACTIVITY, ONBOARDING
from transforms.names import stored_view
from transforms.stream.events import StreamEvent

_IDS = itertools.count(1)
_FIRST = NOON - 20 * DAY


@pytest.fixture(scope="module")
def stream(redis_server: Server, tmp_path_factory: pytest.TempPathFactory) -> TinyStream:
    root = tmp_path_factory.mktemp("seed")
    made = TinyStream.make(root, PROFILES["palate-redis"].settings(redis_server, str(root)))
    made.add_space()
    return made


@pytest.fixture(autouse=True)
def _unmarked(stream: TinyStream) -> Iterator[None]:
    hashes = UserHashes(stream.context.store)
    hashes.client.delete(marker_key(stream.context.store.project))
    yield
    hashes.client.close()


def seed(stream: TinyStream, **options: Any) -> SeedReport:
    context = stream.context
    return seed_states(context.store, context.settings, context.ledger, progress=False, **options)


def check(
    stream: TinyStream, users: Sequence[int], events: Sequence[StreamEvent] = ()
) -> StreamCheck:
    context = stream.context
    return check_stream(context.store, context.settings, context.ledger, users, events=events)


def hashes_of(stream: TinyStream, users: Sequence[int]) -> list[list[bytes | None]]:
    hashes = UserHashes(stream.context.store)
    return hashes.read(hashes.keys(users), [STATE_FIELD, REVISION_FIELD])


def marker_of(stream: TinyStream) -> StreamMarker | None:
    store = stream.context.store
    return read_marker(UserHashes(store).client, store.project)


_WHERE = st.sampled_from(["batch", "stream", "both"])
_EVENT = st.tuples(
    st.integers(0, 2),  # user
    st.integers(0, 11),  # item
    st.integers(0, 5),  # day
    st.integers(0, 3),  # hours: events at equal times happen
    st.sampled_from([0.5, 1.0, 2.0]),
    _WHERE,
)


@settings(max_examples=10)
@given(
    drawn=st.lists(_EVENT, min_size=2, max_size=25),
    picked=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 11), _WHERE), max_size=4),
    when=st.floats(0, 1),
    again=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_rows_are_those_of_all_events_wherever_they_came_from_and_whenever_the_seed_ran(
    stream: TinyStream,
    drawn: list[tuple[int, int, int, int, float, str]],
    picked: list[tuple[int, int, str]],
    when: float,
    again: bool,
    order: random.Random,
) -> None:
    ids = [next(_IDS) for _ in range(3)]
    distinct = {(u, i, d, h): (w, where) for u, i, d, h, w, where in drawn}
    batch: list[StreamEvent] = []
    streamed: list[StreamEvent] = []
    for (user, item, day, hour), (weight, where) in distinct.items():
        at = _FIRST + day * DAY + hour * DAY // 24
        event = consume(ids[user], item, at, weight=weight)
        batch += [event] * (where != "stream")
        streamed += [event] * (where != "batch")
    # Who has no sign-up in the tables joined with the first event, here at the latest then.
    joined = {ids[0]: _FIRST - DAY}
    picks: dict[int, list[str]] = {}
    for user, item, where in picked:
        name = f"item-{item}"
        known = ids[user] in {*joined, *users_of(batch)}
        if where != "stream" and known and name not in picks.setdefault(ids[user], []):
            picks[ids[user]].append(name)
        if where != "batch":
            streamed.append(StreamEvent("onboarding_pick", ids[user], _FIRST + 6 * DAY, name))
    batch.append(consume(ids[0], 0, _FIRST + 1))  # the tables are never empty
    write_clean(stream, batch, joined, picks)
    run_batch(stream, sorted({*joined, *users_of(batch)}))
    order.shuffle(streamed)
    cut = round(when * len(streamed))
    context = stream.context
    client = UserHashes(context.store).client
    write_marker(client, context.store.project, StreamMarker(None, 7, "", 0))
    applier = stream.applier()
    if streamed[:cut]:
        apply(applier, *streamed[:cut])
    assert seed(stream, force=True).outcome == "seeded"
    applier.refresh()
    if streamed[cut:]:
        apply(applier, *streamed[cut:])
    if again:
        assert seed(stream, force=True).written == 0
    everybody = sorted({*joined, *users_of(batch), *users_of(streamed)})
    found = check(stream, everybody, streamed)
    assert found.agrees, found.differences
    consumed = [event for event in [*batch, *streamed] if event.type == "consume"]
    assert found.rows[ACTIVITY] == len(users_of(consumed))
    with_picks = {user for user, names in picks.items() if names}
    with_picks |= {int(e.user_id) for e in streamed if e.type == "onboarding_pick"}
    assert found.rows[ONBOARDING] == len(with_picks)


def test_a_seed_that_ran_is_not_run_again_and_changes_nothing_when_forced(
    stream: TinyStream,
) -> None:
    users = [next(_IDS) for _ in range(3)]
    events = [consume(user, k, _FIRST + k * DAY) for user in users for k in range(4)]
    write_clean(stream, events, {users[0]: _FIRST - DAY}, {users[0]: ["item-1", "item-2"]})
    first = seed(stream)
    assert (first.outcome, first.written, first.rows_made) == ("seeded", 3, 0)
    assert (first.users, first.events, first.picks, first.sign_ups) == (3, 12, 2, 1)
    before = hashes_of(stream, users)
    assert all(None not in row for row in before)
    assert seed(stream).outcome == "unchanged"
    forced = seed(stream, force=True)
    assert (forced.outcome, forced.written) == ("seeded", 0)
    assert hashes_of(stream, users) == before


def test_a_dry_run_counts_and_writes_nothing(stream: TinyStream) -> None:
    users = [next(_IDS) for _ in range(40)]
    write_clean(stream, [consume(u, k, _FIRST + k * DAY) for u in users for k in range(5)])
    planned = seed(stream, dry_run=True)
    assert (planned.outcome, planned.users, planned.events) == ("planned", 40, 200)
    assert hashes_of(stream, users) == [[None, None]] * 40
    assert marker_of(stream) is None
    done = seed(stream)
    # 256 bytes a user, and a quarter more than the state for Redis' allocator.
    assert planned.state_bytes == round(1.25 * done.state_bytes) + 256 * 40


def test_the_floor_is_the_longest_window_and_the_late_days_before_the_newest_event(
    stream: TinyStream,
) -> None:
    user, old = next(_IDS), next(_IDS)
    write_clean(stream, [consume(user, 1, NOON), consume(old, 1, NOON - 13 * DAY)])
    report = seed(stream)
    # 7 days of window and 7 late days before 2026-01-01, both ends counted: 14 days.
    assert (report.floor_day, report.events) == ("2025-12-19", 2)
    marker = marker_of(stream)
    assert marker is not None
    assert (marker.floor_day, marker.longest_window) == ((NOON - 13 * DAY) // DAY, 7)
    write_clean(stream, [consume(user, 1, NOON), consume(old, 1, NOON - 14 * DAY)])
    assert seed(stream).events == 1


def test_only_a_sign_up_that_the_users_table_gave_forbids_earlier_events(
    stream: TinyStream,
) -> None:
    told, derived = next(_IDS), next(_IDS)
    events = [consume(told, 1, NOON), consume(derived, 1, NOON)]
    write_clean(stream, events, {told: NOON - DAY})
    run_batch(stream, [told, derived])
    assert seed(stream).sign_ups == 1
    earlier = [consume(told, 2, NOON - 2 * DAY), consume(derived, 2, NOON - 2 * DAY)]
    report = apply(stream.applier(), *earlier)
    assert {r.reason for r in report.rejected} == {"event_before_sign_up"}
    assert report.outcomes["consume", "applied"] == 1
    assert check(stream, [told, derived], earlier).agrees


def test_a_killed_seed_goes_on_with_the_partitions_that_are_left(
    stream: TinyStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = [next(_IDS) for _ in range(60)]
    write_clean(stream, [consume(user, 1, NOON - user % 3 * DAY) for user in users])
    monkeypatch.setattr(seed_module, "_EVENT_BYTES", 2**25)  # four partitions
    read: list[int] = []
    partition = History.partition

    def watched(self: History, number: int) -> Any:
        read.append(number)
        if len(read) == 3:
            raise KeyboardInterrupt
        return partition(self, number)

    monkeypatch.setattr(History, "partition", watched)
    with pytest.raises(KeyboardInterrupt):
        seed(stream)
    done = sum(state is not None for state, _ in hashes_of(stream, users))
    assert 0 < done < 60
    assert marker_of(stream) is None
    read_before = list(read)
    report = seed(stream)
    assert read[len(read_before) :] == [n for n in range(max(read) + 1) if n not in read_before[:2]]
    assert report.written == 60 - done
    assert all(state is not None for state, _ in hashes_of(stream, users))


def test_a_state_that_cannot_be_read_is_an_error_and_replaced_only_by_force(
    stream: TinyStream,
) -> None:
    user = next(_IDS)
    write_clean(stream, [consume(user, 1, NOON)])
    seed(stream)
    (before,) = hashes_of(stream, [user])
    hashes = UserHashes(stream.context.store)
    hashes.client.hset(hashes.keys([user])[0], STATE_FIELD, b"\x07nonsense")
    write_clean(stream, [consume(user, 1, NOON), consume(user, 2, NOON)])
    with pytest.raises(StreamConflict, match=f"among them {user}: .*seed --force"):
        seed(stream)
    assert seed(stream, force=True).written == 1
    (after,) = hashes_of(stream, [user])
    assert after[0] is not None
    assert len(after[0]) > len(before[0] or b"")


def test_a_user_with_too_many_events_is_named_and_left_to_the_batch(
    stream: TinyStream, caplog: pytest.LogCaptureFixture
) -> None:
    many, few = next(_IDS), next(_IDS)
    write_clean(
        stream,
        [*(consume(many, k, NOON - k * DAY) for k in range(5)), consume(few, 1, NOON - DAY)],
    )
    context = stream.context
    less = context.settings.with_stream(max_events_per_user=3)
    report = seed_states(context.store, less, context.ledger, progress=False)
    assert report.failed == {"too_many_events": 1}
    assert f"user {many} has more than max_events_per_user=3" in caplog.text
    report_of = apply(stream.applier(), consume(many, 7, NOON + 1), consume(few, 7, NOON + 1))
    assert report_of.outcomes == {("consume", "too_late"): 1, ("consume", "applied"): 1}
    found = stream.online(ACTIVITY, [many, few])["activity_as_of"]
    assert found == [None, NOON + 1], "no row as if the one event were all"


def test_a_seed_beside_a_stream_of_the_same_users_loses_nothing(stream: TinyStream) -> None:
    users = [next(_IDS) for _ in range(8)]
    draw = random.Random(0)  # noqa: S311 - no secret
    events = [
        consume(draw.choice(users), draw.randrange(12), _FIRST + k * DAY // 40) for k in range(200)
    ]
    batch, streamed = events[:120], events[60:]
    write_clean(stream, batch)
    run_batch(stream, users_of(batch))
    client, project = UserHashes(stream.context.store).client, stream.context.store.project
    write_marker(client, project, StreamMarker(None, 7, "", 0))
    applier = stream.applier()

    def work() -> None:
        for start in range(0, len(streamed), 5):
            apply(applier, *streamed[start : start + 5])

    worker = threading.Thread(target=work)
    worker.start()
    reports = []
    while worker.is_alive() or not reports:
        reports.append(seed(stream, force=True))
    worker.join()
    assert sum(report.written for report in reports) > 0
    found = check(stream, users, streamed)
    assert found.agrees, found.differences
    assert found.rows[ACTIVITY] == len(users_of(events))


def test_the_check_tells_what_is_behind_missing_and_different(stream: TinyStream) -> None:
    behind, missing, different, sound = (next(_IDS) for _ in range(4))
    users = [behind, missing, different, sound]
    events = [consume(user, k, NOON - k * DAY) for user in users for k in range(3)]
    write_clean(stream, events)
    run_batch(stream, users)
    seed(stream)
    hashes = UserHashes(stream.context.store)
    keys = dict(zip(users, hashes.keys(users), strict=True))
    space = stored_view(1)
    fields = hashes.client.hkeys(keys[missing])
    hashes.client.hdel(keys[missing], *(f for f in fields if f.startswith(b"_ts:user_embedding")))
    # The row of another user under the same event time.
    stamp = f"_ts:{space}".encode()
    strange = {
        name: value
        for name, value in hashes.client.hgetall(keys[sound]).items()
        if name not in (STATE_FIELD, REVISION_FIELD) and not name.startswith(b"_ts:")
    }
    assert hashes.client.hget(keys[sound], stamp) is not None
    new = consume(behind, 5, NOON - DAY // 2)
    apply(stream.applier(), consume(different, 7, NOON - DAY // 3))
    hashes.client.hset(keys[different], mapping=strange)
    given_events = [new, consume(different, 7, NOON - DAY // 3)]
    found = check(stream, users, given_events)
    assert found.counts() == {"behind": 1, "different": 1, "missing": 1}
    assert {one.user_id: one.why for one in found.differences} == {
        behind: "behind",
        missing: "missing",
        different: "different",
    }
    assert not found.agrees
    assert found.max_abs_diff[ACTIVITY] > 1e-4
    apply(stream.applier(), new)
    assert behind not in {one.user_id for one in check(stream, users, given_events).differences}


def test_users_are_drawn_by_hash_also_those_of_the_stream_alone(stream: TinyStream) -> None:
    known = [next(_IDS) for _ in range(30)]
    new = [next(_IDS) for _ in range(30)]
    write_clean(stream, [consume(user, 1, NOON) for user in known])
    run_batch(stream, known)
    seed(stream)
    streamed = [consume(user, 2, NOON) for user in new]
    apply(stream.applier(), *streamed)
    context = stream.context
    arguments = (context.store, context.settings, context.ledger)
    found = check_stream(*arguments, 20, events=streamed)
    assert (found.users, found.agrees) == (20, True)
    whole = check_stream(*arguments, 60, events=streamed)
    assert (whole.users, whole.agrees) == (60, True)
    # Twenty of sixty: that all are of one kind happens once in 25 million draws.
    apply(stream.applier(), *(consume(user, 3, NOON + 1) for user in new))
    assert len(check_stream(*arguments, 20, events=streamed).differences) > 0


def test_without_clean_tables_there_is_nothing_to_seed(
    redis_server: Server, tmp_path: Path
) -> None:
    made = TinyStream.make(tmp_path, PROFILES["palate-redis"].settings(redis_server, ""))
    with pytest.raises(DataFault, match="palate data validate"):
        seed(made)
