"""What the contrastive encoder learns from: each user's newest events of each service, as texts."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from encoder.clue.sequences import ServiceEvents, UserSequences
from encoder.clue.tokenizer import ItemTokenizer, fit_tokenizer
from transforms.clean import CleanTables
from transforms.engine import arrow_table, quoted
from transforms.texts import ONLY_SERVICE

__all__ = ["ServiceTexts"]


class ServiceTexts:
    """Items and sequences of the clean tables, of events before an instant.

    An item says its text, then its tags; one that says nothing is known by its id. Services are
    what the events' service column names.

    Parameters
    ----------
    connection : duckdb connection
    clean : CleanTables
    until : datetime
        Aware; events at or after it are not read.
    """

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, clean: CleanTables, until: datetime
    ) -> None:
        clean.require()
        self._connection = connection
        self._items = f"read_parquet({quoted(clean.items)})"
        self._users = f"read_parquet({quoted(clean.users)})"
        micros = round(until.timestamp() * 1e6)
        self._events = (
            f"(SELECT user_id, item_id, ts, coalesce(service, {quoted(ONLY_SERVICE)}) AS service "
            f"FROM read_parquet({quoted(clean.events)}) WHERE ts < make_timestamptz({micros}))"
        )

    def services(self) -> tuple[str, ...]:
        """Return the services' names in alphabetical order."""
        query = f"SELECT DISTINCT service FROM {self._events} ORDER BY service"
        return tuple(arrow_table(self._connection, query)["service"].to_pylist())

    def fit_tokenizer(self, *, vocabulary: int, max_tokens: int) -> ItemTokenizer:
        """Learn the tokens from the texts of all items that have an event.

        Raises
        ------
        DataFault
            No item says anything.
        """
        query = f"SELECT text FROM ({self._said()}) GROUP BY item_id, text ORDER BY item_id"
        texts = arrow_table(self._connection, query)["text"]
        return fit_tokenizer(
            _texts(texts), self.services(), vocabulary=vocabulary, max_tokens=max_tokens
        )

    def sequences(self, tokenizer: ItemTokenizer, max_events: int) -> UserSequences:
        """Return the newest events of every user in every service.

        Parameters
        ----------
        tokenizer : ItemTokenizer
            May know other services: theirs are then unknown ones.
        max_events : int
            Of a user in a service. Events of one instant stand in the order of their items' ids.

        Notes
        -----
        Memory holds one service's events beside the token table, four bytes each.
        """
        said = arrow_table(
            self._connection, f"SELECT service, text FROM ({self._said()}) ORDER BY place"
        )
        tokens = tokenizer.tokenize(list(_texts(said["text"])), said["service"].to_pylist())
        users = arrow_table(
            self._connection, f"SELECT user_id FROM {self._users} ORDER BY user_id"
        )["user_id"]
        services = {
            service: self._of_service(service, len(users), max_events)
            for service in self.services()
        }
        return UserSequences(tokens, services, tuple(map(str, users.to_pylist())))

    def _said(self) -> str:
        """Return the query of all items of all services: service, item_id, text and place."""
        return (
            "SELECT service, item_id, row_number() OVER (ORDER BY service, item_id) - 1 AS place, "
            "CASE WHEN trim(said) = '' THEN item_id::VARCHAR ELSE trim(said) END AS text "
            f"FROM (SELECT DISTINCT service, item_id FROM {self._events}) "
            "JOIN (SELECT item_id, concat_ws(' ', text, array_to_string(tags, ' ')) AS said "
            f"FROM {self._items}) USING (item_id)"
        )

    def _of_service(self, service: str, n_users: int, max_events: int) -> ServiceEvents:
        newest = arrow_table(
            self._connection,
            f"""
            SELECT row, place FROM (
                SELECT row, place, row_number() OVER (PARTITION BY row ORDER BY ts DESC, place) AS n
                FROM (SELECT * FROM {self._events} WHERE service = {quoted(service)})
                JOIN ({self._said()}) USING (service, item_id)
                JOIN (SELECT user_id, row_number() OVER (ORDER BY user_id) - 1 AS row
                      FROM {self._users}) USING (user_id)
            ) WHERE n <= {max_events} ORDER BY row, n
            """,
        )
        owner: npt.NDArray[np.int64] = newest["row"].to_numpy()
        starts = np.searchsorted(owner, np.arange(n_users + 1))
        return ServiceEvents(starts, newest["place"].to_numpy().astype(np.int32))


def _texts(column: pa.ChunkedArray) -> Iterator[str]:
    for chunk in column.chunks:
        yield from chunk.to_pylist()
