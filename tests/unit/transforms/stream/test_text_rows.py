"""Rows of texts made of states are the batch's, token for token."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoder.clue.tokenizer import UNKNOWN_SERVICE
from encoder.errors import CorruptState, DataFault
from tests.unit.transforms.stream.histories import (
    ENCODERS,
    KEPT,
    KINDS,
    LAYOUT,
    TEXT_LAYOUT,
    WITH_SERVICES,
    WITH_TEXTS,
    Use,
    add,
    batch_texts,
    clean_events,
    deliveries,
    empty,
    item_id,
    replayed,
    stored,
    users_of,
)
from transforms.layout import TEXTS, RawLayout
from transforms.stream.circumstances import kept_circumstances
from transforms.stream.rows import activity_rows
from transforms.stream.state import UserStates
from transforms.stream.text_rows import texts_beside
from transforms.tables import view_schema

NAMES = kept_circumstances(TEXT_LAYOUT)
GUIDES = {None: 2, "music": 3, "books": UNKNOWN_SERVICE}


def made(
    states: UserStates, kind: str, rows: np.ndarray | None = None, cuts: np.ndarray | None = None
) -> tuple[pa.Table, pa.Table]:
    """Return rows of activity and the texts beside them, by default the newest of each user."""
    every = np.arange(len(states.users)) if rows is None else rows
    activity = activity_rows(states, every, WITH_TEXTS[kind], TEXT_LAYOUT, cuts)
    return activity, texts_beside(activity, states, WITH_TEXTS[kind], TEXT_LAYOUT)


def rows(table: pa.Table) -> list[dict]:
    name = next(name for name in table.column_names if name.endswith("_as_of"))
    return table.sort_by([("user_id", "ascending"), (name, "ascending")]).to_pylist()


def tokens(history: list[Use]) -> list[int]:
    """Return the tokens of the newest row of the only user."""
    _, texts = made(replayed([history], "string", services=True), "string")
    (found,) = texts["texts_tokens"].to_pylist()
    return found


def said(*uses: Use) -> list[int]:
    """Return what events say, one after the other; of an unknown item only the service is known."""
    fitted = WITH_TEXTS["string"]
    assert fitted.texts is not None
    found: list[int] = []
    for use in uses:
        (at,) = fitted.index_of([item_id(use.item, "string")])
        found.append(GUIDES[use.service])
        found += [] if at < 0 else [t for t in fitted.texts.tokens[at, 1:].tolist() if t]
    return found


@settings(max_examples=12)
@given(data=st.data(), history=WITH_SERVICES, kind=KINDS)
def test_any_order_repetition_and_grouping_gives_the_batch_texts(data, history, kind):
    """The newest rows of every user, of both views, are the batch's over the same events."""
    activity, texts = made(replayed(data.draw(deliveries(history)), kind, services=True), kind)
    batch_activity, batch = batch_texts(history, kind)
    assert rows(activity) == rows(batch_activity)
    assert rows(texts) == rows(batch)


@settings(max_examples=12)
@given(data=st.data(), history=WITH_SERVICES, kind=KINDS)
def test_a_cut_gives_the_texts_of_that_moment(data, history, kind):
    """Cut at the newest event of each active day: the batch's row of that day."""
    batches = data.draw(deliveries(history))
    states = replayed(batches, kind, services=True, margin_days=100)
    _, batch = batch_texts(history, kind, range(27))
    users = {user: k for k, user in enumerate(states.users)}
    owner = np.array([users[user] for user in batch["user_id"].to_pylist()])
    _, texts = made(states, kind, owner, batch["texts_as_of"].to_numpy())
    assert texts.to_pylist() == batch.to_pylist()


@settings(max_examples=8)
@given(history=WITH_SERVICES, kind=KINDS, pick=st.integers(0, 10**6))
def test_a_cut_within_a_day_gives_the_batch_texts_of_the_events_before(history, kind, pick):
    """Cut at any event, also of users who have nothing up to it."""
    moment = history[pick % len(history)].ts
    states = replayed([history], kind, services=True, margin_days=100)
    every = np.arange(len(states.users))
    _, texts = made(states, kind, every, np.full(len(every), moment))
    _, batch = batch_texts([use for use in history if use.ts <= moment], kind)
    assert rows(texts) == rows(batch)


