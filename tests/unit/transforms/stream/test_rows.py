"""Rows of states are the batch's rows, to the bit."""

from __future__ import annotations

from datetime import datetime, timezone

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoder.errors import DataFault
from tests.unit.transforms.stream.histories import (
    DAY,
    DAY_0,
    ENCODERS,
    HISTORIES,
    KINDS,
    LAYOUT,
    LONGEST,
    Use,
    add,
    batch_rows,
    by_key,
    clean_events,
    deliveries,
    empty,
    replayed,
    user_id,
    users_of,
)
from transforms.layout import ACTIVITY, ONBOARDING, PROFILE, RawLayout
from transforms.stream.events import StreamEvent
from transforms.stream.rows import activity_rows, onboarding_rows, profile_rows
from transforms.stream.state import UserStates
from transforms.tables import view_schema
from transforms.windows import onboarding_pooled


def columns(view: str) -> pa.Schema:
    """Return a view's columns without the created timestamp, which is the last."""
    schema = view_schema(view, LAYOUT, "string")
    assert schema.names[-1] == "created_timestamp"
    return schema.remove(len(schema) - 1)


def newest_rows(states: UserStates, kind: str) -> dict:
    every = np.arange(len(states.users))
    return by_key(activity_rows(states, every, ENCODERS[kind], LAYOUT).to_pylist())


@settings(max_examples=12)
@given(data=st.data(), history=HISTORIES, kind=KINDS)
def test_any_order_repetition_and_grouping_gives_the_batch_rows(data, history, kind):
    """The newest row of every user is bit-equal to the batch's over the same events."""
    states = replayed(data.draw(deliveries(history)), kind)
    assert newest_rows(states, kind) == batch_rows(history, kind)


@pytest.mark.parametrize("kind", ["string", "int64"])
def test_crowded_days_of_uneven_weights_give_the_batch_rows_to_the_last_bit(kind):
    """Sums of many items a day differ in the last bit unless they are added in one order."""
    rng = np.random.default_rng(0)
    weights = rng.lognormal(size=400).astype(np.float32).tolist()
    uses = [
        Use(int(u), int(d), int(m), int(i), w, "")
        for u, d, m, i, w in zip(
            rng.integers(0, 4, 400),
            rng.integers(0, 6, 400),
            rng.integers(0, DAY, 400),
            rng.integers(0, 15, 400),
            weights,
            strict=True,
        )
    ]
    assert newest_rows(replayed([uses], kind), kind) == batch_rows(uses, kind)


@pytest.mark.parametrize("contexts", [("br", "pt"), ("pt", "br")])
def test_of_several_newest_events_the_larger_context_counts(contexts):
    history = [Use(0, 3, 5, item, 1.0, context) for item, context in enumerate(contexts)]
    history.append(Use(0, 3, 4, 7, 1.0, "ü"))
    expected = batch_rows(history, "string")
    assert [row["activity_context"] for row in expected.values()] == [["pt", "linux"]]
    assert newest_rows(replayed([history], "string"), "string") == expected
    assert newest_rows(replayed([[use] for use in history], "string"), "string") == expected


@settings(max_examples=12)
@given(data=st.data(), history=HISTORIES, kind=KINDS)
def test_a_cut_gives_the_row_of_that_moment(data, history, kind):
    """Cut at the newest event of each active day: the batch's row of that day, if all is kept."""
    states = replayed(data.draw(deliveries(history)), kind, margin_days=100)
    expected = batch_rows(history, kind, range(27))
    users = {user: k for k, user in enumerate(states.users)}
    rows = np.array([users[user] for user, _ in expected])
    cuts = np.array([as_of for _, as_of in expected])
    table = activity_rows(states, rows, ENCODERS[kind], LAYOUT, cuts)
    assert table.to_pylist() == list(expected.values())


@settings(max_examples=8)
@given(history=HISTORIES, kind=KINDS, pick=st.integers(0, 10**6))
def test_a_cut_within_a_day_gives_the_batch_row_of_the_events_before(history, kind, pick):
    """Cut at any event: the batch's row of the events up to it."""
    moment = history[pick % len(history)].ts
    past = [use for use in history if use.ts <= moment]
    states = replayed([history], kind, margin_days=100)
    rows = np.arange(len(states.users))
    table = activity_rows(states, rows, ENCODERS[kind], LAYOUT, np.full(len(rows), moment))
    assert by_key(table.to_pylist()) == batch_rows(past, kind)


