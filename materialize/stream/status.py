"""How far the stream is: by partition, from Redis."""

from __future__ import annotations

from contextlib import closing
from datetime import date, datetime, timezone
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from materialize.stream.keys import GROUP, dead_key, events_key, lease_key
from materialize.stream.marker import read_marker
from materialize.stream.source import Lag, PartitionLag

if TYPE_CHECKING:
    from redis import Redis

    from materialize.context import Context

__all__ = ["read_lag", "stream_status"]

_EPOCH = date(1970, 1, 1).toordinal()
_COUNT_PER_CALL = 1_000
_COUNT_AT_MOST = 100_000
"""Where Redis lost count: what is beyond is not worth the time."""


def read_lag(client: Redis, project: str, partitions: int) -> Lag:
    """Return what is left to do in each partition; one round trip, two when something is left."""
    keys = [events_key(project, p) for p in range(partitions)]
    with client.pipeline(transaction=False) as pipe:
        pipe.time()
        for p, key in enumerate(keys):
            pipe.xinfo_groups(key)
            pipe.xpending(key, GROUP)
            pipe.xlen(key)
            pipe.get(lease_key(project, p))
        clock, *answers = pipe.execute(raise_on_error=False)
    for answer in (clock, *answers):
        if isinstance(answer, Exception) and not _is_absent(answer):
            raise answer
    now_ms = clock[0] * 1000 + clock[1] // 1000
    rows = [answers[4 * p : 4 * p + 4] for p in range(partitions)]
    groups = [_own_group(row[0]) for row in rows]
    with client.pipeline(transaction=False) as pipe:
        for key, group in zip(keys, groups, strict=True):
            last = "-" if group is None else b"(" + group["last-delivered-id"]
            pipe.xrange(key, min=last, count=1)
        firsts: list[Any] = pipe.execute()
    made = []
    for p, ((_, pending, length, owner), group, first) in enumerate(
        zip(rows, groups, firsts, strict=True)
    ):
        undelivered = length if group is None else group.get("lag")
        if undelivered is None:  # somebody deleted entries in the middle, so Redis lost count
            undelivered = _count(client, keys[p], group["last-delivered-id"])
        unacknowledged = 0 if group is None else pending["pending"]
        heads = [entry for entry, _ in first]
        if unacknowledged:
            heads.append(pending["min"])
        ages = [now_ms - int(head.partition(b"-")[0]) for head in heads]
        made.append(
            PartitionLag(
                partition=p,
                undelivered=undelivered,
                unacknowledged=unacknowledged,
                oldest_age_ms=max(0, *ages) if ages else 0,
                owner=None if owner is None else owner.decode(),
            )
        )
    return Lag(tuple(made))


def _is_absent(error: Exception) -> bool:
    """Return whether an error says that a partition has no stream, or no group, so far."""
    text = str(error)
    return isinstance(error, ResponseError) and ("no such key" in text or "NOGROUP" in text)


def _own_group(groups: Any) -> Any:
    if isinstance(groups, Exception):
        return None
    return next((one for one in groups if one["name"] == GROUP.encode()), None)


def _count(client: Redis, key: str, after: bytes) -> int:
    count = 0
    while count < _COUNT_AT_MOST:
        part: Any = client.xrange(key, min=b"(" + after, count=_COUNT_PER_CALL)
        count += len(part)
        if len(part) < _COUNT_PER_CALL:
            break
        after = part[-1][0]
    return count


def stream_status(context: Context) -> dict[str, Any]:
    """Return how a repository's stream stands, as plain JSON types.

    Raises
    ------
    DataFault
        The online store is not Palate's for Redis.
    StreamConflict, StoreRefused, TransientError
        As `open_broker`, or the stream was never used.
    """
    from materialize.stream.atomic import UserHashes
    from materialize.stream.broker import open_broker

    store, project = context.store, context.store.project
    with closing(UserHashes(store).client) as online:
        marker = read_marker(online, project)
    with closing(open_broker(store, context.settings)) as broker:
        lag = broker.lag()
        with broker.client.pipeline(transaction=False) as pipe:
            for p in range(len(lag.partitions)):
                pipe.xlen(dead_key(project, p))
            dead: list[int] = pipe.execute()
    floor = None if marker is None else marker.floor_day
    return {
        "project": project,
        "states": None
        if marker is None
        else {
            "floor_day": None if floor is None else str(date.fromordinal(_EPOCH + floor)),
            "longest_window": marker.longest_window,
            "fingerprint": marker.fingerprint,
            "at": datetime.fromtimestamp(marker.at_us / 1_000_000, timezone.utc).isoformat(),
        },
        "undelivered": lag.undelivered,
        "unacknowledged": lag.unacknowledged,
        "oldest_age_seconds": lag.oldest_age_ms / 1000,
        "dead_letters": sum(dead),
        "workers": len({one.owner for one in lag.partitions if one.owner is not None}),
        "partitions": [
            {
                "partition": one.partition,
                "owner": one.owner,
                "undelivered": one.undelivered,
                "unacknowledged": one.unacknowledged,
                "oldest_age_seconds": one.oldest_age_ms / 1000,
                "dead_letters": letters,
            }
            for one, letters in zip(lag.partitions, dead, strict=True)
        ],
    }
