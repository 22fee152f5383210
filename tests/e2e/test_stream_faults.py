"""Workers die, sleep and lose their network, Redis is killed, events come twice and in any order:
nothing is lost, nothing counts twice, no read is inconsistent, and the end is the batch's.

STREAM_FAULTS=30 runs as many faults, STREAM_SEED=n draws others; a seed repeats what is drawn, not
the moments at which processes meet it.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import redis

from materialize.stream.seed import seed_states
from materialize.stream.status import read_lag
from tests.e2e.redis_faults import RedisProcess, wait_until
from tests.e2e.stream_broken import HastySource, SummingApplier
from tests.e2e.stream_events import Facts, Traffic
from tests.e2e.stream_faults import KINDS, WORKERS, Faults, Producer
from tests.e2e.stream_judge import Offline, Online, judge_offline, judge_online
from tests.e2e.stream_reader import Reader
from tests.e2e.stream_workers import Parts
from tests.e2e.stream_world import NEW_USERS, World
from tests.servers import ServerMissing

SEED = int(os.environ.get("STREAM_SEED", "0"))
FAULTS = int(os.environ.get("STREAM_FAULTS", "8"))
"""In CI one of almost every kind; STREAM_FAULTS=30 takes minutes."""
FSYNC = os.environ.get("STREAM_FSYNC", "always")
STREAM = {"partitions": 4, "lease_seconds": 2.0, "flush_seconds": 0.5, "batch_events": 50}
LIMIT = 1e-4

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(300 + 120 * FAULTS)]


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    """A Redis that answers a write when it is on disk: what it said survives."""
    try:
        process = RedisProcess(tmp_path_factory.mktemp("redis"), "--appendfsync", FSYNC)
    except ServerMissing as exc:
        if os.environ.get("REQUIRE_SERVERS") == "1":
            pytest.fail(f"REQUIRE_SERVERS=1, but {exc}")
        pytest.skip(str(exc))
    yield process
    process.kill()


@pytest.fixture(scope="module")
def world(process: RedisProcess, tmp_path_factory: pytest.TempPathFactory) -> World:
    """One repository; each test has users of its own."""
    world = World.make(tmp_path_factory.mktemp("world"), process.server, STREAM)
    seed(world)
    return world


def seed(world: World) -> None:
    """Put what the clean tables hold into the states."""
    context = world.context
    report = seed_states(context.store, context.settings, context.ledger, progress=False)
    assert report.outcome == "seeded"


@dataclass
class Outcome:
    """What a run under faults came to.

    Attributes
    ----------
    entries : Counter
        Payload -> how often it was appended.
    replayed : int
        Dead letters that were put back into the stream after the fix.
    letters : Counter
        Reason -> dead letters in the end.
    wrong_letters : int
        Entries of bad events without a dead letter, dead letters without such an entry, or of a
        reason that is not expected.
    """

    world: World
    faults: Faults
    producer: Producer
    reader: Reader
    entries: Counter[bytes] = field(default_factory=Counter)
    replayed: int = 0
    letters: Counter[str] = field(default_factory=Counter)
    wrong_letters: int = 0

    def finish(self) -> None:
        """Let everything that was sent be applied, end the workers, and count."""
        self.producer.stop()
        self.faults.wait_idle()
        self.entries = self.faults.entries()
        self.world.learn_new_items()
        self.replayed = self.faults.replay_unknown_items()
        self.faults.end()
        sent, letters = self.producer.sent, self.faults.letters()
        bad = Counter({p: n for p, n in self.entries.items() if sent[p].event is None})
        found = Counter(letter.payload for letter in letters)
        self.letters = Counter(letter.reason for letter in letters)
        self.wrong_letters = (bad - found).total() + (found - bad).total()
        self.wrong_letters += sum(one.reason not in sent[one.payload].reasons for one in letters)


@contextmanager
def streaming(
    world: World,
    process: RedisProcess,
    before: Facts,
    new: Sequence[int],
    parts: Parts = Parts(),  # noqa: B008 - frozen
) -> Iterator[Outcome]:
    """Run a producer, workers and a reader of some users; in the end everything is applied."""
    known = before.users()
    traffic = Traffic(SEED, known, new, before.picked)
    reader = Reader(world, process.port, (*known, *new))
    producer = Producer(world, process.server.url, traffic, before, SEED)
    faults = Faults(world, process, producer, SEED, parts)
    try:
        faults.start()
        outcome = Outcome(world, faults, producer, reader)
        yield outcome
        outcome.finish()
    finally:
        faults.close()
        producer.halt()
        reader.stop()


def test_faults_lose_nothing_and_apply_nothing_twice(
    world: World, process: RedisProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = random.Random(SEED)  # noqa: S311 - no secret
    kinds: list[str] = []
    while len(kinds) < FAULTS:
        kinds += draw.sample([*KINDS], len(KINDS))
    with streaming(world, process, world.before, NEW_USERS) as outcome:
        for number, kind in enumerate(kinds[:FAULTS]):
            outcome.faults.inject(kind)
            if number == FAULTS // 2:  # the nightly jobs, beside the stream
                world.learn_new_items()
                seed(world)
    facts = outcome.producer.facts
    online, served = judge_online(world, process.port, facts)
    offline = judge_offline(world, facts, served, SEED)
    with capsys.disabled():
        _print(outcome, online, offline)
    assert online.lost == online.twice == 0, online.differences
    assert max(online.max_abs_diff.values()) <= LIMIT, online.differences
    assert not outcome.reader.violations, outcome.reader.examples
    assert not offline.contradictions, offline.examples
    assert not any(offline.stale.values()), offline.stale
    assert outcome.wrong_letters == 0
    assert outcome.faults.exits == 0


def test_what_a_power_loss_takes_is_right_again_once_it_was_appended_again(
    world: World, process: RedisProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    """Producers do not know what is gone, and append all of the last time again; workers apply
    again what they had applied in the second that Redis forgot."""
    with streaming(world, process, Facts(), range(401, 421)) as outcome:
        lost = 0
        for _ in range(2):
            lost += outcome.faults.lose_power()
            outcome.producer.repeat(5_000)
    online, _ = judge_online(world, process.port, outcome.producer.facts)
    with capsys.disabled():
        print(f"\npower lost twice: {lost} appended events gone, appended again; {online}")
    assert lost > 0
    assert online.lost == online.twice == 0, online.differences
    assert max(online.max_abs_diff.values()) <= LIMIT, online.differences
    assert set(outcome.reader.violations) <= {"as_of went back"}, outcome.reader.examples


def test_control_acknowledging_before_writing_is_seen_as_loss(
    world: World, process: RedisProcess
) -> None:
    parts = Parts(source=HastySource)
    with streaming(world, process, Facts(), range(201, 221), parts) as outcome:
        for _ in range(3):
            outcome.faults.kill_at("events handed out, nothing applied")
    online, _ = judge_online(world, process.port, outcome.producer.facts)
    assert online.lost > 0
    assert online.twice == 0


def test_control_summing_is_seen_as_applied_twice(world: World, process: RedisProcess) -> None:
    parts = Parts(applier=SummingApplier)
    with streaming(world, process, Facts(), range(301, 321), parts) as outcome:
        for _ in range(2):
            outcome.faults.inject("duplicates")
    online, _ = judge_online(world, process.port, outcome.producer.facts)
    assert online.twice > 0
    assert online.lost == 0


def test_a_worker_that_starts_while_redis_is_away_comes_back_with_it(
    world: World, process: RedisProcess, tmp_path: Path
) -> None:
    """The other one waits for Redis; the supervisor must not take either for a failure."""
    stream = world.project, world.settings.file.stream.partitions

    def owners() -> set[str]:
        with closing(redis.Redis(port=process.port)) as client:
            lag = read_lag(client, *stream)
        return {one.owner for one in lag.partitions if one.owner is not None}

    program = Path(sys.executable).parent / "palate"
    told = tmp_path / "told"
    with told.open("wb") as err:
        running = subprocess.Popen(
            [program, "stream", "run", "--workers", "2", "--quiet", "--repo", world.path],
            stdout=subprocess.DEVNULL,
            stderr=err,
        )
    try:
        wait_until(lambda: len(owners()) == 2, 120)
        victim = min(owners())
        process.kill()
        os.kill(int(victim.split("-")[-2]), signal.SIGKILL)
        wait_until(lambda: "ended by stores that do not answer" in told.read_text(), 120)
        process.start()
        wait_until(lambda: len(owners() - {victim}) == 2, 120)
        running.terminate()
        assert running.wait(60) == 0, told.read_text()
    finally:
        if running.poll() is None:
            for one in psutil.Process(running.pid).children(recursive=True):
                one.kill()
            running.kill()
        running.wait()


def _print(outcome: Outcome, online: Online, offline: Offline) -> None:
    facts, done, entries = outcome.producer.facts, outcome.faults.done, outcome.entries
    reader, distinct = outcome.reader, len(outcome.producer.sent)
    print(f"\nseed {SEED}: {len(done)} faults on {WORKERS} workers")
    for what, count in sorted(Counter(one.what for one in done).items()):
        print(f"  {count:2} {what}")
    print(
        f"  workers that ended by themselves {outcome.faults.exits}; slowest recovery "
        f"{max(one.seconds for one in done):.1f} s; appends repeated {outcome.producer.retries}\n"
        f"  events appended {entries.total()}, distinct {distinct}, duplicates "
        f"{entries.total() - distinct}; dead letters replayed {outcome.replayed}, left "
        f"{dict(outcome.letters)}, wrong {outcome.wrong_letters}\n"
        f"  consumed and picked {facts.distinct}, in the newest rows {online.events}, "
        f"lost {online.lost}, applied twice {online.twice}\n"
        f"  online against batch {_figures(online.max_abs_diff)}\n"
        f"  users read {reader.reads}, Redis away {reader.unavailable}, violations "
        f"{reader.violations.total()}, embedding against raw rows of the same read "
        f"{reader.max_abs_diff:.1e}\n"
        f"  offline rows {offline.rows}, repeated {offline.repeated}, contradictions "
        f"{offline.contradictions.total()}, against batch as of their time {offline.checked}: "
        f"{offline.max_abs_diff:.1e}, users whose point-in-time row is not the online one "
        f"{sum(offline.stale.values())}"
    )


def _figures(by_view: dict[str, float]) -> str:
    return ", ".join(f"{view} {value:.1e}" for view, value in by_view.items())
