"""How often does an older value replace a newer one when two processes write the same users?

A batch writer rewrites all users with the event time of half a second ago, in one large batch after
the other; a stream writer writes 200 users at a time with the present time. A watcher reads every
user's stored event time over and over: where it went back since the last read, an older row had
replaced a newer one. What happens between two reads is not seen, so the count is a lower bound.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import redis

from benchmarks import _online
from benchmarks._environment import ROOT
from benchmarks.harness import compare, write_results
from tests.servers import redis_server
from tests.stores import PROFILES

SEED = 0
_STREAM_ROWS = 200


def _at(table: pa.Table, seconds: float) -> pa.Table:
    """Return the rows with one event time, seconds after the start."""
    moment = _online.START + timedelta(seconds=seconds)
    event = pa.array([moment] * table.num_rows, _online.INSTANT)
    names = table.column_names
    for name in ("event_timestamp", "created_timestamp"):
        table = table.set_column(names.index(name), name, event)
    return table


def write(repository: str, role: str, seconds: float) -> None:
    """Write until the time is over: a race's one process."""
    from feast import FeatureStore
    from feast.utils import _convert_arrow_to_proto
    from feast.value_type import ValueType

    store = FeatureStore(repo_path=repository)
    online, view = _online.online_store(store), store.get_feature_view(_online.VIEW)
    users = int(Path(repository, "users").read_text(encoding="utf-8"))
    table = _online.rows(users, SEED)
    rng = np.random.default_rng(1)
    start = time.time()
    while time.time() - start < seconds:
        # Both clocks are the wall's; a batch carries the state of half a second ago.
        now = time.time() % 1_000_000
        if role == "batch":
            part = _at(table, now - 0.5)
        else:
            part = _at(table.take(rng.choice(users, _STREAM_ROWS, replace=False)), now)
        if hasattr(online, "write_arrow"):
            online.write_arrow(store.config, view, part)
        else:
            rows = _convert_arrow_to_proto(
                part.combine_chunks(), view, {"user_id": ValueType.INT64}
            )
            online.online_write_batch(store.config, view, rows, None)


def _race(side: str, server: Any, folder: Path, users: int, seconds: float) -> tuple[int, int]:
    """Return how often an event time went back, and how many reads were compared."""
    from google.protobuf.timestamp_pb2 import Timestamp

    from materialize.stores.values import entity_keys

    path = folder / f"{side}_race"
    _online.repository(
        path, PROFILES[f"{side}-redis"].settings(server, str(path)), _online.rows(10, SEED)
    )
    (path / "users").write_text(str(users), encoding="utf-8")
    keys = entity_keys(
        [("user_id", "INT64", pa.array(np.arange(users)))], 3, path.name.encode("utf-8")
    )
    writers = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.writers_race"),
                *("--writer", role, str(path), "--seconds", str(seconds)),
            ],
            cwd=ROOT,
        )
        for role in ("batch", "stream")
    ]
    newest = np.zeros(users)
    back = reads = 0
    with redis.Redis(port=server.port) as client:
        while any(writer.poll() is None for writer in writers):
            with client.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.hget(key, f"_ts:{_online.VIEW}")
                found = pipe.execute()
            event = np.zeros(users)
            for user, content in enumerate(found):
                if content is not None:
                    moment = Timestamp.FromString(content)
                    event[user] = moment.seconds + moment.nanos / 1e9
            back += int((event < newest).sum())
            reads += int((newest > 0).sum())
            newest = np.maximum(newest, event)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert (newest > 0).all()
    return back, reads


def main() -> None:
    """Measure, print and write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--writer", nargs=2, metavar=("ROLE", "REPOSITORY"))
    args = parser.parse_args()
    if args.writer:
        write(args.writer[1], args.writer[0], args.seconds)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with redis_server(folder) as server:
            counts = {
                side: _race(side, server, folder, args.users, args.seconds)
                for side in ("palate", "stock")
            }
    write_results(
        "writers_race",
        [
            compare(
                f"older event replaced a newer one, two writers on {args.users} users for "
                f"{args.seconds:g} s, seen in {counts['palate'][1]} reads "
                f"(stock: {counts['stock'][1]})",
                [float(counts["palate"][0])],
                unit="times seen",
                baseline=("stock Feast", [float(counts["stock"][0])]),
                target="ours <= 0",
                seed=SEED,
            )
        ],
    )


if __name__ == "__main__":
    main()
