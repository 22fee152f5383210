"""What does an embedding cost over HTTP and in process, on demand and stored, in time and CPU?

`feast serve` with one and two workers over Redis answers a bounded closed loop of requests on the
loopback interface: so many connections, each waiting for its answer before it asks again. Answers
are compared with expected bytes, which were compared with Feast's own in process. In process, one
thread asks Feast for the same features, and the client its consumer's embeddings (and the ledger
for the pin once a second).

Client, server and Redis share the machine's cores, so requests/s is less than a server of its own
would reach, and latencies of more connections than idle cores hold waiting. CPU seconds do not
depend on that: of the server's processes (workers and the one that starts them), of Redis as it
counts them, and of the caller, who sends, receives and turns JSON into float32.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import redis
import requests

from benchmarks import _job_repo, _raw_rows
from benchmarks._http_load import PATH, Question, vectors, write_questions
from benchmarks._serving_cost import (
    CALLER,
    DEMAND,
    IN_PROCESS,
    READER,
    REDIS,
    SERVING,
    STORED,
    claim,
    cost_table,
    over,
)
from benchmarks.harness import RESULTS, Record, compare, run_isolated, write_results
from materialize.context import Context
from materialize.template import template_folder
from tests.servers import FeastServer, Server, feast_server, redis_server
from tests.stores import PROFILES
from transforms.names import USER_KEY, on_demand_view, stored_view

SEED = 0
_NAMES = ("embedding", "as_of", "status")
_VIEWS = {
    DEMAND: on_demand_view(_job_repo.SPACE),
    STORED: stored_view(_job_repo.SPACE),
}
_CONSUMER = "load"
_QUESTIONS = 16
_PREWARM = "static_artifacts.py"


@dataclass
class Loads:
    """What repeats of one way took, one figure a repeat."""

    rates: list[float] = field(default_factory=list)
    """Requests/s."""
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    """Milliseconds."""
    errors: float = 0.0
    serving: list[float] = field(default_factory=list)
    """CPU seconds of the serving processes per 1,000 embeddings; in process: of the process."""
    redis: list[float] = field(default_factory=list)
    caller: list[float] = field(default_factory=list)
    """CPU seconds of the caller per 1,000 embeddings; 0 in process."""
    caller_share: list[float] = field(default_factory=list)
    """CPU seconds of the load generator per second, of all cores."""

    def add(self, milliseconds: Sequence[float], seconds: float, errors: int) -> None:
        """Add the rate and the latencies of one repeat."""
        self.rates.append(len(milliseconds) / seconds)
        self.p50.append(float(np.percentile(milliseconds, 50)))
        self.p99.append(float(np.percentile(milliseconds, 99)))
        self.errors += errors


def _make(folder: Path, server: Server, users: int) -> Path:
    """Return a repository with raw features and a space of each user online, and one consumer."""
    from materialize.batch import materialize_space, materialize_view
    from materialize.consumers import add_consumer

    layout, raw, artifacts = _raw_rows.SMALL, folder / "raw", folder / "artifacts"
    _job_repo.write_raw(raw, users, SEED, layout)
    version = _job_repo.save_encoder(artifacts, SEED, layout)
    online = PROFILES["palate-redis"].settings(server, str(folder))
    repository = _job_repo.make(folder / "load", raw, artifacts, [version], online, {}, layout)
    shutil.copy(template_folder() / _PREWARM, repository)
    context = Context(repository)
    where = (context.store, context.settings, context.ledger)
    for view in layout.views:
        report = materialize_view(*where, view, end=_job_repo.END, progress=False)
        assert (report.outcome, report.online_rows) == ("committed", users)
    space = context.ledger.space(_job_repo.SPACE)
    report = materialize_space(*where, space, end=_job_repo.END, progress=False)
    assert (report.outcome, report.online_rows) == ("committed", users)
    add_consumer(context.store, context.ledger, _CONSUMER, space.number, who="benchmark", why="")
    return repository


def _sample(users: int, each: int) -> list[list[int]]:
    """Return the users of each question."""
    rng = np.random.default_rng(SEED)
    return [
        _job_repo.user_ids(rng.choice(users, each, replace=False)).tolist()
        for _ in range(_QUESTIONS)
    ]


def _features(way: str) -> list[str]:
    return [f"{_VIEWS[way]}:{name}" for name in _NAMES]


def _in_feast(store: Any, way: str, users: list[int]) -> npt.NDArray[np.float32]:
    answer = store.get_online_features(
        features=_features(way), entity_rows=[{USER_KEY: user} for user in users]
    )
    return np.array(answer.to_dict()["embedding"], np.float32)


def in_process(
    repository: str, users: int, each: int, seconds: float, repeats: int
) -> dict[str, Any]:
    """Ask in this process with one thread, the ways taking turns; return what repeats took."""
    from materialize.client import EmbeddingClient
    from transforms.runtime import prewarm

    context = Context(Path(repository))
    store = context.store
    prewarm(store)
    # As Feast's registry: a move is seen after a second at most.
    client = EmbeddingClient(store, context.settings.ledger_url, _CONSUMER, pin_seconds=1.0)
    ways: dict[str, Callable[[list[int]], npt.NDArray[np.float32]]] = {
        DEMAND: lambda asked: _in_feast(store, DEMAND, asked),
        STORED: lambda asked: _in_feast(store, STORED, asked),
        READER: lambda asked: client.read(asked).embedding,
    }
    sample = _sample(users, each)
    # All ways give the same vectors: each warms up, and is checked, on the same questions.
    known = [ways[STORED](asked) for asked in sample]
    for way in ways.values():
        for asked, expected in zip(sample, known, strict=True):
            np.testing.assert_allclose(way(asked), expected, rtol=0, atol=1e-5)
    host, port = store.config.online_store.connection_string.split(":")
    taken: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    with redis.Redis(host, int(port)) as server:
        for _ in range(repeats):
            for name, way in ways.items():
                milliseconds, cpu, of_redis = [], time.process_time(), _redis_seconds(server)
                began = time.perf_counter()
                while time.perf_counter() < began + seconds:
                    start = time.perf_counter()
                    way(sample[len(milliseconds) % len(sample)])
                    milliseconds.append((time.perf_counter() - start) * 1e3)
                taken[name].append(
                    {
                        "milliseconds": milliseconds,
                        "seconds": time.perf_counter() - began,
                        "cpu_seconds": time.process_time() - cpu,
                        "redis_seconds": _redis_seconds(server) - of_redis,
                    }
                )
    client.close()
    return taken


def _redis_seconds(client: redis.Redis) -> float:
    used = client.info("cpu")
    return float(used["used_cpu_user"] + used["used_cpu_sys"])


def _server_seconds(server: FeastServer) -> float:
    """Return the CPU seconds of the server's processes so far."""
    first = psutil.Process(server.process.pid)
    times = [process.cpu_times() for process in (first, *first.children(recursive=True))]
    return sum(one.user + one.system for one in times)


