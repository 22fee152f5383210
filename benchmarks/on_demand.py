"""How long does an embedding on demand take, beside a read of the stored one and a naive design?

Real Redis, 9 raw fields, about 200 inputs, 120 numbers out; 1, 10, 100 and 500 users a request,
drawn at random; ``get_online_features(...).to_dict()`` of the embedding each time. Compared:

- ours: the on-demand view on Palate's Redis store, warmed by ``prewarm(freeze=True)``;
- Feast's path: the same view where the store does not take the way from bytes;
- stock stored: the stored vector in stock Feast's Redis store;
- our stored: the stored vector in Palate's store;
- naive: a Feast field for each number, and torch in the view's function. It has 10,000 of the
  users, because its hashes take ten times the memory, and is asked one time in five.

Each way runs in a process of its own, as serving processes do; the processes take turns, one
request of each way after the other. ``--profile`` says where the time of a request goes instead.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import itertools
import json
import pstats
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import yaml

from benchmarks import _raw_rows
from benchmarks._environment import ROOT
from benchmarks._job_repo import save_encoder
from benchmarks.harness import Record, compare, write_results
from tests.servers import redis_server
from transforms.names import USER_KEY, on_demand_view, stored_view

SEED = 0
LAYOUT = _raw_rows.SMALL
SIZES = (1, 10, 100, 500)
OURS, FEASTS, STOCK, STORED, NAIVE = (
    "on demand",
    "on demand, Feast's path",
    "stock stored",
    "our stored",
    "naive",
)
UNFROZEN = "on demand, not frozen"
NAIVE_VIEW = "naive"

_PIECE = 10_000
_NAIVE_USERS, _NAIVE_EVERY = 10_000, 5
_MOMENT = 1_767_268_800_000_000
_TIMES = ("event_timestamp", "created_timestamp")

Read = Callable[[list[int]], npt.NDArray[np.float32]]


# --- repositories


def _open(folder: Path, online: Mapping[str, Any]) -> Any:
    """Write a repository and return its store; stock Feast but for the online store."""
    from feast import FeatureStore

    folder.mkdir(parents=True)
    content = {
        **{"project": folder.name, "provider": "local", "registry": "registry.db"},
        **{"online_store": dict(online), "offline_store": {"type": "duckdb"}},
        "entity_key_serialization_version": 3,
    }
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return FeatureStore(repo_path=str(folder))


def _timed(columns: Mapping[str, Any], n: int) -> pa.RecordBatch:
    moments = pa.array(np.full(n, _MOMENT)).cast(pa.timestamp("us", "UTC"))
    return pa.record_batch({**columns, **dict.fromkeys(_TIMES, moments)})


def _write(store: Any, view: str, batches: Iterator[pa.RecordBatch]) -> None:
    """Write through Palate's store, whose rows stock Feast reads."""
    from materialize.stores.redis import PalateRedisOnlineStore

    online, definition = PalateRedisOnlineStore(), store.get_feature_view(view)
    for batch in batches:
        online.write_arrow(store.config, definition, batch)


def _raw(users: int) -> Iterator[pa.Table]:
    """Yield the raw features of all users."""
    for start in range(0, users, _PIECE):
        n = min(_PIECE, users - start)
        yield _raw_rows.table(n, SEED + start, start, _raw_rows.schema(LAYOUT))


def make(folder: Path, artifacts: Path, version: str, users: int, port: int) -> None:
    """Apply and fill the repositories ``palate``, ``stock`` and ``naive`` under ``folder``."""
    from feast import Entity, ValueType

    from encoder.columns import batch_from_arrow
    from encoder.store import ArtifactStore
    from transforms.embedding_views import declare_on_demand_view, declare_stored_view
    from transforms.raw_views import declare_raw_views

    address = f"127.0.0.1:{port}"
    palate = {
        "type": "materialize.stores.redis.PalateRedisOnlineStore",
        "connection_string": address,
    }
    stock = {"type": "redis", "connection_string": address}
    user = Entity(name="user", join_keys=[USER_KEY], value_type=ValueType.INT64)
    views = declare_raw_views(user, LAYOUT, folder / "raw")
    named: dict[str, Any] = {"space": 1, "encoder_version": version}
    encoder = ArtifactStore(str(artifacts)).load(version)
    schema = encoder.preprocessor.schema
    for name, online in (("palate", palate), ("stock", stock)):
        store = _open(folder / name, online)
        stored = declare_stored_view(user, **named, folder=folder / "offline")
        fresh = declare_on_demand_view(views, **named, store=str(artifacts))
        store.apply([user, *views, stored, fresh])
        for view in views if name == "palate" else ():
            _write(store, view.name, _rows_of(view.name, users))

        def embeddings() -> Iterator[pa.RecordBatch]:
            for table in _raw(users):
                batch = batch_from_arrow(
                    table,
                    schema.array_columns,
                    schema.text_columns,
                    (*schema.as_of_columns, *schema.modality_columns),
                )
                yield _embedding_rows(table, encoder.encode(batch), version)

        _write(store, stored.name, embeddings())
    store = _open(folder / "naive", stock)
    store.apply([user, *_naive_views(user, schema, str(artifacts), version)])
    few = min(users, _NAIVE_USERS)
    _write(store, f"{NAIVE_VIEW}_raw", _scalars(few, encoder.preprocessor))


