"""What a payload must be, and what each fault is called."""

from __future__ import annotations

import json
import math
import re
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoder.modality import ModalityEncoders
from tests.unit.materialize.feature_tables import dataset
from transforms.stream.events import BadEvent, EventParser, StreamEvent, event_payload

NOW = 1_700_000_000_000_000
CONTEXT = ("os", "country")
REASONS = {
    "not_json", "unknown_type", "wrong_field", "null_id", "null_timestamp", "timestamp_in_future",
    "timestamp_out_of_range", "invalid_weight", "unknown_item",
}  # fmt: skip


def parser(
    user: str = "int64", item: str = "string", *, known: list[Any] | None = None, **changes: Any
) -> EventParser:
    """A parser of a data set with every optional part, whose clock stands still."""
    events = {
        "path": "-", "user": "u", "item": "i", "timestamp": "t", "weight": "w",
        "context": list(CONTEXT),
    }  # fmt: skip
    items = None
    if known is not None:
        items = ModalityEncoders(pa.array(known), (), np.ones(len(known), bool), {"cutoff": "x"})
    data = dataset(**({"events": events} | changes))
    return EventParser(
        data, user, item, future_seconds=60, known_items=items, clock=lambda: NOW / 1e6
    )


PARSER = parser()
EVENTS_TABLE = {
    "path": "-", "user": "u", "item": "i", "timestamp": "t", "weight": "w",
    "context": list(CONTEXT), "service": "s",
}  # fmt: skip
SERVICED = parser(events=EVENTS_TABLE)


def body(**changes: Any) -> dict[str, Any]:
    """A sound consume event; ``...`` leaves a field out."""
    whole = {"type": "consume", "user_id": 42, "item_id": "a", "timestamp": NOW} | changes
    return {name: value for name, value in whole.items() if value is not ...}


def parse(fields: Any, parser: EventParser = PARSER) -> StreamEvent:
    return parser.parse(fields if isinstance(fields, bytes) else json.dumps(fields).encode())


def refused(fields: Any, reason: str, match: str, parser: EventParser = PARSER) -> None:
    with pytest.raises(BadEvent, match=match) as caught:
        parse(fields, parser)
    assert caught.value.reason == reason
    assert caught.value.detail == str(caught.value)


def test_a_whole_event():
    event = parse(body(weight=2.5, context={"country": "BR", "os": "ios"}))
    assert event == StreamEvent("consume", 42, NOW, "a", 2.5, ("ios", "BR"))


def test_what_may_be_left_out_has_the_batch_defaults():
    assert parse(body()) == StreamEvent("consume", 42, NOW, "a", 1.0, ("", ""))
    assert parse(body(context=None)).context == ("", "")


@pytest.mark.parametrize(
    ("payload", "match"),
    [
        (b"", "b'' given, one JSON object in UTF-8 expected.*EOF"),
        (b"{", "one JSON object"),
        (b"[1]", "one JSON object"),
        (b"null", "one JSON object"),
        (b'{"type": "consume"} x', "trailing"),
        (b'{"type": "\xff"}', "UTF-8|unicode"),
        (b'{"type": "\\ud800"}', "one JSON object"),
        (b"[" * 10_000, "one JSON object"),
        (b'{"a":' * 300 + b"1" + b"}" * 300, "recursion"),
        (b'{"user_id": 1' + b"0" * 10_000 + b"}", "out of range"),
    ],
)
def test_what_is_no_json_object_says_why(payload, match):
    refused(payload, "not_json", match)


@pytest.mark.parametrize("kind", [..., None, 5, ["consume"], "", "Consume", "play"])
def test_an_unknown_type_names_the_known_ones(kind):
    expected = "one of consume, onboarding_pick, profile_change, sign_up expected"
    refused(body(type=kind), "unknown_type", expected)


