"""The users that a report shows: their newest embeddings, what they are and what they consumed."""

from __future__ import annotations

from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encoder.errors import DataFault
from materialize.config import RepoSettings
from materialize.embedding_rows import embedding_matrix
from materialize.ledger import Space
from materialize.report.users import Neighbours, UserMap, build_user_map, nearest_users
from materialize.source import parquet_files
from transforms.clean import CleanTables
from transforms.engine import bounded_connection, quoted
from transforms.names import USER_KEY, stored_view

__all__ = ["read_people"]

_MAP_USERS = 5_000
_NEIGHBOURS = 10
_CONSUMED = 5
_FEWEST = 3

_EVENTS_SEEN = (
    (0, "0"),
    (10, "1 to 10"),
    (20, "11 to 20"),
    (100, "21 to 100"),
    (1000, "101 to 1,000"),
)
_MOST_EVENTS = "1,001 or more"


def read_people(settings: RepoSettings, space: Space) -> tuple[UserMap, Neighbours]:
    """Return a map of up to 5,000 users of a space, and the nearest of these to each of them.

    Which users is decided by a hash of the id, so that two reports of a data set show the same.
    Memory holds their vectors and no others'; all rows of the space are read once.

    Raises
    ------
    DataFault
        Fewer than three users have rows.
    """
    clean = CleanTables(settings.data_dir)
    with bounded_connection(settings.file.memory_limit_mb) as db:
        newest = _newest_embeddings(db, settings, space)
        users = newest.column(USER_KEY).combine_chunks()
        db.register("shown", pa.table({USER_KEY: users}))
        colourings = {
            "taste": _tastes(db, clean, users),
            **_profiles(db, settings, clean, users),
            "events": _events_seen(newest.column("n_events")),
            "status": [status or "" for status in newest.column("status").to_pylist()],
        }
        items, consumed = _consumed(db, clean, users)
    vectors = embedding_matrix(newest.column("embedding").combine_chunks())
    rows, cosine = nearest_users(vectors, min(_NEIGHBOURS, len(users) - 1))
    return (
        build_user_map(vectors, users.to_pylist(), _telling(colourings)),
        Neighbours(rows, cosine, items, consumed),
    )


def _newest_embeddings(
    db: duckdb.DuckDBPyConnection, settings: RepoSettings, space: Space
) -> pa.Table:
    """Return user_id, embedding, n_events and status of some users, in a stable random order."""
    files = parquet_files(settings.offline_dir / stored_view(space.number))
    if not files:
        raise _too_few(space, 0)
    paths = ", ".join(quoted(p) for p in files)
    chosen = (
        f'SELECT "{USER_KEY}", max(event_timestamp) AS event_timestamp '
        f'FROM read_parquet([{paths}]) GROUP BY "{USER_KEY}" '
        f'ORDER BY hash("{USER_KEY}"), "{USER_KEY}" LIMIT {_MAP_USERS}'
    )
    newest = ", ".join(
        f"arg_max({name}, created_timestamp) AS {name}"
        for name in ("embedding", "n_events", "status")
    )
    table = db.sql(
        f'SELECT "{USER_KEY}", {newest} '
        f'FROM read_parquet([{paths}]) JOIN ({chosen}) USING ("{USER_KEY}", event_timestamp) '
        f'GROUP BY "{USER_KEY}" ORDER BY hash("{USER_KEY}"), "{USER_KEY}"'
    ).to_arrow_table()
    if table.num_rows < _FEWEST:
        raise _too_few(space, table.num_rows)
    return table


def _too_few(space: Space, users: int) -> DataFault:
    return DataFault(
        f"Space {space.number} has {users} user(s), too few for a report. "
        f"Run `palate materialize --space {space.number}`."
    )


