"""How fast and how complete are nearest users among a million, and what does their index cost?

Ours is the job and the reader of `materialize.neighbours` (FAISS, cells of half-precision vectors):
embeddings lie in Parquet as a committed run leaves them, the job builds the index in a fresh
process, and another one maps it and asks for one user at a time, who is not in it. The truth is
exact search over all vectors. Vectors are drawn from a world with a planted structure
(`tests.neighbours.Planted`).

The baseline is usearch, a graph (HNSW) of half-precision vectors with its defaults and a wider
search: it takes longer to build, so it gets fewer vectors (``--baseline-users``), and our cells are
built of the same ones beside it. Both search with one thread.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness import Record, compare, run_isolated, write_results
from materialize.embedding_rows import embedding_schema
from materialize.ledger import Ledger
from tests.neighbours import Planted, nearest, recall
from transforms.names import stored_view

SEED, DIM, K, QUERIES = 0, 120, 50, 500
_CHUNK = 65_536
_VERSION = "0123456789ab"
_HERE = "benchmarks.neighbours"

Float32 = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


def repository(folder: Path, users: int) -> None:
    """Write a repository whose space 1 has one committed run with a row of each user."""
    (folder / "palate.yaml").write_text("dataset: none.yaml\n", encoding="utf-8")
    (folder / "data").mkdir()
    ledger = Ledger(f"sqlite:///{folder}/data/ledger.db")
    ledger.register(_VERSION, "", {"raw_views": []})
    run = "0" * 16
    ledger.begin_run(run, stored_view(1), run, {"from_history": False}, space=1)
    out = folder / "data" / "offline" / stored_view(1) / f"run-{run}"
    out.mkdir(parents=True)
    schema = embedding_schema(pa.int64())
    with pq.ParquetWriter(out / "part.parquet", schema) as writer:
        start = 0
        for vectors in Planted(DIM, seed=SEED).draw(users, chunk=_CHUNK):
            writer.write_table(_rows(start, vectors, schema))
            start += len(vectors)
    ledger.commit_run(run, {"rows": users})


def _rows(start: int, vectors: Float32, schema: pa.Schema) -> pa.Table:
    n = len(vectors)
    ends = np.arange(0, n * DIM + 1, DIM, dtype=np.int32)
    moment = pa.array(np.full(n, 1_767_268_800_000_000))
    columns: dict[str, Any] = {
        "user_id": pa.array(np.arange(start, start + n)),
        "embedding": pa.ListArray.from_arrays(pa.array(ends), pa.array(vectors.ravel())),
        "as_of": moment,
        "space": pa.array(np.ones(n, np.int64)),
        "encoder_version": pa.repeat(_VERSION, n),
        "status": pa.repeat("warm", n),
        "n_events": pa.array(np.ones(n, np.int64)),
        "event_timestamp": moment.cast(schema.field("event_timestamp").type),
        "created_timestamp": moment.cast(schema.field("created_timestamp").type),
    }
    return pa.table(columns, schema)


def exact(users: int, queries: Float32) -> Ids:
    """Return who is really nearest, (n, K), a chunk of users in memory at a time."""
    best = np.full((len(queries), K), -np.inf, np.float32)
    truth = np.full((len(queries), K), -1, np.int64)
    start = 0
    for vectors in Planted(DIM, seed=SEED).draw(users, chunk=_CHUNK):
        cosine = queries @ vectors.T
        few = min(K, len(vectors))
        part = np.argpartition(-cosine, few - 1, axis=1)[:, :few]
        both = np.concatenate([best, np.take_along_axis(cosine, part, axis=1)], axis=1)
        where = np.concatenate([truth, part + start], axis=1)
        order = np.argsort(-both, axis=1)[:, :K]
        best = np.take_along_axis(both, order, axis=1)
        truth = np.take_along_axis(where, order, axis=1)
        start += len(vectors)
    return truth


def build(folder: str) -> dict[str, Any]:
    """Run the job in this process."""
    from materialize.context import Context
    from materialize.neighbours.build import build_neighbours

    context = Context(Path(folder))
    space = context.ledger.space(1)
    report = build_neighbours(context.settings, context.ledger, space, progress=False)
    assert report.outcome == "built"
    return report.to_dict()


def ask(folder: str, queries: str, out: str) -> dict[str, Any]:
    """Open the index in this process and ask for one user at a time."""
    from materialize.config import load_settings
    from materialize.neighbours import NeighbourIndex
    from materialize.neighbours.manifest import index_folder

    began = time.perf_counter()
    index = NeighbourIndex.open(index_folder(load_settings(folder), 1), 1, _VERSION)
    opened = time.perf_counter() - began
    found, seconds = _one_by_one(lambda q: index.search(q, K)[0][0], np.load(queries))
    np.save(out, found)
    return {"opened": opened, "seconds": seconds}


def _one_by_one(search: Callable[[Float32], Ids], queries: Float32) -> tuple[Ids, list[float]]:
    """Return what each query of one row found, and its seconds; each is asked twice."""
    for query in queries:
        search(query[None])
    found, seconds = [], []
    for query in queries:
        began = time.perf_counter()
        found.append(search(query[None]))
        seconds.append(time.perf_counter() - began)
    return np.stack(found), seconds


def ours_beside(vectors: str, queries: str, out: str, folder: str) -> dict[str, Any]:
    """Build cells of the baseline's vectors; ask as `ask` does."""
    from materialize.neighbours.cells import build_cells, read_cells

    users = np.load(vectors)
    rng = np.random.default_rng(SEED)

    def sample(n: int) -> Float32:
        return users[rng.choice(len(users), n, replace=False)]

    def chunks() -> Iterator[Float32]:
        for start in range(0, len(users), _CHUNK):
            yield users[start : start + _CHUNK]

    began = time.perf_counter()
    cells, tuning = build_cells(len(users), DIM, sample, chunks)
    built = time.perf_counter() - began
    path = Path(folder) / "cells"
    cells.write(path)
    mapped = read_cells(path)
    found, seconds = _one_by_one(
        lambda q: mapped.search(q, K, tuning.probes)[0][0], np.load(queries)
    )
    np.save(out, found)
    return {"built": built, "bytes": path.stat().st_size, "seconds": seconds}


