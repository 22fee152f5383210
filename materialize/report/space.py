"""The report of a space, from what the jobs left on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from encoder.errors import DataFault
from materialize.config import RepoSettings
from materialize.embedding_rows import embedding_matrix
from materialize.ledger import Ledger, Space
from materialize.report.lineage import MOST_SPACES, Picture, draw_lineage
from materialize.report.report import ReportInput, write_report
from materialize.report.users import Neighbour, SampleUser, build_user_map, nearest_users
from materialize.results import evaluation_path
from materialize.source import parquet_files
from materialize.space_record import space_record
from transforms.clean import CleanTables
from transforms.engine import bounded_connection, quoted
from transforms.names import USER_KEY, stored_view
from transforms.runtime import load_encoder

__all__ = ["report_space"]

_MAP_USERS = 5_000
_SAMPLES = 4
_NEIGHBOURS = 5
_CONSUMED = 5


def report_space(
    settings: RepoSettings,
    space: Space,
    path: Path,
    summary: Mapping[str, Any] | None = None,
    *,
    ledger: Ledger | None = None,
) -> Path:
    """Write a space's report from what the jobs left on disk.

    Parameters
    ----------
    settings : RepoSettings
    space : Space
    path : Path
        The HTML file.
    summary : mapping, optional
        Further facts of the run (``source``, ``steps``, ...), see ``ReportInput``.
    ledger : Ledger, optional
        Draws where the space comes from and who reads it; reads the artifacts of all spaces.

    Raises
    ------
    DataFault
        The space has no rows yet, or no validated data is there.
    """
    clean = CleanTables(settings.data_dir)
    clean.require()
    artifact = load_encoder(settings.artifacts_url, space.encoder_version)
    users, vectors = _newest_embeddings(settings, space)
    with bounded_connection(settings.file.memory_limit_mb) as db:
        tastes = _tastes(db, clean, users)
        colourings = {"taste": tastes} | _profiles(db, settings, clean, users)
        neighbours = _neighbours(db, clean, users, vectors, settings.file.seed)
    evaluated = evaluation_path(settings, space)
    probe = (
        json.loads(evaluated.read_text(encoding="utf-8"))["probe"] if evaluated.exists() else None
    )
    facts = {
        "dataset": settings.dataset.name,
        "source": "given",
        "space": space.number,
        "encoder_version": space.encoder_version,
        "embedding_dim": artifact.manifest.embedding_dim,
    }
    return write_report(
        ReportInput(
            summary=facts | dict(summary or {}),
            history=artifact.manifest.training["history"],
            probe=probe,
            user_map=build_user_map(
                vectors, users.to_pylist(), colourings, seed=settings.file.seed
            ),
            neighbours=neighbours,
            validation=json.loads(clean.report.read_text(encoding="utf-8")),
            lineage=None if ledger is None else _lineage(settings, ledger, space),
        ),
        path,
    )


def _lineage(settings: RepoSettings, ledger: Ledger, space: Space) -> Picture:
    """Draw the space among the newest others that are not retired."""
    known = ledger.spaces()
    others = [s.number for s in known if s.state != "retired" and s.number != space.number]
    numbers = sorted([*others[1 - MOST_SPACES :], space.number])
    records = [space_record(settings, ledger, number) for number in numbers]
    return draw_lineage(records, space.number, left_out=len(known) - len(numbers))


def _newest_embeddings(
    settings: RepoSettings, space: Space
) -> tuple[pa.Array, npt.NDArray[np.float32]]:
    """Return some users of the space and their newest embeddings, in a stable random order."""
    files = parquet_files(settings.offline_dir / stored_view(space.number))
    if not files:
        raise _too_few(space, 0)
    with bounded_connection(settings.file.memory_limit_mb) as db:
        paths = ", ".join(quoted(p) for p in files)
        chosen = (
            f'SELECT "{USER_KEY}", max(event_timestamp) AS event_timestamp '
            f'FROM read_parquet([{paths}]) GROUP BY "{USER_KEY}" '
            f'ORDER BY hash("{USER_KEY}"), "{USER_KEY}" LIMIT {_MAP_USERS}'
        )
        table = db.sql(
            f'SELECT "{USER_KEY}", any_value(embedding) AS embedding '
            f'FROM read_parquet([{paths}]) JOIN ({chosen}) USING ("{USER_KEY}", event_timestamp) '
            f'GROUP BY "{USER_KEY}" ORDER BY hash("{USER_KEY}"), "{USER_KEY}"'
        ).to_arrow_table()
    if table.num_rows <= _NEIGHBOURS:
        raise _too_few(space, table.num_rows)
    vectors = embedding_matrix(table.column("embedding").combine_chunks())
    return table.column(USER_KEY).combine_chunks(), vectors


def _too_few(space: Space, users: int) -> DataFault:
    return DataFault(
        f"Space {space.number} has {users} user(s), too few for a report. "
        f"Run `palate materialize --space {space.number}`."
    )


def _tastes(db: duckdb.DuckDBPyConnection, clean: CleanTables, users: pa.Array) -> list[str]:
    """Return each user's most consumed tag, "" where the items have none."""
    db.register("shown", pa.table({USER_KEY: users}))
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


