"""Redis as online store: Arrow in, compare-and-set in one Lua call for some hundred users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha1
from typing import Any, Literal, cast

from feast import FeatureView, RepoConfig
from feast.infra.online_stores.helpers import _mmh3, compute_versioned_name
from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig
from feast.protos.feast.types.Value_pb2 import Value
from redis.cluster import RedisCluster
from redis.exceptions import NoScriptError

from materialize.stores.base import AtomicOnlineStore
from materialize.stores.on_demand_reads import OnDemandReads, Replies
from materialize.stores.removal import remove_online
from materialize.stores.rows import EncodedRows
from materialize.stores.values import timestamps

__all__ = ["PalateRedisOnlineStore", "PalateRedisOnlineStoreConfig", "by_slot", "hash_fields"]

_KEYS_PER_CALL = 500
_ARGUMENTS_PER_CALL = 8_000
"""Bounds how long one call keeps other clients waiting, for views of many features."""
_CALLS_PER_PIPELINE = 4
_CONNECTIONS = 2
"""One packs while the other's rows are set."""

# KEYS: one hash a user. ARGV: number of hash fields, seconds until expiry (0: never), the hash
# fields, `_ts:view` last; then for each key the fields' values. Timestamps are protobuf:
# field 1 seconds, 2 nanoseconds, 15 our created time. Lua's numbers are doubles, so seconds and
# nanoseconds are compared apart, and negative seconds are read through their complement.
_COMPARE_AND_SET = """
local byte = string.byte
local function read(text)
  local seconds, nanos, created = 0, 0, nil
  local i, size = 1, #text
  while i <= size do
    local tag = byte(text, i)
    local value, inverse, factor, count, group = 0, 0, 1, 0, 0
    repeat
      i = i + 1
      group = byte(text, i)
      local low = group % 128
      value = value + low * factor
      if count < 9 then inverse = inverse + (127 - low) * factor end
      factor = factor * 128
      count = count + 1
    until group < 128
    if count == 10 then value = -(inverse + 1) end
    i = i + 1
    if tag == 8 then seconds = value
    elseif tag == 16 then nanos = value
    elseif tag == 120 then created = value end
  end
  return seconds, nanos, created
end
local function older(new, old)
  if new == old then return false end
  local s, n, c = read(new)
  local os, on, oc = read(old)
  if s ~= os then return s < os end
  if n ~= on then return n < on end
  if oc == nil then return false end
  return c == nil or c < oc
end
local fields, expiry = tonumber(ARGV[1]), tonumber(ARGV[2])
local stamp = ARGV[2 + fields]
local written = 0
local arguments = {}
for f = 1, fields do arguments[2 * f] = ARGV[2 + f] end
local at = 2 + fields
for k = 1, #KEYS do
  local key = KEYS[k]
  local old = redis.call('HGET', key, stamp)
  if not old or not older(ARGV[at + fields], old) then
    for f = 1, fields do arguments[2 * f + 1] = ARGV[at + f] end
    arguments[1] = key
    redis.call('HSET', unpack(arguments, 1, 2 * fields + 1))
    if expiry > 0 then redis.call('EXPIRE', key, expiry) end
    written = written + 1
  end
  at = at + fields
end
return written
"""
_DIGEST = sha1(_COMPARE_AND_SET.encode()).hexdigest()  # noqa: S324 - how Redis names scripts

_Call = list[Any]
"""Arguments of one EVALSHA after the digest: number of keys, keys, ARGV."""


class PalateRedisOnlineStoreConfig(RedisOnlineStoreConfig):
    """Feast's Redis settings; ``skip_dedup`` is refused, because it lets old replace new."""

    type: str = "materialize.stores.redis.PalateRedisOnlineStore"  # type: ignore[assignment]
    """Online store type selector."""

    skip_dedup: Literal[False] = False
    """Every write compares event times."""