def _post(server: FeastServer, body: bytes) -> bytes:
    answer = requests.post(
        f"{server.url}{PATH}", data=body, headers={"Content-Type": "application/json"}, timeout=60
    )
    assert answer.status_code == 200, answer.text
    return answer.content


def _body(way: str, users: list[int]) -> bytes:
    return json.dumps({"features": _features(way), "entities": {USER_KEY: users}}).encode()


def _questions(
    folder: Path, server: FeastServer, store: Any, way: str, sample: list[list[int]]
) -> str:
    """Write questions whose answers over HTTP are those in process, bit for bit."""
    questions = []
    for users in sample:
        body = _body(way, users)
        answer = _post(server, body)
        assert np.array_equal(vectors(answer), _in_feast(store, way, users))
        questions.append(Question(body, answer))
    write_questions(folder, questions)
    return str(folder)


def _load(
    loads: Loads, server: FeastServer, client: redis.Redis, folder: str, each: int, **how: Any
) -> None:
    """Drive the server once."""
    before = _server_seconds(server), _redis_seconds(client)
    # The process that asks is started meanwhile; the server idles until it does.
    told = run_isolated("benchmarks._http_load:drive", server.url, folder, **how).result
    asked = len(told["milliseconds"])
    loads.add(told["milliseconds"], told["seconds"], told["errors"])
    # Each connection asked once before the clock ran.
    thousands = (asked + how["connections"]) * each / 1_000
    loads.serving.append((_server_seconds(server) - before[0]) / thousands)
    loads.redis.append((_redis_seconds(client) - before[1]) / thousands)
    caller = told["cpu_seconds"] / asked + told["parse_seconds"]
    loads.caller.append(caller * 1_000 / each)
    loads.caller_share.append(told["cpu_seconds"] / told["seconds"])


def _over_http(
    repository: Path, folder: Path, server: Server, given: argparse.Namespace
) -> dict[tuple[int, int, int], dict[str, Loads]]:
    """Return what (workers, connections, users a request) took, by way; the ways take turns."""
    store = Context(repository).store
    taken = {}
    with redis.Redis(server.host, server.port) as client:
        for workers in given.workers:
            own = folder / f"workers-{workers}"
            own.mkdir()
            # Without --max-requests 0 workers are replaced every 1,000 requests.
            running = feast_server(repository, own, "--max-requests", "0", workers=workers)
            with running as feast:
                for each in given.users_a_request:
                    sample = _sample(given.users, each)
                    folders = {
                        way: _questions(own / f"{way}-{each}", feast, store, way, sample)
                        for way in _VIEWS
                    }
                    for connections in given.connections:
                        if connections < workers:
                            continue
                        loads = {way: Loads() for way in _VIEWS}
                        how = {
                            "connections": connections,
                            "requests": given.requests,
                            "seconds": given.seconds,
                        }
                        for _ in range(given.repeats):
                            for way, one in loads.items():
                                _load(one, feast, client, folders[way], each, **how)
                        taken[workers, connections, each] = loads
    return taken


