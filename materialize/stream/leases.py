"""Who reads which partition: leases in Redis, shared out fairly among the workers that live."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from materialize.stream.connect import lost_stream
from materialize.stream.keys import config_key, lease_key, workers_key

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["Leases", "Turn"]

# One call keeps a worker's leases, notices who died, and takes what is free up to the fair share,
# so that two workers never count differently. KEYS: config, workers, lease of each partition.
# ARGV: worker, lease in ms. Answer: seconds, microseconds, share, partitions kept, taken.
_BALANCE = """
local clock = redis.call('TIME')
local count = redis.call('HGET', KEYS[1], 'partitions')
if tonumber(count or 0) ~= #KEYS - 2 then return {clock[1], clock[2], -1, {}, {}} end
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
redis.call('ZADD', KEYS[2], now + ARGV[2], ARGV[1])
local live = redis.call('ZRANGE', KEYS[2], 0, -1)
table.sort(live)
local all = #KEYS - 2
local share = math.floor(all / #live)
for rank = 1, all % #live do
  if live[rank] == ARGV[1] then share = share + 1 end
end
local kept, free, taken = {}, {}, {}
for p = 1, all do
  local owner = redis.call('GET', KEYS[p + 2])
  if not owner then
    free[#free + 1] = p
  elseif owner == ARGV[1] then
    redis.call('PEXPIRE', KEYS[p + 2], ARGV[2])
    kept[#kept + 1] = p - 1
  end
end
for i = 1, math.min(#free, share - #kept) do
  redis.call('SET', KEYS[free[i] + 2], ARGV[1], 'PX', ARGV[2])
  taken[i] = free[i] - 1
end
return {clock[1], clock[2], share, kept, taken}
"""

# KEYS: workers, leases; ARGV: worker, whether it leaves for good.
_RELEASE = """
for k = 2, #KEYS do
  if redis.call('GET', KEYS[k]) == ARGV[1] then redis.call('DEL', KEYS[k]) end
end
if ARGV[2] == '1' then redis.call('ZREM', KEYS[1], ARGV[1]) end
return 0
"""

_MOST_SECONDS = 1.0
_SHORT_SECONDS = 0.1
"""Between two looks while this worker owns less than its share: somebody is about to let go."""


@dataclass(frozen=True)
class Turn:
    """What one look at the leases changed for this worker."""

    taken: tuple[int, ...]
    """Partitions that are its own from now on."""
    lost: tuple[int, ...]
    """Partitions that were its own, and are another's or nobody's."""


class Leases:
    """The partitions that one worker owns.

    Parameters
    ----------
    client : redis.Redis
    project : str
    partitions : int
    worker : str
        Unlike any other worker's.
    seconds : float
        How long a lease lasts without a sign of life.

    Notes
    -----
    State: ``owned``, as Redis said at the last look; Redis' clock against this machine's.
    """

    def __init__(
        self, client: Redis, project: str, partitions: int, worker: str, seconds: float
    ) -> None:
        self.worker = worker
        self.owned: set[int] = set()
        self._project = project
        self._milliseconds = int(seconds * 1000)
        self._every = min(_MOST_SECONDS, seconds / 3)
        self._balance = client.register_script(_BALANCE)
        self._release = client.register_script(_RELEASE)
        self._workers = workers_key(project)
        self._keys = [lease_key(project, p) for p in range(partitions)]
        self._share = partitions
        self._looked = -float("inf")
        self._ahead_ms = 0.0

    @property
    def due_in(self) -> float:
        """Seconds until the next look; not positive when it is due."""
        short = len(self.owned) < self._share
        every = min(self._every, _SHORT_SECONDS) if short else self._every
        return self._looked + every - time.monotonic()

    @property
    def excess(self) -> list[int]:
        """Partitions beyond the fair share, which others wait for."""
        return sorted(self.owned)[max(self._share, 0) :]

    def look(self) -> Turn:
        """Renew the leases and take free partitions up to the fair share.

        Raises
        ------
        StreamConflict
            Redis lost the stream.
        redis.RedisError
            Redis does not answer; what is owned is then as at the last look.
        """
        keys = [config_key(self._project), self._workers, *self._keys]
        before = time.monotonic()
        answer: Any = self._balance(keys=keys, args=[self.worker, self._milliseconds])
        after = time.monotonic()
        seconds, micros, share, kept, taken = answer
        if share < 0:
            raise lost_stream(self._project)
        clock_ms = int(seconds) * 1000 + int(micros) / 1000
        self._ahead_ms = clock_ms - (before + after) / 2 * 1000
        self._looked, self._share = before, share
        # An answer that was lost on the way: Redis has it as ours, and we did not know.
        new = {*taken, *(p for p in kept if p not in self.owned)}
        lost = self.owned - set(kept)
        self.owned = {*kept, *taken}
        return Turn(tuple(sorted(new)), tuple(sorted(lost)))

    def release(self, partitions: list[int]) -> None:
        """Let others have partitions; those that are not ours any more stay as they are."""
        keys = [self._workers, *(self._keys[p] for p in partitions)]
        self._release(keys=keys, args=[self.worker, 0])
        self.owned -= set(partitions)
        self._looked = -float("inf")

    def leave(self) -> None:
        """Let others have everything."""
        keys = [self._workers, *(self._keys[p] for p in sorted(self.owned))]
        self._release(keys=keys, args=[self.worker, 1])
        self.owned = set()

    def now_ms(self) -> float:
        """Return the time by Redis' clock: milliseconds since 1970."""
        return self._ahead_ms + time.monotonic() * 1000
