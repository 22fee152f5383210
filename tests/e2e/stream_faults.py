"""A stream under faults: producers that repeat and shuffle, workers, Redis and lines that break."""

from __future__ import annotations

import random
import re
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

import redis

from materialize.stream.dead_letters import DeadLetter, DeadLetters
from materialize.stream.keys import PAYLOAD, events_key
from materialize.stream.status import read_lag
from materialize.stream.writer import EventWriter
from tests.e2e.redis_faults import RedisProcess, wait_until
from tests.e2e.stream_events import Facts, Sent, Traffic
from tests.e2e.stream_workers import STEPS, Parts, StreamProcess
from tests.e2e.stream_world import World

__all__ = ["KINDS", "WORKERS", "Faults", "Producer", "Recovered"]

WORKERS = 3
_TICK_SECONDS, _PER_TICK = 0.1, 8
_HELD_BACK = 40
"""Events that a producer has not sent yet, out of which it sends any."""
_NETWORK_SECONDS = 5.0
_STEP_SECONDS = 20.0
"""How long a worker may take to come to a step at which it is to die."""
_RECOVERY_SECONDS = 120.0


class Producer:
    """A thread that appends what users do: shuffled, repeated, and again when it cannot know.

    Attributes
    ----------
    facts : Facts
        All that is true once every event that was sent is applied.
    sent : dict of bytes to Sent
        Payload -> what it says.
    retries : int
        Appends that were repeated because Redis did not answer.
    """

    def __init__(self, world: World, url: str, traffic: Traffic, before: Facts, seed: int) -> None:
        self._writer = EventWriter(url, world.project, world.settings.file.stream.partitions)
        self._traffic, self._draw = traffic, random.Random(seed)  # noqa: S311 - no secret
        self.facts = before.copy()
        self.sent: dict[bytes, Sent] = {}
        self.retries = 0
        self._waiting: list[bytes] = []
        self._recent: deque[bytes] = deque(maxlen=5_000)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def repeat(self, most: int) -> int:
        """Send the last events again, newest first; return how many."""
        with self._lock:
            again = list(self._recent)[::-1][:most]
        self._append(again)
        return len(again)

    def disorder(self, n: int) -> int:
        """Send all that happens next backwards, at once; return how many events."""
        with self._lock:
            self._happen(n)
            backwards, self._waiting = self._waiting[::-1], []
        self._append(backwards)
        return len(backwards)

    def stop(self) -> None:
        """Send what is held back, and end."""
        self.halt()
        if self._failed is not None:
            raise self._failed
        self._append(self._waiting)
        self._writer.close()

    def halt(self) -> None:
        """End."""
        self._stop.set()
        self._thread.join(_RECOVERY_SECONDS)

    def _run(self) -> None:
        try:
            while not self._stop.wait(_TICK_SECONDS):
                self._append(self._next())
        except BaseException as exc:  # noqa: BLE001 - raised by `stop`, in the test's thread
            self._failed = exc

    def _next(self) -> list[bytes]:
        draw = self._draw
        with self._lock:
            self._happen(_PER_TICK)
            draw.shuffle(self._waiting)
            keep = draw.randrange(_HELD_BACK)
            chosen, self._waiting = self._waiting[keep:], self._waiting[:keep]
            again = draw.sample(list(self._recent), min(draw.randrange(3), len(self._recent)))
            self._recent.extend(chosen)
        return chosen + again

    def _happen(self, n: int) -> None:
        for _ in range(n):
            for sent in self._traffic.draw():
                self.sent[sent.payload] = sent
                self._waiting.append(sent.payload)
                if sent.event is not None:
                    self.facts.add(sent.event)

    def _append(self, payloads: list[bytes]) -> None:
        """Append until Redis says so; a part may then be there twice."""
        deadline = time.monotonic() + _RECOVERY_SECONDS
        while True:
            try:
                self._writer.append(payloads)
                return
            except redis.RedisError:
                assert time.monotonic() < deadline, "Redis does not come back"
                self.retries += 1
                time.sleep(0.05)


