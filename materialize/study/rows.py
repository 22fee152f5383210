"""Training rows of a study: written once for each end, narrowed to what a variant reads."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from encoder.modality import ModalityEncoders
from encoder.schema import FeatureSchema
from materialize.batch import open_source
from materialize.config import RepoSettings
from materialize.source import RawSource
from materialize.training_rows import (
    future_note,
    predicted_schema,
    with_future,
    write_rows,
)
from transforms.names import USER_KEY

if TYPE_CHECKING:
    from feast import FeatureStore

    from encoder.training_config import TrainingConfig

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
    modalities : ModalityEncoders
        Those that the raw features were built with.
    config : TrainingConfig
        Says what of the days after a row is kept beside it, for a training that predicts it.
    folder : Path
        Takes the files.
    max_rows : int
        About so many training rows: users are drawn by a hash of the id, and come with all of their
        rows. The whole history is read once to draw them.
    """

    store: FeatureStore
    settings: RepoSettings
    schema: FeatureSchema
    modalities: ModalityEncoders
    config: TrainingConfig
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
        future = predicted_schema(self.settings, self.modalities, self.config)
        kind = "rows" if future is None else "rows-and-future"
        path = self.folder / f"{kind}-age{age_days}.parquet"
        if not path.exists():
            source = self.source(age_days)
            share = min(1.0, self.max_rows / max(source.count(), 1))
            keep = None if share == 1.0 else partial(_of_sample, share=share)
            beside = self.folder / f"future-age{age_days}"
            source = with_future(
                source, self.settings, self.modalities, self.config, beside, progress=progress
            )
            write_rows(source, path, self.schema, future=future, progress=progress, keep=keep)
            shutil.rmtree(beside, ignore_errors=True)
        return path


def narrow_rows(
    rows: Path, schema: FeatureSchema, future: FeatureSchema | None, target: Path
) -> Path:
    """Write the columns that two schemas read, lists as short as they read them.

    A file that is there is kept. A schema that lacks the last blocks of a list reads a shorter one,
    and training refuses rows whose lists are longer than the schema says.

    Parameters
    ----------
    rows : Path
        Training rows.
    schema : FeatureSchema
        What the encoder reads.
    future : FeatureSchema or None
        What it predicts.
    target : Path

    Returns
    -------
    Path
        ``target``.
    """
    if target.exists():
        return target
    widths = schema.array_columns | schema.text_columns
    names = [USER_KEY, *schema.columns]
    if future is not None:
        widths |= future.array_columns
        names += future.columns
    temporary = target.with_suffix(".parquet.tmp")
    with pq.ParquetFile(rows) as parquet:
        writer: pq.ParquetWriter | None = None
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=names):
            table = pa.table(
                {
                    name: pc.list_slice(column, 0, widths[name]) if name in widths else column
                    for name, column in zip(batch.schema.names, batch.columns, strict=True)
                }
            )
            if writer is None:
                noted = table.schema.with_metadata(future_note(future))
                writer = pq.ParquetWriter(temporary, noted, compression="zstd")
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
