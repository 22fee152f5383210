"""What the modality encoders are fitted on, read from the clean tables up to the cut-off."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from encoder.errors import DataFault
from encoder.modality import Items
from transforms.clean import CleanTables
from transforms.engine import DAY_US, arrow_table, quoted
from transforms.texts import ONLY_SERVICE

__all__ = ["FitInputs"]

Ints = npt.NDArray[np.int64]

_CHUNK_EVENTS = 1_000_000


class FitInputs:
    """Items, their popularity, and the sessions they share, of events before an instant.

    Parameters
    ----------
    connection : duckdb connection
    clean : CleanTables
    brought : tuple of str
        Names of the vectors that the company brings.
    cutoff : datetime
        Aware; events at or after it are not read.
    max_events : int
        Sessions are sampled (by hash) down to about so many events, so that the cost of a fit has a
        bound.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        clean: CleanTables,
        brought: tuple[str, ...],
        cutoff: datetime,
        max_events: int = 20_000_000,
    ) -> None:
        self._connection = connection
        self._items = f"read_parquet({quoted(clean.items)})"
        micros = round(cutoff.timestamp() * 1e6)
        self._events = (
            f"(SELECT *, hash(user_id, coalesce(session::VARCHAR, (epoch_us(ts) // {DAY_US})::"
            f"VARCHAR)) AS sitting FROM read_parquet({quoted(clean.events)}) "
            f"WHERE ts < make_timestamptz({micros}))"
        )
        self._brought = brought
        self._max_events = max_events

    def fingerprint(self) -> str:
        """Return 12 hex digits that change with any event or item that the fit reads."""
        columns = ", ".join(["item_id", "text", "tags", *(f'"vec_{n}"' for n in self._brought)])
        seen = f"SELECT DISTINCT item_id FROM {self._events}"
        rows = [
            self._connection.execute(
                f"SELECT count(*), sum(hash({hashed})::HUGEINT) FROM {source}"
            ).fetchall()
            for hashed, source in (
                ("sitting, item_id", self._events),
                (columns, f"{self._items} SEMI JOIN ({seen}) USING (item_id)"),
            )
        ]
        return hashlib.sha256(repr((duckdb.__version__, rows)).encode()).hexdigest()[:12]

    def items(self) -> Items:
        """Return every item, ordered by id.

        Raises
        ------
        DataFault
            A brought vector has several lengths, or numbers that are not finite.
        """
        table = arrow_table(self._connection, f"SELECT * FROM {self._items} ORDER BY item_id")
        return Items(
            table["item_id"].combine_chunks(),
            pc.fill_null(table["text"], "").to_pylist(),
            [[t for t in tags or () if t] for tags in table["tags"].to_pylist()],
            {n: _matrix(n, table[f"vec_{n}"].combine_chunks()) for n in self._brought},
        )

    def popularity(self, ids: pa.Array) -> Ints:
        """Return each item's number of events before the cut-off: int64 (n_items,)."""
        counted = arrow_table(
            self._connection,
            f"SELECT item_id, count(*) AS n FROM {self._events} GROUP BY item_id",
        )
        popularity = np.zeros(len(ids), np.int64)
        popularity[_positions(counted["item_id"], ids)] = counted["n"].to_numpy()
        return popularity

    def services(self) -> tuple[str, ...]:
        """Return the names of the events' services, in alphabetical order."""
        name = f"coalesce(service, {quoted(ONLY_SERVICE)})"
        query = f"SELECT DISTINCT {name} AS service FROM {self._events} ORDER BY service"
        return tuple(arrow_table(self._connection, query)["service"].to_pylist())

    def sessions(self, ids: pa.Array) -> Iterator[tuple[Ints, Ints]]:
        """Yield (session, item position) arrays of distinct pairs; a session is in one chunk only.

        A session is what the events' session column says, within a user; without one it is a user's
        calendar day (UTC).
        """
        counted = self._connection.execute(f"SELECT count(*) FROM {self._events}").fetchall()
        n_events = counted[0][0]
        kept = min(1.0, self._max_events / max(n_events, 1))
        chunks = max(1, round(n_events * kept / _CHUNK_EVENTS))
        for chunk in range(chunks):
            # The hash's low bits pick the chunk, its high ones the sample.
            pairs = arrow_table(
                self._connection,
                f"SELECT DISTINCT (sitting >> 1)::BIGINT AS sitting, item_id FROM {self._events} "
                f"WHERE sitting % {chunks} = {chunk} AND (sitting >> 40) < {kept} * (1 << 24) "
                "ORDER BY sitting, item_id",
            )
            yield pairs["sitting"].to_numpy(), _positions(pairs["item_id"], ids)


def _positions(values: pa.ChunkedArray, ids: pa.Array) -> Ints:
    found = pc.index_in(values.cast(ids.type), value_set=ids)
    if found.null_count:
        missing = values.filter(pc.is_null(found))[0]
        raise DataFault(
            f"Events name the item {missing.as_py()!r}, which the clean items lack. "
            "Run `palate data validate` again."
        )
    return np.asarray(found.to_numpy(), np.int64)


def _matrix(name: str, column: pa.Array) -> npt.NDArray[np.float32]:
    """Return float32 (n_items, dim); a null list is a row of zeros."""
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    present = column.drop_null()
    lengths: npt.NDArray[Any] = pc.unique(pc.list_value_length(present)).to_numpy()
    if len(lengths) != 1:
        raise DataFault(
            f"Brought vector {name!r} has {len(lengths)} different lengths "
            f"({', '.join(map(str, sorted(lengths)[:5])) or 'none at all'}), one is expected."
        )
    flat = present.flatten().cast(pa.float32()).to_numpy(zero_copy_only=False)
    if not np.isfinite(flat).all():
        raise DataFault(
            f"Brought vector {name!r} holds numbers that are not finite. Leave such vectors null."
        )
    vectors = np.zeros((len(valid), int(lengths[0])), np.float32)
    vectors[valid] = flat.reshape(-1, int(lengths[0]))
    return vectors