def _neighbours(
    db: duckdb.DuckDBPyConnection,
    clean: CleanTables,
    users: pa.Array,
    vectors: npt.NDArray[np.float32],
    seed: int,
) -> list[SampleUser]:
    """Return a few users with their nearest others and what all of them consumed most."""
    rows = np.random.default_rng(seed).choice(len(users), min(_SAMPLES, len(users)), replace=False)
    nearest, cosine = nearest_users(vectors, rows.tolist(), _NEIGHBOURS)
    involved = np.unique(np.concatenate([rows, nearest.ravel()]))
    consumed = _consumed(db, clean, users.take(pa.array(involved)))
    ids = users.to_pylist()
    return [
        SampleUser(
            user=str(ids[row]),
            consumed=consumed.get(ids[row], ()),
            neighbours=[
                Neighbour(str(ids[other]), float(similar), consumed.get(ids[other], ()))
                for other, similar in zip(others, similarities, strict=True)
            ],
        )
        for row, others, similarities in zip(rows.tolist(), nearest.tolist(), cosine, strict=True)
    ]


def _consumed(
    db: duckdb.DuckDBPyConnection, clean: CleanTables, users: pa.Array
) -> dict[Any, Sequence[str]]:
    """Return the items that each user consumed most, by text or else by id and tags."""
    db.register("involved", pa.table({USER_KEY: users}))
    label = (
        "CASE WHEN i.text <> '' THEN i.text "
        "ELSE item_id::VARCHAR || ' (' || array_to_string(i.tags, ', ') || ')' END"
    )
    rows = db.sql(
        f'SELECT "{USER_KEY}", list(label ORDER BY weight DESC, label)[:{_CONSUMED}] FROM ('
        f'SELECT e."{USER_KEY}", {label} AS label, sum(e.weight) AS weight '
        f"FROM read_parquet({quoted(clean.events)}) e "
        f'SEMI JOIN involved USING ("{USER_KEY}") '
        f"JOIN read_parquet({quoted(clean.items)}) i USING (item_id) GROUP BY ALL) "
        f'GROUP BY "{USER_KEY}"'
    ).fetchall()
    return {user: labels for user, labels in rows}


def _aligned(found: pa.Table, column: str, users: pa.Array) -> list[str]:
    """Return a column of ``found`` in the order of ``users``, "" where a user is not in it."""
    position = pc.index_in(users, found.column(USER_KEY).combine_chunks())
    values = found.column(column).combine_chunks().cast(pa.string()).take(position)
    return [value or "" for value in values.to_pylist()]
