"""Files of raw views on their way: stamped with the created time, published together."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from materialize.publish import Publication
from transforms.clean import CleanTables
from transforms.layout import RawLayout
from transforms.names import ITEM_VECTORS
from transforms.tables import CREATED, view_schema

__all__ = ["Staging"]


class Staging:
    """Adds the created timestamp and the file names to what a publication stages."""

    def __init__(
        self,
        publication: Publication,
        work: str,
        clean: CleanTables,
        layout: RawLayout,
        *,
        replace: bool,
    ) -> None:
        self._publication, self._work, self._replace = publication, work, replace
        self._clean, self._layout = clean, layout
        self._created_us = publication.begin(work, time.time_ns() // 1000)

    def add(self, view: str, part: str, tables: Iterator[pa.Table], *, keep_empty: bool) -> int:
        """Stage one file; return its rows. ``keep_empty``: a new view needs a file without rows."""
        kind = self._clean.item_type() if view == ITEM_VECTORS else self._clean.user_type()
        schema = view_schema(view, self._layout, kind)
        created = pa.scalar(self._created_us, pa.timestamp("us", "UTC"))
        stamped = (t.append_column(CREATED, pa.repeat(created, t.num_rows)) for t in tables)
        return self._publication.stage(
            self._work,
            self._name(view, part),
            stamped,
            schema,
            keep_empty=keep_empty and self._replace,
        )

    def rows_of(self, view: str, part: str) -> Iterator[pa.Table]:
        """Yield the rows of a staged file, a row group at a time; nothing where there is none."""
        path = self._publication.staged(self._work, self._name(view, part))
        if path.exists():
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    yield file.read_row_group(group)

    def _name(self, view: str, part: str) -> str:
        return f"{view}/{self._work}-{part}.parquet"
