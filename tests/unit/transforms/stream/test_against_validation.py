"""The same raw rows through ``palate data validate`` and the batch, and as events: one answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encoder.modality import ItemVectors, ModalityEncoders
from tests.unit.materialize.raw_tables import DAY, NOW, STAMP, T0, Raw, events, users
from tests.unit.transforms.stream.histories import rows_of_clean
from transforms.engine import bounded_connection
from transforms.layout import RawLayout
from transforms.stream.events import BadEvent, EventParser, StreamEvent
from transforms.stream.rows import activity_rows, onboarding_rows, profile_rows
from transforms.stream.state import UserStates
from transforms.tables import ViewTables

LATE = (20_000,)
"""A snapshot after every event, in days after the histories' first."""
LIMITS = {"longest_window": 180, "floor": None, "max_events": 1_000}


def raw_events() -> dict[str, Any]:
    """The sound events, and one of each fault; the last rows repeat two of the sound ones."""
    sound = {name: column.to_pylist() for name, column in events().items()}
    faulty = [
        (None, 10, T0, 1.0, "tv"),  # null_id
        (1, None, T0, 1.0, "tv"),  # null_id
        (1, 10, None, 1.0, "tv"),  # null_timestamp
        (1, 10, NOW + DAY, 1.0, "tv"),  # timestamp_in_future
        (1, 10, T0.replace(year=1800), 1.0, "tv"),  # timestamp_out_of_range
        (1, 10, T0 + DAY, 0.0, "tv"),  # invalid_weight
        (1, 11, T0 + DAY, -1.0, "tv"),
        (1, 12, T0 + DAY, float("nan"), "tv"),
        (1, 12, T0 + DAY, float("inf"), "tv"),
        (2, 12, T0 + DAY, 1e39, "tv"),
        (2, 99, T0 + DAY, 1.0, "tv"),  # unknown_item
        (2, 10, T0 - 2 * DAY, 1.0, "tv"),  # event_before_sign_up
    ]
    kept = [
        (77, 10, T0, 1.0, None),  # unknown_user: kept
        (77, 11, T0, 0.1, "tv"),  # of the newest events the larger context counts
        (3, 13, T0 + 5 * DAY, 0.1, None),
        (1, 10, T0, 1.0, "tv"),  # duplicate
        (1, 11, T0 + DAY, 2.0, None),  # duplicate
    ]
    for row in [*faulty, *kept]:
        for name, value in zip(sound, row, strict=True):
            sound[name].append(value)
    types = {"user": pa.int32(), "item": pa.int64(), "at": STAMP, "weight": pa.float64()}
    return {name: pa.array(values, types.get(name)) for name, values in sound.items()}


def encoders() -> ModalityEncoders:
    vectors = np.array([[1, 2], [0, 0], [3, 4], [5, 6]], np.float32)
    audio = ItemVectors(
        "audio", vectors, np.array([0, -1, 1, 0], np.int32), 2, np.zeros((2, 2), np.float32)
    )
    return ModalityEncoders(pa.array([10, 11, 12, 13]), (audio,), np.ones(4, bool), {"cutoff": "x"})


ENCODERS = encoders()


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Raw:
    """The raw tables, validated."""
    made = Raw(tmp_path_factory.mktemp("raw"), events=raw_events())
    made.validate()
    return made


def data_set(raw: Raw):
    return raw.dataset(modalities={"audio": {"clusters": 2}})


def layout_of(raw: Raw) -> RawLayout:
    return RawLayout.of(data_set(raw), {"audio": 2})


def payload(kind: str, user: Any, at: Any, **fields: Any) -> bytes:
    """A producer's payload of a raw row; a null is written as null."""
    body = {"type": kind, "user_id": user, "timestamp": at and at.isoformat()} | fields
    return json.dumps(body).encode()


def payloads() -> list[bytes]:
    """Each row of users as a sign-up and picks, each row of events as a consume, in file order."""
    made = []
    table = pa.table(users()).to_pylist()
    for row in table:
        columns = {"categories": {"country": row["country"]}, "numbers": {"age": row["age"]}}
        made.append(payload("sign_up", row["uid"], row["joined"], **columns))
        made += [
            payload("onboarding_pick", row["uid"], row["joined"], item_id=item)
            for item in row["picks"] or []
        ]
    for row in pa.table(raw_events()).to_pylist():
        fields = {"item_id": row["item"], "weight": row["weight"]}
        fields["context"] = {"device": row["device"]}
        made.append(payload("consume", row["user"], row["at"], **fields))
    return made


def streamed(raw: Raw) -> tuple[UserStates, list[str]]:
    """Return the states after all payloads, and what became of each consume of the raw table."""
    parser = EventParser(
        data_set(raw), "int64", "int64", future_seconds=0, known_items=ENCODERS,
        clock=NOW.timestamp,
    )  # fmt: skip
    by_user: dict[Any, list[tuple[int, StreamEvent]]] = {}
    fates: dict[int, str] = {}
    for k, one in enumerate(payloads()):
        try:
            event = parser.parse(one)
        except BadEvent as fault:
            fates[k] = fault.reason
        else:
            by_user.setdefault(event.user_id, []).append((k, event))
    states = UserStates.decode(sorted(by_user), [None] * len(by_user), {})
    done = states.apply([[e for _, e in by_user[u]] for u in states.users], **LIMITS)
    for user, outcomes in zip(states.users, done.outcomes, strict=True):
        fates |= {k: fate for (k, _), fate in zip(by_user[user], outcomes, strict=True)}
    n_events = len(raw_events()["user"])
    return done.states, [fates[k] for k in sorted(fates)][-n_events:]