def _rows_of(view: str, users: int) -> Iterator[pa.RecordBatch]:
    for table in _raw(users):
        names = [name for name in table.column_names if name.startswith(f"{view}__")]
        columns = {n.removeprefix(f"{view}__"): table.column(n).combine_chunks() for n in names}
        yield _timed({USER_KEY: table.column(USER_KEY).combine_chunks(), **columns}, len(table))


def _embedding_rows(
    table: pa.Table, embedding: npt.NDArray[np.float32], version: str
) -> pa.RecordBatch:
    n, dim = embedding.shape
    lists = pa.ListArray.from_arrays(
        pa.array(np.arange(n + 1, dtype=np.int32) * dim), pa.array(embedding.ravel())
    )
    columns = {
        USER_KEY: table.column(USER_KEY).combine_chunks(),
        "embedding": lists,
        "as_of": pa.array(np.full(n, _MOMENT)),
        "space": pa.array(np.full(n, 1)),
        "encoder_version": pa.array([version] * n),
        "status": pa.array(["warm"] * n),
        "n_events": pa.array(np.full(n, 10)),
    }
    return _timed(columns, n)


# --- the naive design: a field for each number, torch in the function


_NAIVE_SOURCE = """\
def {view}(inputs):
    from benchmarks.on_demand import run_naive

    return run_naive(inputs, {n_inputs!r}, {store!r}, {version!r})
"""


def _scalar_names(n_inputs: int) -> list[str]:
    return [f"x{k}" for k in range(n_inputs)]


def _naive_views(user: Any, schema: Any, artifacts: str, version: str) -> list[Any]:
    """Return a view of one Float32 field a number, and a view whose function runs torch."""
    from feast import FeatureView, Field, FileSource, OnDemandFeatureView
    from feast.transformation.python_transformation import PythonTransformation
    from feast.types import Array, Float32

    class Declared(PythonTransformation):
        def infer_features(self, random_input: Any, singleton: bool | None = False) -> list[Any]:
            return [Field(name="embedding", dtype=Array(Float32))]

    n_inputs = sum(schema.array_columns.values()) + sum(schema.text_columns.values())
    raw = FeatureView(
        name=f"{NAIVE_VIEW}_raw",
        entities=[user],
        ttl=timedelta(0),
        schema=[Field(name=name, dtype=Float32) for name in _scalar_names(n_inputs)],
        source=FileSource(
            path="unused.parquet",
            timestamp_field=_TIMES[0],
            created_timestamp_column=_TIMES[1],
        ),
    )
    source = _NAIVE_SOURCE.format(
        view=NAIVE_VIEW, n_inputs=n_inputs, store=artifacts, version=version
    )
    scope: dict[str, Any] = {}
    exec(source, scope)  # noqa: S102  as Feast does
    declared = Declared(udf=scope[NAIVE_VIEW], udf_string=source)
    return [
        raw,
        OnDemandFeatureView(
            name=NAIVE_VIEW,
            sources=[raw],
            schema=[Field(name="embedding", dtype=Array(Float32))],
            feature_transformation=declared,
            udf=scope[NAIVE_VIEW],
            udf_string=source,
            mode="python",
        ),
    ]


def _scalars(users: int, preprocessor: Any) -> Iterator[pa.RecordBatch]:
    """Yield every number of the raw arrays as a column of its own; strings as their codes."""
    schema = preprocessor.schema
    for table in _raw(users):
        batch = _raw_batch(table, schema)
        parts = [batch.columns[name].values for name in schema.array_columns]
        for name in schema.text_columns:
            text = batch.columns[name].values
            parts.append(np.array([[float(t or -1) for t in row] for row in text], np.float32))
        numbers = np.concatenate(parts, axis=1)  # (n, n_inputs)
        columns = {
            name: pa.array(numbers[:, k]) for k, name in enumerate(_scalar_names(numbers.shape[1]))
        }
        user = table.column(USER_KEY).combine_chunks()
        yield _timed({USER_KEY: user, **columns}, len(table))