def graph_beside(
    vectors: str, queries: str, out: str, folder: str, expansion: int
) -> dict[str, Any]:
    """Build usearch's graph of the same vectors; ask likewise, searching ``expansion`` wide."""
    from usearch.index import Index

    users = np.load(vectors)
    began = time.perf_counter()
    graph = Index(ndim=DIM, metric="cos", dtype="f16", expansion_search=expansion)
    graph.add(np.arange(len(users)), users)
    built = time.perf_counter() - began
    path = Path(folder) / "graph"
    graph.save(str(path))
    mapped = Index.restore(str(path), view=True)
    mapped.expansion_search = expansion
    found, seconds = _one_by_one(
        lambda q: mapped.search(q[0], K, threads=1).keys.astype(np.int64), np.load(queries)
    )
    np.save(out, found)
    return {"built": built, "bytes": path.stat().st_size, "seconds": seconds}


def million(folder: Path, users: int, queries: Float32) -> list[Record]:
    """Return the records of the index as it is used."""
    repository(folder, users)
    truth = exact(users, queries)
    np.save(folder / "queries.npy", queries)
    built = run_isolated(f"{_HERE}:build", str(folder))
    report = built.result
    assert report["users"] == users
    found = folder / "found.npy"
    asked = run_isolated(f"{_HERE}:ask", str(folder), str(folder / "queries.npy"), str(found))
    hit = recall(np.load(found), truth)
    ms = 1_000 * np.array(asked.result["seconds"])
    name = f"{users:,} users of {DIM} numbers"
    one = {"seed": SEED}
    return [
        compare(
            f"recall@{K} against exact search, {name}",
            [hit],
            unit="share",
            limit=("what the build says that it found", report["recall"]),
            target="ours >= 0.95",
            **one,
        ),
        compare(f"one search for {K}, p50, {name}", [np.percentile(ms, 50)], unit="ms", **one),
        compare(
            f"one search for {K}, p99, {name}",
            [np.percentile(ms, 99)],
            unit="ms",
            target="ours <= 5",
            **one,
        ),
        compare(
            f"the job, from Parquet to the swap, {name}",
            [report["seconds"]],
            unit="s",
            target="ours <= 180",
            **one,
        ),
        compare(f"peak memory of the job, {name}", [_mb(built.peak_rss_bytes)], unit="MB", **one),
        compare(
            f"memory of a reader with all pages mapped, {name}",
            [_mb(asked.peak_rss_bytes)],
            unit="MB",
            limit=("the index's files", _mb(report["size_bytes"])),
            **one,
        ),
        compare(
            f"bytes on disk for a user, {name}",
            [report["size_bytes"] / users],
            unit="bytes",
            limit=("float32 vector and id", 4.0 * DIM + 8),
            target="ratio_to_limit <= 0.6",
            **one,
        ),
        compare(f"opening, hashes checked, {name}", [asked.result["opened"]], unit="s", **one),
    ]