def test_each_raw_row_meets_the_same_fate_as_in_the_batch(raw):
    _, fates = streamed(raw)
    rejected = pq.read_table(raw.out / "rejected" / "events").to_pylist()
    reasons = [row["reason"] for row in rejected]
    assert [fate for fate in fates if fate != "applied"] == reasons
    assert set(reasons) == {
        "null_id", "null_timestamp", "timestamp_in_future", "timestamp_out_of_range",
        "invalid_weight", "unknown_item", "event_before_sign_up", "duplicate",
    }  # fmt: skip
    assert fates.count("applied") == len(raw.rows("events"))


def test_activity_rows_are_those_of_the_validated_tables(raw):
    states, _ = streamed(raw)
    batch = rows_of_clean(raw.clean, ENCODERS, layout_of(raw), LATE)
    rows = np.flatnonzero(states.known(180))
    made = activity_rows(states, rows, ENCODERS, layout_of(raw)).to_pylist()
    assert {row["user_id"]: row for row in made} == {row["user_id"]: row for row in batch.values()}
    assert batch[77, round(T0.timestamp() * 1e6)]["activity_context"] == ["tv"]
    assert [row["activity_context"] for row in made if row["user_id"] == 3] == [["tv"]]


def views(raw: Raw) -> tuple[list[dict], list[dict]]:
    """Return the batch's profile and onboarding rows of the table's users."""
    with bounded_connection(256) as connection:
        tables = ViewTables(connection, raw.clean, layout_of(raw), None)
        profiles = [row for table in tables.profiles() for row in table.to_pylist()]
        onboarding = [row for table in tables.onboarding(ENCODERS) for row in table.to_pylist()]
    return [row for row in profiles if row["user_id"] < 77], onboarding


def test_profile_and_onboarding_rows_are_those_of_the_validated_tables(raw):
    states, _ = streamed(raw)
    profiles, onboarding = views(raw)
    every = np.array([k for k, user in enumerate(states.users) if user < 77])
    made = profile_rows(states, every, layout_of(raw), None).to_pylist()
    assert repr(made) == repr(profiles)  # as text, where NaN equals NaN
    picked = np.flatnonzero(np.diff(states.picks.start))
    made = onboarding_rows(states, picked, ENCODERS, layout_of(raw)).to_pylist()
    assert made == onboarding
    # The list of user 4 holds item 12 twice and a null; the batch and the stream count two picks.
    assert [row["onboarding_pooled"][-1] for row in made] == [2.0, 2.0]


def test_states_of_the_clean_tables_are_those_of_the_events(raw):
    states, _ = streamed(raw)
    clean = {row["user_id"]: row for row in raw.rows("users")}
    joined = pa.array([clean[user]["signed_up_at"] for user in states.users], STAMP)
    # User 77 is in no users table: what the clean table says is the first event.
    signed_up = np.where(np.array(states.users) < 77, joined.cast(pa.int64()).to_numpy(), -1)
    picks = pa.array([clean[user]["onboarding"] for user in states.users], pa.list_(pa.int64()))
    tables = pa.concat_tables([pq.read_table(file) for file in raw.clean.files("events")])
    made = UserStates.of(states.users, tables, picks, signed_up)
    nothing = UserStates.decode(states.users, [None] * len(states.users), {})
    seeded = nothing.union(made, **LIMITS).states
    # All but the profiles, which the batch has in its own rows.
    bare = UserStates(
        states.users, states.facts, states.picks, seeded.profiles, states.sign_up, states.gone
    )
    assert seeded.encode() == bare.encode()


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (pa.array([None, "tv", ""]), [None, "tv", ""]),
        (pa.array([None, 7, -(2**63)]), [None, 7, -(2**63)]),
        (pa.array([None, True, False]), [None, True, False]),
    ],
)
def test_context_and_service_become_what_validation_makes_of_them(tmp_path: Path, column, values):
    tables = {name: array[:3] for name, array in events().items()}
    made = Raw(tmp_path, events=tables | {"device": column, "service": column})
    made.says["events"]["service"] = "service"
    made.validate()
    parser = EventParser(
        data_set(made), "int64", "int64", future_seconds=0, known_items=None, clock=NOW.timestamp
    )
    told = [
        parser.parse(
            payload("consume", 1, T0, item_id=10, context={"device": value}, service=value)
        )
        for value in values
    ]
    clean = made.rows("events")
    assert [list(event.context) for event in told] == [row["context"] for row in clean]
    assert [event.service for event in told] == [row["service"] for row in clean]
    missing = parser.parse(payload("consume", 1, T0, item_id=10))
    assert (missing.context, missing.service) == (told[0].context, told[0].service)
