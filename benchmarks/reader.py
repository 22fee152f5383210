"""How fast does serving code read stored embeddings, beside bare Redis and beside Feast?

Real Redis, vectors of 120 float32, six fields a user; 1, 10, 100 and 500 users a read, drawn at
random. Compared, read by read in turn, in one process:

- the client (``EmbeddingClient.read``): keys, commands, answers, arrays, checks; its pin is kept,
  `pin_switch` measures what asking costs;
- the same for an event loop (``read_async``), one read at a time;
- bare redis-py: a pipeline of HMGETs of the same fields of keys that are at hand, nothing parsed;
- ``get_online_features(...).to_dict()`` of the six features, on stock Feast's store and on ours;
- freshest wins (``read_fresh``), with one user in ten whose raw features are newer.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchmarks._job_repo import save_encoder
from benchmarks.harness import Record, compare, write_results
from benchmarks.on_demand import LAYOUT, _rows_of, _write, make
from tests.servers import redis_server
from transforms.layout import ACTIVITY, field
from transforms.names import stored_view

SEED = 0
SIZES = (1, 10, 100, 500)
CLIENT, LOOP, BARE, STOCK, OURS, FRESH = (
    "client",
    "client, event loop",
    "bare pipelined HMGET",
    "stock Feast's to_dict()",
    "to_dict() with our store",
    "freshest wins, one in ten encoded",
)
_AT_MOST_OF_BARE, _AT_MOST_OF_FEAST = 1.3, 0.25
_HOUR_US = 3_600_000_000

Read = Callable[[npt.NDArray[np.int64]], Any]


def _newer(users: int) -> Iterator[pa.RecordBatch]:
    """Yield raw features of one user in ten, an hour newer than the stored rows."""
    name = field(ACTIVITY, "as_of")
    for batch in _rows_of(ACTIVITY, users):
        some = batch.take(pa.array(np.arange(0, batch.num_rows, 10)))
        at = some.schema.get_field_index(name)
        later = pa.array(
            some.column("event_timestamp").cast(pa.int64()).to_numpy() + _HOUR_US, pa.int64()
        )
        yield some.set_column(at, name, later)


def _ways(folder: Path, port: int, users: int) -> tuple[dict[str, Read], Callable[[], None]]:
    """Return the ways to read, each users -> vectors or (bare) answers, and what ends them."""
    import redis
    from feast import FeatureStore
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    from materialize.client import EmbeddingClient
    from materialize.ledger import Ledger
    from materialize.reader.fields import Wanted
    from materialize.reader.redis_layout import RedisLayout
    from materialize.reader.rows import FIELDS

    version = save_encoder(folder / "artifacts", SEED, LAYOUT)
    make(folder, folder / "artifacts", version, users, port)
    ours, stock = (FeatureStore(repo_path=str(folder / name)) for name in ("palate", "stock"))
    _write(ours, ACTIVITY, _newer(users))

    url = f"sqlite:///{folder / 'ledger.db'}"
    ledger = Ledger(url)
    ledger.register(version, str(folder / "artifacts" / version), {"embedding_dim": 120})
    ledger.begin_run("run", stored_view(1), "run", {}, space=1)
    ledger.commit_run("run", {"rows": users})
    ledger.add_consumer("home", 1, who="benchmark", why="")
    client = EmbeddingClient(
        ours, url, "home", pin_seconds=1e9, artifacts_url=str(folder / "artifacts")
    )

    layout = RedisLayout(ours.config)
    wanted = (Wanted(ours.get_feature_view(stored_view(1)), FIELDS),)
    names = layout.hash_fields(wanted)
    keys = layout.keys(wanted, np.arange(users))
    bare = redis.Redis(port=port, protocol=2, socket_timeout=5.0, retry=Retry(NoBackoff(), 0))
    loop = asyncio.new_event_loop()

    def read_bare(asked: npt.NDArray[np.int64]) -> Any:
        with bare.pipeline(transaction=False) as pipe:
            for user in asked.tolist():
                pipe.hmget(keys[user], names)
            return pipe.execute()

    def read_feast(store: Any) -> Read:
        features = [f"{stored_view(1)}:{name}" for name in FIELDS]

        def read(asked: npt.NDArray[np.int64]) -> Any:
            rows = [{"user_id": user} for user in asked.tolist()]
            return store.get_online_features(features=features, entity_rows=rows).to_dict()

        return read

    def end() -> None:
        loop.run_until_complete(client.close_async())
        loop.close()
        bare.close()

    return {
        CLIENT: client.read,
        LOOP: lambda asked: loop.run_until_complete(client.read_async(asked)),
        BARE: read_bare,
        STOCK: read_feast(stock),
        OURS: read_feast(ours),
        FRESH: client.read_fresh,
    }, end


def _check(answers: dict[str, Any], asked: npt.NDArray[np.int64]) -> None:
    """Assert that all ways answered the same, and that the newer users were encoded."""
    stored = answers[CLIENT].embedding
    assert np.isfinite(stored).all()
    assert np.array_equal(answers[LOOP].embedding, stored)
    for way in (STOCK, OURS):
        assert np.array_equal(np.array(answers[way]["embedding"], np.float32), stored)
        assert answers[way]["as_of"] == answers[CLIENT].as_of.tolist()
    tail = [row[0][-4 * stored.shape[1] :] for row in answers[BARE]]
    assert np.array_equal(np.frombuffer(b"".join(tail), "<f4").reshape(stored.shape), stored)
    newer = asked % 10 == 0
    assert (answers[FRESH].source == np.where(newer, "on_demand", "stored")).all()
    assert np.array_equal(answers[FRESH].embedding[~newer], stored[~newer])


def _times(
    ways: dict[str, Read], users: int, size: int, reads: int, repeats: int
) -> dict[str, npt.NDArray[np.float64]]:
    """Return the milliseconds of each read by way, (repeats, reads); the ways take turns."""
    rng = np.random.default_rng(SEED)
    names = list(ways)
    taken = {way: np.empty((repeats + 1, reads)) for way in names}
    for repeat in range(repeats + 1):
        for k in range(reads):
            asked = rng.choice(users, size, replace=False)
            answers = {}
            # Each way comes after each other one: caches and pauses are nobody's own.
            for way in names[k % len(names) :] + names[: k % len(names)]:
                start = time.perf_counter()
                answers[way] = ways[way](asked)
                taken[way][repeat, k] = (time.perf_counter() - start) * 1e3
            if k == 0:
                _check(answers, asked)
    return {way: times[1:] for way, times in taken.items()}  # the first one warms up


def _records(taken: dict[str, npt.NDArray[np.float64]], size: int) -> list[Record]:
    records = []
    for percent in (50, 99):
        figures = {way: np.percentile(t, percent, axis=1).tolist() for way, t in taken.items()}
        judged = size == 100 and percent == 50
        for way, other, at_most in (
            (CLIENT, BARE, _AT_MOST_OF_BARE),
            (CLIENT, STOCK, _AT_MOST_OF_FEAST),
            (CLIENT, OURS, _AT_MOST_OF_FEAST),
            (LOOP, BARE, None),
            (FRESH, CLIENT, None),
        ):
            target = f"ratio_to_baseline <= {at_most}" if judged and at_most else None
            records.append(
                compare(
                    f"{way}, {size} user(s) a read, 120-d, p{percent}",
                    figures[way],
                    unit="ms",
                    baseline=(other, figures[other]),
                    target=target,
                    seed=SEED,
                )
            )
    return records


def main() -> None:
    """Measure, print and write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=100_000, help="in the store")
    parser.add_argument("--reads", type=int, default=200, help="of one repeat")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    records = []
    with tempfile.TemporaryDirectory() as name, redis_server(Path(name)) as server:
        ways, end = _ways(Path(name) / "work", server.port, args.users)
        with ExitStack() as stack:
            stack.callback(end)
            gc.collect()
            gc.freeze()  # as a serving process does once it is warm
            for size in SIZES:
                reads = args.reads if size < 500 else max(1, args.reads // 4)
                taken = _times(ways, args.users, size, reads, args.repeats)
                records += _records(taken, size)
    write_results("reader", records)


if __name__ == "__main__":
    main()
