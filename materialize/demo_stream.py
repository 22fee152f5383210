"""``palate demo stream``: near-real-time on a demo's repository, from a sign-up to a replay."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import numpy.typing as npt
import yaml

from encoder.errors import DataFault, VerificationFailed
from materialize.batch import materialize_space, materialize_view
from materialize.context import Context
from materialize.demo import feast_apply, run_demo, write_summary
from materialize.demo_live import Probe, Probes, redis_beside, until, worker_beside
from materialize.demo_replay import Replay, open_replay
from materialize.meter import StepMeter
from materialize.stream.check import StreamCheck, check_stream
from materialize.stream.seed import seed_states
from materialize.stream.targets import StreamTargets, TargetWatch
from transforms.clean import CleanTables
from transforms.layout import ONBOARDING, PROFILE
from transforms.names import USER_KEY
from transforms.stream.events import StreamEvent

if TYPE_CHECKING:
    from materialize.stream.broker import Writer

__all__ = ["run_stream_demo"]

_PROJECT = "palate_demo"
_MINUTE_US = 60_000_000
_SAMPLE = 500
_NEAREST = 50
_CHUNK = 20
_READ = 200
_LIMIT = 1e-4


@dataclass(frozen=True)
class _Moment:
    """A step that was shown."""

    step: str
    freshness_ms: float
    status: str
    cosine_to_before: float | None
    note: str = ""
    near: dict[str, Any] | None = None
    """How much more the nearest users consume of the taste that was shown than all users do."""


def run_stream_demo(
    output: Path,
    dataset: str | None = None,
    redis: str | None = None,
    *,
    events: int = 5_000,
    rate: float = 500.0,
) -> str:
    """Stream into a copy of a demo's repository, and return a table of what happened.

    Parameters
    ----------
    output : Path
        Of `palate demo`, which is run first when it has not been. Receives ``stream/``: the
        copy, logs and ``summary.json``; an earlier one is replaced.
    dataset : str or None
        Where there is no finished demo: as `palate demo`, but None stands for simulated listeners,
        because of the shipped data sets only theirs has onboarding picks.
    redis : str or None
        ``host:port`` of an empty Redis; None: one is started for the demo.
    events : int
        About how many of the data set's last events are replayed.
    rate : float
        Events a second of the replay.

    Raises
    ------
    DataFault
        No Redis, or a repository that cannot be streamed into.
    VerificationFailed
        Streamed rows are not what the batch makes of the same events.
    """
    output = output.resolve()
    repo = output / "repo"
    if not _is_finished(repo):
        click.echo("No finished demo: running `palate demo` first.", err=True)
        click.echo(run_demo(output, dataset or "simulated"), err=True)
    elif dataset not in (None, Context(repo).settings.dataset.name):
        raise DataFault(f"{repo} holds another data set than {dataset!r}. Name another --output.")
    folder = output / "stream"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with redis_beside(folder, redis) as address:
        own = _copy(repo, folder / "repo", address)
        summary = _Demo(own, folder).run(events, rate)
    write_summary(folder / "summary.json", summary)
    if not summary["check"]["agrees"]:
        raise VerificationFailed(
            f"Streamed rows differ from the batch: {summary['check']['why']}. "
            f"{folder / 'summary.json'} names the users."
        )
    return _table(summary, folder)


def _is_finished(repo: Path) -> bool:
    if not (repo / "palate.yaml").is_file():
        return False
    context = Context(repo)
    settings = context.settings
    there = CleanTables(settings.data_dir).exists() and settings.features_dir.is_dir()
    return there and any(space.state == "ready" for space in context.ledger.spaces())


def _copy(repo: Path, target: Path, address: str) -> Path:
    """Copy a repository and apply it with the Redis store: what is streamed stays in the copy."""
    left_out = shutil.ignore_patterns("_staging", "buckets", "registry.db", "online*.db")
    shutil.copytree(repo, target, ignore=left_out)
    content = yaml.safe_load((target / "feature_store.redis.yaml").read_text(encoding="utf-8"))
    content["project"] = _PROJECT
    content["online_store"]["connection_string"] = address
    (target / "feature_store.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    feast_apply(target)
    return target


class _Demo:
    """One run, on a repository of its own."""

    def __init__(self, repo: Path, folder: Path) -> None:
        from materialize.stream.atomic import UserHashes

        self._repo, self._folder = repo, folder
        self._context = Context(repo)
        self._store, self._settings = self._context.store, self._context.settings
        self._ledger = self._context.ledger
        self._clean = CleanTables(self._settings.data_dir)
        self._hashes = UserHashes(self._store)
        self._meter = StepMeter()
        self._moments: list[_Moment] = []

    def run(self, events: int, rate: float) -> dict[str, Any]:
        """Do everything and return the summary."""
        targets = TargetWatch(self._store, self._settings, self._ledger).targets
        self._embedding = targets.embeddings[-1].stored
        with open_replay(
            self._clean,
            self._settings.dataset,
            targets.layout,
            events=events,
            memory_limit_mb=self._settings.file.memory_limit_mb // 2,
        ) as replay:
            self._prepare(replay, targets)
            return self._stream(replay, targets, rate)

    def _prepare(self, replay: Replay, targets: StreamTargets) -> None:
        job = (self._store, self._settings, self._ledger)
        with self._meter.step("materialise") as step:
            for raw in targets.raw:
                materialize_view(*job, raw.name, end=replay.cut, force=True, progress=False)
            spaces = {one.space.number: one.space for one in targets.embeddings}
            for space in spaces.values():
                done = materialize_space(*job, space, end=replay.cut, force=True, progress=False)
                step.counts = {"rows": done.online_rows}
        with self._meter.step("seed") as step:
            seeded = seed_states(*job, until=replay.cut, progress=False)
            step.counts = {"users": seeded.users, "events": seeded.events}

    def _stream(self, replay: Replay, targets: StreamTargets, rate: float) -> dict[str, Any]:
        from materialize.stream.broker import open_broker

        with closing(open_broker(self._store, self._settings)) as broker:
            writer = broker.writer()

            def owned() -> bool:
                return all(one.owner is not None for one in broker.lag().partitions)

            def applied() -> bool:
                left = broker.lag()
                return not left.undelivered and not left.unacknowledged

            with worker_beside(self._repo, self._folder, owned, "--flush-seconds", "2"):
                self._tell(writer, replay, targets)
                replayed = self._replay(writer, replay.events(), rate)
                until(applied, "The rest of the stream")
                with self._meter.step("check") as step:
                    check = self._check(replayed["touched"], broker.payloads())
                    step.counts = {"users": check.users}
        cosines = self._cosines(replayed["before"], self._vectors(list(replayed["before"])))
        summary: dict[str, Any] = {
            "dataset": self._settings.dataset.name,
            "cut": replay.cut.isoformat(),
            "moments": [asdict(moment) for moment in self._moments],
            "without_onboarding": ONBOARDING not in targets.layout.views,
            "replay": {
                **{name: replayed[name] for name in ("events", "seconds", "probes", "p50", "p99")},
                "users": len(replayed["touched"]),
                "mean_cosine_to_before": float(np.mean(cosines)) if len(cosines) else None,
            },
            "check": check.to_dict() | {"differences": [asdict(d) for d in check.differences[:20]]},
            "steps": self._meter.to_list(),
        }
        return summary

    def _tell(self, writer: Writer, replay: Replay, targets: StreamTargets) -> None:
        """Show a new user from sign-up to first plays, and an established one who plays."""
        new, at = replay.new_user(), replay.cut_us
        taste = replay.taste()
        tag = taste.tag if taste else ""
        shares = replay.shares(tag) if taste else {}
        names = self._settings.dataset.events.context
        context = ("",) * len(names) if names else None
        items = taste.items if taste else [e.item_id for e in replay.events() if e.item_id][:6]
        if PROFILE in targets.layout.views:
            categories, numbers = replay.profile()
            event = StreamEvent(
                "sign_up", new, at + _MINUTE_US, categories=categories, numbers=numbers
            )
            self._show("sign-up", writer, [event], "demographics only")
        if ONBOARDING in targets.layout.views:
            pick = StreamEvent("onboarding_pick", new, at + 2 * _MINUTE_US, items[0])
            self._show("first onboarding pick", writer, [pick])
            self._look_near(new, shares, tag)
        plays = [
            StreamEvent("consume", new, at + (3 + k) * _MINUTE_US, item, 1.0, context)
            for k, item in enumerate(items[1:])
        ]
        self._show("first plays", writer, plays)
        self._look_near(new, shares, tag)
        user = replay.established(shares)
        play = StreamEvent("consume", user, at + _MINUTE_US, items[0], 1.0, context)
        self._show("an established user plays", writer, [play], "an item unlike the others")

    def _show(
        self, step: str, writer: Writer, events: Sequence[StreamEvent], note: str = ""
    ) -> None:
        """Append events of one user and wait until the embedding is another one."""
        user = events[-1].user_id
        before = self._vectors([user]).get(user)
        with Probes(self._hashes.client) as probes:
            (key,) = self._hashes.keys([user])
            newest = max(event.timestamp_us for event in events)
            probe = Probe(self._hashes.client, key, self._embedding.stamp, newest)
            writer.append(events)
            probe.appended()
            probes.add(probe)
            probes.settle()
        after = self._vectors([user])
        cosines = self._cosines({} if before is None else {user: before}, after)
        status = self._row(user)["status"]
        cosine = float(cosines[0]) if len(cosines) else None
        self._moments.append(_Moment(step, round(probe.milliseconds, 1), status, cosine, note))

    def _look_near(self, user: int | str, shares: Mapping[int | str, float], tag: str) -> None:
        """Add to the newest moment what users near to one consume of a tag."""
        if not shares:
            return
        vectors = self._vectors([user, *shares])
        mine = vectors.pop(user)
        others = list(vectors)
        matrix = np.stack([vectors[other] for other in others])  # (n_users, dim)
        cosine = matrix @ mine / (np.linalg.norm(matrix, axis=1) * np.linalg.norm(mine))
        nearest = [others[k] for k in np.argsort(-cosine)[:_NEAREST]]
        near = {
            "tag": tag,
            "users": len(nearest),
            "nearest_share": float(np.mean([shares[other] for other in nearest])),
            "everybody_share": float(np.mean([shares[other] for other in others])),
        }
        note = (
            f"{tag!r}: {near['nearest_share']:.0%} of what the nearest {len(nearest)} users "
            f"consume, {near['everybody_share']:.0%} of everybody's"
        )
        self._moments.append(replace(self._moments.pop(), note=note, near=near))

    def _replay(self, writer: Writer, events: Sequence[StreamEvent], rate: float) -> dict[str, Any]:
        """Append real events at a rate, and watch one of each few until its row is readable."""
        touched = list(dict.fromkeys(event.user_id for event in events))
        before = self._vectors(touched[:_SAMPLE])
        with self._meter.step("replay") as step, Probes(self._hashes.client) as probes:
            began = time.perf_counter()
            for start in range(0, len(events), _CHUNK):
                part = events[start : start + _CHUNK]
                time.sleep(max(0.0, began + start / rate - time.perf_counter()))
                (key,) = self._hashes.keys([part[-1].user_id])
                at = part[-1].timestamp_us
                probe = Probe(self._hashes.client, key, self._embedding.stamp, at)
                writer.append(part)
                probe.appended()
                probes.add(probe)
            seconds = time.perf_counter() - began
            probes.settle()
            p50, p99 = probes.percentiles(50, 99)
            step.counts = {"events": len(events), "users": len(touched)}
        return {
            **{"touched": touched, "before": before, "events": len(events)},
            **{"seconds": round(seconds, 1), "probes": len(probes.done)},
            **{"p50": round(p50, 1), "p99": round(p99, 1)},
        }

    def _check(self, touched: Sequence[int | str], stream: Iterable[bytes]) -> StreamCheck:
        users = [*touched[:_SAMPLE]]
        return check_stream(
            self._store, self._settings, self._ledger, users, stream=stream, limit=_LIMIT
        )

    def _row(self, user: int | str) -> dict[str, Any]:
        view = self._embedding.name
        answer = self._store.get_online_features(
            features=[f"{view}:as_of", f"{view}:status"], entity_rows=[{USER_KEY: user}]
        ).to_dict()
        return {name: answer[name][0] for name in ("as_of", "status")}

    def _vectors(self, users: Sequence[int | str]) -> dict[int | str, npt.NDArray[np.float64]]:
        """Return the stored embedding of each user who has one."""
        found: dict[int | str, npt.NDArray[np.float64]] = {}
        for start in range(0, len(users), _READ):
            part = users[start : start + _READ]
            answer = self._store.get_online_features(
                features=[f"{self._embedding.name}:embedding"],
                entity_rows=[{USER_KEY: user} for user in part],
            ).to_dict()
            for user, vector in zip(part, answer["embedding"], strict=True):
                if vector is not None:
                    found[user] = np.array(vector, np.float64)
        return found

    def _cosines(
        self,
        before: Mapping[int | str, npt.NDArray[np.float64]],
        after: Mapping[int | str, npt.NDArray[np.float64]],
    ) -> npt.NDArray[np.float64]:
        both = [(before[user], after[user]) for user in before if user in after]
        return np.array([a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in both])


def _table(summary: Mapping[str, Any], folder: Path) -> str:
    replay, check = summary["replay"], summary["check"]
    lines = [
        f"data set {summary['dataset']}; streamed from {summary['cut'][:10]} on",
        "",
        f"{'step':<28}{'ms':>8}  {'status':<10}{'cosine':>8}  ",
    ]
    for one in summary["moments"]:
        cosine = "" if one["cosine_to_before"] is None else f"{one['cosine_to_before']:.3f}"
        lines.append(
            f"{one['step']:<28}{one['freshness_ms']:>8.1f}  {one['status']:<10}{cosine:>8}  "
            f"{one['note']}"
        )
    if summary["without_onboarding"]:
        lines.append("(this data set has no onboarding picks; `--dataset simulated` has)")
    largest = max(check["max_abs_diff"].values())
    lines += [
        "",
        "ms: append to readable, polled from outside; cosine: of the embedding to the one before",
        f"replay: {replay['events']:,} real events of {replay['users']:,} users in "
        f"{replay['seconds']:.1f} s, append to readable p50 {replay['p50']:.0f} ms, "
        f"p99 {replay['p99']:.0f} ms ({replay['probes']} events watched)",
        f"streamed = batch: {check['users']:,} users, largest difference {largest:.2g}, lowest "
        f"cosine {check['min_cosine']:.7f}",
        "",
        f"summary: {folder / 'summary.json'}",
    ]
    return "\n".join(lines)
