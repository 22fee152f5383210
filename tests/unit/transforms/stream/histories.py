"""Random histories of a few users, and the rows that the batch makes of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from encoder.item_texts import TextsSpec, fit_item_texts
from encoder.modality import Items, ModalityEncoders
from tests.unit.transforms.event_tables import DAY, DAY_0, WINDOWS, item_vectors
from tests.unit.transforms.event_tables import LAYOUT as PLAIN
from transforms.buckets import DayBuckets
from transforms.clean import CleanTables
from transforms.layout import RawLayout, TextLayout
from transforms.stream.events import StreamEvent
from transforms.stream.state import Applied, UserStates
from transforms.texts import text_tables
from transforms.windows import Emission, activity_tables

LONGEST = 11
N_KNOWN, N_ITEMS = 12, 15
"""Items of the encoders; of the histories: the last three are unknown to the encoders."""
LAYOUT = RawLayout(
    PLAIN.modalities,
    WINDOWS,
    ("country", "os"),
    ("country", "gender"),
    ("age", "height"),
    onboarding=True,
)
TEXT_LAYOUT = replace(LAYOUT, texts=TextLayout(max_events=3, max_item_tokens=4))
KEPT: dict[str, Any] = {"longest_window": LONGEST, "floor": None, "max_events": 1_000}


def encoders(kind: str, services: tuple[str, ...] = ()) -> ModalityEncoders:
    """Two modalities over ids in no order; some items have no vector in one or either.

    With services there are texts, too: five different ones, the shortest only the item's id.
    """
    rng = np.random.default_rng(0)
    modalities = item_vectors(rng, N_KNOWN)
    order = rng.permutation(N_KNOWN)
    ids = pa.array([item_id(int(k), kind) for k in order])
    every = np.ones(N_KNOWN, bool)
    texts = None
    if services:
        said = [" ".join("abcdefg"[j] for j in range(k % 5)) for k in order.tolist()]
        spec = TextsSpec(services, vocabulary=262, max_tokens=4)
        texts = fit_item_texts(Items(ids, said), every, spec)
    return ModalityEncoders(ids, modalities, every, {"cutoff": kind}, texts=texts)


def user_id(user: int, kind: str) -> int | str:
    return f"user {user}" if kind == "string" else 100 + user


def item_id(item: int, kind: str) -> int | str:
    # Strings of which 10 comes before 2, integers of either sign.
    return f"item {item}" if kind == "string" else 7 * (item - 5)


ENCODERS = {kind: encoders(kind) for kind in ("string", "int64")}
WITH_TEXTS = {kind: encoders(kind, ("events", "music")) for kind in ("string", "int64")}


@dataclass(frozen=True)
class Use:
    """One event of a history; ``moment`` in microseconds of its day."""

    user: int
    day: int
    moment: int
    item: int
    weight: float
    context: str
    service: str | None = None

    @property
    def ts(self) -> int:
        return (DAY_0 + self.day) * DAY + self.moment

    @property
    def key(self) -> tuple[int, int, int]:
        return self.user, self.item, self.ts

    def event(self, kind: str) -> StreamEvent:
        return StreamEvent(
            "consume",
            user_id(self.user, kind),
            self.ts,
            item_id(self.item, kind),
            self.weight,
            (self.context, "linux"),
            self.service,
        )


MOMENTS = st.one_of(st.integers(0, DAY - 1), st.sampled_from([0, 5, DAY - 1]))
"""Often the same few, so that events tie; often at midnight."""


def _uses(users: int, days: int, moments: st.SearchStrategy[int]) -> st.SearchStrategy[Use]:
    return st.builds(
        Use,
        st.integers(0, users - 1),
        st.integers(0, days - 1),
        moments,
        st.integers(0, N_ITEMS - 1),
        st.sampled_from([0.5, 1.0, 2.0, 3.7, 0.1]),
        st.sampled_from(["", "br", "pt", "ü"]),
    )


USES = st.one_of(_uses(5, 26, MOMENTS), _uses(2, 2, st.sampled_from([0, 5, DAY - 1])))
"""Spread over weeks, and crowded: days of many items, events of one moment."""
HISTORIES = st.lists(USES, min_size=1, max_size=60, unique_by=lambda use: use.key)
"""Each (user, item, time) once: an event that is repeated with other values is no fact."""
SERVICES = st.sampled_from([None, "music", "books", ""])
"""The tokenizer knows what has no service, and music."""
WITH_SERVICES = st.lists(
    st.builds(lambda use, service: replace(use, service=service), USES, SERVICES),
    min_size=1,
    max_size=60,
    unique_by=lambda use: use.key,
)
KINDS = st.sampled_from(["string", "int64"])


def users_of(history: Sequence[Use]) -> list[int]:
    return sorted({use.user for use in history})


def empty(users: Sequence[int], kind: str) -> UserStates:
    return UserStates.decode([user_id(u, kind) for u in users], [None] * len(users), {})


def add(states: UserStates, events: Sequence[StreamEvent], **limits: Any) -> Applied:
    """Apply events in their order, with the state read from bytes and written to them."""
    by_user: dict[int | str, list[StreamEvent]] = {user: [] for user in states.users}
    for event in events:
        by_user[event.user_id].append(event)
    return states.apply(list(by_user.values()), **(KEPT | limits))


def stored(states: UserStates) -> UserStates:
    """Return what is read back from the bytes of the states, which would be written the same."""
    faults: dict[int, Any] = {}
    blobs = states.encode()
    read = UserStates.decode(states.users, blobs, faults)
    assert not faults
    assert read.encode() == blobs
    return read


@st.composite
def deliveries(draw: st.DrawFn, history: Sequence[Use]) -> list[list[Use]]:
    """The events of a history in any order, some of them repeated, in any micro-batches."""
    again = draw(st.lists(st.sampled_from(history), max_size=10))
    order = draw(st.permutations([*history, *again]))
    cuts = sorted(draw(st.lists(st.integers(0, len(order)), max_size=4)))
    return [order[a:b] for a, b in zip([0, *cuts], [*cuts, len(order)], strict=True)]


def replayed(batches: Sequence[Sequence[Use]], kind: str, **limits: Any) -> UserStates:
    """Return the states after micro-batches, stored and read after each."""
    states = empty(users_of([use for batch in batches for use in batch]), kind)
    for batch in batches:
        states = stored(add(states, [use.event(kind) for use in batch], **limits).states)
    return states


def clean_events(history: Sequence[Use], kind: str) -> pa.Table:
    """The clean events table of a history, in its order."""
    n = len(history)
    ids = pa.string() if kind == "string" else pa.int64()
    return pa.table(
        {
            "user_id": pa.array([user_id(use.user, kind) for use in history], ids),
            "item_id": pa.array([item_id(use.item, kind) for use in history], ids),
            "ts": pa.array([use.ts for use in history], pa.int64()).cast(pa.timestamp("us", "UTC")),
            "weight": pa.array([use.weight for use in history], pa.float32()),
            "session": pa.nulls(n, pa.int64()),
            "service": pa.array([use.service for use in history], pa.string()),
            "context": pa.array([[use.context, "linux"] for use in history], pa.list_(pa.string())),
        }
    )


def batch_rows(
    history: Sequence[Use], kind: str, snapshots: Sequence[int] = (400,)
) -> dict[tuple[int | str, int], dict[str, Any]]:
    """Return {(user, as_of): row} as the batch makes them, for snapshots in days after ``DAY_0``.

    The default snapshot lies after every event: the newest row of each user.
    """
    with written(history, kind) as clean:
        return rows_of_clean(clean, ENCODERS[kind], LAYOUT, snapshots)


@contextmanager
def written(history: Sequence[Use], kind: str) -> Iterator[CleanTables]:
    """Yield clean tables of a history's events."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "clean" / "events").mkdir(parents=True)
        pq.write_table(clean_events(history, kind), root / "clean" / "events" / "0.parquet")
        yield CleanTables(root)