def beside(folder: Path, users: int, queries: Float32, expansion: int) -> list[Record]:
    """Return the records of cells and graph, of the same fewer vectors."""
    vectors, asked = folder / "vectors.npy", folder / "queries.npy"
    known = Planted(DIM, seed=SEED).users(users)
    np.save(vectors, known)
    np.save(asked, queries)
    truth, _ = nearest(known, queries, K)
    del known
    paths = (str(vectors), str(asked), str(folder / "found.npy"), str(folder))
    results: list[dict[str, Any]] = []
    recalls = []
    for target, more in ((f"{_HERE}:ours_beside", ()), (f"{_HERE}:graph_beside", (expansion,))):
        results.append(run_isolated(target, *paths, *more).result)
        recalls.append(recall(np.load(folder / "found.npy"), truth))
    cells, graph = results
    ms = [1_000 * np.array(each["seconds"]) for each in results]
    name, other = f"{users:,} users", f"usearch, {expansion} wide"
    one = {"seed": SEED}
    # Else it is no comparison: whoever finds less is faster.
    assert min(recalls) >= 0.9
    return [
        compare(
            f"recall@{K}, {name}",
            recalls[:1],
            unit="share",
            baseline=(other, recalls[1:]),
            target="ours >= 0.95",
            **one,
        ),
        compare(
            f"building in memory, {name}",
            [cells["built"]],
            unit="s",
            baseline=(other, [graph["built"]]),
            target="ratio_to_baseline <= 0.5",
            **one,
        ),
        *(
            compare(
                f"one search for {K}, p{p}, {name}",
                [np.percentile(ms[0], p)],
                unit="ms",
                baseline=(other, [np.percentile(ms[1], p)]),
                **one,
            )
            for p in (50, 99)
        ),
        compare(
            f"bytes on disk for a user, without ids, {name}",
            [cells["bytes"] / users],
            unit="bytes",
            baseline=(other, [graph["bytes"] / users]),
            **one,
        ),
    ]


def _mb(size: float) -> float:
    return size / 1e6


def main() -> None:
    """Measure, print and write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--baseline-users", type=int, default=100_000)
    parser.add_argument("--expansion", type=int, default=256, help="Width of usearch's search.")
    args = parser.parse_args()
    # Of people who are not in the index: a look-alike is asked for by a vector of this moment.
    queries = Planted(DIM, seed=SEED).users(QUERIES, stream=1)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("repo", "beside"):
            (Path(folder) / name).mkdir()
        records = million(Path(folder) / "repo", args.users, queries)
        records += beside(Path(folder) / "beside", args.baseline_users, queries, args.expansion)
    write_results("neighbours", records)


if __name__ == "__main__":
    main()
