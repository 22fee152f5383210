"""Events from NATS JetStream: a durable consumer a partition, owned by leases in Redis."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from materialize.stream.keys import PAYLOAD, dead_key
from materialize.stream.leases import Leases
from materialize.stream.nats_consumers import consumer_name, consumers_of, forget
from materialize.stream.nats_lag import read_nats_lag
from materialize.stream.nats_link import NatsLink, event_subject
from materialize.stream.source import Delivery, Lag

if TYPE_CHECKING:
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription
    from redis import Redis

__all__ = ["NatsSource"]

logger = logging.getLogger(__name__)

_TRIM_SECONDS = 60.0
_ANSWER_SECONDS = 3.0
_UNLIMITED = -1

# One dead letter for an event, whoever sets it aside and however often: JetStream and Redis cannot
# move in one step, so the sequence number stays here until the acknowledgement was confirmed.
# KEYS: dead letters, sequence numbers. ARGV: sequence number, field, payload, reason, detail, id.
_REJECT = """
if redis.call('SADD', KEYS[2], ARGV[1]) == 0 then return 0 end
redis.call('XADD', KEYS[1], '*', ARGV[2], ARGV[3], 'reason', ARGV[4], 'detail', ARGV[5],
           'id', ARGV[6])
return 1
"""


@dataclass
class _Reader:
    """A partition that this worker reads.

    ``outstanding`` maps sequence numbers of what was handed out to where it is acknowledged.
    """

    consumer: str
    inbox: str
    handed_out_before: int
    subscription: Subscription | None = None
    outstanding: dict[int, str] = field(default_factory=dict)
    came: list[Msg] = field(default_factory=list)
    wanted: int = 0
    pull: str = ""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    lost: bool = False

    async def take(self, msg: Msg) -> None:
        """Keep a message of a pull, or note how the pull ended."""
        status = (msg.headers or {}).get("Status")
        if status is None:
            self.came.append(msg)
            if len(self.came) >= self.wanted:
                self.ended.set()
            return
        # 409: the consumer was deleted meanwhile. 503: nobody answers for it.
        self.lost |= status in ("409", "503")
        if msg.subject == self.pull:  # the end of an earlier pull may come late
            self.ended.set()


class NatsSource:
    """An `EventSource` over the partitions that this worker owns.

    Parameters
    ----------
    link : NatsLink
        Which this source alone uses, and closes.
    client : redis.Redis
        Where leases and dead letters lie; this source alone uses it, and closes it.
    project : str
    partitions : int
    worker : str
        Name of this worker, unlike any other's.
    lease_seconds : float
        After so long without a sign of life another worker takes over.
    retention_hours : float
        Acknowledged events older than this are purged.
    ack_seconds : float
        What is not acknowledged after so long is handed out again; more than rows wait to be
        written offline.

    Notes
    -----
    State: leases; for each owned partition its consumer and what was handed out.

    Each owner of a partition makes a consumer of its own, that begins behind what the one before
    it had acknowledged in a row, and deletes the old one: a worker that slept through its lease is
    handed nothing any more. What the former owner acknowledged behind a hole comes once more.
    """

    def __init__(
        self,
        link: NatsLink,
        client: Redis,
        project: str,
        partitions: int,
        worker: str,
        *,
        lease_seconds: float = 10.0,
        retention_hours: float = 48.0,
        ack_seconds: float = 120.0,
    ) -> None:
        self._link, self._client = link, client
        self._project, self._partitions = project, partitions
        self._leases = Leases(client, project, partitions, worker, lease_seconds)
        self._retention = timedelta(hours=retention_hours)
        self._ack_seconds = ack_seconds
        self._token = secrets.token_hex(4)
        self._script_reject = client.register_script(_REJECT)
        self._readers: dict[int, _Reader] = {}
        self._turn = 0
        self._trimmed = time.monotonic()

    @property
    def owned(self) -> frozenset[int]:
        """Partitions that this worker owns."""
        return frozenset(self._leases.owned)

    def poll(self, max_events: int, wait_ms: int) -> list[Delivery]:
        """Return up to ``max_events`` events; waits up to ``wait_ms`` for the first one only."""
        until = time.monotonic() + wait_ms / 1000
        while True:
            if self._leases.due_in <= 0 or any(r.lost for r in self._readers.values()):
                self.renew()
            ready = self._ready()
            found = self._link.run(self._read(ready, max_events))
            left = until - time.monotonic()
            if found or left <= 0:
                return found
            left = max(0.001, min(left, self._leases.due_in))
            if ready:
                found = self._link.run(self._wait(ready, max_events, left), left + _ANSWER_SECONDS)
                if found:
                    return found
            else:
                time.sleep(left)

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Say that the effect of these is online and offline; safe to repeat."""
        self._link.run(self._tell(deliveries, b"+ACK"))
        self._release_excess()

    def reject(self, delivery: Delivery, reason: str, detail: str) -> None:
        """Set an event aside as a dead letter in Redis, once, and acknowledge it."""
        reader = self._readers.get(delivery.partition)
        if reader is not None and int(delivery.id) not in reader.outstanding:
            return  # done before
        dead = dead_key(self._project, delivery.partition)
        guard, one = f"{dead}:set-aside", delivery.id.decode()
        name = f"{delivery.appended_ms}-{one}"
        self._script_reject(
            keys=[dead, guard], args=[one, PAYLOAD, delivery.payload, reason, detail, name]
        )
        self._link.run(self._tell([delivery], b"+ACK"))
        if reader is not None and not reader.lost:  # else its next owner is handed it once more
            self._client.srem(guard, one)

    def again(self, keep: Sequence[Delivery]) -> None:
        """Hand out again, as redelivered, what is not acknowledged, but for ``keep``."""
        kept = {(one.partition, int(one.id)) for one in keep}
        back = [
            Delivery(partition, b"%d" % number, b"", True, 0)
            for partition, reader in self._readers.items()
            for number in reader.outstanding
            if (partition, number) not in kept
        ]
        self._link.run(self._tell(back, b"-NAK"))

    def renew(self) -> None:
        """Say that this worker is alive; take over and give up partitions as the shares say."""
        turn = self._leases.look()
        gone = [p for p, reader in self._readers.items() if reader.lost]
        for partition in {*turn.lost, *turn.taken, *gone} & self._readers.keys():
            self._link.run(self._drop(partition))
        if turn.lost:
            logger.info("%s lost partitions %s", self._leases.worker, list(turn.lost))
        if turn.taken:
            logger.info("%s took over partitions %s", self._leases.worker, list(turn.taken))
        new = sorted(self._leases.owned - self._readers.keys())
        if new:
            self._link.run(self._open(new))
        self._release_excess()
        if time.monotonic() - self._trimmed > _TRIM_SECONDS:
            self.trim()

    @property
    def waited_for(self) -> bool:
        """Whether another worker waits for partitions whose events are not yet acknowledged."""
        return any(self._readers[p].outstanding for p in self._leases.excess if p in self._readers)

    @property
    def gone(self) -> int:
        """Number of events that were deleted before they were acknowledged: not known, 0."""
        return 0

    def now_ms(self) -> float:
        """Return this machine's time: NATS does not tell its own."""
        return time.time() * 1000

    def lag(self) -> Lag:
        """Return what is left to do in all partitions, whoever owns them."""
        return read_nats_lag(self._link, self._client, self._partitions)

    def trim(self) -> None:
        """Purge acknowledged events older than the retention, of the owned partitions."""
        self._trimmed = time.monotonic()
        self._link.run(self._purge(datetime.now(timezone.utc) - self._retention))

    def close(self) -> None:
        """Release the leases; what is not acknowledged is handed out to who takes over."""
        self._readers.clear()
        try:
            self._leases.leave()
        finally:
            self._link.close()
            self._client.close()

    def _ready(self) -> list[int]:
        """Return the partitions to read, another first each time: none may starve the rest."""
        draining = set(self._leases.excess)
        ready = sorted(p for p in self._readers if p not in draining)
        self._turn += 1
        at = self._turn % len(ready) if ready else 0
        return ready[at:] + ready[:at]

    async def _read(self, ready: Sequence[int], most: int) -> list[Delivery]:
        """Return what lies there: of each partition a fair share, then more of those that have."""
        found: list[Delivery] = []
        rest = list(ready)
        while rest and len(found) < most:
            left = most - len(found)
            share = -(-left // len(rest))
            asked = rest[: -(-left // share)]
            sizes = [min(share, left - share * k) for k in range(len(asked))]
            parts = await asyncio.gather(*map(self._pull, asked, sizes))
            found += [one for part in parts for one in part]
            full = [p for p, part, n in zip(asked, parts, sizes, strict=True) if len(part) == n]
            rest = rest[len(asked) :] + full
        return found

    async def _pull(self, partition: int, most: int) -> list[Delivery]:
        reader = self._readers[partition]
        if len(reader.came) < most:
            reader.ended.clear()
            reader.wanted, reader.pull = most, f"{reader.inbox}.{secrets.token_hex(4)}"
            request = {"batch": most - len(reader.came), "no_wait": True}
            subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._link.stream}.{reader.consumer}"
            await self._link.connection.publish(subject, json.dumps(request).encode(), reader.pull)
            await self._answered(reader)
        messages = reader.came[:most]
        del reader.came[:most]
        return [one for msg in messages if (one := self._delivery(partition, reader, msg))]

    async def _answered(self, reader: _Reader) -> None:
        from nats.js.errors import NotFoundError

        try:
            await asyncio.wait_for(reader.ended.wait(), _ANSWER_SECONDS)
        except asyncio.TimeoutError:
            # Nobody answers a pull of a consumer that is no more: another owner deleted it.
            try:
                await self._link.jetstream.consumer_info(self._link.stream, reader.consumer)
            except NotFoundError:
                reader.lost = True
            else:
                raise

    def _delivery(self, partition: int, reader: _Reader, msg: Msg) -> Delivery | None:
        about = msg.metadata
        number = about.sequence.stream
        held = number in reader.outstanding
        reader.outstanding[number] = msg.reply
        if held:  # in the worker's hands for longer than NATS waits
            return None
        redelivered = about.num_delivered > 1 or number <= reader.handed_out_before
        moment = int(about.timestamp.timestamp() * 1000)
        return Delivery(partition, b"%d" % number, msg.data, redelivered, moment)

    async def _wait(self, ready: Sequence[int], most: int, seconds: float) -> list[Delivery]:
        """Wait until an event comes to one of these partitions, and return what lies there."""
        came = asyncio.Event()

        async def look(_: Msg) -> None:
            came.set()

        connection = self._link.connection
        watches = [
            await connection.subscribe(event_subject(self._project, p), cb=look) for p in ready
        ]
        try:
            await connection.flush()
            # What came between the last look and the subscription would not wake us.
            found = await self._read(ready, most)
            if found:
                return found
            try:
                await asyncio.wait_for(came.wait(), seconds)
            except asyncio.TimeoutError:
                return []
        finally:
            for watch in watches:
                await watch.unsubscribe()
        return await self._read(ready, most)

    async def _tell(self, deliveries: Sequence[Delivery], word: bytes) -> None:
        """Acknowledge, or give back, what this worker was handed; the last word is confirmed."""
        from nats.errors import NoRespondersError

        by_partition: dict[int, list[int]] = {}
        for one in deliveries:
            by_partition.setdefault(one.partition, []).append(int(one.id))
        for partition, numbers in by_partition.items():
            reader = self._readers.get(partition)
            held = [] if reader is None else [n for n in numbers if n in reader.outstanding]
            if reader is None or not held:
                continue  # another's by now, who is handed it again
            for number in held[:-1]:
                await self._link.connection.publish(reader.outstanding[number], word)
            try:
                await self._link.connection.request(
                    reader.outstanding[held[-1]], word, timeout=_ANSWER_SECONDS
                )
            except NoRespondersError:
                reader.lost = True
            for number in held:
                del reader.outstanding[number]

    async def _open(self, partitions: Sequence[int]) -> None:
        """Begin to read partitions behind what their former owners acknowledged."""
        from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

        jetstream, stream = self._link.jetstream, self._link.stream
        old = await consumers_of(self._link)
        for partition in partitions:
            before = old.get(partition, [])
            floor = max((one.acknowledged for one in before), default=0)
            reader = _Reader(
                consumer_name(partition, f"{self._token}{secrets.token_hex(2)}"),
                self._link.connection.new_inbox(),
                max((one.delivered for one in before), default=0),
            )
            reader.subscription = await self._link.connection.subscribe(
                f"{reader.inbox}.*", cb=reader.take
            )
            await jetstream.add_consumer(
                stream,
                ConsumerConfig(
                    durable_name=reader.consumer,
                    filter_subject=event_subject(self._project, partition),
                    ack_policy=AckPolicy.EXPLICIT,
                    ack_wait=self._ack_seconds,
                    max_ack_pending=_UNLIMITED,
                    deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
                    opt_start_seq=floor + 1,
                ),
            )
            for one in before:
                await forget(self._link, one.name)
            self._readers[partition] = reader

    async def _drop(self, partition: int) -> None:
        reader = self._readers.pop(partition)
        if reader.subscription is not None:
            await reader.subscription.unsubscribe()

    async def _purge(self, before: datetime) -> None:
        from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

        jetstream, stream = self._link.jetstream, self._link.stream
        # JetStream finds a moment only for a consumer that is to begin there.
        probe = await jetstream.add_consumer(
            stream,
            ConsumerConfig(
                ack_policy=AckPolicy.NONE,
                deliver_policy=DeliverPolicy.BY_START_TIME,
                opt_start_time=before,
                inactive_threshold=_ANSWER_SECONDS,
            ),
        )
        kept = 1 if probe.delivered is None else probe.delivered.stream_seq + 1
        await forget(self._link, probe.name or "")
        floors = await consumers_of(self._link)
        for partition, reader in self._readers.items():
            mine = [one for one in floors.get(partition, []) if one.name == reader.consumer]
            for one in mine:
                first = min(kept, one.acknowledged + 1)
                if first > 1:  # NATS takes 1 for everything
                    subject = event_subject(self._project, partition)
                    await jetstream.purge_stream(stream, seq=first, subject=subject)

    def _release_excess(self) -> None:
        idle = [
            p
            for p in self._leases.excess
            if p not in self._readers or not self._readers[p].outstanding
        ]
        if idle:
            self._leases.release(idle)
            for partition in idle:
                if partition in self._readers:
                    self._link.run(self._drop(partition))
            logger.info("%s released partitions %s", self._leases.worker, idle)
