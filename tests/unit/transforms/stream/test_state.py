"""Applying events is a union: order, repetition and grouping leave no trace in the bytes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.transforms.stream.histories import (
    DAY,
    DAY_0,
    ENCODERS,
    HISTORIES,
    KEPT,
    KINDS,
    LAYOUT,
    LONGEST,
    Use,
    add,
    clean_events,
    deliveries,
    empty,
    mixed,
    replayed,
    stored,
    users_of,
)
from transforms.stream.events import StreamEvent
from transforms.stream.profile import Profile
from transforms.stream.rows import activity_rows
from transforms.stream.state import UserStates

LIMITS = st.fixed_dictionaries(
    {
        "floor": st.one_of(st.none(), st.integers(DAY_0 - 5, DAY_0 + 25)),
        "margin_days": st.integers(0, 8),
    }
)


def day(number: int, item: str = "item 2", user: str = "user 0", moment: int = 5) -> StreamEvent:
    return StreamEvent("consume", user, (DAY_0 + number) * DAY + moment, item, 1.0, ("br", "linux"))


def sign_up(number: int, moment: int = 0) -> StreamEvent:
    return StreamEvent("sign_up", "user 0", (DAY_0 + number) * DAY + moment)


def one(*events: StreamEvent, **limits):
    return add(empty([0], "string"), events, **limits)


@given(data=st.data(), events=mixed(), limits=LIMITS)
def test_bytes_do_not_depend_on_order_repetition_or_grouping(data, events, limits):
    """Any two deliveries of the same events of all types end in bit-equal states."""
    ends = []
    for _ in range(2):
        states = empty([0, 1, 2], "string")
        for batch in data.draw(deliveries(events)):
            states = stored(add(states, batch, **limits).states)
        ends.append(states.encode())
    assert ends[0] == ends[1]


@given(data=st.data(), events=mixed(), limits=LIMITS)
def test_union_is_commutative_idempotent_and_what_applying_the_events_gives(data, events, limits):
    """a + b = b + a, a + a = a, and a + b holds what applying all events to nothing holds."""
    some, others = data.draw(st.permutations(events)), data.draw(st.permutations(events))
    some, others = some[: len(some) // 2], others[len(others) // 2 :]
    limits = KEPT | limits
    a, b = (add(empty([0, 1, 2], "string"), part, **limits).states for part in (some, others))
    both = a.union(b, **limits).states
    assert both.encode() == b.union(a, **limits).states.encode()
    again = both.union(both, **limits)
    assert again.states.encode() == both.encode()
    assert not again.changed.any()
    assert (
        both.encode() == add(empty([0, 1, 2], "string"), [*some, *others], **limits).states.encode()
    )


@given(data=st.data(), events=mixed(), limits=LIMITS)
def test_what_is_not_marked_did_not_change(data, events, limits):
    """Users that are not ``changed`` have equal bytes; rows not marked ``activity`` stay."""
    states = empty([0, 1, 2], "string")
    for batch in data.draw(deliveries(events)):
        done = add(states, batch, **limits)
        after = done.states
        before_bytes, bytes_ = states.encode(), after.encode()
        was, known = (s.known(LONGEST) for s in (states, after))
        for user in range(3):
            if not done.changed[user]:
                assert bytes_[user] == before_bytes[user] or limits["floor"] is not None
            if done.activity[user]:
                assert known[user]
            elif was[user] and known[user]:
                assert row(after, user) == row(states, user)
        states = stored(after)


def row(states: UserStates, user: int) -> dict:
    return activity_rows(states, np.array([user]), ENCODERS["string"], LAYOUT).to_pylist()[0]


@given(history=HISTORIES, kind=KINDS)
def test_the_same_events_again_are_duplicates_and_change_nothing(history, kind):
    events = [use.event(kind) for use in history]
    once = add(empty(users_of(history), kind), events, margin_days=100)
    again = add(stored(once.states), events, margin_days=100)
    assert {code for user in once.outcomes for code in user} == {"applied"}
    assert {code for user in again.outcomes for code in user} == {"duplicate"}
    assert not (again.changed | again.activity | again.onboarding | again.profile).any()


def test_an_event_that_stands_twice_in_a_call_is_applied_once():
    done = one(day(1), day(1), day(2))
    assert done.outcomes == [["applied", "duplicate", "applied"]]
    assert done.states.facts.ts.tolist() == [day(1).timestamp_us, day(2).timestamp_us]


def test_of_an_event_told_in_two_ways_the_larger_weight_and_context_stay():
    light, heavy = (replace(day(1), weight=w) for w in (1.0, 2.0))
    other = replace(heavy, context=("pt", "linux"))
    for order in ([light, heavy, other], [other, heavy, light], [heavy, other, light]):
        states = empty([0], "string")
        for event in order:
            states = add(states, [event]).states
        assert states.facts.weight.tolist() == [2.0]
        assert states.facts.contexts[states.facts.context[0]] == ("pt", "linux")
    assert one(light).states.encode() != states.encode()
    done = add(one(light).states, [heavy])
    assert done.outcomes == [["applied"]]
    assert done.activity[0]


def test_an_event_older_than_every_window_changes_no_row_and_says_so():
    states = one(day(30), margin_days=2).states
    # The longest window, 11 days, begins with day 20; two more are kept for rows of the past.
    done = add(states, [day(20), day(19), day(18), day(17)], margin_days=2)
    assert done.outcomes == [["applied", "applied", "applied", "outside"]]
    assert add(states, [day(19), day(17)], margin_days=2).activity.tolist() == [False]
    assert add(states, [day(20)], margin_days=2).activity.tolist() == [True]
    assert row(add(states, [day(19), day(17)], margin_days=2).states, 0) == row(states, 0)


def test_an_event_whose_row_would_need_days_before_the_floor_is_too_late():
    floor = DAY_0 + 10
    done = one(day(19), floor=floor)  # a window from day 9 on
    assert done.outcomes == [["too_late"]]
    assert not done.activity[0]
    assert one(day(20), floor=floor).outcomes == [["applied"]]
    # It is needed by the row of a later event, which can be known.
    assert done.changed[0]
    later = add(done.states, [day(20, moment=9)], floor=floor)
    assert later.outcomes == [["applied"]]
    assert row(later.states, 0)["activity_counts"][8] == 2
    # Delivered again, it is no longer at fault.
    assert add(later.states, [day(19)], floor=floor).outcomes == [["duplicate"]]
    # Until then it is, so that a fault that was not recorded before a crash is recorded after it.
    assert add(done.states, [day(19)], floor=floor).outcomes == [["too_late"]]


def test_an_event_from_before_the_floor_is_never_kept():
    floor = DAY_0 + 10
    done = one(day(9), floor=floor)
    assert done.outcomes == [["too_late"]]
    assert not done.changed[0]
    assert len(done.states.facts.ts) == 0
    newer = one(day(20), floor=floor)
    assert add(newer.states, [day(9)], floor=floor).outcomes == [["outside"]]


def test_a_user_who_signed_up_after_the_floor_has_no_unknown_past():
    floor = DAY_0 + 10
    assert one(sign_up(10), day(12), floor=floor).outcomes == [["applied", "applied"]]
    before = one(day(12), floor=floor)
    assert before.outcomes == [["too_late"]]
    after = add(before.states, [sign_up(10)], floor=floor)
    assert after.activity[0]
    assert row(after.states, 0)["activity_counts"][0] == 1


def test_events_before_the_sign_up_are_faults_and_leave_the_state():
    done = one(sign_up(5, moment=7), day(5, moment=6), day(5, moment=7))
    assert done.outcomes == [["applied", "event_before_sign_up", "applied"]]
    assert done.states.facts.ts.tolist() == [day(5, moment=7).timestamp_us]
    # Learned later, the sign-up takes them away.
    late = add(one(day(4), day(6)).states, [sign_up(5)])
    assert late.states.facts.ts.tolist() == [day(6).timestamp_us]
    assert late.activity[0]
    assert late.profile[0]
    # A pick and a profile change may come before it.
    early = StreamEvent("onboarding_pick", "user 0", 1, "item 2")
    assert add(done.states, [early]).outcomes == [["applied"]]


def test_the_earliest_sign_up_counts():
    states = one(sign_up(5)).states
    done = add(states, [sign_up(6), sign_up(5), sign_up(4)])
    assert done.outcomes == [["outside", "duplicate", "applied"]]
    assert done.states.sign_up.tolist() == [sign_up(4).timestamp_us]
    assert not add(states, [sign_up(6)]).changed[0]


def test_more_events_than_are_kept_are_refused_whole():
    states = one(day(1), day(2), day(3), max_events=4).states
    done = add(states, [day(4), day(5), day(3)], max_events=4)
    assert done.outcomes == [["too_many_events", "too_many_events", "duplicate"]]
    assert not (done.changed | done.activity).any()
    assert done.full.tolist() == [True]
    assert done.states.encode() == states.encode()
    joined = states.union(one(day(4), day(5)).states, **(KEPT | {"max_events": 4}))
    assert joined.full.tolist() == [True]
    assert joined.states.facts.per_user.tolist() == [3]
    assert joined.changed.tolist() == [True]
    assert not joined.states.known(LONGEST)[0], "a row without them would be another user's"
    later = add(joined.states, [day(6)], max_events=4)
    assert later.outcomes == [["too_late"]]
    assert not later.activity[0]
    assert add(states, [day(4)], max_events=4).outcomes == [["applied"]]
    # What the new events push out makes room for them.
    assert add(states, [day(40), day(41)], max_events=2).outcomes == [["applied", "applied"]]


def test_a_user_with_too_many_events_does_not_hold_up_another():
    states = empty([0, 1], "string")
    events = [[day(k) for k in range(4)], [replace(day(1), user_id="user 1")]]
    done = states.apply(events, longest_window=LONGEST, floor=None, max_events=3)
    assert done.outcomes == [["too_many_events"] * 4, ["applied"]]
    assert done.changed.tolist() == [False, True]


def test_later_changes_of_a_column_win_and_say_whether_they_did():
    def change(ts: int, **columns: str) -> StreamEvent:
        return StreamEvent("profile_change", "user 0", ts, categories=columns)

    done = one(
        change(5, country="br"), change(5, country="br"), change(4, country="pt"),
        change(4, country="pt", gender="x"), change(5, country="it"),
    )  # fmt: skip
    assert done.outcomes == [["applied", "duplicate", "outside", "applied", "applied"]]
    assert done.states.profiles[0].categories == {"country": (5, "it"), "gender": (4, "x")}
    assert done.profile[0]
    assert not (done.activity | done.onboarding).any()
    again = add(done.states, [change(4, gender="x"), change(4, gender="a"), change(3, country="")])
    assert again.outcomes == [["duplicate", "outside", "outside"]]
    assert not again.changed.any()


def test_numbers_are_stored_as_32_bits_and_a_missing_one_is_a_value():
    def change(ts: int, age: float) -> StreamEvent:
        return StreamEvent("profile_change", "user 0", ts, numbers={"age": age})

    states = stored(one(change(5, 0.1)).states)
    assert states.profiles[0].numbers["age"] == (5, float(np.float32(0.1)))
    assert one(change(5, -0.0)).states.encode() == one(change(5, 0.0)).states.encode()
    gone = stored(add(states, [change(6, math.nan)]).states)
    assert math.isnan(gone.profiles[0].numbers["age"][1])
    assert add(gone, [change(6, math.nan)]).outcomes == [["duplicate"]]
    assert add(gone, [change(6, 2.0)]).outcomes == [["applied"]]


def test_a_pick_that_is_repeated_keeps_its_first_time():
    def picked(ts: int, item: str = "item 2") -> StreamEvent:
        return StreamEvent("onboarding_pick", "user 0", ts, item)

    done = one(picked(5), picked(9), picked(7, "item 3"))
    assert done.outcomes == [["applied", "duplicate", "applied"]]
    assert sorted(done.states.picks.ts.tolist()) == [5, 7]
    assert done.onboarding[0]
    earlier = add(done.states, [picked(3)])
    assert earlier.outcomes == [["applied"]]
    assert sorted(earlier.states.picks.ts.tolist()) == [3, 7]


def test_picks_and_sign_ups_of_clean_users_are_those_of_events():
    users = ["user 0", "user 1", "user 2"]
    picks = pa.array([["item 3", "item 2", "item 3"], [], ["item 1"]], pa.list_(pa.string()))
    signed_up = np.array([DAY_0 * DAY, -1, DAY_0 * DAY + 1])
    made = UserStates.of(users, clean_events([], "string"), picks, signed_up)
    streamed = add(
        empty([0, 1, 2], "string"),
        [
            *(StreamEvent("onboarding_pick", users[0], DAY_0 * DAY, f"item {k}") for k in (3, 2)),
            StreamEvent("onboarding_pick", users[2], DAY_0 * DAY + 1, "item 1"),
            StreamEvent("sign_up", users[0], DAY_0 * DAY),
            StreamEvent("sign_up", users[2], DAY_0 * DAY + 1),
        ],
    )
    assert made.encode() == streamed.states.encode()


def test_an_event_without_its_item_is_an_error_that_shows_it():
    with pytest.raises(ValueError, match=r"StreamEvent\(type='consume'.*an item_id expected"):
        one(StreamEvent("consume", "user 0", 5))


def test_clean_picks_without_a_time_are_an_error():
    picks = pa.array([["item 3"]])
    for times in (None, np.array([-1])):
        with pytest.raises(ValueError, match="Picks without a time"):
            UserStates.of(["user 0"], clean_events([], "string"), picks, times)


def test_clean_events_of_a_stranger_are_an_error_that_names_him():
    events = clean_events([Use(3, 0, 0, 0, 1.0, "")], "int64")
    with pytest.raises(ValueError, match="Events of user 103 were given"):
        UserStates.of([100], events)


def test_states_of_other_users_cannot_be_joined():
    with pytest.raises(ValueError, match="States of other users"):
        empty([0], "string").union(empty([1], "string"), **KEPT)


def test_known_is_who_has_events_and_no_gap_in_the_windows():
    floor = DAY_0 + 10
    states = replayed(
        [[Use(0, 20, 0, 0, 1.0, ""), Use(1, 19, 0, 0, 1.0, "")]], "string", floor=floor
    )
    assert states.known(LONGEST).tolist() == [True, False]
    assert states.known(LONGEST + 1).tolist() == [False, False]
    assert empty([0], "string").known(LONGEST).tolist() == [False]


def test_profiles_join_the_same_either_way():
    a = Profile({"country": (1, "br")}, {"age": (2, math.nan)})
    b = Profile({"country": (1, "pt"), "gender": (0, "")}, {"age": (2, -5.0)})
    assert a.joined(b).to_bytes() == b.joined(a).to_bytes()
    assert a.joined(b).numbers["age"] == (2, -5.0)
    assert a.joined(b).newest == 2
    assert Profile().newest is None