@dataclass
class Recovered:
    """How a fault ended."""

    what: str
    seconds: float
    """From its end until everything appended before was acknowledged."""


class Faults:
    """Workers of a stream, and what is done to them and to Redis.

    Attributes
    ----------
    done : list of Recovered
    exits : int
        Workers that ended though nobody had killed them.
    """

    def __init__(
        self,
        world: World,
        process: RedisProcess,
        producer: Producer,
        seed: int,
        parts: Parts,
    ) -> None:
        self._world, self._redis, self._producer = world, process, producer
        self._parts, self._draw = parts, random.Random(seed)  # noqa: S311 - no secret
        self._client = redis.Redis(port=process.port, socket_timeout=5.0)
        self._stream = self._client, world.project, world.settings.file.stream.partitions
        self._names = (f"worker-{k}" for k in range(10**6))
        self.workers: list[StreamProcess] = []
        self.done: list[Recovered] = []
        self.exits = 0

    def start(self) -> None:
        """Start the workers."""
        self._restore()

    def inject(self, kind: str) -> None:
        """Do one fault of a kind, and mostly wait until the stream has recovered from it."""
        self._rest()
        self._do(kind, KINDS[kind])

    def kill_at(self, step: str) -> None:
        """Kill a worker at a step."""
        self._do("worker killed at a step", lambda self: self._kill_at(step))

    def _do(self, kind: str, fault: Callable[[Faults], str]) -> None:
        what = fault(self)
        ended = time.monotonic()
        self._restore()
        if self._draw.random() < 0.7:  # else the next fault may come before
            self.wait_acknowledged(ended)
        self.done.append(Recovered(f"{kind}: {what}", time.monotonic() - ended))

    def wait_acknowledged(self, moment: float) -> None:
        """Wait until everything that was appended before a moment is acknowledged."""

        def is_done() -> bool:
            self._restore()
            return self._oldest_seconds() < time.monotonic() - moment

        wait_until(is_done, _RECOVERY_SECONDS)

    def wait_idle(self) -> None:
        """Wait until nothing is left to do."""

        def is_idle() -> bool:
            self._restore()
            lag = read_lag(*self._stream)
            return lag.undelivered == 0 and lag.unacknowledged == 0

        wait_until(is_idle, _RECOVERY_SECONDS)

    def replay_unknown_items(self) -> int:
        """Put events of items that are known by now back into the stream, until all are applied."""
        replayed = 0
        while True:
            self.wait_idle()
            letters = [one for one in self.letters() if one.reason == "unknown_item"]
            if not letters:
                return replayed
            replayed += DeadLetters(*self._stream).replay(letters)
            assert replayed < 10**5, "known items stay unknown"

    def letters(self) -> list[DeadLetter]:
        """Return the dead letters of what the producer has sent."""
        found = DeadLetters(*self._stream).find()
        return [letter for letter in found if letter.payload in self._producer.sent]

    def lose_power(self) -> int:
        """Let Redis forget its last second or so; return how many appended events that were."""
        size = self._redis.bytes_kept
        self._rest()
        self._redis.kill()
        lost = self._redis.forget(size)
        appended = re.findall(rb"XADD\r\n\$\d+\r\n[^\r]*:events\r\n", lost)
        self._redis.start()
        return len(appended)

    def entries(self) -> Counter[bytes]:
        """Return how often each payload of the producer is in the stream."""
        _, project, partitions = self._stream
        found = Counter(
            fields[PAYLOAD]
            for partition in range(partitions)
            for _, fields in self._client.xrange(events_key(project, partition))
        )
        return Counter({payload: found[payload] for payload in self._producer.sent})

    def end(self) -> None:
        """End the workers in order."""
        while self.workers:
            self.workers.pop().end()

    def close(self) -> None:
        """Leave nothing behind when a test fails."""
        while self.workers:
            self.workers.pop().kill()
        self._client.close()

    def _restore(self) -> None:
        """Start workers until there are as many as there should be."""
        for worker in [w for w in self.workers if not w.alive]:
            self.exits += 1
            worker.kill()
            self.workers.remove(worker)
        while len(self.workers) < WORKERS:
            self.workers.append(self._start())
        for worker in self.workers:
            worker.wait_ready()

    def _start(self) -> StreamProcess:
        repo, port = self._world.path, self._redis.port
        return StreamProcess(repo, port, next(self._names), self._parts)

    def _rest(self) -> None:
        """Let a random moment come."""
        threading.Event().wait(self._draw.uniform(0.0, 1.5))

    def _oldest_seconds(self) -> float:
        lag = read_lag(*self._stream)
        return lag.oldest_age_ms / 1000

    def _bury(self, worker: StreamProcess) -> None:
        self.workers.remove(worker)
        worker.kill()

    def _kill(self) -> str:
        worker = self._draw.choice(self.workers)
        self._bury(worker)
        return "at a random moment"

    def _kill_at_step(self) -> str:
        return self._kill_at(self._draw.choice([*STEPS]))

    def _kill_at(self, step: str) -> str:
        worker, other = self._draw.sample(self.workers, 2)
        worker.arm(STEPS[step], signal.SIGKILL)
        if step == TAKE_OVER:
            self._bury(other)
        reached = worker.wait_dead(_STEP_SECONDS)
        self._bury(worker)
        return step if reached else f"{step} (not reached: at a random moment)"

    def _stop(self) -> str:
        worker = self._draw.choice(self.workers)
        worker.send(signal.SIGSTOP)
        return self._wake(worker, "at a random moment")

    def _stop_at_step(self) -> str:
        step = self._draw.choice([step for step in STEPS if step != TAKE_OVER])
        worker = self._draw.choice(self.workers)
        worker.arm(STEPS[step], signal.SIGSTOP)
        deadline = time.monotonic() + _STEP_SECONDS
        if not worker.wait_stopped(lambda: time.monotonic() > deadline):
            return f"{step} (not reached)"
        return self._wake(worker, step)

    def _wake(self, worker: StreamProcess, where: str) -> str:
        """Let a stopped worker go on when others have what was its own, and changed it."""
        wait_until(lambda: not worker.owns(read_lag(*self._stream)), _RECOVERY_SECONDS)
        self._rest()
        worker.send(signal.SIGCONT)
        return where

    def _restart_redis(self) -> str:
        self._redis.kill()
        self._rest()
        self._redis.start()
        return "kill -9 and start from the append-only file"

    def _hold_network(self) -> str:
        every = self._draw.random() < 0.5
        chosen = self.workers if every else [self._draw.choice(self.workers)]
        for worker in chosen:
            worker.line.hold()
        threading.Event().wait(_NETWORK_SECONDS)
        for worker in chosen:
            worker.line.release()
        return (
            f"{_NETWORK_SECONDS:.0f} s between {'all workers' if every else 'a worker'} and Redis"
        )

    def _cut_network(self) -> str:
        for worker in self.workers:
            worker.line.cut()
        self._rest()
        for worker in self.workers:
            worker.line.mend()
        return "all connections of the workers"

    def _repeat(self) -> str:
        return f"{self._producer.repeat(300)} events again, newest first"

    def _disorder(self) -> str:
        return f"{self._producer.disorder(200)} events backwards"


TAKE_OVER = "while a partition is taken over"
KINDS: dict[str, Callable[[Faults], str]] = {
    "worker killed": Faults._kill,
    "worker killed at a step": Faults._kill_at_step,
    "worker stopped beyond its lease": Faults._stop,
    "worker stopped at a step": Faults._stop_at_step,
    "Redis restarted": Faults._restart_redis,
    "network held": Faults._hold_network,
    "network cut": Faults._cut_network,
    "duplicates": Faults._repeat,
    "shuffle": Faults._disorder,
}