@pytest.mark.parametrize("kind", ["string", "int64"])
def test_crowded_instants_of_many_services_give_the_batch_texts(kind):
    """Hundreds of events at a few moments: the order of ids decides which three are newest."""
    rng = np.random.default_rng(0)
    names = [None, "music", "books", ""]
    found = {}
    for u, d, m, i, s in zip(*(rng.integers(0, end, 600) for end in (6, 2, 3, 15, 4)), strict=True):
        use = Use(int(u), int(d), int(m), int(i), 1.0, "", names[s])
        found[use.key] = use
    history = list(found.values())
    activity, texts = made(replayed([history], kind, services=True), kind)
    batch_activity, batch = batch_texts(history, kind)
    assert rows(activity) == rows(batch_activity)
    assert rows(texts) == rows(batch)
    assert len(history) > 6 * 3 * 3, "more than three a user in three groups of services"


def test_texts_are_services_in_order_and_in_each_the_newest_events_first():
    music = [Use(0, d, 5, 1 + d, 1.0, "", "music") for d in range(5)]
    books = Use(0, 2, 9, 4, 1.0, "", "books")
    plain = Use(0, 1, 9, 3, 1.0, "")
    expected = [plain, music[4], music[3], music[2], books]
    assert tokens([*music, books, plain]) == said(*expected)
    # The same item in two services, at two times.
    again = replace(books, service="music", day=3, moment=9)
    expected = [plain, music[4], again, music[3], books]
    assert tokens([*music, books, plain, again]) == said(*expected)


def test_of_one_instant_the_largest_id_is_the_newest_and_unknown_items_are_newer_still():
    tied = [Use(0, 0, 5, item, 1.0, "", "music") for item in (2, 10, 13, 7)]
    # As texts: "item 10" < "item 13" (unknown) < "item 2" < "item 7".
    expected = [tied[2], tied[3], tied[0]]
    assert tokens(tied) == said(*expected)
    assert tokens(tied[::-1]) == tokens(tied)


def test_rows_are_of_the_views_columns_and_in_the_order_of_activity():
    history = [Use(u, u, 5, u, 1.0, "", "music") for u in range(4)]
    states = replayed([history], "string", services=True)
    activity, texts = made(states, "string", np.array([2, 0, 3]))
    assert texts["user_id"].to_pylist() == ["user 2", "user 0", "user 3"]
    schema = view_schema(TEXTS, TEXT_LAYOUT, "string")
    assert texts.schema == schema.remove(len(schema) - 1)
    nothing = made(states, "string", np.zeros(0, np.int64))
    assert [len(table) for table in nothing] == [0, 0]
    assert nothing[1].schema == texts.schema
    assert activity["event_timestamp"] == texts["event_timestamp"]


@given(history=WITH_SERVICES, kind=KINDS)
def test_states_of_clean_tables_keep_the_services_of_the_stream(history, kind):
    """States made of a clean events table equal those of the same events, streamed."""
    streamed = replayed([history], kind, services=True)
    nothing = empty(users_of(history), kind)
    seeded = nothing.union(
        UserStates.of(nothing.users, clean_events(history, kind), services=True), **KEPT
    )
    assert seeded.states.encode() == streamed.encode()
    contexts = {use.service if use.service is not None else "events" for use in history}
    assert {context[-1] for context in seeded.states.facts.contexts} == contexts


@given(history=WITH_SERVICES, kind=KINDS)
def test_without_texts_services_leave_no_trace_in_the_bytes(history, kind):
    bare = [replace(use, service=None) for use in history]
    streamed = replayed([history], kind)
    assert streamed.encode() == replayed([bare], kind).encode()
    nothing = empty(users_of(history), kind)
    seeded = nothing.union(UserStates.of(nothing.users, clean_events(history, kind)), **KEPT)
    assert seeded.states.encode() == streamed.encode()


def test_of_an_event_told_with_two_services_the_larger_one_stays():
    one = Use(0, 0, 5, 1, 1.0, "br", "books")
    other = replace(one, service="music")
    for order in ([one, other], [other, one]):
        states = empty([0], "string")
        for use in order:
            states = stored(add(states, [use.event("string")], services=True).states)
        assert states.facts.contexts[states.facts.context[0]] == ("br", "linux", "music")
    # The larger context counts first.
    context = replace(one, context="pt")
    done = add(states, [context.event("string")], services=True)
    assert done.outcomes == [["applied"]]
    assert add(done.states, [other.event("string")], services=True).outcomes == [["duplicate"]]