@pytest.mark.parametrize(
    ("changes", "known"),
    [
        ({"users": None}, "consume"),
        ({"users": {"path": "-", "user": "u"}}, "consume, sign_up"),
        (
            {"users": {"path": "-", "user": "u", "onboarding": "p"}},
            "consume, onboarding_pick, sign_up",
        ),
        (
            {"users": {"path": "-", "user": "u", "numbers": ["age"]}},
            "consume, profile_change, sign_up",
        ),
    ],
)
def test_types_that_the_data_set_has_no_columns_for_are_unknown(changes, known):
    refused(body(type="x"), "unknown_type", f"one of {known} expected", parser(**changes))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        (body(wieght=1), "wieght: given, only context, item_id, timestamp, type, user_id, weight"),
        (body(categories={}), "categories: given, only"),
        (body(type="sign_up"), "item_id: given, only categories, numbers, timestamp"),
        (body(type="onboarding_pick", weight=1), "weight: given, only item_id, timestamp"),
        (body(user_id="42"), "user_id: '42' given, an integer, as in the data set, expected"),
        (body(user_id=4.0), "user_id: 4.0 given, an integer"),
        (body(user_id=True), "user_id: True given, an integer"),
        (body(user_id=[]), r"user_id: \[\] given, an integer"),
        (body(item_id=7), "item_id: 7 given, a string, as in the data set, expected"),
        (body(item_id={"a": 1}), "item_id: {'a': 1} given, a string"),
        (
            body(timestamp=1.7e15),
            r"timestamp: 1700000000000000.0 given, whole microseconds since 1970",
        ),
        (body(timestamp=True), "timestamp: True given, whole microseconds"),
        (body(timestamp="1700000000"), "timestamp: '1700000000' given, whole microseconds"),
        (body(timestamp="2023-11-14"), "ISO 8601 with a zone"),
        (body(timestamp="2023-11-14T00:00:00"), "ISO 8601 with a zone"),
        (body(timestamp="2023-13-14T00:00:00Z"), "ISO 8601 with a zone"),
        (body(context=[]), r"context: \[\] given, an object of column names"),
        (body(context={"contry": "BR"}), "context.contry: given, only country, os expected"),
        (body(context={"os": 1.5}), "context.os: 1.5 given, a string, an integer, true"),
        (body(context={"os": ["x"]}), "context.os: "),
    ],
)
def test_a_wrong_field_is_named_with_what_was_given_and_expected(fields, match):
    refused(fields, "wrong_field", match)


@pytest.mark.parametrize("field", ["user_id", "item_id"])
@pytest.mark.parametrize("value", [..., None])
def test_a_missing_id_is_null(field, value):
    refused(body(**{field: value}), "null_id", f"{field}: none given, an id expected")


def test_an_id_that_the_batch_would_read_as_null_is_null():
    refused(body(item_id=""), "null_id", "item_id: '' given")
    refused(body(user_id=2**63), "null_id", f"user_id: {2**63} given.*within 64 bits")
    refused(body(user_id=-(2**63) - 1), "null_id", "within 64 bits")
    assert parse(body(user_id=2**63 - 1)).user_id == 2**63 - 1
    other = parser("string", "int64")
    assert parse(body(user_id="ü", item_id=-(2**63)), other).item_id == -(2**63)


@pytest.mark.parametrize("value", [..., None])
def test_a_missing_time_is_null(value):
    refused(body(timestamp=value), "null_timestamp", "timestamp: none given")


def test_times_may_be_ahead_of_the_clock_by_what_the_settings_allow():
    assert parse(body(timestamp=NOW + 60_000_000)).timestamp_us == NOW + 60_000_000
    late = NOW + 60_000_001
    refused(body(timestamp=late), "timestamp_in_future", f"{late} given, a time up to 2023-11-14T")
    refused(body(timestamp=10**4_000), "timestamp_in_future", "Check the unit")
    first = -2_208_988_800_000_000  # 1900-01-01
    assert parse(body(timestamp=first)).timestamp_us == first
    refused(body(timestamp=first - 1), "timestamp_out_of_range", "after the year 1900")


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2023-11-14T00:00:00Z", datetime(2023, 11, 14, tzinfo=timezone.utc)),
        ("2023-11-14 00:00:00+00:00", datetime(2023, 11, 14, tzinfo=timezone.utc)),
        ("2023-11-14T05:45:00.000001+05:45", datetime(2023, 11, 14, 0, 0, 0, 1, timezone.utc)),
        ("1969-12-31T23:59:59.999999Z", datetime(1969, 12, 31, 23, 59, 59, 999999, timezone.utc)),
    ],
)
def test_iso_times_are_exact_to_the_microsecond(text, moment):
    seconds = (moment - datetime(1970, 1, 1, tzinfo=timezone.utc)).total_seconds()
    assert parse(body(timestamp=text)).timestamp_us == round(seconds * 1e6)


