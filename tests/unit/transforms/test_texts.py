"""Rows of texts: the newest events of each service that a row of activity knows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoder.clue.tokenizer import PAD, UNKNOWN_SERVICE, fit_tokenizer
from encoder.errors import ArtifactError, DataFault
from encoder.item_texts import ItemTexts, TextsSpec, fit_item_texts
from encoder.modality import Items, ItemVectors, ModalityEncoders
from transforms.engine import DAY_US
from transforms.layout import TEXTS, Modality, RawLayout, TextLayout, field
from transforms.tables import CREATED, view_schema
from transforms.texts import TextEvents, text_rows, text_tables
from transforms.windows import list_array

LIMITS = TextLayout(max_events=2, max_item_tokens=4)
LAYOUT = RawLayout((Modality("a", 2, 2),), (7, 30), texts=LIMITS)
SERVICES = ("books", "films")
"""Services with a guide token: 2 and 3; any other has 1."""
SAID = ["red river", "a blue sky at noon", "green", ""]
ITEMS = Items(pa.array([10, 20, 30, 40]), SAID, [["x"], [], [], []])


def _encoders() -> ModalityEncoders:
    vectors = np.zeros((4, 2), np.float32)
    one = ItemVectors("a", vectors, np.full(4, -1, np.int32), 2, np.zeros((1, 2), np.float32))
    texts = fit_item_texts(ITEMS, np.ones(4, bool), TextsSpec(SERVICES, 300, 4))
    fitted = np.ones(4, np.bool_)
    return ModalityEncoders(ITEMS.ids, (one,), fitted, {"cutoff": "2026-01-01"}, texts=texts)


ENCODERS = _encoders()


@dataclass(frozen=True)
class Event:
    user: int
    ts: int
    item: int
    service: str


def _activity(rows: list[tuple[int, int]]) -> pa.Table:
    """Return rows of activity: user and time; the count of events is the row's number."""
    counts = np.zeros((len(rows), LAYOUT.counts_width), np.float32)
    counts[:, 4] = np.arange(len(rows))  # events of the second window
    as_of = pa.array([ts for _, ts in rows], pa.int64())
    return pa.table(
        {
            "user_id": pa.array([f"user-{user}" for user, _ in rows]),
            "activity_counts": list_array(counts),
            "activity_as_of": as_of,
            "event_timestamp": as_of.cast(pa.timestamp("us", "UTC")),
        }
    )