def test_states_without_services_give_activity_and_no_texts():
    states = replayed([[Use(0, 0, 5, 1, 1.0, "br", "music")]], "string")
    activity = activity_rows(states, np.array([0]), WITH_TEXTS["string"], TEXT_LAYOUT)
    assert activity["activity_context"].to_pylist() == [["br", "linux"]]
    expected = r"hold 2 value.*\['br', 'linux'\].*3 expected \(country, os, service\).*stream seed"
    with pytest.raises(DataFault, match=expected):
        texts_beside(activity, states, WITH_TEXTS["string"], TEXT_LAYOUT)


def test_states_with_services_are_refused_where_there_are_no_texts():
    states = replayed([[Use(0, 0, 5, 1, 1.0, "br", "music")]], "string", services=True)
    with pytest.raises(DataFault, match=r"hold 3 value.*2 expected \(country, os\)"):
        activity_rows(states, np.array([0]), ENCODERS["string"], LAYOUT)


def test_item_vectors_without_texts_are_an_error():
    states = replayed([[Use(0, 0, 5, 1, 1.0, "br", "music")]], "string", services=True)
    activity, _ = made(states, "string")
    with pytest.raises(DataFault, match="do not fit the layout"):
        texts_beside(activity, states, ENCODERS["string"], TEXT_LAYOUT)


def test_a_data_set_without_context_columns_keeps_the_service_alone():
    layout = RawLayout(LAYOUT.modalities, LAYOUT.windows, texts=TEXT_LAYOUT.texts)
    event = replace(Use(0, 0, 5, 1, 1.0, "", "music").event("int64"), context=None)
    states = stored(add(empty([0], "int64"), [event], services=True).states)
    assert states.facts.contexts == (("music",),)
    activity = activity_rows(states, np.array([0]), WITH_TEXTS["int64"], layout)
    assert "activity_context" not in activity.column_names
    (row,) = texts_beside(activity, states, WITH_TEXTS["int64"], layout).to_pylist()
    assert row["texts_tokens"][0] == GUIDES["music"]
    assert row["texts_count"] == [1.0]


def old_and_new() -> tuple[UserStates, Use, Use]:
    """Return states in which user 0 has two events without services, and user 1 one with."""
    first, second = Use(0, 0, 5, 1, 1.0, "br", "music"), Use(0, 1, 5, 2, 1.0, "br", "books")
    old = add(empty([0, 1], "string"), [use.event("string") for use in (first, second)]).states
    new = replace(first, user=1).event("string")
    return stored(add(old, [new], services=True).states), first, second


def test_misfits_are_the_users_with_events_of_other_circumstances():
    states, _, _ = old_and_new()
    faults = states.misfits(NAMES)
    assert list(faults) == [0]
    assert isinstance(faults[0], CorruptState)
    assert faults[0].user == "user 0"
    expected = r"user 0'.*2 value.*\['br', 'linux'\], 3 expected \(country, os, service\).*--force"
    with pytest.raises(CorruptState, match=expected):
        raise faults[0]
    assert list(states.misfits(LAYOUT.context)) == [1]
    assert empty([0], "string").misfits(NAMES) == {}


def test_misfits_give_way_to_what_clean_tables_know_and_the_others_stay():
    states, first, second = old_and_new()
    clean = UserStates.of(states.users, clean_events([first], "string"), services=True)
    healed = states.fitted(NAMES, clean).union(clean, **KEPT)
    assert healed.changed.tolist() == [True, False]
    assert list(healed.states.misfits(NAMES)) == [0], "an event that nobody knows the service of"
    both = UserStates.of(states.users, clean_events([first, second], "string"), services=True)
    whole = healed.states.fitted(NAMES, both).union(both, **KEPT)
    assert whole.states.misfits(NAMES) == {}
    assert stored(whole.states).facts.per_user.tolist() == [2, 1]
    dropped = states.fitted(NAMES).union(clean, **KEPT).states
    assert dropped.facts.per_user.tolist() == [1, 1]
    assert dropped.misfits(NAMES) == {}


def test_misfits_that_the_floor_leaves_behind_hold_nobody_up():
    old = Use(0, 0, 5, 1, 1.0, "br")
    states = replayed([[old]], "string")
    newer = replace(old, day=25, service="music")
    done = add(states, [newer.event("string")], services=True, floor=18_000 + 5)
    assert done.states.misfits(NAMES) == {}
    assert done.activity.tolist() == [True]
    activity, texts = made(done.states, "string")
    assert activity["activity_context"].to_pylist() == [["br", "linux"]]
    assert texts["texts_tokens"].to_pylist() == [said(newer)]