def batch_texts(
    history: Sequence[Use], kind: str, snapshots: Sequence[int] = (400,)
) -> tuple[pa.Table, pa.Table]:
    """Return the rows of activity and of texts as the batch makes them; see ``batch_rows``."""
    fitted = WITH_TEXTS[kind]
    with written(history, kind) as clean:
        buckets = DayBuckets(
            clean.root / "buckets", clean, memory_limit_mb=256, bytes_per_day=100, events=True
        )
        buckets.update()
        emission = Emission(np.array(snapshots, np.int64) + DAY_0)
        first_day = emission.first_day(LONGEST)
        data = buckets.load(0, first_day)
        assert buckets.partitions == 1
        assert data is not None
        activity = list(activity_tables(data, fitted, TEXT_LAYOUT, emission))
        texts = text_tables(activity, buckets.load_events(0, first_day), fitted, TEXT_LAYOUT)
        return pa.concat_tables(activity), pa.concat_tables(texts)


def rows_of_clean(
    clean: CleanTables, fitted: ModalityEncoders, layout: RawLayout, snapshots: Sequence[int]
) -> dict[tuple[int | str, int], dict[str, Any]]:
    buckets = DayBuckets(clean.root / "buckets", clean, memory_limit_mb=256, bytes_per_day=100)
    buckets.update()
    emission = Emission(np.array(snapshots, np.int64) + DAY_0)
    data = buckets.load(0, emission.first_day(max(layout.windows)))
    assert buckets.partitions == 1
    assert data is not None
    tables = activity_tables(data, fitted, layout, emission)
    return by_key([row for table in tables for row in table.to_pylist()])


def by_key(rows: Sequence[dict[str, Any]]) -> dict[tuple[int | str, int], dict[str, Any]]:
    keyed = {(row["user_id"], row["activity_as_of"]): row for row in rows}
    assert len(keyed) == len(rows)
    return keyed


@st.composite
def mixed(draw: st.DrawFn) -> list[StreamEvent]:
    """Events of all types of three users; a user signs up once, perhaps after some events."""
    users = st.integers(0, 2)
    moments = st.integers(DAY_0 * DAY, (DAY_0 + 25) * DAY)
    events = [replace(use, user=use.user % 3).event("string") for use in draw(HISTORIES)]
    for user, moment in draw(st.dictionaries(users, moments)).items():
        events.append(StreamEvent("sign_up", user_id(user, "string"), moment))
    for user, item, moment in draw(
        st.lists(st.tuples(users, st.integers(0, 5), moments), max_size=6)
    ):
        picked = item_id(item, "string")
        events.append(StreamEvent("onboarding_pick", user_id(user, "string"), moment, picked))
    numbers = st.sampled_from([0.0, -0.0, 1.1, math.nan])
    texts = st.sampled_from(["", "br", "pt"])
    changes = st.tuples(
        users,
        st.sampled_from([DAY_0 * DAY, DAY_0 * DAY + 1]),
        st.dictionaries(st.sampled_from(["country", "gender"]), texts),
        st.dictionaries(st.sampled_from(["age", "height"]), numbers, min_size=1),
    )
    for user, moment, categories, values in draw(st.lists(changes, max_size=6)):
        name = user_id(user, "string")
        events.append(
            StreamEvent("profile_change", name, moment, categories=categories, numbers=values)
        )
    return events