class PalateRedisOnlineStore(OnDemandReads, AtomicOnlineStore, RedisOnlineStore):
    """Feast's Redis layout, written by batched Lua; a user that was never written is NOT_FOUND.

    On-demand embeddings are made from the stored bytes (`materialize.stores.on_demand`).
    """

    _keeps_text = False

    def _key_suffix(self, config: RepoConfig) -> bytes:
        return config.project.encode("utf-8")

    def _write_encoded(self, config: RepoConfig, view: FeatureView, rows: EncodedRows) -> int:
        client = self._get_client(config.online_store)
        name = compute_versioned_name(view, config.registry.enable_online_feature_view_versioning)
        fields = hash_fields({name: rows.names})
        columns = [*rows.values, timestamps(rows.event_us, rows.created_us, rows.has_created)]
        head = [len(fields), config.online_store.key_ttl_seconds or 0, *fields]
        if isinstance(client, RedisCluster):
            groups = by_slot(client, rows.keys)
        else:
            groups = [range(len(rows))]
        size = max(1, min(_KEYS_PER_CALL, _ARGUMENTS_PER_CALL // len(fields)))
        calls = [
            _call(rows.keys, head, columns, group[start : start + size])
            for group in groups
            for start in range(0, len(group), size)
        ]
        if isinstance(client, RedisCluster):
            # redis-py refuses EVALSHA in a cluster's pipeline, so calls go out one by one.
            return sum(_evaluate(client, call) for call in calls)
        pipelines = [
            calls[start : start + _CALLS_PER_PIPELINE]
            for start in range(0, len(calls), _CALLS_PER_PIPELINE)
        ]
        if len(pipelines) == 1:
            return _pipelined(client, pipelines[0])
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            return sum(pool.map(lambda part: _pipelined(client, part), pipelines))

    def _read_stored(
        self, config: RepoConfig, keys: Sequence[bytes], fields: Mapping[str, Sequence[str]]
    ) -> Replies:
        names: list[str | bytes] = [*hash_fields(fields)]
        found = self._read_hash_fields(config, [(key, names) for key in keys])
        return cast(Replies, found)

    async def _read_stored_async(
        self, config: RepoConfig, keys: Sequence[bytes], fields: Mapping[str, Sequence[str]]
    ) -> Replies:
        names = hash_fields(fields)
        client = await self._get_client_async(config.online_store)
        async with client.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hmget(key, names)
            found: Replies = await pipe.execute()
        return found

    def delete_table(self, config: RepoConfig, table: FeatureView) -> None:
        """Delete a view's fields in batches, where Feast holds all keys of the server in memory.

        `feast apply` calls it for a view that the repository no longer declares.
        """
        remove_online(self, config, table, table.join_keys)

    def _get_features_for_entity(
        self, values: Sequence[Any], feature_view: str, requested_features: list[str]
    ) -> tuple[Any, dict[str, Value] | None]:
        """Return (None, None) without a row of this view, where Feast answers 1970 and nulls."""
        if values[requested_features.index(f"_ts:{feature_view}")] is None:
            return None, None
        answer: tuple[Any, dict[str, Value] | None] = super()._get_features_for_entity(
            values, feature_view, requested_features
        )
        return answer


def hash_fields(fields: Mapping[str, Sequence[str]]) -> list[bytes]:
    """Return the names in a user's hash of each view's fields and, behind them, its event time."""
    return [
        name
        for view, features in fields.items()
        for name in (*(_mmh3(f"{view}:{f}") for f in features), f"_ts:{view}".encode())
    ]


def by_slot(client: RedisCluster, keys: Sequence[bytes]) -> list[Sequence[int]]:
    """Return the rows of each hash slot: a script may touch the keys of one slot only."""
    slots: dict[int, list[int]] = {}
    for row, key in enumerate(keys):
        slot = client.keyslot(key)  # type: ignore[no-untyped-call]
        slots.setdefault(slot, []).append(row)
    return list(slots.values())


def _call(
    keys: Sequence[bytes], head: list[Any], columns: list[list[bytes]], rows: Sequence[int]
) -> _Call:
    if isinstance(rows, range):
        own = slice(rows.start, rows.stop)
        cut = [column[own] for column in columns]
        names = keys[own]
    else:
        cut = [[column[row] for row in rows] for column in columns]
        names = [keys[row] for row in rows]
    # Row-major, as the script walks them.
    values = [value for row in zip(*cut, strict=True) for value in row]
    return [len(names), *names, *head, *values]


def _pipelined(client: Any, calls: list[_Call]) -> int:
    with client.pipeline(transaction=False) as pipe:
        for call in calls:
            pipe.evalsha(_DIGEST, *call)
        answers = pipe.execute(raise_on_error=False)
    written = 0
    for call, answer in zip(calls, answers, strict=True):
        if isinstance(answer, NoScriptError):
            written += _evaluate(client, call)
        elif isinstance(answer, Exception):
            raise answer
        else:
            written += answer
    return written


def _evaluate(client: Any, call: _Call) -> int:
    """Run one call; EVAL stores the script again when the server has forgotten it."""
    try:
        written: int = client.evalsha(_DIGEST, *call)
    except NoScriptError:
        written = client.eval(_COMPARE_AND_SET, *call)
    return written