def _raw_batch(table: pa.Table, schema: Any) -> Any:
    from encoder.columns import batch_from_arrow

    scalars = (*schema.as_of_columns, *schema.modality_columns)
    return batch_from_arrow(table, schema.array_columns, schema.text_columns, scalars)


_naive: dict[str, Any] = {}


def run_naive(
    inputs: Mapping[str, list[float]], n_inputs: int, store: str, version: str
) -> dict[str, list[Any]]:
    """Standardise the numbers and run the same layers in torch; called by the naive view."""
    import torch

    if not _naive:
        _naive["model"], _naive["scale"] = naive_model(n_inputs, store, version)
    model, (mean, deviation) = _naive["model"], _naive["scale"]
    rows = torch.tensor(list(zip(*(inputs[name] for name in _scalar_names(n_inputs)), strict=True)))
    with torch.inference_mode():
        embedding = model((torch.nan_to_num(rows) - mean) / deviation)
    return {"embedding": embedding.tolist()}


def naive_model(n_inputs: int, store: str, version: str) -> tuple[Any, Any]:
    """Return layers of the encoder's widths with initial weights, and a mean and deviation."""
    import torch
    from torch import nn

    from encoder.store import ArtifactStore

    model = ArtifactStore(store).load(version).manifest.model
    torch.manual_seed(SEED)
    widths = [n_inputs, *model["hidden"], model["embedding_dim"]]
    layers: list[Any] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.SELU()]
    scale = (torch.zeros(n_inputs), torch.ones(n_inputs))
    return nn.Sequential(*layers[:-1]).eval(), scale


# --- reading, in a process of its own


def reader(kind: str, folder: Path) -> Read:
    """Return a function: users -> embeddings float32 (n, 120), as a serving process has it."""
    from feast import FeatureStore

    from transforms.runtime import prewarm

    repository = {STOCK: "stock", NAIVE: "naive"}.get(kind, "palate")
    store = FeatureStore(repo_path=str(folder / repository))
    view = {STOCK: stored_view(1), STORED: stored_view(1), NAIVE: NAIVE_VIEW}.get(
        kind, on_demand_view(1)
    )
    if kind == FEASTS:
        from feast.infra.online_stores.online_store import OnlineStore

        online = store._get_provider().online_store
        online.get_online_features = OnlineStore.get_online_features.__get__(online)
    if kind in {OURS, FEASTS, UNFROZEN}:
        prewarm(store, freeze=kind != UNFROZEN)

    def read(users: list[int]) -> npt.NDArray[np.float32]:
        answer = store.get_online_features(
            features=[f"{view}:embedding"], entity_rows=[{USER_KEY: user} for user in users]
        ).to_dict()
        return np.array(answer["embedding"], np.float32)

    return read


def serve(kind: str, folder: Path, users: int) -> None:
    """Answer lines ``[size, seed]`` with ``[milliseconds, sum of the embeddings]``."""
    read = reader(kind, folder)
    users = min(users, _NAIVE_USERS) if kind == NAIVE else users
    for size in SIZES:
        for seed in range(3):
            read(_draw(size, seed, users))
    if kind in {STOCK, STORED, NAIVE}:
        # What a process that knows about it does; ours does it in prewarm.
        gc.collect()
        gc.freeze()
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        size, seed = json.loads(line)
        asked = _draw(size, seed, users)
        start = time.perf_counter()
        found = read(asked)
        seconds = time.perf_counter() - start
        assert found.shape[0] == size
        assert np.isfinite(found).all()
        print(json.dumps([seconds * 1e3, float(np.abs(found).sum())]), flush=True)


def _draw(size: int, seed: int, users: int) -> list[int]:
    rng = np.random.default_rng([SEED, size, seed])
    return [int(user) for user in rng.choice(users, size, replace=False)]


@contextmanager
def _process(kind: str, folder: Path, users: int) -> Iterator[Callable[[int, int], list[float]]]:
    command = [
        *(sys.executable, "-W", "ignore", "-m", "benchmarks.on_demand", "--serve", kind),
        *("--folder", str(folder), "--users", str(users)),
    ]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, **pipes)
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout
    assert json.loads(stdout.readline()) == "ready"

    def ask(size: int, seed: int) -> list[float]:
        stdin.write(json.dumps([size, seed]) + "\n")
        stdin.flush()
        answer: list[float] = json.loads(stdout.readline())
        return answer

    try:
        yield ask
    finally:
        stdin.close()
        process.wait()


