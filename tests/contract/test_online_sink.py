"""Every online store, stock Feast's and ours, under one contract with declared differences."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import pyarrow as pa
import pytest
from feast import ValueType
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.protos.feast.types.Value_pb2 import Value
from feast.utils import _convert_arrow_to_proto
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from materialize.stores.base import WriteCounts
from tests.sinks import (
    ATOMIC,
    EVERY,
    HOUR,
    INSTANT,
    MICROSECOND,
    NOON,
    PAIR,
    SECOND,
    USERS,
    Row,
    Sink,
    arrow_rows,
    key_of,
    marked,
    protobuf_rows,
)


def test_rewrite_at_an_equal_event_time(sink: Sink, write: Callable[..., Any]) -> None:
    user = next(USERS)
    write([(user, 1, NOON, NOON)])
    write([(user, 2, NOON, NOON + HOUR)])
    assert sink.amount(user) == {"first": 1, "second": 2}[sink.profile.rewrite_at_equal_event_time]


def test_equal_event_time_created_earlier(sink: Sink, write: Callable[..., Any]) -> None:
    user = next(USERS)
    write([(user, 1, NOON, NOON + HOUR)])
    write([(user, 2, NOON, NOON)])
    expected = sink.profile.older_created_at_equal_event_time
    assert sink.amount(user) == {"first": 1, "second": 2}[expected]


def test_older_event_after_a_newer_one(sink: Sink, write: Callable[..., Any]) -> None:
    user = next(USERS)
    write([(user, 1, NOON + HOUR, NOON)])
    write([(user, 2, NOON, NOON + HOUR)])
    assert sink.amount(user) == {"first": 1, "second": 2}[sink.profile.older_event]
    write([(user, 3, NOON + 2 * HOUR, None)])
    assert sink.amount(user) == 3


def test_entity_that_was_never_written(sink: Sink) -> None:
    user = next(USERS)
    moment, values = sink.read(user)
    found = "nothing" if values is None else f"{moment.year} and unset values"
    assert found == sink.profile.never_written
    if values is None:
        assert moment is None
    else:
        assert list(values.values()) == [Value()] * 2
    assert sink.served(user) == (None, sink.profile.never_written_status)


def test_row_past_the_ttl(sink: Sink, write: Callable[..., Any]) -> None:
    expired, fresh, unknown = next(USERS), next(USERS), next(USERS)
    now = datetime.now(timezone.utc)
    write([(expired, 1, now - 25 * HOUR, now), (fresh, 2, now - 23 * HOUR, now)], "brief")
    assert sink.served(expired, "brief") == (1, sink.profile.expired_status)
    assert sink.served(fresh, "brief") == (2, "PRESENT")
    assert sink.served(unknown, "brief")[0] is None
    write([(expired, 3, now - 25 * HOUR, now)], "pair")
    assert sink.served(expired, "pair") == (3, "PRESENT")


def test_expiry_is_told_per_view_and_user_in_one_request(atomic: Sink) -> None:
    expired, fresh, unknown = next(USERS), next(USERS), next(USERS)
    now = datetime.now(timezone.utc)
    rows: list[Row] = [(expired, 1, now - 25 * HOUR, now), (fresh, 2, now, now)]
    for view in ("brief", "pair"):
        atomic.write_arrow(rows, view)
    answer = atomic.store.get_online_features(
        features=["brief:amount", "brief:twin", "pair:amount"],
        entity_rows=[{"user_id": user} for user in (unknown, expired, fresh, expired)],
        full_feature_names=True,
    ).proto
    statuses = {
        name: [FieldStatus.Name(status) for status in vector.statuses]
        for name, vector in zip(answer.metadata.feature_names.val, answer.results, strict=True)
    }
    late = ["NOT_FOUND", "OUTSIDE_MAX_AGE", "PRESENT", "OUTSIDE_MAX_AGE"]
    assert statuses["brief__amount"] == statuses["brief__twin"] == late
    assert statuses["pair__amount"] == ["NOT_FOUND", "PRESENT", "PRESENT", "PRESENT"]


def test_event_time_is_read_back(sink: Sink, write: Callable[..., Any]) -> None:
    user = next(USERS)
    event = NOON + 123_457 * MICROSECOND
    write([(user, 1, event, NOON)])
    moment, _ = sink.read(user)
    unit = sink.profile.event_time_unit_us * MICROSECOND
    expected = event - (event - NOON) % unit
    zones = {"UTC": timezone.utc, "session": moment.tzinfo}
    assert moment == expected.replace(tzinfo=zones[sink.profile.event_time_zone])


def test_two_views_of_one_user_do_not_disturb_each_other(
    sink: Sink, write: Callable[..., Any]
) -> None:
    user = next(USERS)
    write([(user, 1, NOON + HOUR, NOON)], "pair")
    write([(user, 2, NOON, NOON)], "other")
    assert (sink.amount(user, "pair"), sink.amount(user, "other")) == (1, 2)
    assert sink.served(user, "brief")[0] is None


def test_stale_rows_are_counted(atomic: Sink) -> None:
    first, second = next(USERS), next(USERS)
    progress: list[int] = []
    assert atomic.write_arrow([(first, 1, NOON, NOON)]) == WriteCounts(1, 0)
    counts = atomic.fresh().write_arrow(
        atomic.store.config,
        atomic.view("pair"),
        arrow_rows([(first, 2, NOON - HOUR, NOON), (second, 3, NOON, NOON)]),
        progress.append,
    )
    assert counts == WriteCounts(written=1, stale=1)
    assert sum(progress) == 2
    assert (atomic.amount(first), atomic.amount(second)) == (1, 3)
    # Repeating a write changes nothing, and is no fault.
    assert atomic.write_arrow([(second, 3, NOON, NOON)]) == WriteCounts(1, 0)


def test_newest_of_one_users_rows_in_a_batch_wins(atomic: Sink) -> None:
    user = next(USERS)
    rows: list[Row] = [
        (user, 1, NOON, NOON),
        (user, 2, NOON + HOUR, NOON + SECOND),
        (user, 5, NOON + HOUR, NOON + SECOND),  # of equals the last
        (user, 3, NOON + HOUR, NOON),
        (user, 4, NOON - HOUR, NOON + HOUR),
    ]
    atomic.write_arrow(rows)
    assert atomic.amount(user) == 5
    other = next(USERS)
    atomic.write([(other, *row[1:]) for row in rows])
    assert atomic.amount(other) == 5


def test_a_table_of_several_chunks_is_written_whole(atomic: Sink) -> None:
    users = [next(USERS) for _ in range(5)]
    parts = [arrow_rows([(user, user, NOON, NOON)]) for user in users]
    counts = atomic.fresh().write_arrow(
        atomic.store.config, atomic.view("pair"), pa.Table.from_batches([*parts, parts[0][:0]])
    )
    assert counts == WriteCounts(5, 0)
    assert [atomic.amount(user) for user in users] == users


def test_more_rows_than_a_statement_or_call_takes_are_written_whole(atomic: Sink) -> None:
    users = [next(USERS) for _ in range(1234)]
    for offset in (0, 1):
        rows: list[Row] = [(user, user + offset, NOON + offset * HOUR, NOON) for user in users]
        assert atomic.write_arrow(rows) == WriteCounts(1234, 0)
    found = atomic.fresh().online_read(
        atomic.store.config, atomic.view("pair"), [key_of(user) for user in users], list(PAIR)
    )
    for name in PAIR:
        assert [values[name].int64_val for _, values in found] == [user + 1 for user in users]


def test_an_asynchronous_push_obeys_the_same_rule(atomic: Sink) -> None:
    user = next(USERS)
    atomic.write_arrow([(user, 1, NOON, NOON)])
    online = atomic.fresh()
    for amount, event in ((2, NOON - HOUR), (3, NOON + HOUR)):
        rows = protobuf_rows([(user, amount, event, None)])
        asyncio.run(
            online.online_write_batch_async(atomic.store.config, atomic.view("pair"), rows, None)
        )
        assert atomic.amount(user) == {2: 1, 3: 3}[amount]


def test_a_null_join_key_or_event_time_is_refused(atomic: Sink) -> None:
    rows = arrow_rows([(1, 1, NOON, NOON)])
    for column in ("user_id", "event_timestamp"):
        at = rows.schema.get_field_index(column)
        broken = rows.set_column(at, column, pa.nulls(1, rows.schema.field(at).type))
        with pytest.raises(ValueError, match="null"):
            atomic.fresh().write_arrow(atomic.store.config, atomic.view("pair"), broken)


_TIMES = st.one_of(
    st.sampled_from([NOON, NOON + MICROSECOND, NOON + SECOND - MICROSECOND, NOON + SECOND]),
    st.datetimes(datetime(1901, 1, 1), datetime(2200, 1, 1)).map(
        lambda moment: moment.replace(tzinfo=timezone.utc)
    ),
)


@given(st.lists(st.tuples(_TIMES, st.one_of(st.none(), _TIMES)), min_size=2, max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_the_last_of_the_newest_rows_stays(atomic: Sink, times: list[Any]) -> None:
    """In any order, before 1970 too: the newest event, then the newest created, then the last."""
    user = next(USERS)
    online = atomic.fresh()
    for amount, (event, created) in enumerate(times):
        atomic.write_arrow([(user, amount, event, created)], online=online)
    oldest = datetime.min.replace(tzinfo=timezone.utc)
    ranked = [(event, created or oldest, k) for k, (event, created) in enumerate(times)]
    assert atomic.amount(user) == max(ranked)[2]


@pytest.mark.parametrize(
    ("writer", "reader"),
    [
        marked(f"{one}-{family}", f"{two}-{family}")
        for family in ("sqlite", "postgres", "redis")
        for one, two in (("stock", "palate"), ("palate", "stock"))
    ],
)
def test_stock_feast_reads_what_we_write_and_the_reverse(
    sinks: Callable[[str], Sink], writer: str, reader: str
) -> None:
    """Every value type, bit-equal, with its event time; the stored bytes are protobuf's own."""
    source, target = sinks(writer), sinks(reader)
    users = [next(USERS) for _ in range(3)]
    rows = pa.RecordBatch.from_pydict(
        {
            "user_id": pa.array(users, pa.int64()),
            **{name: pa.array(values, kind) for name, (_, kind, values) in EVERY.items()},
            "event_timestamp": pa.array([NOON] * 3, INSTANT),
            "created_timestamp": pa.array([NOON] * 3, INSTANT),
        }
    )
    view = source.view("every")
    messages = _convert_arrow_to_proto(rows, view, {"user_id": ValueType.INT64})
    if source.profile.atomic:
        source.fresh().write_arrow(source.store.config, view, rows)
    else:
        source.fresh().online_write_batch(source.store.config, view, messages, None)
    answers = {
        sink.profile.name: sink.fresh().online_read(
            sink.store.config, sink.view("every"), [key_of(user) for user in users], list(EVERY)
        )
        for sink in (source, target)
    }
    assert answers[writer] == answers[reader]
    for (_, expected, _, _), (_, found) in zip(messages, answers[reader], strict=True):
        assert {name: value.SerializeToString() for name, value in found.items()} == {
            name: value.SerializeToString() for name, value in expected.items()
        }


@pytest.mark.parametrize("family", [marked(name) for name in ATOMIC])
def test_rows_of_stock_feast_are_compared_too(sinks: Callable[[str], Sink], family: str) -> None:
    """A row that an unmodified Feast wrote is replaced by newer ones and only by them."""
    ours = sinks(family)
    stock = sinks(f"stock-{ours.profile.family}")
    user = next(USERS)
    ours.write_arrow([(user, 1, NOON, NOON)])
    # Days apart: stock Feast's event time may be off by the session's time zone.
    stock.write([(user, 2, NOON + 48 * HOUR, NOON)])
    assert ours.write_arrow([(user, 3, NOON + 24 * HOUR, NOON + 99 * HOUR)]) == WriteCounts(0, 1)
    assert (ours.amount(user), stock.amount(user)) == (2, 2)
    assert ours.write_arrow([(user, 4, NOON + 72 * HOUR, NOON)]) == WriteCounts(1, 0)
    assert (ours.amount(user), stock.amount(user)) == (4, 4)
