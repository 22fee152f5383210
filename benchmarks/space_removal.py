"""How fast does a space's view leave Redis, do other views' readers notice, are the bytes right?

Each user's hash holds two spaces' rows of 120 numbers; one space is removed, the other is read all
the while by another process, 20 users a request. The baseline is Feast's own deletion of a view,
which asks for all keys first. Bytes are a sample's, compared with the server's used_memory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import redis
import yaml
from feast import Entity, FeatureStore, ValueType
from feast.infra.online_stores.redis import RedisOnlineStore

from benchmarks.harness import Record, compare, write_results
from materialize.embedding_rows import embedding_schema
from materialize.stores.removal import online_share, remove_online
from tests.servers import redis_server
from tests.stores import PROFILES
from transforms.embedding_views import declare_stored_view
from transforms.names import USER_KEY, stored_view

DIM = 120
SEED = 0
_NOON_US = 1_767_268_800_000_000
_USERS_A_READ = 20
_SLOWLY = 10_000
"""Keys a second of the removal that is held back."""


def _rows(n: int, space: int) -> pa.Table:
    rng = np.random.default_rng([SEED, space])
    vectors = pa.array(rng.standard_normal(n * DIM, np.float32))
    offsets = pa.array(np.arange(0, n * DIM + 1, DIM, dtype=np.int32))
    moment = pa.array(np.full(n, _NOON_US))
    schema = embedding_schema(pa.int64())
    columns = {
        USER_KEY: pa.array(np.arange(n)),
        "embedding": pa.ListArray.from_arrays(offsets, vectors),
        "as_of": moment,
        "space": pa.array(np.full(n, space)),
        "encoder_version": pa.array([f"{space:012x}"] * n),
        "status": pa.array(["warm"] * n),
        "n_events": pa.array(np.full(n, 7)),
        "event_timestamp": moment.cast(pa.timestamp("us", "UTC")),
        "created_timestamp": moment.cast(pa.timestamp("us", "UTC")),
    }
    return pa.table({name: columns[name] for name in schema.names}).cast(schema)


def _repository(folder: Path, server: Any) -> FeatureStore:
    folder.mkdir()
    content = {
        **{"project": "removal", "provider": "local", "registry": "registry.db"},
        "online_store": PROFILES["palate-redis"].settings(server, str(folder)),
        **{"offline_store": {"type": "duckdb"}, "entity_key_serialization_version": 3},
    }
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    store = FeatureStore(repo_path=str(folder))
    user = Entity(name="user", join_keys=[USER_KEY], value_type=ValueType.INT64)
    views = [
        declare_stored_view(user, space=k, encoder_version=f"{k:012x}", folder=folder / f"s{k}")
        for k in (1, 2)
    ]
    store.apply([user, *views])
    return store


def _read(repo: str, n: int, parent: Connection) -> None:
    """Read space 2 until told to stop; answer each "lap" with the seconds of the reads since."""
    store, draw = FeatureStore(repo_path=repo), random.Random(SEED)  # noqa: S311 - no secret
    laps: list[float] = []
    parent.send("ready")
    while True:
        if parent.poll(0):
            if parent.recv() == "stop":
                return
            parent.send(laps)
            laps = []
        rows = [{USER_KEY: draw.randrange(n)} for _ in range(_USERS_A_READ)]
        began = time.perf_counter()
        answer = store.get_online_features([f"{stored_view(2)}:embedding"], rows).to_dict()
        laps.append(time.perf_counter() - began)
        assert all(vector is not None for vector in answer["embedding"])


class _Reader:
    def __init__(self, repo: Path, n: int) -> None:
        forks = multiprocessing.get_context("spawn")
        self._here, there = forks.Pipe()
        self._process = forks.Process(target=_read, args=(str(repo), n, there))
        self._process.start()
        assert self._here.recv() == "ready"

    def lap(self) -> list[float]:
        self._here.send("lap")
        laps: list[float] = self._here.recv()
        return laps

    def stop(self) -> None:
        self._here.send("stop")
        self._process.join()


def _p99(laps: list[float]) -> float:
    return float(np.percentile(laps, 99)) * 1e3


def _measure(store: FeatureStore, server: Any, n: int, repeats: int, repo: Path) -> list[Record]:
    online, config = store._get_provider().online_store, store.config
    views = {k: store.get_feature_view(stored_view(k)) for k in (1, 2)}
    tables = {k: _rows(n, k) for k in (1, 2)}
    online.write_arrow(config, views[2], tables[2])
    rates: dict[str, list[float]] = {"ours": [], "slowly": [], "feast": [], "count": []}
    truth: list[float] = []
    p99: dict[str, list[float]] = {"idle": [], "ours": [], "slowly": [], "feast": []}
    where = (online, config, views[1], [USER_KEY])
    reader = _Reader(repo, n)
    with redis.Redis(port=server.port) as client:

        def memory() -> int:
            return int(client.info("memory")["used_memory"])

        def timed(name: str, call: Callable[[], Any]) -> Any:
            reader.lap()
            began = time.perf_counter()
            answer = call()
            rates[name].append(n / (time.perf_counter() - began))
            if name in p99:
                p99[name].append(_p99(reader.lap()))
            return answer

        for _ in range(repeats):
            online.write_arrow(config, views[1], tables[1])
            reader.lap()
            time.sleep(2.0)
            p99["idle"].append(_p99(reader.lap()))
            share = timed("count", lambda: online_share(*where))
            assert share.rows == n
            before = memory()
            removed = timed("ours", lambda: remove_online(*where))
            assert removed.rows == n
            truth.append(removed.size_bytes / (before - memory()))
            assert client.dbsize() == n, "the other space's rows stay"
            online.write_arrow(config, views[1], tables[1])
            timed("slowly", lambda: remove_online(*where, keys_per_second=_SLOWLY))
            online.write_arrow(config, views[1], tables[1])
            timed("feast", lambda: RedisOnlineStore.delete_table(online, config, views[1]))
            assert online_share(*where).rows == 0
    reader.stop()
    what = f"redis: {n} users of two spaces"
    return [
        compare(
            f"{what}, one space removed",
            rates["ours"],
            unit="keys/s",
            baseline=("Feast's delete_table", rates["feast"]),
            seed=SEED,
        ),
        compare(f"{what}, one space counted (dry run)", rates["count"], unit="keys/s", seed=SEED),
        compare(
            f"{what}, bytes told against used_memory before and after",
            truth,
            unit="ratio",
            target="ours <= 1.1",
            seed=SEED,
        ),
        compare(
            f"{what}, p99 of reads of the other space meanwhile",
            p99["ours"],
            unit="ms",
            baseline=("nobody removes", p99["idle"]),
            seed=SEED,
        ),
        compare(
            f"{what}, p99 of reads of the other space, at most {_SLOWLY} keys/s removed",
            p99["slowly"],
            unit="ms",
            baseline=("nobody removes", p99["idle"]),
            seed=SEED,
        ),
        compare(
            f"{what}, p99 of reads of the other space while Feast's delete_table runs",
            p99["feast"],
            unit="ms",
            baseline=("nobody removes", p99["idle"]),
            seed=SEED,
        ),
    ]


def main() -> None:
    """Measure, print and write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "redis").mkdir()
        with redis_server(folder / "redis") as server:
            store = _repository(folder / "repo", server)
            records = _measure(store, server, args.rows, args.repeats, folder / "repo")
    write_results("space_removal", records)


if __name__ == "__main__":
    main()
