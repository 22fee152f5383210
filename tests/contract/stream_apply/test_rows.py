"""Events become raw rows and embeddings: exact, in any order; a fault stays with its user."""

from __future__ import annotations

import random

import pyarrow as pa

from materialize.stores.wire import Place, event_times
from materialize.stream.apply import Applier, ApplyReport
from materialize.stream.atomic import REVISION_FIELD, STATE_FIELD, UserHashes
from tests.contract.stream_apply.applying import (
    BRIDGED,
    FIRST,
    HOUR,
    SECOND,
    USERS,
    assert_as_on_demand,
    change,
    everything,
    field_of,
    pick,
    stored,
    write_raw,
)
from tests.streams import DAY, LAYOUT, NOON, TinyStream, apply, consume
from transforms.layout import ACTIVITY, ONBOARDING, PROFILE
from transforms.names import on_demand_view
from transforms.stream.events import StreamEvent


def rejected(report: ApplyReport) -> list[str]:
    return [one.reason for one in report.rejected]


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