@given(history=HISTORIES, margin=st.integers(0, 4))
def test_a_cut_that_needs_what_is_gone_gives_no_row_and_others_the_right_one(history, margin):
    """With little kept, the rows of cuts are those with all kept, or left out."""
    whole = replayed([history], "int64", margin_days=100)
    pruned = replayed([[use] for use in history], "int64", margin_days=margin)
    rows = np.array(
        [k for k, u in enumerate(users_of(history)) for use in history if use.user == u]
    )
    cuts = np.array([use.ts for u in users_of(history) for use in history if use.user == u])
    right = activity_rows(whole, rows, ENCODERS["int64"], LAYOUT, cuts).to_pylist()
    made = activity_rows(pruned, rows, ENCODERS["int64"], LAYOUT, cuts).to_pylist()
    assert all(row in right for row in made)
    newest = {u: max(use.day for use in history if use.user == u) for u in users_of(history)}
    inside = {
        (user_id(use.user, "int64"), use.ts)
        for use in history
        if newest[use.user] - use.day <= margin
    }
    assert inside <= {(row["user_id"], row["activity_as_of"]) for row in made}


@given(data=st.data(), history=HISTORIES, margin=st.integers(0, 6))
def test_what_is_pruned_changes_no_row(data, history, margin):
    """Keeping only the windows, or everything: bit-equal newest rows."""
    batches = data.draw(deliveries(history))
    pruned = replayed(batches, "string", margin_days=margin)
    assert newest_rows(pruned, "string") == newest_rows(
        replayed(batches, "string", margin_days=100), "string"
    )
    newest = pruned.facts.newest(0)[pruned.facts.user] // DAY
    assert (newest - pruned.facts.ts // DAY < LONGEST + margin).all()


@given(history=HISTORIES, kind=KINDS)
def test_states_of_clean_tables_give_the_rows_of_the_stream(history, kind):
    """States made of a clean events table equal those of the same events, streamed."""
    streamed = replayed([history], kind)
    nothing = empty(users_of(history), kind)
    seeded = nothing.union(
        UserStates.of(nothing.users, clean_events(history, kind)),
        longest_window=LONGEST, floor=None, max_events=1_000,
    )  # fmt: skip
    assert seeded.states.encode() == streamed.encode()
    assert seeded.changed.all()
    assert seeded.activity.all()


def test_rows_come_in_the_order_that_was_asked_for():
    history = [Use(u, u, 5, u, 1.0, "") for u in range(4)]
    table = activity_rows(
        replayed([history], "string"), np.array([2, 0, 3]), ENCODERS["string"], LAYOUT
    )
    assert table["user_id"].to_pylist() == ["user 2", "user 0", "user 3"]
    assert table.schema == columns(ACTIVITY)
    assert table["event_timestamp"][0].as_py() == datetime.fromtimestamp(
        (DAY_0 + 2) * 86_400, timezone.utc
    ).replace(microsecond=5)


def test_a_cut_at_the_end_of_time_is_the_newest_row():
    states = replayed([[Use(0, d, 5, d, 1.0, "") for d in range(4)]], "string")
    newest = activity_rows(states, np.array([0]), ENCODERS["string"], LAYOUT)
    end = np.array([np.iinfo(np.int64).max])
    assert activity_rows(states, np.array([0]), ENCODERS["string"], LAYOUT, end) == newest
    states = add(states, [pick("item 2", 30)]).states
    newest = onboarding_rows(states, np.array([0]), ENCODERS["string"], LAYOUT)
    assert onboarding_rows(states, np.array([0]), ENCODERS["string"], LAYOUT, end) == newest


def test_no_rows_have_the_same_columns():
    none = np.zeros(0, np.int64)
    states = empty([0], "string")
    for table in (
        activity_rows(states, none, ENCODERS["string"], LAYOUT),
        onboarding_rows(states, none, ENCODERS["string"], LAYOUT),
        profile_rows(states, none, LAYOUT, None),
    ):
        assert table.num_rows == 0
        assert {"user_id", "event_timestamp"} < set(table.column_names)


def test_many_rows_are_made_in_parts_and_are_the_same(monkeypatch):
    history = [Use(u, d, 5, (u + d) % 15, 0.1 * d + 0.1, "br") for u in range(5) for d in range(9)]
    states = replayed([history], "string")
    whole = newest_rows(states, "string")
    monkeypatch.setattr("transforms.stream.rows._EVENTS_AT_ONCE", 10)
    assert newest_rows(states, "string") == whole


def test_a_row_of_a_user_without_events_is_an_error_that_names_the_user():
    with pytest.raises(ValueError, match="user 'user 0' cannot be made"):
        activity_rows(empty([0], "string"), np.array([0]), ENCODERS["string"], LAYOUT)
    with pytest.raises(ValueError, match="user 'user 0' cannot be made"):
        onboarding_rows(empty([0], "string"), np.array([0]), ENCODERS["string"], LAYOUT)
    with pytest.raises(ValueError, match="'user 0' has no profile"):
        profile_rows(empty([0], "string"), np.array([0]), LAYOUT, None)


def test_states_with_other_context_columns_than_the_data_set_are_refused():
    states = replayed([[Use(0, 0, 0, 0, 1.0, "br")]], "string")
    layout = RawLayout(LAYOUT.modalities, LAYOUT.windows, ("country",))
    with pytest.raises(
        DataFault, match=r"hold 2 value.*1 expected \(country\).*palate stream seed"
    ):
        activity_rows(states, np.array([0]), ENCODERS["string"], layout)


def test_a_data_set_without_context_has_rows_without_context():
    event = StreamEvent("consume", 100, DAY_0 * DAY, -35)
    states = add(empty([0], "int64"), [event]).states
    layout = RawLayout(LAYOUT.modalities, LAYOUT.windows)
    (row,) = activity_rows(states, np.array([0]), ENCODERS["int64"], layout).to_pylist()
    assert "activity_context" not in row
    assert row["activity_counts"][:4] == [1, 1, 1, 1]


def pick(item: str, ts: int, user: str = "user 0") -> StreamEvent:
    return StreamEvent("onboarding_pick", user, ts, item)


def test_picks_are_the_batch_mean_and_valid_from_the_newest_pick_on():
    picks = [pick("item 2", 30), pick("item 3", 10), pick("item 1", 20), pick("stranger", 5)]
    # The batch holds each item of a list once; picked again it keeps its first time.
    states = add(empty([0], "string"), [*picks, pick("item 3", 99)]).states
    (row,) = onboarding_rows(states, np.array([0]), ENCODERS["string"], LAYOUT).to_pylist()
    batch = onboarding_pooled(pa.array([[p.item_id for p in picks]]), ENCODERS["string"])
    assert row["onboarding_pooled"] == batch[0].tolist()
    assert row["onboarding_pooled"][-1] == 4
    assert row["onboarding_as_of"] == 30
    assert row["onboarding_modality"] == ENCODERS["string"].version


def test_a_cut_of_picks_gives_those_picked_by_then():
    picks = [pick("item 2", 30), pick("item 3", 10)]
    states = add(empty([0], "string"), picks).states
    table = onboarding_rows(
        states, np.array([0, 0, 0]), ENCODERS["string"], LAYOUT, np.array([9, 10, 31])
    )
    batch = onboarding_pooled(pa.array([["item 3"], ["item 3", "item 2"]]), ENCODERS["string"])
    assert table["onboarding_pooled"].to_pylist() == batch.tolist()
    assert table["onboarding_as_of"].to_pylist() == [10, 30]
    assert table.schema == columns(ONBOARDING)


def change(ts: int, **columns: object) -> StreamEvent:
    categories = {n: v for n, v in columns.items() if isinstance(v, str)}
    numbers = {n: v for n, v in columns.items() if isinstance(v, float)}
    return StreamEvent("profile_change", "user 0", ts, categories=categories, numbers=numbers)


def test_a_profile_without_a_stored_row_misses_what_was_not_said():
    states = add(empty([0], "string"), [change(7, country="br")]).states
    (row,) = profile_rows(states, np.array([0]), LAYOUT, None).to_pylist()
    assert row["profile_categories"] == ["br", ""]
    assert np.isnan(row["profile_numbers"]).all()
    assert row["profile_as_of"] == 7


def test_streamed_columns_stand_over_the_stored_row_and_the_others_stay():
    states = add(empty([0], "string"), [change(7, gender="x", height=1.5)]).states
    nothing = {"profile_categories": None, "profile_numbers": None, "profile_as_of": None}
    rows = [
        nothing | {"profile_categories": ["pt", "y"], "profile_numbers": [3.0, 1.0]},
        nothing,
    ]
    for stored, categories, numbers in (
        (rows[0] | {"profile_as_of": 5}, ["pt", "x"], [3.0, 1.5]),
        (rows[1], ["", "x"], [float("nan"), 1.5]),
    ):
        table = pa.Table.from_pylist([stored])
        made = profile_rows(states, np.array([0]), LAYOUT, table)
        (row,) = made.to_pylist()
        assert row["profile_categories"] == categories
        np.testing.assert_array_equal(row["profile_numbers"], numbers)
        assert row["profile_as_of"] == 7
        assert made.schema == columns(PROFILE)
    older = pa.Table.from_pylist([rows[0] | {"profile_as_of": 50}])
    assert profile_rows(states, np.array([0]), LAYOUT, older)["profile_as_of"].to_pylist() == [50]


def test_a_stored_profile_of_another_layout_is_refused():
    states = add(empty([0], "string"), [change(7, gender="x")]).states
    stored = pa.table(
        {"profile_categories": [["a"]], "profile_numbers": [[1.0, 2.0]], "profile_as_of": [1]}
    )
    with pytest.raises(DataFault, match=r"1 value\(s\), 2 expected \(country, gender\)"):
        profile_rows(states, np.array([0]), LAYOUT, stored)


def test_a_sign_up_alone_is_a_profile():
    states = add(empty([0], "string"), [StreamEvent("sign_up", "user 0", 7)]).states
    (row,) = profile_rows(states, np.array([0]), LAYOUT, None).to_pylist()
    assert row["profile_categories"] == ["", ""]
    assert row["profile_as_of"] == 7