def _first_answers(
    repository: Path, folder: Path, starts: int, users: list[int]
) -> dict[bool, list[float]]:
    """Return milliseconds of the first on-demand answer of servers with and without prewarm."""
    taken: dict[bool, list[float]] = {True: [], False: []}
    hook = repository / _PREWARM
    aside = hook.with_suffix(".aside")
    for start in range(starts):
        for prewarmed in (True, False):
            if not prewarmed:
                hook.rename(aside)
            own = folder / f"first-{start}-{prewarmed}"
            own.mkdir()
            with feast_server(repository, own) as server:
                began = time.perf_counter()
                _post(server, _body(DEMAND, users))
                taken[prewarmed].append((time.perf_counter() - began) * 1e3)
            if not prewarmed:
                aside.rename(hook)
    return taken


def _records(
    where: str, each: int, ours: tuple[str, Loads], other: tuple[str, Loads]
) -> list[Record]:
    """Return the records of one way beside another."""
    (way, loads), (name, theirs) = ours, other
    what = claim(way, where, each)
    figures = [
        ("requests/s", "requests/s", loads.rates, theirs.rates),
        ("p50", "ms", loads.p50, theirs.p50),
        ("p99", "ms", loads.p99, theirs.p99),
        (SERVING, "s", loads.serving, theirs.serving),
        (REDIS, "s", loads.redis, theirs.redis),
    ]
    if loads.caller:
        figures.append((CALLER, "s", loads.caller, theirs.caller))
    records = [
        compare(f"{what}: {figure}", values, unit=unit, baseline=(name, others), seed=SEED)
        for figure, unit, values, others in figures
    ]
    if loads.caller:
        records += [
            compare(
                f"{what}: cores that the load generator took", loads.caller_share, unit="cores"
            ),
            compare(
                f"{what}: errors, {name} included",
                [loads.errors + theirs.errors],
                unit="errors",
                target="ours <= 0",
                seed=SEED,
            ),
        ]
    return records


def _within(repository: Path, given: argparse.Namespace, each: int) -> dict[str, Loads]:
    told = run_isolated(
        "benchmarks.server_load:in_process",
        *(str(repository), given.users, each, given.seconds, given.repeats),
    ).result
    taken = {}
    for way, repeats in told.items():
        loads = taken[way] = Loads()
        for one in repeats:
            loads.add(one["milliseconds"], one["seconds"], 0)
            thousands = len(one["milliseconds"]) * each / 1_000
            loads.serving.append(one["cpu_seconds"] / thousands)
            loads.redis.append(one["redis_seconds"] / thousands)
    return taken


def main() -> None:
    """Measure, print and write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=100_000, help="in the store")
    parser.add_argument("--users-a-request", type=int, nargs="+", default=[1, 100])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--requests", type=int, default=5_000, help="at most, of one repeat")
    parser.add_argument("--seconds", type=float, default=2.0, help="at most, of one repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--starts", type=int, default=2, help="of servers, for first answers")
    parser.add_argument("--table", action="store_true", help="print the guide's table and end")
    given = parser.parse_args()
    if given.table:
        print(cost_table(json.loads((RESULTS / "server_load.json").read_text(encoding="utf-8"))))
        return
    records: list[Record] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(redis_server(folder))
        repository = _make(folder, server, given.users)
        for (workers, connections, each), loads in _over_http(
            repository, folder, server, given
        ).items():
            sides = (DEMAND, loads[DEMAND]), (STORED, loads[STORED])
            records += _records(over(workers, connections), each, *sides)
        for each in given.users_a_request:
            loads = _within(repository, given, each)
            for way in (DEMAND, READER):
                sides = (way, loads[way]), (STORED, loads[STORED])
                records += _records(IN_PROCESS, each, *sides)
        first = _first_answers(repository, folder, given.starts, _sample(given.users, 1)[0])
        records.append(
            compare(
                "HTTP: first on-demand answer of a server that has just become healthy",
                first[True],
                unit="ms",
                baseline=("without prewarm", first[False]),
                seed=SEED,
            )
        )
    write_results("server_load", records)


if __name__ == "__main__":
    main()
