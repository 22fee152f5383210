"""How far users' embeddings move, under one encoder, from its newest training rows to today."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from encoder.alignment import cosines
from encoder.columns import raw_batch
from encoder.resampling import mean_replicates, user_draws
from encoder.two_sample import LEAST_USERS, two_sample_auc
from transforms.names import USER_KEY

if TYPE_CHECKING:
    from encoder.artifact import EncoderArtifact

__all__ = ["drift_since"]

_BATCH_ROWS = 8192


def drift_since(
    artifact: EncoderArtifact,
    rows: Path,
    since: datetime,
    *,
    max_users: int = 4_000,
    n_resamples: int = 500,
) -> dict[str, Any] | None:
    """Compare users' newest embeddings with those of ``since``, encoded by one encoder.

    Parameters
    ----------
    artifact : EncoderArtifact
    rows : Path
        Training rows up to the cut-off, ordered by user and moment.
    since : datetime
    max_users : int
        Drawn by a fixed seed among users with a row before ``since``; memory holds their rows.
    n_resamples : int
        Of the intervals, over users.

    Returns
    -------
    dict or None
        ``users``; ``unchanged``, the share without a newer row; ``two_sample_auc`` and ``cosine``
        of a user's two embeddings, each ``value``, ``low``, ``high``. None: fewer than 10 users
        have a row before ``since``.
    """
    earlier, later = _row_pairs(rows, artifact, since)
    if len(earlier) < LEAST_USERS:
        return None
    if len(earlier) > max_users:
        drawn = np.random.default_rng(0).choice(len(earlier), max_users, replace=False)
        earlier, later = earlier[np.sort(drawn)], later[np.sort(drawn)]
    before, after = (_encoded(rows, artifact, places) for places in (earlier, later))
    draws = user_draws(np.arange(len(earlier)), n_resamples)
    return {
        "users": len(earlier),
        "unchanged": float((earlier == later).mean()),
        "two_sample_auc": two_sample_auc(before, after, n_resamples=n_resamples).to_dict(),
        "cosine": mean_replicates(cosines(before, after), draws).interval.to_dict(),
    }


def _row_pairs(
    rows: Path, artifact: EncoderArtifact, since: datetime
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the places of users' last rows before ``since``, and of their last rows of all.

    Users without a row before ``since`` are left out.
    """
    schema = artifact.preprocessor.schema
    table = pq.read_table(rows, columns=[USER_KEY, *schema.as_of_columns])
    as_of = np.zeros(table.num_rows, np.int64)
    for name in schema.as_of_columns:
        column = table.column(name)
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.timestamp("us", column.type.tz)).cast(pa.int64())
        np.maximum(as_of, pc.fill_null(column, 0).to_numpy(), out=as_of)
    user = table.column(USER_KEY).to_numpy()
    # Rows are ordered by user, so a user's last row is where the next one begins.
    last = np.flatnonzero(np.append(user[1:] != user[:-1], True))
    place = np.where(as_of < round(since.timestamp() * 1e6), np.arange(len(user)), -1)
    first = np.append(0, last[:-1] + 1)
    before = np.maximum.reduceat(place, first)
    known = before >= 0
    return before[known], last[known]


def _encoded(
    rows: Path, artifact: EncoderArtifact, places: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Return the embeddings of the rows at ascending places, float32 (n_places, dim)."""
    schema = artifact.preprocessor.schema
    parts: list[npt.NDArray[np.float32]] = []
    start = 0
    with pq.ParquetFile(rows) as parquet:
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=list(schema.columns)):
            stop = start + batch.num_rows
            mine = places[(places >= start) & (places < stop)] - start
            start = stop
            if len(mine):
                raw = raw_batch(batch.take(pa.array(mine)), schema)
                parts.append(artifact.encode(raw))
    return np.concatenate(parts)