@pytest.mark.parametrize(
    "weight", [0, -1, 0.0, 1e-46, 3.5e38, 10**400, True, "1", None, [1], {"a": 1}]
)
def test_a_weight_that_the_batch_would_reject_is_invalid(weight):
    refused(body(weight=weight), "invalid_weight", "weight: .* given, a positive, finite 32-bit")


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_invalid_weights_and_wrong_columns(text):
    payload = json.dumps(body(weight=0)).replace(": 0", f": {text}").encode()
    refused(payload, "invalid_weight", "weight: (nan|-?inf) given")
    change = {"type": "profile_change", "user_id": 1, "timestamp": NOW, "numbers": {"age": 0}}
    payload = re.sub(r": 0\b", f": {text}", json.dumps(change)).encode()
    refused(payload, "wrong_field", "numbers.age: (nan|-?inf) given, a finite 32-bit number")


def test_weights_are_bounded_as_32_bit_numbers_are():
    for weight in (7.1e-46, 3.4028235e38, 1):
        assert np.float32(parse(body(weight=weight)).weight) == np.float32(weight)
        assert 0 < np.float32(weight) < np.inf
    with np.errstate(over="ignore"):
        assert np.float32(7.0e-46) == 0
        assert np.float32(2.0**128 - 2.0**103) == np.inf


def test_a_weight_counts_only_where_the_batch_has_weights():
    events = {"path": "-", "user": "u", "item": "i", "timestamp": "t"}
    plain = parser(events=events)
    assert parse(body(weight=3.0), plain) == StreamEvent("consume", 42, NOW, "a")
    refused(body(weight=-3.0), "invalid_weight", "weight", plain)
    refused(body(context={"os": "x"}), "wrong_field", "none: dataset.yaml names no", plain)


@pytest.mark.parametrize(
    ("given", "service"),
    [(..., None), (None, None), ("music", "music"), ("", ""), (7, "7"), (True, "true")],
)
def test_a_service_is_what_the_batch_makes_of_its_column(given, service):
    assert parse(body(service=given), SERVICED).service == service


def test_a_service_is_refused_where_the_data_set_has_none_and_where_it_is_no_text():
    refused(body(service="music"), "wrong_field", "service: given, only context, item_id")
    refused(body(service=1.5), "wrong_field", "service: 1.5 given, a string, an int", SERVICED)
    refused(body(service=["a"]), "wrong_field", r"service: \['a'\] given, a string", SERVICED)
    pick = body(type="onboarding_pick", service="music")
    refused(pick, "wrong_field", "service: given, only item_id, timestamp, type", SERVICED)


def test_an_item_must_be_in_the_items_table_where_there_is_one():
    strict = parser(known=["a", "b"])
    assert parse(body(item_id="b"), strict).item_id == "b"
    refused(body(item_id="c"), "unknown_item", "'c' given, an id that the items table had", strict)
    pick = body(type="onboarding_pick", item_id="c")
    refused(pick, "unknown_item", "item_id", strict)
    no_table = parser(known=["a"], items=None, modalities={"collaborative": {"dim": 4}})
    assert parse(body(item_id="c"), no_table).item_id == "c"


def change(**columns: Any) -> dict[str, Any]:
    return {"type": "profile_change", "user_id": 42, "timestamp": NOW} | columns


def test_profile_columns_and_missing_values():
    event = parse(change(categories={"country": None}, numbers={"age": None}))
    assert event.categories == {"country": ""}
    assert math.isnan(event.numbers["age"])
    assert parse(change(numbers={"age": 31})).numbers == {"age": 31.0}
    assert parse(change(categories={"country": "BR"}) | {"type": "sign_up"}) == StreamEvent(
        "sign_up", 42, NOW, categories={"country": "BR"}
    )


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        (change(), "categories and numbers: none given, at least one column"),
        (change(categories={}, numbers=None), "at least one column"),
        (change(categories={"land": "x"}), "categories.land: given, only country expected"),
        (change(categories="x"), "categories: 'x' given, an object"),
        (change(numbers={"age": "31"}), "numbers.age: '31' given, a finite 32-bit number"),
        (change(numbers={"age": True}), "numbers.age: True given"),
        (change(numbers={"age": 1e39}), r"numbers.age: 1e\+39 given"),
        (change(numbers={"country": 1}), "numbers.country: given, only age expected"),
        (change(numbers={"x" * 500: 1}), f"numbers.{'x' * 60}: given"),
    ],
)
def test_a_wrong_profile_column_is_named(fields, match):
    refused(fields, "wrong_field", match)


