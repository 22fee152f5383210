"""Training rows of a study: written once for each end, narrowed to what a variant reads."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from encoder.schema import FeatureSchema
from materialize.batch import open_source
from materialize.config import RepoSettings
from materialize.source import RawSource
from materialize.train import write_rows
from transforms.names import USER_KEY

if TYPE_CHECKING:
    from feast import FeatureStore

__all__ = ["StudyRows", "narrow_rows"]

_BATCH_ROWS = 8192


@dataclass(frozen=True)
class StudyRows:
    """Where the training rows of a study come from and lie.

    Attributes
    ----------
    store : FeatureStore
        With the raw views applied.
    settings : RepoSettings
    schema : FeatureSchema
        Of the raw features, all blocks.
    folder : Path
        Takes the files.
    max_rows : int
        About so many training rows: users are drawn by a hash of the id, and come with all of their
        rows. The whole history is read once to draw them.
    """

    store: FeatureStore
    settings: RepoSettings
    schema: FeatureSchema
    folder: Path
    max_rows: int

    def source(self, age_days: int = 0) -> RawSource:
        """Return the raw rows that end ``age_days`` before the cut-off."""
        return open_source(
            self.store, self.settings, self.schema, end=self.end(age_days), history=True
        )

    def end(self, age_days: int) -> datetime:
        """Return the instant before which all training rows lie."""
        return self.settings.dataset.evaluation.cutoff - timedelta(days=age_days)

    def file(self, age_days: int = 0, *, progress: bool = True) -> Path:
        """Return the Parquet file of all blocks; written when it is not there.

        Raises
        ------
        DataFault
            There is no raw row before that end.
        """
        path = self.folder / f"rows-age{age_days}.parquet"
        if not path.exists():
            source = self.source(age_days)
            share = min(1.0, self.max_rows / max(source.count(), 1))
            keep = None if share == 1.0 else partial(_of_sample, share=share)
            write_rows(source, path, self.schema, progress=progress, keep=keep)
        return path


def narrow_rows(rows: Path, schema: FeatureSchema, target: Path) -> Path:
    """Write the columns that ``schema`` reads, lists as short as it reads them; return ``target``.

    A file that is there is kept. A schema that lacks the last blocks of a list reads a shorter one,
    and training refuses rows whose lists are longer than the schema says.
    """
    if target.exists():
        return target
    widths = schema.array_columns | schema.text_columns
    temporary = target.with_suffix(".parquet.tmp")
    with pq.ParquetFile(rows) as parquet:
        names = [USER_KEY, *(name for name in schema.columns)]
        writer: pq.ParquetWriter | None = None
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=names):
            table = pa.table(
                {
                    name: pc.list_slice(column, 0, widths[name]) if name in widths else column
                    for name, column in zip(batch.schema.names, batch.columns, strict=True)
                }
            )
            if writer is None:
                writer = pq.ParquetWriter(temporary, table.schema, compression="zstd")
            writer.write_table(table, row_group_size=_BATCH_ROWS)
        if writer is not None:
            writer.close()
    os.replace(temporary, target)
    return target


def _of_sample(batch: pa.RecordBatch, share: float) -> pa.RecordBatch:
    """Return the rows of a share of the users, by a hash that no other split uses."""
    names = [str(user) for user in batch.column(USER_KEY).to_pylist()]
    return batch.filter(pa.array(_drawn(names, share)))


def _drawn(users: Iterable[str], share: float) -> list[bool]:
    limit = int(share * 2**64)
    hashed = (hashlib.blake2b(f"study:{user}".encode(), digest_size=8).digest() for user in users)
    return [int.from_bytes(digest, "big") < limit for digest in hashed]
