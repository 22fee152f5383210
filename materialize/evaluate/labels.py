"""What the probe predicts: which kinds of item a user consumes soon after a label time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from encoder.errors import DataFault
from materialize.evaluate.moments import label_rows, open_events
from transforms.clean import CleanTables
from transforms.dataset import Dataset

__all__ = ["Labels", "build_labels"]


@dataclass(frozen=True)
class Labels:
    """Labels of one evaluation, ordered by user id, then label time.

    Attributes
    ----------
    user_id : int64 or object of str (n_rows,)
        A user has up to three rows when label times are active days.
    event_timestamp : datetime64[us] (n_rows,)
        Label time, UTC. Features may know everything up to and including it.
    y : bool (n_rows, n_targets)
        True: the user consumes an item with that target after the label time and before the label
        time plus the horizon.
    targets : tuple of str
        Most frequent first.
    popularity : float64 (n_targets,)
        Share of the events before the cut-off whose item has that target.
    cutoff : datetime64[us]
        No label time lies before it.
    horizon_days : int
    """

    user_id: npt.NDArray[Any]
    event_timestamp: npt.NDArray[np.datetime64]
    y: npt.NDArray[np.bool_]
    targets: tuple[str, ...]
    popularity: npt.NDArray[np.float64]
    cutoff: np.datetime64
    horizon_days: int

    def entities(self) -> pa.Table:
        """Return user_id and event_timestamp[us, UTC], the input of a point-in-time join."""
        times = pa.array(self.event_timestamp).cast(pa.timestamp("us", tz="UTC"))
        return pa.table({"user_id": pa.array(self.user_id), "event_timestamp": times})


def build_labels(
    dataset: Dataset,
    clean: CleanTables,
    *,
    memory_limit_mb: int,
    seed: int,
    item_targets: pa.Table | None = None,
) -> Labels:
    """Return the labels that ``dataset.evaluation`` describes.

    Parameters
    ----------
    dataset : Dataset
    clean : CleanTables
    memory_limit_mb : int
        DuckDB's memory; larger intermediate results spill to a temporary folder. The labels
        themselves (n_rows * n_targets bytes) are held besides.
    seed : int
        Chooses the label times of users with more than three.
    item_targets : pyarrow.Table, optional
        Columns item_id and target (string): what to predict instead of the items' tags, for example
        item clusters.

    Raises
    ------
    DataFault
        No event before the cut-off, nothing to predict (items without tags), no whole horizon
        between the cut-off and the data's end, or no user with both a past and a label time.

    Notes
    -----
    Targets are the ``max_targets`` most frequent among events before the cut-off. For the label
    times see ``moments.label_rows``, for the data's end ``moments.open_events``.

    The window of a label is open at both ends: a point-in-time join hands out what happened at the
    label time itself, so an event at that instant must not be part of the label.
    """
    evaluation = dataset.evaluation
    with open_events(dataset, clean, memory_limit_mb=memory_limit_mb, seed=seed) as db:
        db.execute("SET VARIABLE items = ?", [clean.items])
        db.execute("SET VARIABLE max_targets = ?", [evaluation.max_targets])
        if item_targets is None:
            db.execute(_TARGETS_FROM_TAGS)
        else:
            db.register("given_targets", item_targets)
            db.execute(_TARGETS_AS_GIVEN)
        targets = _choose_targets(db)
        label_rows(db, evaluation.label_times, evaluation.cutoff.isoformat())
        rows = db.sql("SELECT user_id, us FROM label ORDER BY row").to_arrow_table()
        y = np.zeros((rows.num_rows, targets.num_rows), bool)
        for batch in db.sql(_POSITIVES).to_arrow_reader(1_000_000):
            row, target = (batch.column(k).to_numpy() for k in ("row", "target"))
            y[row, target] = True
    return Labels(
        user_id=rows.column("user_id").to_numpy(),
        event_timestamp=rows.column("us").to_numpy().astype("datetime64[us]"),
        y=y,
        targets=tuple(targets.column("name").to_pylist()),
        popularity=targets.column("popularity").to_numpy(),
        cutoff=np.datetime64(round(evaluation.cutoff.timestamp()), "s").astype("datetime64[us]"),
        horizon_days=evaluation.horizon_days,
    )


def _choose_targets(db: duckdb.DuckDBPyConnection) -> pa.Table:
    """Create table ``target`` and return its names and popularities in order."""
    db.execute(_TARGETS)
    targets = db.sql("SELECT name, events FROM target ORDER BY target").to_arrow_table()
    if targets.num_rows == 0:
        raise DataFault(
            "No item consumed before the cut-off has a tag, so there is nothing to predict. "
            "Map items.tags, or predict item clusters (item_targets)."
        )
    ((past,),) = db.execute(
        "SELECT count(*) FROM event WHERE us < getvariable('cutoff')"
    ).fetchall()
    share = targets.column("events").to_numpy().astype(np.float64) / past
    return pa.table({"name": targets.column("name"), "popularity": share})


_TARGETS_FROM_TAGS = """
CREATE TABLE item_target AS
SELECT DISTINCT item_id, unnest(tags) AS name FROM read_parquet(getvariable('items'))
"""

_TARGETS_AS_GIVEN = """
CREATE TABLE item_target AS SELECT DISTINCT item_id, target AS name FROM given_targets
"""

_TARGETS = """
CREATE TABLE target AS
WITH past AS (
    SELECT item_id, count(*) AS n FROM event WHERE us < getvariable('cutoff') GROUP BY item_id
), frequency AS (
    SELECT name, sum(n)::BIGINT AS events FROM past JOIN item_target USING (item_id)
    WHERE name <> '' GROUP BY name
)
SELECT name, events, row_number() OVER (ORDER BY events DESC, name) - 1 AS target
FROM frequency ORDER BY target LIMIT getvariable('max_targets')
"""

_POSITIVES = """
SELECT DISTINCT label.row AS row, target.target AS target
FROM label
JOIN event ON event.user_id = label.user_id
    AND event.us > label.us AND event.us < label.us + getvariable('horizon')
JOIN item_target ON item_target.item_id = event.item_id
JOIN target ON target.name = item_target.name
"""
