"""What the stream benchmark claims: records of its sections, and the targets."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks._stream_accuracy import AtLoad
from benchmarks._stream_memory import UserBytes
from benchmarks._stream_runs import Drained, Offered, stages
from benchmarks._stream_worker import Ended
from benchmarks.harness import Record, compare

__all__ = [
    "accuracy_records",
    "curve_records",
    "freshness_records",
    "is_saturated",
    "memory_records",
    "throughput_records",
]

_FRESH_MS, _EVENTS_A_SECOND, _APART = 250, 5_000, 1e-4
_SATURATED, _BEHIND_SECONDS = 0.05, 0.1
"""A rate is beyond what workers can do when the backlog grows by this share of it, and is more than
what comes in so many seconds: a micro-batch that waits is no backlog."""


def is_saturated(offered: Offered) -> bool:
    """Return whether workers fell behind for good: more came than they could do."""
    waiting = offered.backlog[-1][1] if offered.backlog else 0
    grows = offered.growth > _SATURATED * offered.rate
    return grows and waiting > _BEHIND_SECONDS * offered.rate


def freshness_records(
    offered: Offered, ended: Ended, held: int, data: str, seed: int
) -> list[Record]:
    """Return the records of the judged rate.

    Parameters
    ----------
    offered : Offered
    ended : Ended
        What its worker said.
    held : int
        Users with a state when it began.
    data : str
        Whose events.
    seed : int
    """
    where = (
        f"{offered.rate:,.0f} events/s, {data}, {offered.users:,} different users, "
        f"{held:,} in the store"
    )
    records = []
    for name, value in (
        ("p50", offered.percentile(50)),
        ("p90", offered.percentile(90)),
        ("p99", offered.percentile(99)),
        ("largest", offered.percentile(100)),
    ):
        said = ended.summary["freshness_ms"].get(name)
        records.append(
            compare(
                f"freshness {name}, due to readable, from outside, {where}",
                [value],
                unit="ms",
                baseline=None if said is None else ("the worker's own histogram", [said]),
                target=f"ours < {_FRESH_MS}" if name == "p99" else None,
                seed=seed,
            )
        )
    records += [
        compare(
            f"freshness: sampled events of {len(offered.milliseconds):,} never seen, {where}",
            [float(offered.unseen)],
            unit="events",
            target="ours <= 0",
            seed=seed,
        ),
        compare(
            f"freshness: different users, {where}",
            [float(offered.users)],
            unit="users",
            target="ours >= 100000",
            seed=seed,
        ),
        compare(
            f"freshness: producer's delay p99, {where}", [offered.late_ms[1]], unit="ms", seed=seed
        ),
        compare(
            f"freshness: CPU of a worker, {where}",
            [ended.cpu_seconds / offered.events * 1e6],
            unit="us/event",
            seed=seed,
        ),
    ]
    return records


def curve_records(points: Sequence[Offered], data: str, seed: int) -> list[Record]:
    """Return what became of each rate; of a saturated one the latency grows as long as it lasts."""
    records = []
    for point in points:
        saturated = ", saturated" if is_saturated(point) else ""
        where = f"{point.rate:,.0f} events/s, {data}{saturated}"
        records += [
            *(
                compare(
                    f"curve: freshness p{share}, {where}",
                    [point.percentile(share)],
                    unit="ms",
                    seed=seed,
                )
                for share in (50, 99)
            ),
            compare(
                f"curve: growth of the backlog, {where}",
                [point.growth],
                unit="events/s",
                limit=("offered", point.rate),
                seed=seed,
            ),
        ]
    return records


def throughput_records(
    runs: dict[str, Drained], naive: tuple[float, float], naive_events: int, seed: int
) -> list[Record]:
    """Return the records of drained backlogs.

    Parameters
    ----------
    runs : dict of str to Drained
        By what was drained; the first one is the judged one, of one worker.
    naive : (float, float)
        Events a second and CPU seconds an event of the naive processor.
    naive_events : int
    seed : int
    """
    name = f"one event at a time with stock Feast, online only ({naive_events} events)"
    records = []
    for number, (what, run) in enumerate(runs.items()):
        rate = run.events / run.seconds
        records.append(
            compare(
                f"throughput until acknowledged (online and offline), {what}",
                [rate],
                unit="events/s",
                baseline=(name, [naive[0]]),
                target=f"ours >= {_EVENTS_A_SECOND}" if number == 0 else None,
                seed=seed,
            )
        )
        records.append(
            compare(
                f"throughput until readable, {what}",
                [run.events / run.applied_seconds],
                unit="events/s",
                seed=seed,
            )
        )
        if what.startswith("1 worker,"):  # a supervisor's children are gone when its time is read
            records.append(
                compare(
                    f"CPU of the worker, {what}",
                    [run.ended.cpu_seconds / run.events * 1e6],
                    unit="us/event",
                    baseline=(name, [naive[1] * 1e6]),
                    seed=seed,
                )
            )
        records.append(
            compare(
                f"peak memory of a worker, {what}",
                [run.ended.peak_bytes / 2**20],
                unit="MiB",
                seed=seed,
            )
        )
        if number == 0:
            records += [
                compare(f"time of stage {stage}, {what}", [spent], unit="us/event", seed=seed)
                for stage, spent in stages(run.ended.summary).items()
            ]
    return records


def accuracy_records(found: dict[float, AtLoad], data: str, seed: int) -> list[Record]:
    """Return what readers saw at each multiple of the capacity, and when all was applied."""
    records = []
    for multiple, load in found.items():
        where = (
            f"{multiple:g}x capacity, {load.offered.rate:,.0f} events/s, {data}, "
            f"{load.users:,} active users"
        )
        for what, value, unit in (
            ("largest difference to batch", load.max_abs_diff, "1"),
            ("mean cosine to batch", load.cosine_mean, "1"),
            ("cosine to batch, p5", load.cosine_p5, "1"),
            ("users behind", load.behind, "share"),
            ("users without an embedding", load.missing, "share"),
            ("staleness, mean", load.staleness_mean, "s"),
            ("staleness, p95", load.staleness_p95, "s"),
            ("freshness p99", load.offered.percentile(99), "ms"),
        ):
            records.append(compare(f"at load: {what}, {where}", [value], unit=unit, seed=seed))
        for who, judged in (("active", load.active), ("all", load.everybody)):
            records.append(
                compare(
                    f"at load: probe AUC of {judged.users:,} {who} test users, {where}; difference "
                    f"{judged.difference.value:+.5f} "
                    f"[{judged.difference.low:+.5f}, {judged.difference.high:+.5f}]",
                    [judged.seen.value],
                    unit="AUC",
                    baseline=("batch", [judged.batch.value]),
                    seed=seed,
                )
            )
        records.append(
            compare(
                f"drained: largest difference to batch, {where}",
                [load.drained_max_abs_diff],
                unit="1",
                target=f"ours <= {_APART}",
                seed=seed,
            )
        )
        records.append(
            compare(
                f"drained: users behind, {where}",
                [load.drained_behind],
                unit="share",
                target="ours <= 0",
                seed=seed,
            )
        )
    return records


def memory_records(user: UserBytes, used: float, users: int, seed: int) -> list[Record]:
    """Return the bytes of a user in Redis."""
    where = f"of {user.users:,} of {users:,} users"
    parts = (
        ("state", user.state),
        ("raw rows", user.raw),
        ("embedding", user.embedding),
        ("whole key", user.whole),
    )
    return [
        *(
            compare(f"memory: {name}, mean {where}", [value], unit="bytes", seed=seed)
            for name, value in parts
        ),
        compare("memory: Redis, over all users", [used / users], unit="bytes", seed=seed),
    ]
