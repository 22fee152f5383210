"""Last.fm's listeners (HetRec 2011) as a data set of two services: what they hear and how they tag.

``python -m benchmarks._hetrec TARGET`` reads ``$PALATE_DATA/hetrec_lastfm2k``.
"""

from __future__ import annotations

import argparse
import os
from datetime import datetime, timezone
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

__all__ = ["CUTOFF", "DATASET_FILE", "LISTENED_AT", "write_dataset"]

CUTOFF = datetime(2010, 1, 1, tzinfo=timezone.utc)
"""Evaluation cut-off; tags that artists got from then on are no part of their descriptions."""

LISTENED_AT = datetime(2005, 7, 1, tzinfo=timezone.utc)
"""Instant of all listens, which have no date: before every assignment of a tag."""

DATASET_FILE = "dataset.yaml"

_TABLES = ("artists", "listens", "tag_assignments", "tags")


def write_dataset(
    source: Path, target: Path, *, cutoff: datetime = CUTOFF, tags_per_artist: int = 5
) -> Path:
    """Write ``events.parquet``, ``items.parquet`` and ``dataset.yaml``; return the YAML's path.

    Service ``listening`` has an event for each artist that a user listens to, and ``tagging`` one
    for each assignment of a tag by a user to an artist; its item is the tag.

    Parameters
    ----------
    source : Path
        Folder with ``artists``, ``listens``, ``tag_assignments`` and ``tags``, Parquet each.
    target : Path
        Folder to write into; made if need be. Files that are there are replaced.
    cutoff : datetime
        00:00 UTC of a day.
    tags_per_artist : int
        At most so many tags describe an artist: those that anybody gave it most often before the
        cut-off.

    Notes
    -----
    Play counts are a snapshot of 2011 without dates. They stand at one instant before all tags, so
    every model knows at every moment, before the cut-off and after it, what a user will have
    listened to by 2011. All models that are compared know it alike; a service would not.

    A listen weighs ``log(1 + plays)``, divided by the mean of that over all listens: an average
    artist counts as much as a tag.

    Assignments are dated to the month: its first day stands for all of it (May 2011 has days). They
    are put after noon of their date, one second apart, in an order that a hash decides, for the
    true one is unknown. So label times, which lie at midnight, never know the month that begins
    there, and a tag that a user gives to several artists on a day is as many events. Assignments
    before the listens are errors of the data (1956, 1957, 1979) and left out.

    Ids are ``artist:<id>`` and ``tag:<id>``.
    """
    target.mkdir(parents=True, exist_ok=True)
    with duckdb.connect() as db:
        for name in _TABLES:
            db.register(name, pq.read_table(source / f"{name}.parquet"))
        db.execute("SET VARIABLE listened_at = ?", [int(LISTENED_AT.timestamp())])
        db.execute("SET VARIABLE listened_on = ?", [LISTENED_AT.date()])
        db.execute("SET VARIABLE cutoff = ?", [cutoff.date()])
        db.execute("SET VARIABLE tags_per_artist = ?", [tags_per_artist])
        for name, query in (("events", _EVENTS), ("items", _ITEMS)):
            table = db.sql(query).to_arrow_table()
            pq.write_table(table, target / f"{name}.parquet", compression="zstd")
    path = target / DATASET_FILE
    path.write_text(_YAML.replace("CUTOFF", cutoff.strftime("%Y-%m-%dT%H:%M:%SZ")), "utf-8")
    return path


_EVENTS = """
SELECT user_id, 'artist:' || artist_id AS item_id, getvariable('listened_at') AS timestamp,
    'listening' AS service, ln(1 + plays) / avg(ln(1 + plays)) OVER () AS weight
FROM listens
UNION ALL
SELECT user_id, 'tag:' || tag_id AS item_id,
    epoch(date)::BIGINT + 43200 + row_number() OVER (
        PARTITION BY user_id, date
        ORDER BY md5(concat_ws(':', artist_id, tag_id)), artist_id, tag_id
    ) AS timestamp,
    'tagging' AS service, 1.0 AS weight
FROM (SELECT DISTINCT user_id, artist_id, tag_id, date FROM tag_assignments)
WHERE date >= getvariable('listened_on')
ORDER BY user_id, timestamp, item_id
"""

_ITEMS = """
WITH assigned AS (
    SELECT artist_id, tag, count(DISTINCT user_id) AS n
    FROM tag_assignments JOIN tags USING (tag_id)
    WHERE date >= getvariable('listened_on') AND date < getvariable('cutoff')
    GROUP BY artist_id, tag
), described AS (
    SELECT artist_id, list(tag ORDER BY n DESC, tag) AS tags FROM assigned GROUP BY artist_id
)
SELECT 'artist:' || artist_id AS item_id, name,
    coalesce(tags[1:getvariable('tags_per_artist')], []) AS tags
FROM artists LEFT JOIN described USING (artist_id)
UNION ALL
SELECT 'tag:' || tag_id AS item_id, tag AS name, [tag] AS tags FROM tags
ORDER BY item_id
"""

_YAML = """\
# HetRec 2011 Last.fm 2K (Cantador, Brusilovsky and Kuflik, https://grouplens.org/datasets/hetrec-2011/), 2005-08 to 2011-05.
# Licence: non-commercial use only.
# Services: listening (items: artists) and tagging (items: tags that users gave to artists).
# Listens have no date. They are a snapshot of 2011, put at 2005-07-01 before all tags: every model
# that is compared knows alike what users will have listened to after the cut-off.
# Windows: tags are dated to the month; a month, a year, and all there is, listens included.
name: hetrec_lastfm2k
events:
  path: events.parquet
  user: user_id
  item: item_id
  timestamp: {column: timestamp, unit: s}
  weight: weight
  service: service
items:
  path: items.parquet
  item: item_id
  text: [name]
  tags: tags
windows: [30, 365, 2200]
modalities:
  collaborative: {dim: 64, clusters: 32}
  content: {dim: 64, clusters: 32}
texts: {vocabulary: 8192, max_item_tokens: 24, max_events: 32}
snapshots: {every_days: 7}
evaluation:
  cutoff: CUTOFF
  horizon_days: 60
  label_times: active_days
  max_targets: 30
"""  # noqa: E501  (a line of the YAML is one line of its text)


def main() -> None:
    """Write the data set into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    if "PALATE_DATA" not in os.environ:
        parser.error("PALATE_DATA is not set: the folder that holds hetrec_lastfm2k/")
    print(write_dataset(Path(os.environ["PALATE_DATA"]) / "hetrec_lastfm2k", args.target))


if __name__ == "__main__":
    main()
