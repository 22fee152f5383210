"""Events from Redis Streams: a consumer group, one stream a partition, owned by leases."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError, ResponseError

from materialize.stream.connect import fix_partitions
from materialize.stream.keys import GROUP, PAYLOAD, dead_key, events_key, lease_key
from materialize.stream.leases import Leases
from materialize.stream.source import Delivery, Lag
from materialize.stream.status import read_lag

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["RedisSource"]

logger = logging.getLogger(__name__)

_CONSUMER = "owner"
"""One name for all workers: the lease says who reads, so pending entries follow it."""
_FIRST = b"0-0"
_IDS_PER_CALL = 1_000
_TRIM_SECONDS = 60.0

# The lease is checked in the same step, so that a worker that slept through its lease is handed
# nothing: entries that it took would wait until the partition changes hands again.
# KEYS: lease and events of each partition. ARGV: worker, group, consumer, most entries, field, then
# for each partition `>`, or where the claiming of what the former owner left goes on.
# Answer for each partition: lost, next cursor, entries that are gone, ids and payloads in turn.
_READ = """
local worker, group, consumer, left, field = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local count = #KEYS / 2
local answers, again = {}, {}
local function add(answer, entries)
  local flat = answer[4]
  for _, entry in ipairs(entries) do
    local fields, payload = entry[2], nil
    for i = 1, #fields, 2 do
      if fields[i] == field then payload = fields[i + 1] end
    end
    flat[#flat + 1] = entry[1]
    flat[#flat + 1] = payload or 'no field "' .. field .. '": ' .. table.concat(fields, ' ')
  end
  left = left - #entries
  return #entries
end
local function read(p, most)
  local answer = answers[p]
  local key, cursor = KEYS[2 * p], answer[2]
  if cursor ~= '>' then
    local got = redis.call('XAUTOCLAIM', key, group, consumer, 0, cursor, 'COUNT', most)
    answer[2] = got[1] == '0-0' and '>' or got[1]
    answer[3] = answer[3] + #got[3]
    answer[5] = answer[5] + add(answer, got[2])
    return true
  end
  local got = redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', most, 'STREAMS', key, '>')
  return got and add(answer, got[1][2]) == most
end
local share = math.ceil(left / count)
for p = 1, count do
  answers[p] = {0, ARGV[5 + p], 0, {}, 0}
  if redis.call('GET', KEYS[2 * p - 1]) ~= worker then
    answers[p][1] = 1
  elseif left > 0 and read(p, math.min(share, left)) then
    again[#again + 1] = p
  end
end
for _, p in ipairs(again) do
  if left > 0 then read(p, left) end
end
return answers
"""

# One dead letter for an entry, whoever sets it aside and however often.
# KEYS: events, dead. ARGV: group, id, field, payload, reason, detail.
_REJECT = """
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call('XADD', KEYS[2], '*', ARGV[3], ARGV[4], 'reason', ARGV[5], 'detail', ARGV[6],
           'id', ARGV[2])
return 1
"""

# Entries older than ARGV[1] (ms) that every group of the stream has been handed and acknowledged.
_TRIM = """
local function before(a, b)
  local ams, as = a:match('^(%d+)-(%d+)$')
  local bms, bs = b:match('^(%d+)-(%d+)$')
  if #ams ~= #bms then return #ams < #bms end
  if ams ~= bms then return ams < bms end
  if #as ~= #bs then return #as < #bs end
  return as < bs
end
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local least = ARGV[1] .. '-0'
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local name, last
  for i = 1, #group, 2 do
    if group[i] == 'name' then name = group[i + 1] end
    if group[i] == 'last-delivered-id' then last = group[i + 1] end
  end
  if before(last, least) then least = last end
  local first = redis.call('XPENDING', KEYS[1], name)[2]
  if first and before(first, least) then least = first end
end
return redis.call('XTRIM', KEYS[1], 'MINID', '=', least)
"""


class RedisSource:
    """An `EventSource` over the partitions that this worker owns.

    Parameters
    ----------
    client : redis.Redis
        Of the event stream's Redis, which this source alone uses.
    project : str
    partitions : int
        As fixed in Redis; fixed now at first use.
    worker : str
        Name of this worker, unlike any other's.
    lease_seconds : float
        After so long without a sign of life another worker takes over.
    retention_hours : float
        Acknowledged events older than this are trimmed.

    Raises
    ------
    StreamConflict
        Redis has another number of partitions.

    Notes
    -----
    State: leases; by owned partition the last id read, where claiming goes on, and what was handed
    out and is not acknowledged. A partition that is beyond the fair share is not read any more, and
    released as soon as everything handed out of it is acknowledged.
    """

    def __init__(
        self,
        client: Redis,
        project: str,
        partitions: int,
        worker: str,
        *,
        lease_seconds: float = 10.0,
        retention_hours: float = 48.0,
    ) -> None:
        fix_partitions(client, project, partitions)
        self._client = client
        self._project, self._partitions = project, partitions
        self._leases = Leases(client, project, partitions, worker, lease_seconds)
        self._retention_ms = retention_hours * 3_600_000
        self._script_read = client.register_script(_READ)
        self._script_reject = client.register_script(_REJECT)
        self._script_trim = client.register_script(_TRIM)
        self._cursors: dict[int, bytes] = {}
        self._last: dict[int, bytes] = {}
        self._outstanding: dict[int, set[bytes]] = defaultdict(set)
        self._turn = 0
        self._trimmed = time.monotonic()
        self._gone = 0

    @property
    def owned(self) -> frozenset[int]:
        """Partitions that this worker owns."""
        return frozenset(self._leases.owned)

    def poll(self, max_events: int, wait_ms: int) -> list[Delivery]:
        """Return up to ``max_events`` events; waits up to ``wait_ms`` for the first one only."""
        until = time.monotonic() + wait_ms / 1000
        while True:
            if self._leases.due_in <= 0:
                self.renew()
            found = self._read(max_events)
            left = until - time.monotonic()
            if found or left <= 0:
                return found
            self._wait(max(0.001, min(left, self._leases.due_in)))

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Say that the effect of these is online and offline; safe to repeat."""
        ids: dict[int, list[bytes]] = defaultdict(list)
        for delivery in deliveries:
            ids[delivery.partition].append(delivery.id)
        with self._client.pipeline(transaction=False) as pipe:
            for partition, some in ids.items():
                key = events_key(self._project, partition)
                for start in range(0, len(some), _IDS_PER_CALL):
                    pipe.xack(key, GROUP, *some[start : start + _IDS_PER_CALL])
            pipe.execute()
        for partition, some in ids.items():
            self._outstanding[partition].difference_update(some)
        self._release_excess()

    def reject(self, delivery: Delivery, reason: str, detail: str) -> None:
        """Set an event aside as a dead letter and acknowledge it, in one step; safe to repeat."""
        keys = [make(self._project, delivery.partition) for make in (events_key, dead_key)]
        self._script_reject(
            keys=keys, args=[GROUP, delivery.id, PAYLOAD, delivery.payload, reason, detail]
        )
        self._outstanding[delivery.partition].discard(delivery.id)

    def again(self, keep: Sequence[Delivery]) -> None:
        """Hand out again, as redelivered, what is not acknowledged, but for ``keep``."""
        self._outstanding.clear()
        for delivery in keep:
            self._outstanding[delivery.partition].add(delivery.id)
        self._cursors.update(dict.fromkeys(self._cursors, _FIRST))

    def renew(self) -> None:
        """Say that this worker is alive; take over and give up partitions as the shares say."""
        turn = self._leases.look()
        for partition in (*turn.lost, *turn.taken):
            # What was handed out of it is pending, and goes to its next owner: us, or another.
            self._outstanding.pop(partition, None)
            self._cursors.pop(partition, None)
        if turn.lost:
            logger.info("%s lost partitions %s", self._leases.worker, list(turn.lost))
        if turn.taken:
            logger.info("%s took over partitions %s", self._leases.worker, list(turn.taken))
        for partition in sorted(self._leases.owned - self._cursors.keys()):
            self._open(partition)
        self._release_excess()
        if time.monotonic() - self._trimmed > _TRIM_SECONDS:
            self.trim()

    @property
    def waited_for(self) -> bool:
        """Whether another worker waits for partitions whose events are not yet acknowledged."""
        return any(self._outstanding[partition] for partition in self._leases.excess)

    @property
    def gone(self) -> int:
        """Entries that were handed out to a former owner and deleted from the stream since."""
        return self._gone

    def now_ms(self) -> float:
        """Return the time by Redis' clock."""
        return self._leases.now_ms()

    def lag(self) -> Lag:
        """Return what is left to do in all partitions, whoever owns them."""
        return read_lag(self._client, self._project, self._partitions)

    def trim(self) -> int:
        """Remove acknowledged entries older than the retention; return how many."""
        least = max(0, int(self.now_ms() - self._retention_ms))
        self._trimmed = time.monotonic()
        removed = 0
        for partition in sorted(self._leases.owned):
            keys = [events_key(self._project, partition)]
            removed += int(self._script_trim(keys=keys, args=[least]))
        return removed

    def close(self) -> None:
        """Release the leases; what is not acknowledged is handed out to who takes over."""
        self._outstanding.clear()
        self._cursors.clear()
        try:
            self._leases.leave()
        finally:
            self._client.close()

    def _open(self, partition: int) -> None:
        """Begin to read a partition: first what its former owner left unacknowledged."""
        key = events_key(self._project, partition)
        try:
            self._client.xgroup_create(key, GROUP, id="0", mkstream=True)
        except ResponseError as exc:
            if not str(exc).startswith("BUSYGROUP"):
                raise
        groups: Any = self._client.xinfo_groups(key)
        (group,) = [one for one in groups if one["name"] == GROUP.encode()]
        self._last[partition] = group["last-delivered-id"]
        self._cursors[partition] = _FIRST

    def _read(self, max_events: int) -> list[Delivery]:
        draining = set(self._leases.excess)
        ready = sorted(p for p in self._cursors if p not in draining)
        if not ready:
            return []
        # Another partition first each time: a full one must not starve the rest.
        self._turn += 1
        at = self._turn % len(ready)
        ready = ready[at:] + ready[:at]
        keys = [make(self._project, p) for p in ready for make in (lease_key, events_key)]
        cursors = [self._cursors[p] for p in ready]
        args: list[Any] = [self._leases.worker, GROUP, _CONSUMER, max_events, PAYLOAD, *cursors]
        try:
            answers: Any = self._script_read(keys=keys, args=args)
        except (RedisError, OSError):
            # It may have handed out entries in an answer that never came: they are claimed.
            self._cursors.update(dict.fromkeys(ready, _FIRST))
            raise
        found: list[Delivery] = []
        for partition, (lost, cursor, gone, flat, claimed) in zip(ready, answers, strict=True):
            if lost:
                # The next look says whose it is; until then it is read no more.
                self._leases.owned.discard(partition)
                self._cursors.pop(partition)
                self._outstanding.pop(partition, None)
                continue
            if gone:
                self._gone += gone
                logger.warning(
                    "partition %d: %d events were deleted from the stream before they were "
                    "acknowledged",
                    *(partition, gone),
                )
            self._cursors[partition] = cursor
            found += self._deliveries(partition, flat, claimed)
        return found

    def _deliveries(self, partition: int, flat: list[bytes], claimed: int) -> list[Delivery]:
        """Return entries as deliveries; the first ``claimed`` of them were handed out before."""
        handed_out = self._outstanding[partition]
        made = []
        for n, (one, payload) in enumerate(zip(flat[::2], flat[1::2], strict=True)):
            if n < claimed and one in handed_out:
                continue  # in the worker's hands
            made.append(Delivery(partition, one, payload, n < claimed, _position(one)[0]))
        handed_out.update(delivery.id for delivery in made)
        if made and _position(made[-1].id) > _position(self._last[partition]):
            self._last[partition] = made[-1].id
        return made

    def _wait(self, seconds: float) -> None:
        """Wait until an event may have come to a partition that this worker reads."""
        draining = set(self._leases.excess)
        streams = {
            events_key(self._project, p): self._last[p] for p in self._cursors if p not in draining
        }
        if not streams:
            time.sleep(seconds)
            return
        # Only a look: entries are handed out by the script that checks the lease.
        self._client.xread(streams, count=1, block=max(1, int(seconds * 1000)))  # type: ignore[arg-type]

    def _release_excess(self) -> None:
        idle = [p for p in self._leases.excess if not self._outstanding[p]]
        if idle:
            self._leases.release(idle)
            for partition in idle:
                self._cursors.pop(partition, None)
                self._outstanding.pop(partition, None)
            logger.info("%s released partitions %s", self._leases.worker, idle)


def _position(entry: bytes) -> tuple[int, int]:
    milliseconds, _, sequence = entry.partition(b"-")
    return int(milliseconds), int(sequence)