def test_long_values_are_cut_in_messages():
    with pytest.raises(BadEvent) as caught:
        parse(body(user_id="x" * 100_000))
    assert len(caught.value.detail) < 200


TEXT = st.text(max_size=6)
IDS = st.integers(-(2**63), 2**63 - 1)
MOMENTS = st.integers(-2_208_988_800_000_000, NOW)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
EVENTS = st.one_of(
    st.builds(
        StreamEvent,
        st.just("consume"),
        IDS,
        MOMENTS,
        TEXT.filter(bool),
        FLOATS.filter(lambda w: w > 0),
        st.tuples(TEXT, TEXT),
        st.one_of(st.none(), TEXT),
    ),
    st.builds(StreamEvent, st.just("onboarding_pick"), IDS, MOMENTS, TEXT.filter(bool)),
    st.builds(
        StreamEvent,
        st.just("profile_change"),
        IDS,
        MOMENTS,
        categories=st.dictionaries(st.just("country"), TEXT, min_size=1),
        numbers=st.dictionaries(st.just("age"), st.one_of(FLOATS, st.just(math.nan))),
    ),
    st.builds(StreamEvent, st.just("sign_up"), IDS, MOMENTS),
)


@given(EVENTS)
def test_a_payload_gives_the_event_that_it_was_made_of(event):
    """parse(event_payload(e)) == e, for events of every type."""
    assert SERVICED.parse(event_payload(event, CONTEXT)) == event


def test_a_payload_needs_a_name_for_each_circumstance():
    event = StreamEvent("consume", 1, NOW, "a", 1.0, ("x", "y"))
    with pytest.raises(ValueError, match=r"2 circumstances and the names \['os'\]"):
        event_payload(event, ["os"])


JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
        st.sampled_from(["consume", "sign_up", "2023-11-14T00:00:00Z", "2023-11-14T0", NOW, "a"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["os", "country", "age", "x"]), inner, max_size=3),
    ),
    max_leaves=6,
)  # fmt: skip
FIELDS = [
    "type", "user_id", "item_id", "timestamp", "weight", "context", "service", "categories",
    "numbers", "else",
]  # fmt: skip
KINDS = st.sampled_from(["consume", "onboarding_pick", "profile_change", "sign_up"])


@given(
    fields=st.one_of(
        st.dictionaries(st.sampled_from(FIELDS), JSON),
        st.builds(
            lambda kind, more: body(type=kind, item_id=...) | more,
            KINDS,
            st.dictionaries(st.sampled_from(FIELDS[1:]), JSON, max_size=3),
        ),
    )
)
def test_any_object_is_an_event_or_a_fault_with_a_reason(fields):
    """Whatever the fields hold, the parser answers; nothing but BadEvent is raised."""
    answered(json.dumps(fields).encode())


@given(
    at=st.integers(0, 200),
    junk=st.binary(max_size=4),
    cut=st.integers(0, 4),
)
def test_damaged_payloads_are_an_event_or_a_fault(at, junk, cut):
    payload = json.dumps(body(weight=1.5, context={"os": "ios"})).encode()
    answered(payload[:at] + junk + payload[at + cut :])


@given(st.binary(max_size=60))
def test_any_bytes_are_an_event_or_a_fault(payload):
    answered(payload)


def answered(payload: bytes) -> None:
    event: StreamEvent | None = None
    fault: BadEvent | None = None
    try:
        event = SERVICED.parse(payload)
    except BadEvent as exc:
        fault = exc
    if fault is not None:
        assert fault.reason in REASONS
        assert len(fault.detail) < 600
        return
    assert event is not None
    assert type(event.user_id) is int
    assert event.timestamp_us <= NOW + 60_000_000
    assert 0 < event.weight < math.inf
    assert event.service is None or type(event.service) is str
    assert event.context is None or len(event.context) == 2
    assert SERVICED.parse(event_payload(event, CONTEXT)) == event