def _expected(events: list[Event], user: int, as_of: int) -> list[int]:
    """Return a row's tokens, put together one by one."""
    tokens = ENCODERS.texts
    assert tokens is not None
    first = (as_of // DAY_US - 29) * DAY_US
    said = []
    for guide, names in ((2, {"books"}), (3, {"films"}), (UNKNOWN_SERVICE, {"other", "more"})):
        known = [
            e for e in events if e.user == user and first <= e.ts <= as_of and e.service in names
        ]
        known.sort(key=lambda e: (e.ts, e.item))
        for event in known[::-1][: LIMITS.max_events]:
            row = tokens.tokens[event.item].tolist() if event.item >= 0 else [0]
            said += [guide, *(t for t in row[1:] if t != PAD)]
    return said


_EVENTS = st.lists(
    st.builds(
        Event,
        st.integers(0, 2),
        st.integers(0, 40).map(lambda hours: hours * 20 * 3_600_000_000),
        st.integers(-1, 3),
        st.sampled_from(["books", "films", "other", "more"]),
    ),
    max_size=30,
    unique_by=lambda e: (e.user, e.ts, e.item),
)


@given(_EVENTS, st.lists(st.tuples(st.integers(0, 2), st.integers(0, 900)), max_size=8))
def test_a_row_says_the_newest_events_of_each_service_up_to_its_time(
    events: list[Event], at: list[tuple[int, int]]
) -> None:
    ordered = sorted(events, key=lambda e: (e.user, e.ts, e.item))
    services = tuple(dict.fromkeys(e.service for e in ordered))
    given_events = TextEvents(
        start=np.searchsorted([e.user for e in ordered], np.arange(4)),
        ts=np.array([e.ts for e in ordered], np.int64),
        item=np.array([e.item for e in ordered], np.int64),
        service=np.array([services.index(e.service) for e in ordered], np.int64),
        services=services,
    )
    rows = [(user, hours * 3_600_000_000) for user, hours in at]
    table = text_rows(
        _activity(rows), np.array([u for u, _ in rows], np.int64), given_events, ENCODERS, LAYOUT
    )
    told = table[field(TEXTS, "tokens")].to_pylist()
    assert told == [_expected(events, user, ts) for user, ts in rows]
    assert table[field(TEXTS, "count")].to_pylist() == [[float(k)] for k in range(len(rows))]
    assert table[field(TEXTS, "as_of")].to_pylist() == [ts for _, ts in rows]
    assert set(table[field(TEXTS, "modality")].to_pylist()) <= {ENCODERS.texts_version}
    schema = view_schema(TEXTS, LAYOUT, "string")
    assert table.append_column(CREATED, table["event_timestamp"]).cast(schema).schema == schema


def test_clean_events_without_a_service_are_one_service_together() -> None:
    found = pa.table(
        {
            "user_id": ["user-0", "user-0", "user-1"],
            "ts": pa.array([1, 2, 3], pa.int64()),
            "item_id": pa.array([10, 99, 30], pa.int64()),
            "service": pa.array([None, "films", "books"], pa.string()),
        }
    )
    (table,) = text_tables([_activity([(1, 5), (0, 5)])], found, ENCODERS, LAYOUT)
    events = [Event(1, 3, 2, "books"), Event(0, 1, 0, "other"), Event(0, 2, -1, "films")]
    told = table[field(TEXTS, "tokens")].to_pylist()
    assert told == [_expected(events, 1, 5), _expected(events, 0, 5)]
    assert told[1][0] == 3, "a film of which nothing is known but its service"


def test_encoders_without_texts_or_with_longer_ones_are_refused() -> None:
    none = TextEvents(*(np.zeros(0, np.int64),) * 4, ())
    for layout, encoders in (
        (LAYOUT, ModalityEncoders(ITEMS.ids, (), np.ones(4, np.bool_), {"cutoff": ""})),
        (replace(LAYOUT, texts=TextLayout(2, 5)), ENCODERS),
        (replace(LAYOUT, texts=None), ENCODERS),
    ):
        with pytest.raises(DataFault, match="do not fit the layout"):
            text_rows(_activity([(0, 1)]), np.zeros(1, np.int64), none, encoders, layout)


# --- what items say


def test_an_item_says_its_text_and_tags_or_its_id() -> None:
    texts = ENCODERS.texts
    assert texts is not None
    assert texts.tokens.shape == (4, 4)
    assert set(texts.tokens[:, 0].tolist()) == {UNKNOWN_SERVICE}
    whole = fit_tokenizer(["red river x", *SAID[1:3], "40"], SERVICES, vocabulary=300, max_tokens=9)
    long = fit_item_texts(ITEMS, np.ones(4, bool), TextsSpec(SERVICES, 300, 9))
    assert long.tokenizer == whole
    assert [whole.text(row[1:]) for row in long.tokens] == ["red river x", *SAID[1:3], "40"]


def test_only_items_with_an_event_before_the_cut_off_are_learned_from() -> None:
    known = np.array([True, False, True, False])
    texts = fit_item_texts(ITEMS, known, TextsSpec(SERVICES, 300, 9))
    assert (
        texts.tokenizer
        == fit_item_texts(
            ITEMS.take(np.array([0, 2])), np.ones(2, bool), TextsSpec(SERVICES, 300, 9)
        ).tokenizer
    )
    assert (
        texts.tokenizer
        != fit_item_texts(ITEMS, np.ones(4, bool), TextsSpec(SERVICES, 300, 9)).tokenizer
    )


def test_new_items_get_tokens_and_the_version_stays(tmp_path: Path) -> None:
    new = Items(pa.array([50]), ["red sky"], [[]])
    grown = ENCODERS.with_new_items(new)
    assert grown.version == ENCODERS.version
    assert grown.texts_version == ENCODERS.texts_version is not None
    assert grown.texts is not None
    assert ENCODERS.texts is not None
    assert grown.texts.tokens[:4].tolist() == ENCODERS.texts.tokens.tolist()
    row = grown.texts.tokenizer.tokenize(["red sky"], [""])[0]
    assert grown.texts.tokens[4, 1:].tolist() == row[1:].tolist()
    grown.save(tmp_path)
    again = ModalityEncoders.load(tmp_path)
    assert again.texts is not None
    assert again.texts.tokens.tolist() == grown.texts.tokens.tolist()
    assert again.texts.tokenizer == grown.texts.tokenizer
    assert (again.version, again.texts_version) == (grown.version, grown.texts_version)


def test_texts_have_a_version_of_their_own() -> None:
    """Spaces that read vectors stay fresh when texts are added, changed or left out."""
    texts = ENCODERS.texts
    assert texts is not None
    other = fit_tokenizer(SAID[:3], SERVICES, vocabulary=310, max_tokens=4)
    for changed in (ItemTexts(other, texts.tokens), None):
        encoders = ModalityEncoders(
            ENCODERS.item_ids, ENCODERS.modalities, ENCODERS.fitted, ENCODERS.config, texts=changed
        )
        assert encoders.version == ENCODERS.version
        assert encoders.texts_version != ENCODERS.texts_version
    # What items say is free to change: an encoder of texts reads the same token ids.
    tokens = texts.tokens.copy()
    tokens[0, 1] += 1
    reworded = ModalityEncoders(
        ENCODERS.item_ids,
        ENCODERS.modalities,
        ENCODERS.fitted,
        ENCODERS.config,
        texts=replace(texts, tokens=tokens),
    )
    assert reworded.texts_version == ENCODERS.texts_version


def test_texts_may_take_a_tokenizer_that_was_learned_elsewhere() -> None:
    elsewhere = fit_tokenizer(["green hill", "hill"], ("shop",), vocabulary=270, max_tokens=5)
    spec = TextsSpec(SERVICES, 300, 4, elsewhere)
    texts = fit_item_texts(ITEMS, np.ones(4, bool), spec)
    assert texts.tokenizer == elsewhere
    assert texts.tokens.shape == (4, 5)
    assert texts.tokenizer.text(texts.tokens[0, 1:]) == elsewhere.text(
        elsewhere.tokenize([SAID[0]], [""])[0, 1:]
    )


def test_changed_texts_are_refused_on_loading(tmp_path: Path) -> None:
    arrays, config = ENCODERS.state()
    arrays["texts.tokens"] = arrays["texts.tokens"] + 1
    with pytest.raises(ArtifactError, match="the files were changed"):
        ModalityEncoders.from_state(arrays, config)
