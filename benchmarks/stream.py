"""How fresh, fast and accurate are streamed embeddings as the load grows?

Real Redis, and real clicks replayed in the order of their times (news readers, ``PALATE_DATA``;
without them simulated listeners, which each claim then says): users who come back after the
evaluation's cut-off, with everything before the replay seeded from the batch. Each section starts a
Redis of its own from the same snapshot, and `palate stream run` as a process of its own.

- freshness: the next click of as many different users as there are, at one rate; an open-loop
  producer appends each event when it is due, and a process of its own asks the store until a reader
  can see it. Then all clicks in their order, at rates that double until workers fall behind.
- throughput: a backlog, drained; beside one event at a time with stock Feast.
- accuracy: the clicks that lead up to the cut-off, offered at multiples of that capacity. When the
  last one is due, what readers get is compared with the batch on all events up to the cut-off, and
  a linear probe that was fitted on the batch's embeddings predicts with both.
- memory: bytes of a user in Redis.

Producer, prober, Redis and workers share the machine's cores.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._stream_accuracy import AtLoad, at_load
from benchmarks._stream_data import Replay, read_replay
from benchmarks._stream_memory import user_bytes
from benchmarks._stream_naive import write_payloads
from benchmarks._stream_probe import probe_fields
from benchmarks._stream_records import (
    accuracy_records,
    curve_records,
    freshness_records,
    is_saturated,
    memory_records,
    throughput_records,
)
from benchmarks._stream_repo import SPACE, note, prepare
from benchmarks._stream_runs import Bench, Drained, Offered, Session
from benchmarks._stream_truth import Judge, Truth
from benchmarks.harness import Record, run_isolated, write_results
from materialize.compare import compare_views
from materialize.context import Context
from transforms.clean import CleanTables
from transforms.names import EMBEDDING_FEATURES, stored_view

SEED = 0
SECTIONS = ("freshness", "curve", "throughput", "accuracy", "memory")
_VIEW = stored_view(SPACE)
_SAMPLE = 200
_EQUAL = 1e-5


def _check(session: Session, replay: Replay) -> None:
    """Assert that stored embeddings of replayed users are what is encoded on demand."""
    rng = np.random.default_rng(SEED)
    users = np.unique(replay.user)
    some = rng.choice(users, min(_SAMPLE, len(users)), replace=False).tolist()
    store = Context(session.bench.prepared.repository).store
    found = compare_views(store, SPACE, some)
    assert found.agrees(_EQUAL), f"stored and on-demand embeddings differ: {found}"


def _freshness(bench: Bench, given: argparse.Namespace, data: str) -> list[Record]:
    rate = given.rate
    replay = bench.replay.first_of_each_user()
    replay = replay.take(np.arange(min(len(replay), int(rate * given.freshness_seconds))))
    with bench.session("freshness") as session:
        with session.workers(1) as workers:
            offered = session.offer(workers, replay, rate)
            ended = workers.stop()
        _check(session, replay)
    assert ended.summary["events"] == len(replay), "every event was applied once"
    return freshness_records(offered, ended, bench.prepared.users, data, SEED)


def _curve(bench: Bench, given: argparse.Namespace, data: str) -> list[Record]:
    points: list[Offered] = []
    at = 0
    with bench.session("curve") as session:
        with session.workers(1) as workers:
            for rate in given.rates:
                events = int(rate * given.seconds)
                replay = bench.replay.take(np.arange(at, min(at + events, len(bench.replay))))
                at += events
                points.append(session.offer(workers, replay, rate))
                if is_saturated(points[-1]):
                    note(f"saturated at {rate:,.0f}/s")
                    break
            workers.stop()
        _check(session, replay)
    return curve_records(points, data, SEED)


def _drain(bench: Bench, replay: Replay, number: int) -> Drained:
    with bench.session(f"drain-{number}-{len(replay)}") as session:
        drained = session.drain(replay, number)
        _check(session, replay)
    return drained


def _naive(bench: Bench, events: int) -> tuple[float, float]:
    """Return events/s and CPU seconds an event of the naive way; its embeddings are ours."""
    replay = bench.replay.take(np.arange(events))
    with bench.session("naive") as session:
        write_payloads(session.folder / "events", replay)
        note(f"{events} events, one at a time with stock Feast")
        told: dict[str, Any] = run_isolated(
            "benchmarks._stream_naive:run_naive",
            str(bench.prepared.repository),
            str(session.folder / "stock"),
            str(session.folder / "events"),
            session.server.port,
        ).result
        session.drain(replay, 1)
        store = Context(bench.prepared.repository).store
        answer = store.get_online_features(
            features=[f"{_VIEW}:embedding"],
            entity_rows=[{"user_id": user} for user in told["users"]],
        ).to_dict()
    apart = np.abs(np.array(answer["embedding"]) - np.array(told["embeddings"])).max()
    assert apart <= _EQUAL, f"the naive way's embeddings are {apart} apart"
    return told["events"] / told["seconds"], told["cpu_seconds"] / told["events"]


def _throughput(bench: Bench, given: argparse.Namespace, data: str) -> tuple[list[Record], float]:
    """Return the records, and the events/s of one worker until they are readable."""
    events = bench.replay.take(np.arange(min(given.backlog, len(bench.replay))))
    runs: dict[str, Drained] = {}
    for number in given.workers:
        plural = "s" if number > 1 else ""
        what = f"{number} worker{plural}, {len(events):,} events in their order, {data}"
        runs[what] = _drain(bench, events, number)
    others = bench.replay.first_of_each_user()
    others = others.take(np.arange(min(given.backlog, len(others))))
    what = f"1 worker, {len(others):,} events of as many users, {data}"
    runs[what] = _drain(bench, others, 1)
    naive = _naive(bench, given.naive_events)
    first = next(iter(runs.values()))
    capacity = first.events / first.applied_seconds
    return throughput_records(runs, naive, given.naive_events, SEED), capacity


def _accuracy(bench: Bench, given: argparse.Namespace, data: str, capacity: float) -> list[Record]:
    context = Context(bench.prepared.repository)
    cutoff = context.settings.dataset.evaluation.cutoff.timestamp() * 1e6
    before = bench.replay.take(np.flatnonzero(bench.replay.timestamp_us < cutoff))
    truth = Truth.load(bench.prepared.truth)
    note("fit the probe")
    judge = Judge(context, truth, SEED)
    found: dict[float, AtLoad] = {}
    for multiple in given.multiples:
        with bench.session(f"accuracy-{multiple}") as session:
            found[multiple] = at_load(session, before, multiple * capacity, truth, judge)
            _check(session, before)
    return accuracy_records(found, data, SEED)


def _memory(bench: Bench, given: argparse.Namespace) -> list[Record]:
    truth = Truth.load(bench.prepared.truth)
    rng = np.random.default_rng(SEED)
    replayed = set(bench.replay.user[: given.backlog].tolist())
    seeded = np.array([user for user in truth.users.tolist() if user not in replayed])
    users = rng.choice(seeded, min(given.sample, len(seeded)), replace=False)
    view = Context(bench.prepared.repository).store.get_feature_view(_VIEW)
    fields = bench.fields.all_of(view, EMBEDDING_FEATURES)
    with bench.session("memory") as session:
        found = user_bytes(session.client, bench.fields.keys(users), set(fields), _VIEW)
        server: Any = session.client.info("memory")
        used = float(server["used_memory"])
    return memory_records(found, used, bench.prepared.users, SEED)


def main() -> None:
    """Measure, print and write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--users", type=int, default=150_000, help="at most")
    parser.add_argument("--events", type=int, default=40_000, help="of the replay's first part")
    parser.add_argument("--rate", type=float, default=1_000.0, help="of the section freshness")
    parser.add_argument("--freshness-seconds", type=float, default=102.0, help="of that section")
    parser.add_argument("--rates", type=float, nargs="+", default=[500, 1e3, 2e3, 4e3, 8e3])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each of these rates")
    parser.add_argument("--backlog", type=int, default=30_000, help="events to drain")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--naive-events", type=int, default=200)
    parser.add_argument("--multiples", type=float, nargs="+", default=[0.25, 0.5, 1.0, 2.0])
    parser.add_argument("--capacity", type=float, help="events/s; default: as drained, else 5,000")
    parser.add_argument("--sample", type=int, default=5_000, help="users whose bytes are counted")
    parser.add_argument("--folder", type=Path, help="keeps what is prepared for other runs")
    given = parser.parse_args()
    records: list[Record] = []
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = given.folder or scratch / "prepared"
        folder.mkdir(parents=True, exist_ok=True)
        prepared = prepare(folder.resolve(), given.users, given.events, SEED)
        context = Context(prepared.repository)
        settings = context.settings
        clean = CleanTables(settings.data_dir)
        names = settings.dataset.events.context
        bench = Bench(
            prepared,
            settings,
            probe_fields(prepared.repository, _VIEW),
            read_replay(clean.events, prepared.start, names, SEED),
            scratch,
        )
        data = "real news clicks" if prepared.real else "SIMULATED listeners"
        note(f"{len(bench.replay):,} events to replay, {prepared.users:,} users in the store")
        gc.collect()
        gc.freeze()
        capacity = given.capacity or 5_000.0
        if "freshness" in given.sections:
            records += _freshness(bench, given, data)
        if "curve" in given.sections:
            records += _curve(bench, given, data)
        if "throughput" in given.sections:
            found, drained = _throughput(bench, given, data)
            records += found
            capacity = given.capacity or drained
        if "accuracy" in given.sections:
            records += _accuracy(bench, given, data, capacity)
        if "memory" in given.sections:
            records += _memory(bench, given)
    write_results("stream", records)


if __name__ == "__main__":
    main()