def _tastes(db: duckdb.DuckDBPyConnection, clean: CleanTables, users: pa.Array) -> list[str]:
    """Return each user's most consumed tag, "" where the items have none."""
    found = db.sql(
        f'SELECT "{USER_KEY}", mode(tag ORDER BY tag) AS taste FROM ('
        f'SELECT e."{USER_KEY}", unnest(i.tags) AS tag FROM read_parquet({quoted(clean.events)}) e '
        f'SEMI JOIN shown USING ("{USER_KEY}") '
        f"JOIN read_parquet({quoted(clean.items)}) i USING (item_id)) "
        f'GROUP BY "{USER_KEY}"'
    ).to_arrow_table()
    return _aligned(found, "taste", users)


def _profiles(
    db: duckdb.DuckDBPyConnection, settings: RepoSettings, clean: CleanTables, users: pa.Array
) -> dict[str, list[str]]:
    """Return each profile category of the users."""
    names = settings.dataset.users.categories if settings.dataset.users else ()
    if not names:
        return {}
    found = db.sql(
        f'SELECT "{USER_KEY}", categories FROM read_parquet({quoted(clean.users)}) '
        f'SEMI JOIN shown USING ("{USER_KEY}")'
    ).to_arrow_table()
    return {
        name: _aligned(
            found.append_column(name, pc.list_element(found.column("categories"), k)), name, users
        )
        for k, name in enumerate(names)
    }


def _events_seen(n_events: pa.ChunkedArray) -> list[str]:
    """Return how many events each embedding was made of, in steps."""
    counts = pc.fill_null(n_events, 0).to_numpy()
    steps = [name for _, name in _EVENTS_SEEN] + [_MOST_EVENTS]
    place = np.searchsorted([most for most, _ in _EVENTS_SEEN], counts, side="left")
    return [steps[k] for k in place]


def _telling(colourings: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the colourings with a known value; one colour for all shows nothing."""
    return {name: values for name, values in colourings.items() if len(set(values)) > 1}


def _consumed(
    db: duckdb.DuckDBPyConnection, clean: CleanTables, users: pa.Array
) -> tuple[list[str], list[list[int]]]:
    """Return labels of items, and of each user the positions of those that it consumed most."""
    most = db.sql(
        f'SELECT "{USER_KEY}", '
        f"list(item_id ORDER BY weight DESC, item_id)[:{_CONSUMED}] AS items FROM ("
        f'SELECT e."{USER_KEY}", item_id, sum(e.weight) AS weight '
        f"FROM read_parquet({quoted(clean.events)}) e "
        f'SEMI JOIN shown USING ("{USER_KEY}") GROUP BY ALL) GROUP BY "{USER_KEY}"'
    ).to_arrow_table()
    ids = pc.unique(most.column("items").combine_chunks().flatten())
    db.register("consumed", pa.table({"item_id": ids, "position": np.arange(len(ids))}))
    labels = db.sql(
        "SELECT CASE WHEN i.text <> '' THEN i.text WHEN len(i.tags) > 0 "
        "THEN item_id::VARCHAR || ' (' || array_to_string(i.tags, ', ') || ')' "
        "ELSE 'item ' || item_id::VARCHAR END AS label "
        f"FROM consumed LEFT JOIN read_parquet({quoted(clean.items)}) i USING (item_id) "
        "ORDER BY position"
    ).to_arrow_table()
    position: dict[Any, int] = {item: k for k, item in enumerate(ids.to_pylist())}
    of_user = dict(
        zip(most.column(USER_KEY).to_pylist(), most.column("items").to_pylist(), strict=True)
    )
    return labels.column("label").to_pylist(), [
        [position[item] for item in of_user.get(user, ())] for user in users.to_pylist()
    ]


def _aligned(found: pa.Table, column: str, users: pa.Array) -> list[str]:
    """Return a column of ``found`` in the order of ``users``, "" where a user is not in it."""
    position = pc.index_in(users, found.column(USER_KEY).combine_chunks())
    values = found.column(column).combine_chunks().cast(pa.string()).take(position)
    return [value or "" for value in values.to_pylist()]