def measure(
    folder: Path, users: int, reads: Mapping[int, int], repeats: int
) -> dict[tuple[str, int], npt.NDArray[np.float64]]:
    """Return the milliseconds of requests, (repeats, requests), by kind and size."""
    kinds = (OURS, FEASTS, STOCK, STORED, NAIVE, UNFROZEN)
    taken: dict[tuple[str, int], list[list[float]]] = {
        (kind, size): [[] for _ in range(repeats)] for kind in kinds for size in SIZES
    }
    with ExitStack() as stack:
        ask = {kind: stack.enter_context(_process(kind, folder, users)) for kind in kinds}
        for repeat in range(repeats):
            for size in SIZES:
                for k in range(reads[size]):
                    seed = 1_000 * repeat + k
                    sums = {}
                    for kind in kinds:
                        if kind != NAIVE or k % _NAIVE_EVERY == 0:
                            milliseconds, sums[kind] = ask[kind](size, seed)
                            taken[kind, size][repeat].append(milliseconds)
                    # All but the naive one hand out the encoder's vectors of the same users.
                    same = [sums[kind] for kind in kinds if kind != NAIVE]
                    assert np.allclose(same, same[0], rtol=1e-4), sums
    return {key: np.array(times) for key, times in taken.items()}


def records(taken: Mapping[tuple[str, int], npt.NDArray[np.float64]]) -> list[Record]:
    """Return what is claimed of the measured requests."""
    claims: list[Record] = []
    for size in SIZES:
        for percent in (50, 99):
            figures = {
                kind: np.percentile(taken[kind, size], percent, axis=1).tolist()
                for kind in (OURS, FEASTS, STOCK, STORED, NAIVE, UNFROZEN)
            }
            targets = (
                {STOCK: "ratio_to_baseline <= 2.2", NAIVE: "ratio_to_baseline <= 0.45"}
                if (size, percent) == (100, 50)
                else {}
            )
            claims += [
                compare(
                    f"{size} user(s) on demand, p{percent}, against {kind}",
                    figures[OURS],
                    unit="ms",
                    baseline=(kind, figures[kind]),
                    target=targets.get(kind),
                    seed=SEED,
                )
                for kind in (STOCK, STORED, NAIVE, FEASTS, UNFROZEN)
            ]
    for kind, target in ((OURS, "ratio_to_baseline < 2"), (UNFROZEN, None), (FEASTS, None)):
        low, high = (np.percentile(taken[kind, 500], p, axis=1).tolist() for p in (50, 99))
        claims.append(
            compare(
                f"500 users {kind}: p99 against p50",
                high,
                unit="ms",
                baseline=("p50", low),
                target=target,
                seed=SEED,
            )
        )
    return claims


def profile(kind: str, folder: Path, users: int, size: int, reads: int) -> None:
    """Print where the time of a request goes."""
    read = reader(kind, folder)
    for seed in range(20):
        read(_draw(size, seed, users))
    asked = [_draw(size, seed, users) for seed in range(reads)]
    profiler = cProfile.Profile()
    profiler.enable()
    for one in asked:
        read(one)
    profiler.disable()
    print(f"--- {kind}, {size} users, {reads} requests; seconds of all of them")
    pstats.Stats(profiler).sort_stats("cumulative").print_stats(45)


def main() -> None:
    """Measure, print and write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", help="answer as this kind; used by the benchmark itself")
    parser.add_argument("--profile", action="store_true", help="print profiles, write nothing")
    parser.add_argument("--size", type=int, default=100, help="users of a profiled request")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--users", type=int, default=100_000, help="stored")
    parser.add_argument("--reads", type=int, default=200, help="of one repeat; 500 users: half")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.folder, args.users)
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(redis_server(folder))
        artifacts = folder / "artifacts"
        version = save_encoder(artifacts, SEED, LAYOUT)
        make(folder, artifacts, version, args.users, server.port)
        if args.profile:
            for kind in (OURS, FEASTS, STOCK):
                profile(kind, folder, args.users, args.size, args.reads)
            return
        reads = {size: max(args.reads // 2 if size == 500 else args.reads, 1) for size in SIZES}
        taken = measure(folder, args.users, reads, args.repeats)
    write_results("on_demand", records(taken))


if __name__ == "__main__":
    main()
