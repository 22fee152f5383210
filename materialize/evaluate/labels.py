"""What the probe predicts: which kinds of item a user consumes soon after a label time."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from encoder.errors import DataFault
from transforms.clean import CleanTables
from transforms.dataset import Dataset

__all__ = ["Labels", "build_labels", "training_users"]

_DAY_US = 86_400_000_000
_MAX_TIMES_PER_USER = 3
_TRAINING_SHARE = 0.6


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


def training_users(user_id: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return which rows belong to training users: 60% of users, by a stable hash of the id.

    Parameters
    ----------
    user_id : (n_rows,)
        Integers or strings; all rows of a user get the same answer, in every run and release.

    Examples
    --------
    >>> training_users(np.array([1, 2, 3, 1]))
    array([ True,  True, False,  True])
    """
    names, row = np.unique(np.asarray(user_id).astype(str), return_inverse=True)
    hashed = [hashlib.blake2b(f"probe:{u}".encode(), digest_size=4).digest() for u in names]
    share = np.array([int.from_bytes(h, "big") for h in hashed]) / 2**32
    return np.asarray((share < _TRAINING_SHARE)[row], bool)


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
    Targets are the ``max_targets`` most frequent among events before the cut-off. Label times:

    - ``cutoff``: the cut-off, for every user with an event before it and one within the horizon.
    - ``active_days``: 00:00 UTC of days from the cut-off on at which the user is active, where the
      user has an earlier active day; at most three per user, chosen by a seeded hash.

    The window of a label is open at both ends: a point-in-time join hands out what happened at the
    label time itself, so an event at that instant must not be part of the label.

    A label time is used only if its whole horizon lies within the data. The data end with the last
    UTC day that has at least a tenth of the mean number of events of a day with events: single
    stragglers (a session that was left open, a wrong clock) do not count as data.
    """
    evaluation = dataset.evaluation
    cutoff_us = round(evaluation.cutoff.timestamp()) * 1_000_000
    with _connect(memory_limit_mb) as db:
        for name, value in (
            ("events", clean.events),
            ("items", clean.items),
            ("cutoff", cutoff_us),
            ("horizon", evaluation.horizon_days * _DAY_US),
            ("seed", seed),
            ("max_times", _MAX_TIMES_PER_USER),
            ("max_targets", evaluation.max_targets),
        ):
            db.execute("SET VARIABLE " + name + " = ?", [value])
        db.execute(_EVENTS)
        if item_targets is None:
            db.execute(_TARGETS_FROM_TAGS)
        else:
            db.register("given_targets", item_targets)
            db.execute(_TARGETS_AS_GIVEN)
        targets = _choose_targets(db, evaluation.cutoff.isoformat())
        _label_rows(db, evaluation.label_times, evaluation.cutoff.isoformat())
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
        cutoff=np.datetime64(cutoff_us, "us"),
        horizon_days=evaluation.horizon_days,
    )


@contextmanager
def _connect(memory_limit_mb: int) -> Iterator[duckdb.DuckDBPyConnection]:
    with tempfile.TemporaryDirectory(prefix="palate-labels-") as spill:
        db = duckdb.connect(
            config={"memory_limit": f"{memory_limit_mb}MB", "temp_directory": spill}
        )
        try:
            yield db
        finally:
            db.close()


def _choose_targets(db: duckdb.DuckDBPyConnection, cutoff: str) -> pa.Table:
    """Create table ``target`` and return its names and popularities in order."""
    past = _scalar(db, "SELECT count(*) FROM event WHERE us < getvariable('cutoff')")
    if past == 0:
        raise DataFault(
            f"evaluation.cutoff {cutoff}: no event lies before it. Choose a later instant."
        )
    db.execute(_TARGETS)
    targets = db.sql("SELECT name, events FROM target ORDER BY target").to_arrow_table()
    if targets.num_rows == 0:
        raise DataFault(
            "No item consumed before the cut-off has a tag, so there is nothing to predict. "
            "Map items.tags, or predict item clusters (item_targets)."
        )
    share = targets.column("events").to_numpy().astype(np.float64) / past
    return pa.table({"name": targets.column("name"), "popularity": share})


def _label_rows(db: duckdb.DuckDBPyConnection, label_times: str, cutoff: str) -> None:
    """Create table ``label``: row, user_id, us."""
    end = _scalar(db, _DATA_END)
    db.execute("SET VARIABLE data_end = ?", [end])
    latest = np.datetime64(end, "us").astype("datetime64[D]")
    if _scalar(db, "SELECT getvariable('cutoff') + getvariable('horizon')") > end:
        raise DataFault(
            f"evaluation.cutoff {cutoff} plus evaluation.horizon_days reaches beyond the end "
            f"of the data ({latest} 00:00 UTC). Choose an earlier cut-off or a shorter horizon."
        )
    db.execute(_LABEL_ROWS[label_times])
    if _scalar(db, "SELECT count(*) FROM label") == 0:
        raise DataFault(
            f"evaluation.cutoff {cutoff}, label_times {label_times!r}: no user has events both "
            f"before and after a label time (data end {latest} 00:00 UTC). Choose another cut-off."
        )


def _scalar(db: duckdb.DuckDBPyConnection, query: str) -> int:
    ((answer,),) = db.execute(query).fetchall()
    return int(answer)


_EVENTS = """
CREATE VIEW event AS
SELECT user_id, item_id, epoch_us(ts) AS us, epoch_us(ts) // 86400000000 AS day
FROM read_parquet(getvariable('events'))
"""

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

_DATA_END = """
WITH daily AS (SELECT day, count(*) AS n FROM event GROUP BY day)
SELECT (max(day) + 1) * 86400000000 FROM daily WHERE n >= 0.1 * (SELECT avg(n) FROM daily)
"""

_LABEL_ROWS = {
    "cutoff": """
CREATE TABLE label AS
WITH chosen AS (
    SELECT user_id FROM event GROUP BY user_id
    HAVING min(us) < getvariable('cutoff') AND bool_or(
        us > getvariable('cutoff') AND us < getvariable('cutoff') + getvariable('horizon'))
)
SELECT row_number() OVER (ORDER BY user_id) - 1 AS row, user_id, getvariable('cutoff') AS us
FROM chosen
""",
    "active_days": """
CREATE TABLE label AS
WITH active AS (
    SELECT DISTINCT user_id, day FROM event
), past AS (
    SELECT user_id, min(day) AS first_day FROM active GROUP BY user_id
), ranked AS (
    SELECT user_id, day, row_number() OVER (
        PARTITION BY user_id ORDER BY md5(concat_ws(':', user_id, day, getvariable('seed')))
    ) AS choice
    FROM active JOIN past USING (user_id)
    WHERE day > first_day
      AND day * 86400000000 >= getvariable('cutoff')
      AND day * 86400000000 + getvariable('horizon') <= getvariable('data_end')
)
SELECT row_number() OVER (ORDER BY user_id, day) - 1 AS row, user_id, day * 86400000000 AS us
FROM ranked WHERE choice <= getvariable('max_times')
""",
}
"""By ``label_times``."""

_POSITIVES = """
SELECT DISTINCT label.row AS row, target.target AS target
FROM label
JOIN event ON event.user_id = label.user_id
    AND event.us > label.us AND event.us < label.us + getvariable('horizon')
JOIN item_target ON item_target.item_id = event.item_id
JOIN target ON target.name = item_target.name
"""
