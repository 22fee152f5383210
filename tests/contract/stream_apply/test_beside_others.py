"""Rows of the batch, of a clock ahead, of racing appliers: which stay, and that no mix is read."""

from __future__ import annotations

import random
import threading
import time

import pyarrow as pa

from encoder.errors import TransientError
from materialize.stores.wire import Place, event_times, integers
from materialize.stream.apply import Applier
from materialize.stream.atomic import REVISION_FIELD, STATE_FIELD, UserHashes
from tests.contract.stream_apply.applying import (
    FIRST,
    HOUR,
    SECOND,
    USERS,
    assert_as_on_demand,
    everything,
    field_of,
    stored,
    write_raw,
)
from tests.streams import DAY, NOON, TinyStream, apply, consume
from transforms.layout import ACTIVITY
from transforms.stream.events import StreamEvent


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
