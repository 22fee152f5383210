"""Users' newest events of each service, read from clean tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encoder.clue.tokenizer import PAD, ItemTokenizer
from transforms.clean import CleanTables
from transforms.engine import bounded_connection
from transforms.service_sequences import ONLY_SERVICE, ServiceTexts

DAY_US = 86_400_000_000
UNTIL = datetime(1970, 1, 11, tzinfo=timezone.utc)

# user, item, day, service
EVENTS = [
    (1, "a", 1, "shop"),
    (1, "b", 3, "shop"),
    (1, "c", 2, "shop"),
    (1, "a", 4, "news"),
    (3, "b", 5, "news"),
    (3, "c", 5, "news"),
    (3, "d", 10, "news"),  # not before the instant
]
ITEMS = {"a": ("red shoe", ["x"]), "b": ("", []), "c": (None, ["y", "z"]), "d": ("late", [])}


@pytest.fixture
def clean(tmp_path: Path) -> CleanTables:
    return _write(tmp_path, EVENTS)


def _write(root: Path, events: Sequence[tuple[int, str, int, str | None]]) -> CleanTables:
    user, item, day, service = (list(column) for column in zip(*events, strict=True))
    tables = {
        "events": {
            "user_id": pa.array(user, pa.int64()),
            "item_id": item,
            "ts": pa.array([d * DAY_US for d in day]).cast(pa.timestamp("us", "UTC")),
            "service": pa.array(service, pa.string()),
        },
        "users": {"user_id": pa.array([1, 2, 3], pa.int64())},
        "items": {
            "item_id": list(ITEMS),
            "text": [text for text, _ in ITEMS.values()],
            "tags": pa.array([tags for _, tags in ITEMS.values()], pa.list_(pa.string())),
        },
    }
    for name, columns in tables.items():
        folder = root / "clean" / name
        folder.mkdir(parents=True)
        pq.write_table(pa.table(columns), folder / "part-0.parquet")
    clean = CleanTables(root)
    clean.report.write_text("{}")
    return clean


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with bounded_connection(256) as connection:
        yield connection


def _read(texts: ServiceTexts, **limits: int) -> tuple[list[list[str]], ItemTokenizer]:
    """Return, for each service in order, what each user's events say, newest first."""
    tokenizer = texts.fit_tokenizer(vocabulary=300, max_tokens=24)
    sequences = texts.sequences(tokenizer, limits.get("max_events", 10))
    assert sequences.users == ("1", "2", "3")
    told = []
    for events in sequences.services.values():
        for start, stop in zip(events.starts[:-1], events.starts[1:], strict=True):
            rows = sequences.tokens[events.items[start:stop]]
            words = [tokenizer.text(row[row != PAD]) for row in rows]
            told.append(words)
    return told, tokenizer


def test_the_newest_events_of_each_service_come_first(
    clean: CleanTables, connection: duckdb.DuckDBPyConnection
) -> None:
    told, tokenizer = _read(ServiceTexts(connection, clean, UNTIL))
    assert tokenizer.services == ("news", "shop")
    news, shop = told[:3], told[3:]
    # Of one instant in the order of the ids; an item that says nothing is known by its id.
    assert news == [["red shoe x"], [], ["b", "y z"]]
    assert shop == [["b", "y z", "red shoe x"], [], []]


def test_no_more_than_the_newest_are_kept(
    clean: CleanTables, connection: duckdb.DuckDBPyConnection
) -> None:
    told, _ = _read(ServiceTexts(connection, clean, UNTIL), max_events=2)
    assert told[3] == ["b", "y z"]


def test_an_item_has_a_row_in_each_service_that_met_it(
    clean: CleanTables, connection: duckdb.DuckDBPyConnection
) -> None:
    texts = ServiceTexts(connection, clean, UNTIL)
    tokenizer = texts.fit_tokenizer(vocabulary=300, max_tokens=24)
    tokens = texts.sequences(tokenizer, 10).tokens
    assert tokens[:, 0].tolist() == [2, 2, 2, 3, 3, 3]  # a, b, c of news, then of shop
    assert (tokens[:3, 1:] == tokens[3:, 1:]).all()


def test_another_sets_tokenizer_knows_none_of_the_services(
    clean: CleanTables, connection: duckdb.DuckDBPyConnection
) -> None:
    texts = ServiceTexts(connection, clean, UNTIL)
    own = texts.fit_tokenizer(vocabulary=300, max_tokens=24)
    foreign = ItemTokenizer(("elsewhere",), 24, own.definition)
    assert set(texts.sequences(foreign, 10).tokens[:, 0].tolist()) == {1}


def test_events_without_a_service_are_one_service(
    tmp_path: Path, connection: duckdb.DuckDBPyConnection
) -> None:
    clean = _write(tmp_path, [(user, item, day, None) for user, item, day, _ in EVENTS])
    texts = ServiceTexts(connection, clean, UNTIL)
    assert texts.services() == (ONLY_SERVICE,)
    told, _ = _read(texts)
    assert told[0] == ["red shoe x", "b", "y z", "red shoe x"]
