"""Whose events the stream benchmark replays: real clicks where there are any, else invented ones.

Users who come back after the cut-off of the data set's evaluation are kept, with everything they
ever did: they have labels, and enough of them have events in the replayed part.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from materialize.template import template_folder

__all__ = ["REAL", "Replay", "read_replay", "replay_start", "set_first_snapshot", "write_dataset"]

REAL = "globo_news"
_INVENTED = "simulated"
_DATA = "PALATE_DATA"
_START = datetime(2024, 1, 1, tzinfo=timezone.utc)
_DAYS, _HORIZON_DAYS = 35, 7

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Replay:
    """Events in the order of their times.

    Attributes
    ----------
    user, item : (n,)
        Ids, int64 or object of str.
    timestamp_us : int64 (n,)
        Ascending, microseconds since the epoch.
    weight : float64 (n,)
    context : pyarrow list<string> array (n,)
        Values of the data set's context columns.
    names : tuple of str
        Those columns.
    """

    user: npt.NDArray[Any]
    item: npt.NDArray[Any]
    timestamp_us: Ints
    weight: npt.NDArray[np.float64]
    context: pa.Array
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: npt.NDArray[Any]) -> Replay:
        """Return some events, in the given order."""
        return Replay(
            self.user[rows],
            self.item[rows],
            self.timestamp_us[rows],
            self.weight[rows],
            self.context.take(pa.array(rows)),
            self.names,
        )

    def first_of_each_user(self) -> Replay:
        """Return each user's earliest event: no two events share a user."""
        _, first = np.unique(self.user, return_index=True)
        return self.take(np.sort(first))


def write_dataset(folder: Path, users: int, seed: int) -> tuple[str, Path]:
    """Write the events of up to ``users`` users and their ``dataset.yaml``.

    Returns
    -------
    name : str
        ``globo_news``, or ``simulated`` where ``PALATE_DATA`` names no folder with the clicks.
    path : Path
        Of the YAML.
    """
    folder.mkdir(parents=True, exist_ok=True)
    given = os.environ.get(_DATA, "")
    real = bool(given) and (Path(given) / REAL).is_dir()
    name = REAL if real else _INVENTED
    text = (template_folder() / "datasets" / f"{name}.yaml").read_text(encoding="utf-8")
    described: dict[str, Any] = yaml.safe_load(text)
    if real:
        data = Path(given).resolve() / REAL
        cutoff = described["evaluation"]["cutoff"]
        _write_clicks(data / "clicks.parquet", folder / "events.parquet", cutoff, users, seed)
        described["events"]["path"] = str(folder / "events.parquet")
        described["items"]["path"] = str(data / "articles.parquet")
    else:
        from encoder.synthetic import simulate_listeners

        simulate_listeners(folder, n_users=users, days=_DAYS, seed=seed, start=_START)
        for table in ("events", "users", "items"):
            described[table]["path"] = str(folder / f"{table}.parquet")
        described["evaluation"] |= {
            "cutoff": _START + timedelta(days=_DAYS - _HORIZON_DAYS),
            "horizon_days": _HORIZON_DAYS,
        }
    path = folder / "dataset.yaml"
    path.write_text(yaml.safe_dump(described), encoding="utf-8")
    return name, path


def set_first_snapshot(path: Path, day: datetime) -> None:
    """Let history be cut at a day, 00:00 UTC, and at each one after it, and not before."""
    described = yaml.safe_load(path.read_text(encoding="utf-8"))
    described["snapshots"] = {"every_days": 1, "first": day}
    path.write_text(yaml.safe_dump(described), encoding="utf-8")


def _write_clicks(clicks: Path, out: Path, cutoff: datetime, users: int, seed: int) -> None:
    """Copy the clicks of up to ``users`` users who click from the cut-off on, chosen by a hash."""
    query = (
        "WITH chosen AS (SELECT user_id FROM read_parquet($1) GROUP BY user_id "
        "HAVING max(click_ts_s) >= $2 ORDER BY md5(concat_ws(':', user_id, $3)) LIMIT $4) "
        "SELECT * FROM read_parquet($1) WHERE user_id IN (FROM chosen) "
        "ORDER BY click_ts_s, user_id, article_id"
    )
    with duckdb.connect() as connection:
        asked = [str(clicks), int(cutoff.timestamp()), seed, users]
        pq.write_table(connection.sql(query, params=asked).to_arrow_table(), out)


def replay_start(events: str, cutoff: datetime, n: int) -> datetime:
    """Return the instant from which on at least ``n`` clean events lie before the cut-off."""
    query = (
        "SELECT epoch_us(ts) FROM read_parquet(?) WHERE ts < ? ORDER BY ts DESC LIMIT 1 OFFSET ?"
    )
    with duckdb.connect() as connection:
        rows = connection.execute(query, [events, cutoff, n - 1]).fetchall()
    if not rows:
        raise ValueError(f"{n} events to replay asked for, fewer lie before {cutoff}")
    return datetime.fromtimestamp(rows[0][0] / 1e6, timezone.utc)


def read_replay(events: str, start: datetime, names: tuple[str, ...], seed: int) -> Replay:
    """Return the clean events from an instant on.

    Events of one instant come in a drawn order, as a stream would not sort them either.
    """
    query = (
        "SELECT user_id, item_id, epoch_us(ts) AS us, weight::DOUBLE AS weight, context "
        "FROM read_parquet(?) WHERE ts >= ?"
    )
    with duckdb.connect() as connection:
        table: pa.Table = connection.sql(query, params=[events, start]).to_arrow_table()
    drawn = np.random.default_rng(seed).permutation(table.num_rows)
    table = table.take(pa.array(np.lexsort((drawn, table.column("us").to_numpy()))))
    return Replay(
        user=table.column("user_id").to_numpy(),
        item=table.column("item_id").to_numpy(),
        timestamp_us=table.column("us").to_numpy(),
        weight=table.column("weight").to_numpy(),
        context=table.column("context").combine_chunks(),
        names=names,
    )
