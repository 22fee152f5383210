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
import json
import pstats
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks._environment import ROOT
from benchmarks._job_repo import save_encoder
from benchmarks._on_demand_repos import LAYOUT, NAIVE_USERS, NAIVE_VIEW, SEED, make
from benchmarks.harness import Record, compare, write_results
from tests.servers import redis_server
from transforms.names import USER_KEY, on_demand_view, stored_view

SIZES = (1, 10, 100, 500)
OURS, FEASTS, STOCK, STORED, NAIVE = (
    "on demand",
    "on demand, Feast's path",
    "stock stored",
    "our stored",
    "naive",
)
UNFROZEN = "on demand, not frozen"

_NAIVE_EVERY = 5

Read = Callable[[list[int]], npt.NDArray[np.float32]]


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
    users = min(users, NAIVE_USERS) if kind == NAIVE else users
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
