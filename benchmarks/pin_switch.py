"""How soon does a serving process read the new space after a move, and what does asking cost?

One process moves a consumer back and forth between two spaces, at random moments; another reads it
over and over. A move's delay runs from the moment at which the ledger has it to the end of the
first read of the other space. A read is late when it began after that moment and still answered
the old space. Both use the machine's monotonic clock.

Compared: the client, which asks the ledger for the pin with each read, and plain Feast, which reads
the consumer's feature service through its registry's cache. Online store: Redis. Ledger and SQL
registry: PostgreSQL.

The cost is that of the same client with and without asking, and of plain Feast, read by read in
turn. Everything is on one machine, so a network's round trips come on top.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg

from benchmarks._environment import ROOT
from benchmarks.harness import Record, compare, write_results
from tests.servers import Server, postgres_server, redis_server
from tests.spaces import Spaces, vectors
from tests.stores import PROFILES

SEED = 0
_NAME = "home"
_WHO = {"who": "benchmark", "why": ""}
_DIM, _STORED_USERS = 120, 1_000
_SEEN_SECONDS = 120.0

_CLIENT, _KEPT, _FEAST = "client", "client without asking", "plain Feast"

Read = Callable[[list[int]], tuple[int, npt.NDArray[np.float32]]]


def _reader(kind: str, repo: Path) -> Read:
    """Return a function: users -> the space that was answered, and the vectors."""
    from materialize.client import EmbeddingClient
    from materialize.context import Context

    context = Context(repo)
    store = context.store
    if kind in {_CLIENT, _KEPT}:
        seconds = 0.0 if kind == _CLIENT else 1e9
        url = context.settings.ledger_url
        client = EmbeddingClient(store, url, _NAME, pin_seconds=seconds)

        def read(users: list[int]) -> tuple[int, npt.NDArray[np.float32]]:
            batch = client.read(users)
            return batch.space, batch.embedding

        return read

    def read_service(users: list[int]) -> tuple[int, npt.NDArray[np.float32]]:
        answer = store.get_online_features(
            # From the cache, as a feature server does.
            features=store.get_feature_service(_NAME, allow_cache=True),
            entity_rows=[{"user_id": user} for user in users],
        ).to_dict()
        (space,) = set(answer["space"])
        return space, np.array(answer["embedding"], np.float32)

    return read_service


def serve(kind: str, repo: Path, users: int, out: Path) -> None:
    """Read until the file ``out`` is there; print each new space; leave (began, ended, space)."""
    read, asked = _reader(kind, repo), list(range(users))
    reads: list[tuple[float, float, int]] = []
    space = 0
    while not out.exists():
        began = time.monotonic()
        found, _ = read(asked)
        reads.append((began, time.monotonic(), found))
        if found != space:
            space = found
            print(json.dumps(space), flush=True)
    np.save(out.with_suffix(".npy"), np.array(reads))


def _switch(
    kind: str, spaces: Spaces, folder: Path, moves: int, pause: float
) -> tuple[list[float], int, int]:
    """Move the consumer under a reading process; return delays, late reads and all reads."""
    from materialize.services import apply_services

    store, ledger = spaces.context.store, spaces.ledger
    rng = np.random.default_rng(SEED)
    out = folder / f"{uuid.uuid4().hex}.stop"
    process = subprocess.Popen(
        [
            *(sys.executable, "-W", "ignore", "-m", "benchmarks.pin_switch", "--reader", kind),
            *("--repository", str(spaces.tiny.path), "--out", str(out)),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    present = ledger.consumer(_NAME)
    assert json.loads(process.stdout.readline()) == present.space
    moments = []
    for _ in range(moves):
        time.sleep(rng.uniform(0.1, 0.1 + pause))
        space = 3 - present.space
        # The two halves of `move_consumer`, to know when the first is done.
        asked = time.monotonic()
        present = ledger.move_consumer(_NAME, space, expected_revision=present.revision, **_WHO)
        moments.append((asked, time.monotonic(), space))
        apply_services(store, ledger)
        assert json.loads(process.stdout.readline()) == space
    out.touch()
    assert process.wait(_SEEN_SECONDS) == 0
    began, ended, found = np.load(out.with_suffix(".npy")).T
    delays, late = [], 0
    for k, (asked, moved, space) in enumerate(moments):
        # The ledger has the move at some moment between these two.
        seen = ended[(found == space) & (ended >= asked)][0]
        delays.append(max(0.0, float(seen - moved)))
        until = moments[k + 1][0] if k + 1 < len(moments) else np.inf
        late += int(((found != space) & (began > moved) & (began < until)).sum())
    return delays, late, len(found)


def _cost(spaces: Spaces, users: int, reads: int, repeats: int) -> dict[str, npt.NDArray[Any]]:
    """Return the milliseconds of each read by kind, (repeats, reads); the kinds take turns."""
    kinds = {kind: _reader(kind, spaces.tiny.path) for kind in (_CLIENT, _KEPT, _FEAST)}
    rng = np.random.default_rng(SEED)
    pinned = spaces.ledger.pin(_NAME)
    taken = {kind: np.empty((repeats + 1, reads)) for kind in kinds}
    for repeat in range(repeats + 1):
        for k in range(reads):
            asked = rng.choice(_STORED_USERS, users, replace=False).tolist()
            for kind, read in kinds.items():
                start = time.perf_counter()
                space, found = read(asked)
                taken[kind][repeat, k] = (time.perf_counter() - start) * 1e3
                assert space == pinned.space
                if k == 0:
                    expected = vectors(pinned.encoder_version, asked, dim=_DIM)
                    assert np.array_equal(found, expected)
    return {kind: times[1:] for kind, times in taken.items()}  # the first one warms up


def _make(folder: Path, redis: Server, postgres: Server, cache_seconds: int | None) -> Spaces:
    """Return a repository whose consumer reads one of two spaces; None: a file registry."""
    name = f"ledger_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    url = f"{postgres.url.rsplit('/', 1)[0]}/{name}"
    registry = {
        "registry_type": "sql",
        "path": url.replace("postgresql:", "postgresql+psycopg:"),
        "cache_ttl_seconds": cache_seconds,
    }
    spaces = Spaces.make(
        folder,
        online=PROFILES["palate-redis"].settings(redis, str(folder)),
        registry=None if cache_seconds is None else registry,
        ledger=url,
        dim=_DIM,
    )
    for _ in range(2):
        spaces.add_space(range(_STORED_USERS))
    from materialize.consumers import add_consumer

    add_consumer(spaces.context.store, spaces.ledger, _NAME, 1, **_WHO)
    return spaces


def _delays(where: str, spaces: Spaces, folder: Path, moves: int, pause: float) -> list[Record]:
    ours, late, reads = _switch(_CLIENT, spaces, folder, moves, 0.2)
    theirs, late_theirs, reads_theirs = _switch(_FEAST, spaces, folder, moves, pause)
    return [
        compare(
            f"{where}: a move is read by another process, {moves} moves",
            ours,
            unit="s",
            baseline=(_FEAST, theirs),
            target="ours <= 0.1",
            seed=SEED,
        ),
        compare(
            f"{where}: reads that began after a move and answered the old space, of {reads} "
            f"(plain Feast: {reads_theirs})",
            [float(late)],
            unit="reads",
            baseline=(_FEAST, [float(late_theirs)]),
            target="ours <= 0",
            seed=SEED,
        ),
    ]


def main() -> None:
    """Measure, print and write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reader", help="read as this kind; used by the benchmark itself")
    parser.add_argument("--repository", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--moves", type=int, default=10)
    parser.add_argument("--cache-seconds", type=int, default=5, help="SQL registry's cache")
    parser.add_argument("--users", type=int, default=100, help="of one read")
    parser.add_argument("--reads", type=int, default=500, help="of one repeat")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    if args.reader:
        serve(args.reader, args.repository, args.users, args.out)
        return
    records = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis = stack.enter_context(redis_server(folder))
        postgres = stack.enter_context(postgres_server())
        cached = args.cache_seconds
        sql = _make(folder / "sql", redis, postgres, cached)
        file = _make(folder / "file", redis, postgres, None)
        where = f"SQL registry cached for {cached} s"
        records += _delays(where, sql, folder, args.moves, float(cached))
        records += _delays("file registry", file, folder, args.moves, 0.2)
        for users in (1, args.users):
            taken = _cost(sql, users, args.reads, args.repeats)
            for percent in (50, 99):
                figures = {k: np.percentile(t, percent, axis=1).tolist() for k, t in taken.items()}
                what = f"{users} user(s) a read, 120-d, p{percent}, pin asked with each read"
                records += [
                    compare(
                        f"{what}, against the same client without asking",
                        figures[_CLIENT],
                        unit="ms",
                        baseline=(_KEPT, figures[_KEPT]),
                        seed=SEED,
                    ),
                    compare(
                        f"{what}, against plain Feast's feature service",
                        figures[_CLIENT],
                        unit="ms",
                        baseline=(_FEAST, figures[_FEAST]),
                        target="ratio_to_baseline <= 1",
                        seed=SEED,
                    ),
                ]
    write_results("pin_switch", records)


if __name__ == "__main__":
    main()
