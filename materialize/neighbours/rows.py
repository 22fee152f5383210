"""The users of a space and their newest embeddings, read from its offline files in batches."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from encoder.errors import DataFault, SpaceMismatch
from materialize.config import RepoSettings
from materialize.embedding_rows import embedding_matrix
from materialize.ledger import Ledger, Space
from materialize.neighbours.cells import directions
from materialize.published import published_files
from materialize.source import read_files
from materialize.stores.append import locked
from transforms.engine import bounded_connection
from transforms.names import stored_view

__all__ = ["OpenRows", "SpaceRows", "space_rows", "unit_rows"]

BATCH_ROWS = 16_384

Float32 = npt.NDArray[np.float32]


@contextmanager
def space_rows(settings: RepoSettings, ledger: Ledger, space: Space) -> Iterator[SpaceRows]:
    """Yield the rows that a space has now; a compaction removes none of their files meanwhile."""
    folder = settings.offline_dir / stored_view(space.number)
    with locked(folder, fcntl.LOCK_SH) if folder.exists() else nullcontext():
        files = published_files(ledger, stored_view(space.number), folder)
        yield SpaceRows(space, folder, files, settings.file.memory_limit_mb)


class SpaceRows:
    """The newest row of each user among a space's committed runs and pushes.

    Rows of bridged views are in other folders and are never among them.
    """

    def __init__(
        self, space: Space, folder: Path, files: Sequence[Path], memory_limit_mb: int
    ) -> None:
        self._space, self._folder, self._files = space, folder, files
        self._memory_limit_mb = memory_limit_mb

    @property
    def runs(self) -> tuple[str, ...]:
        """Ids of the runs that wrote the files, sorted."""
        names = {path.parent.name for path in self._files if path.parent != self._folder}
        return tuple(sorted(name.removeprefix("run-") for name in names))

    @property
    def fingerprint(self) -> str:
        """12 hex digits that change when other files would be read."""
        digest = hashlib.sha256(self._space.encoder_version.encode())
        for path in self._files:
            line = f"{path.relative_to(self._folder)}|{path.stat().st_size}\n"
            digest.update(line.encode())
        return digest.hexdigest()[:12]

    @contextmanager
    def opened(self) -> Iterator[OpenRows]:
        """Find each user's newest row; yield what reads them.

        DuckDB keeps to the repository's memory limit and spills the rest. It holds the place of
        each user's row, not the vectors.

        Raises
        ------
        DataFault
            The space has no rows.
        SpaceMismatch
            A row is of another space or encoder version.
        """
        if not self._files:
            raise self._nobody()
        with bounded_connection(self._memory_limit_mb) as db:
            self._require_own_rows(db)
            db.execute(_NEWEST.format(rows=self._rows))
            ((count,),) = db.sql("SELECT count(*) FROM newest").fetchall()
            if not count:
                raise self._nobody()
            yield OpenRows(db, self._rows, count)

    @property
    def _rows(self) -> str:
        return read_files(self._files)

    def _nobody(self) -> DataFault:
        return DataFault(
            f"Space {self._space.number} has no committed rows offline, so there is nobody to "
            f"index. Run `palate materialize --space {self._space.number}` first."
        )

    def _require_own_rows(self, db: duckdb.DuckDBPyConnection) -> None:
        found = db.execute(
            _FOREIGN.format(rows=self._rows), [self._space.number, self._space.encoder_version]
        ).fetchone()
        if found is not None:
            space, version, rows = found
            raise SpaceMismatch(
                f"{rows} row(s) of {self._folder} are of space {space} ({version}), space "
                f"{self._space.number} ({self._space.encoder_version}) expected. No index is "
                f"built. Write the view anew: `palate materialize --space {self._space.number} "
                "--force`."
            )


class OpenRows:
    """Reads the rows that `SpaceRows.opened` found."""

    def __init__(self, db: duckdb.DuckDBPyConnection, rows: str, count: int) -> None:
        self._db, self._rows, self.count = db, rows, count

    def batches(self) -> Iterator[tuple[pa.Array, Float32]]:
        """Yield ids and embeddings float32 (n, dim), each user once, in no particular order."""
        reader = self._db.sql(_VECTORS.format(rows=self._rows)).to_arrow_reader(BATCH_ROWS)
        for batch in reader:
            if batch.num_rows:
                yield batch.column(0), embedding_matrix(batch.column(1))


def unit_rows(users: pa.Array, vectors: Float32) -> Float32:
    """Return vectors of length 1, float32 (n, dim); a cosine is then an inner product.

    Raises
    ------
    DataFault
        A vector is zero or not finite; it has no direction.
    """
    unit, wrong = directions(vectors)
    if len(wrong):
        raise DataFault(
            f"The embedding of user {users[int(wrong[0])].as_py()!r} and {len(wrong) - 1} other(s) "
            "is zero or not finite, and has no direction. Write the view anew: `palate materialize "
            "--force`."
        )
    return unit


# A row is told by its place, because pushes may repeat a user, moment and created time.
_NEWEST = """
CREATE TEMP TABLE newest AS
SELECT place.file AS file, place.line AS line FROM (
    SELECT max(struct_pack(
        moment := event_timestamp, created := created_timestamp,
        file := file_index, line := file_row_number
    )) AS place
    FROM {rows} GROUP BY user_id
)
"""

_VECTORS = """
SELECT user_id, embedding FROM {rows} r
JOIN newest ON r.file_index = newest.file AND r.file_row_number = newest.line
"""

_FOREIGN = """
SELECT space, encoder_version, count(*) FROM {rows}
WHERE space IS DISTINCT FROM $1 OR encoder_version IS DISTINCT FROM $2 GROUP BY ALL LIMIT 1
"""
