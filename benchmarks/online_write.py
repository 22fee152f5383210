"""How many 120-d rows a second reach the online store, against Feast's local engine?

Ours reads Parquet and compares and sets each row in one atomic step. Stock Feast materialises the
same Parquet rows with its local compute engine, on fewer rows (``--stock-rows``): all figures are
rows a second. Every figure is of a second or later call into an emptied store.
The limit on Redis is a bare redis-py pipeline of HSETs whose keys and values were encoded before.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import redis

from benchmarks import _online
from benchmarks.harness import Record, compare, repeat, write_results
from materialize.stores.values import entity_keys, timestamps, value_bytes
from tests.servers import postgres_server, redis_server
from tests.stores import PROFILES

SEED = 0
_PIPELINE = 5_000


def _timed(n: int, repeats: int, empty: Callable[[], Any], call: Callable[[], Any]) -> list[float]:
    """Return rows a second of each repeat but the first, after ``empty`` was called."""

    def measure() -> float:
        empty()
        start = time.perf_counter()
        call()
        return n / (time.perf_counter() - start)

    return repeat(measure, repeats)


def _hsets(table: pa.Table, project: str) -> list[tuple[bytes, dict[Any, bytes]]]:
    """Return each row as the hash that Feast keeps, encoded."""
    from feast.infra.online_stores.helpers import _mmh3

    (batch,) = table.combine_chunks().to_batches()
    keys = entity_keys([("user_id", "INT64", batch.column("user_id"))], 3, project.encode("utf-8"))
    event = batch.column("event_timestamp").cast(pa.int64()).to_numpy()
    times = timestamps(event, event, np.zeros(len(event), bool))
    field, stamp = _mmh3(f"{_online.VIEW}:vector"), f"_ts:{_online.VIEW}"
    return [
        (key, {field: value, stamp: moment})
        for key, value, moment in zip(
            keys, value_bytes(batch.column("vector"), "FLOAT_LIST"), times, strict=True
        )
    ]


def _bare(client: redis.Redis, hsets: list[tuple[bytes, dict[Any, bytes]]]) -> None:
    for start in range(0, len(hsets), _PIPELINE):
        with client.pipeline(transaction=False) as pipe:
            for key, mapping in hsets[start : start + _PIPELINE]:
                pipe.hset(key, mapping=mapping)
            pipe.execute()


def _equal(stores: list[Any], table: pa.Table, n: int) -> None:
    """Each store hands out the rows it was given: a sample of 1,000 of its n, bit-equal."""
    users = np.random.default_rng(SEED).choice(n, min(n, 1000), replace=False)
    expected = np.array(table.column("vector").take(pa.array(users)).to_pylist(), np.float32)
    for store in stores:
        assert _online.read(store, users.tolist()).tobytes() == expected.tobytes()


def _family(
    family: str, server: Any, folder: Path, sizes: tuple[int, int], repeats: int
) -> list[Record]:
    n, n_stock = sizes
    table = _online.rows(n, SEED)
    few = table.slice(0, n_stock)
    stores = {
        side: _online.repository(
            folder / f"{side}_{family}",
            PROFILES[f"{side}-{family}"].settings(server, str(folder / f"{side}_{family}")),
            few,
        )
        for side in ("palate", "stock")
    }
    end = _online.START + timedelta(days=2)

    def empty(side: str) -> Callable[[], None]:
        def run() -> None:
            store = stores[side]
            view, entity = store.get_feature_view(_online.VIEW), store.get_entity("user")
            online = store._get_provider().online_store
            online.update(store.config, [view], [], [], [entity], False)
            online.update(store.config, [], [view], [], [entity], False)

        return run

    ours_store = stores["palate"]
    online = ours_store._get_provider().online_store
    view = ours_store.get_feature_view(_online.VIEW)

    def ours() -> None:
        counts = online.write_arrow(ours_store.config, view, table)
        assert counts.written == n

    path = folder / f"palate_{family}" / "all.parquet"
    pq.write_table(table, path)

    def from_parquet() -> None:
        for batch in pq.ParquetFile(path).iter_batches(online.rows_per_write):
            online.write_arrow(ours_store.config, view, batch)

    def stock() -> None:
        stores["stock"].materialize(_online.START - timedelta(days=1), end, [_online.VIEW])

    parquet_rates = _timed(n, repeats, empty("palate"), from_parquet)
    _equal([ours_store], table, n)
    ours_rates = _timed(n, repeats, empty("palate"), ours)
    stock_rates = _timed(n_stock, repeats, empty("stock"), stock)
    _equal([ours_store], table, n)
    _equal([stores["stock"]], table, n_stock)
    name = f"feast materialize, local engine, {n_stock} rows"
    records = [
        compare(
            f"{family}: {n} rows of 120-d from Parquet, atomic compare-and-set, empty store",
            parquet_rates,
            unit="rows/s",
            baseline=(name, stock_rates),
            target=f"ratio_to_baseline >= {7 if family == 'redis' else 5}",
            seed=SEED,
        )
    ]
    # Rows that are there already, each compared and replaced: what a nightly run does.
    again = _timed(n, repeats, lambda: None, ours)
    records.append(
        compare(f"{family}: {n} rows of 120-d over themselves", again, unit="rows/s", seed=SEED)
    )
    if family == "redis":
        with redis.Redis(port=server.port) as client:
            hsets = _hsets(table, "bare")
            empty_bare = client.flushdb
            bare = _timed(n, repeats, empty_bare, lambda: _bare(client, hsets))
            assert client.dbsize() == n
            for key, mapping in hsets[:1000]:
                whole = {k if isinstance(k, bytes) else k.encode(): v for k, v in mapping.items()}
                assert client.hgetall(key) == whole
        records.append(
            compare(
                "redis: ours from Arrow in memory, encoding included, against pre-encoded HSETs",
                ours_rates,
                unit="rows/s",
                limit=("bare redis-py pipeline of HSETs", float(np.median(bare))),
                target="ratio_to_limit >= 0.7",
                seed=SEED,
            )
        )
    return records


def _redis(folder: Path) -> AbstractContextManager[Any]:
    own = folder / "redis"
    own.mkdir()
    return redis_server(own)


_SERVERS: dict[str, Callable[[Path], AbstractContextManager[Any]]] = {
    "redis": _redis,
    "sqlite": lambda folder: nullcontext(),
    "postgres": lambda folder: postgres_server(),
}


def main() -> None:
    """Measure, print and write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--stock-rows", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--stores", nargs="+", choices=sorted(_SERVERS), default=list(_SERVERS))
    args = parser.parse_args()
    sizes = (args.rows, min(args.rows, args.stock_rows))
    records = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for family in args.stores:
            server = stack.enter_context(_SERVERS[family](folder))
            records += _family(family, server, folder, sizes, args.repeats)
    # A part of the stores does not replace the results of all.
    results = {} if set(args.stores) == set(_SERVERS) else {"folder": Path(tempfile.gettempdir())}
    write_results("online_write", records, **results)


if __name__ == "__main__":
    main()
