"""Where the validated tables lie, and what a reader must know before it opens them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from encoder.errors import DataFault

__all__ = ["CLEAN_TABLES", "CleanTables", "IdType"]

CLEAN_TABLES = ("events", "users", "items")
"""Folders under ``clean/``; all three are always there."""

IdType = Literal["int64", "string"]


class CleanTables:
    """The clean tables under a data folder, as ``palate data validate`` leaves them.

    Parameters
    ----------
    root : str or Path
        The data folder: holds ``clean/`` and ``rejected/``.

    Notes
    -----
    Holds no open file and caches nothing: each answer is read from disk.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    @property
    def folder(self) -> Path:
        """The folder ``clean`` under the root."""
        return self.root / "clean"

    @property
    def report(self) -> Path:
        """The report of the validation that wrote these tables (JSON)."""
        return self.folder / "validation.json"

    @property
    def events(self) -> str:
        """Glob of the events files, for ``read_parquet``."""
        return str(self.folder / "events" / "*.parquet")

    @property
    def users(self) -> str:
        """Glob of the users files, for ``read_parquet``."""
        return str(self.folder / "users" / "*.parquet")

    @property
    def items(self) -> str:
        """Glob of the items files, for ``read_parquet``."""
        return str(self.folder / "items" / "*.parquet")

    def exists(self) -> bool:
        """Return whether all three tables and their report are there."""
        return self.report.is_file() and all(self.files(table) for table in CLEAN_TABLES)

    def files(self, table: str) -> list[Path]:
        """Return the Parquet files of one table, ordered by name."""
        return sorted((self.folder / table).glob("*.parquet"))

    def require(self) -> None:
        """Check that the tables can be read.

        Raises
        ------
        DataFault
            No validated data is in the folder.
        """
        if not self.exists():
            raise DataFault(
                f"{self.folder} holds no validated events, users and items. "
                "Run `palate data validate` first."
            )

    def fingerprint(self) -> str:
        """Return 12 hex digits that change when the clean data change.

        Raises
        ------
        DataFault
            No validated data is in the folder.

        Notes
        -----
        Reads names, sizes and Parquet footers (row counts, column statistics), not the rows: it
        costs milliseconds on any amount of data.
        """
        self.require()
        digest = hashlib.sha256()
        for table in CLEAN_TABLES:
            for path in self.files(table):
                digest.update(f"{table}/{path.name}:{path.stat().st_size}\n".encode())
                digest.update(_footer(path))
        return digest.hexdigest()[:12]

    def user_type(self) -> IdType:
        """Return the type of user ids, the same in events and users."""
        return self._id_type("users", "user_id")

    def item_type(self) -> IdType:
        """Return the type of item ids, the same in events, items and onboarding picks."""
        return self._id_type("items", "item_id")

    def _id_type(self, table: str, column: str) -> IdType:
        self.require()
        kind = pq.read_schema(self.files(table)[0]).field(column).type
        return "int64" if pa.types.is_integer(kind) else "string"


def _footer(path: Path) -> bytes:
    """Return a Parquet file's metadata as stored; their length stands 8 bytes before the end."""
    with path.open("rb") as file:
        file.seek(-8, 2)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, 2)
        return file.read(length)
