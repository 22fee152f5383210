"""One step of a user in Redis: state, raw rows and embeddings move together, or nothing does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha1
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from encoder.errors import DataFault, TransientError
from transforms.names import USER_KEY

if TYPE_CHECKING:
    from feast import FeatureStore

__all__ = ["REVISION_FIELD", "STATE_FIELD", "UserHashes", "transient"]

STATE_FIELD = b"_palate:state"
"""Field of a user's hash that holds what `UserStates.encode` gives."""
REVISION_FIELD = b"_palate:revision"
"""When the state was changed last, decimal microseconds since 1970: grows with every step, also
after the hash was lost in between."""

Row = Sequence[bytes | None]

_USERS_PER_CALL = 50
_BYTES_PER_CALL = 1_000_000
"""Bounds how long one call keeps other clients waiting."""
_SILENCE_SECONDS = 5.0
"""How long Redis may be silent, unless the connection string says otherwise."""

_ABSENT, _KEPT, _SET = b"-", b"-", b"+"
"""No such field was read (no time and no revision begins with it); a group stays; it is set."""

# KEYS: one hash a user. ARGV: seconds until expiry (0: never), number of guards, their names,
# number of groups, each one's number of fields and their names; then for each key what the guards
# are expected to be, and for each group '-', or '+' and its values. Returns the positions of the
# keys whose guards were otherwise; nothing of these is set.
_STEP = """
local expiry, n_guards = ARGV[1], tonumber(ARGV[2])
local read = {'HMGET', ''}
for g = 1, n_guards do read[2 + g] = ARGV[2 + g] end
local at = 3 + n_guards
local groups = {}
for g = 1, tonumber(ARGV[at]) do
  at = at + 1
  local names = {}
  for f = 1, tonumber(ARGV[at]) do names[f] = ARGV[at + f] end
  at = at + #names
  groups[g] = names
end
local conflicts = {}
for k = 1, #KEYS do
  read[2] = KEYS[k]
  local found = redis.call(unpack(read))
  local same = true
  for g = 1, n_guards do
    if (found[g] or '-') ~= ARGV[at + g] then same = false end
  end
  at = at + n_guards
  local set, size = {'HSET', KEYS[k]}, 2
  for g = 1, #groups do
    at = at + 1
    if ARGV[at] == '+' then
      local names = groups[g]
      for f = 1, #names do
        set[size + 1], set[size + 2] = names[f], ARGV[at + f]
        size = size + 2
      end
      at = at + #names
    end
  end
  if not same then
    conflicts[#conflicts + 1] = k
  elseif size > 2 then
    redis.call(unpack(set))
    if expiry ~= '0' then redis.call('EXPIRE', KEYS[k], expiry) end
  end
end
return conflicts
"""
_DIGEST = sha1(_STEP.encode()).hexdigest()  # noqa: S324 - how Redis names scripts


class UserHashes:
    """The users' hashes of a repository's Redis online store.

    Parameters
    ----------
    store : FeatureStore

    Raises
    ------
    DataFault
        The online store is not Palate's for Redis.

    Notes
    -----
    State: redis-py's client. Nothing is tried twice in here: a step that was taken and whose answer
    was lost would look like another writer's.
    """

    def __init__(self, store: FeatureStore) -> None:
        from feast.infra.online_stores.helpers import get_online_store_from_config
        from redis.backoff import NoBackoff
        from redis.cluster import RedisCluster
        from redis.retry import Retry

        from materialize.stores.redis import PalateRedisOnlineStore

        settings: Any = store.config.online_store
        online = get_online_store_from_config(settings)
        if not isinstance(online, PalateRedisOnlineStore):
            raise DataFault(
                f"The online store is {type(online).__name__}. A stream needs state and rows of a "
                "user to move in one step: set online_store.type to "
                "'materialize.stores.redis.PalateRedisOnlineStore'."
            )
        if "socket_timeout=" not in settings.connection_string:
            text = f"{settings.connection_string},socket_timeout={_SILENCE_SECONDS}"
            settings = settings.model_copy(update={"connection_string": text})
        self.client: Any = online._get_client(settings)
        self.client.set_retry(Retry(NoBackoff(), 0))
        self._is_cluster = isinstance(self.client, RedisCluster)
        self._expiry = settings.key_ttl_seconds or 0
        self._suffix = store.config.project.encode("utf-8")
        self._key_version = store.config.entity_key_serialization_version

    def keys(self, users: Sequence[int | str]) -> list[bytes]:
        """Return the key of each user's hash; ids are all of one type."""
        from materialize.stores.values import entity_keys

        text = bool(users) and isinstance(users[0], str)
        ids = pa.array(users, pa.string() if text else pa.int64())
        kind = "STRING" if text else "INT64"
        return entity_keys([(USER_KEY, kind, ids)], self._key_version, self._suffix)

    def read(self, keys: Sequence[bytes], fields: Sequence[bytes]) -> list[list[bytes | None]]:
        """Return the fields of each hash, None where there is no such field; one round trip.

        Raises
        ------
        TransientError
            Redis does not answer.
        """
        if not self._is_cluster:
            with transient():
                return self._read_packed(keys, fields)
        with transient(), self.client.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hmget(key, fields)
            answers: list[list[bytes | None]] = pipe.execute()
        return answers

    def _read_packed(
        self, keys: Sequence[bytes], fields: Sequence[bytes]
    ) -> list[list[bytes | None]]:
        """Read without an object for each command, in 0.4 of the time of redis-py's pipeline."""
        from materialize.reader.redis_layout import hmget_commands, hmget_frame

        pool = self.client.connection_pool
        connection = pool.get_connection()
        try:
            connection.send_packed_command([hmget_commands(keys, *hmget_frame(fields))])
            answers: list[list[bytes | None]] = [connection.read_response() for _ in keys]
        except BaseException:
            connection.disconnect()  # answers that are still to come belong to nobody
            raise
        finally:
            pool.release(connection)
        return answers

    def commit(
        self,
        keys: Sequence[bytes],
        guards: Sequence[bytes],
        expected: Sequence[Row],
        groups: Sequence[Sequence[bytes]],
        values: Sequence[Sequence[Sequence[bytes] | None]],
    ) -> npt.NDArray[np.bool_]:
        """Set fields of each hash in which the guards are still as they were read.

        Parameters
        ----------
        keys : sequence of bytes, n
            Distinct.
        guards : sequence of bytes
            Fields that must not have changed.
        expected : sequence of rows, n
            What was read of the guards; None: there was no such field.
        groups : sequence of (sequence of bytes)
            Fields that are set together, for example those of one view.
        values : sequence, n
            For each key and group the fields' values, or None: the group stays as it is.

        Returns
        -------
        bool (n,)
            False: another writer came first, and nothing of this user was set.

        Raises
        ------
        TransientError
            Redis does not answer; some users may have been written, each one whole.
        """
        head: list[Any] = [self._expiry, len(guards), *guards, len(groups)]
        for names in groups:
            head += [len(names), *names]
        own = [_arguments(*one) for one in zip(expected, values, strict=True)]
        calls = list(self._calls(keys, own))
        packed = [
            [len(rows), *(keys[row] for row in rows), *head, *_joined(own[row] for row in rows)]
            for rows in calls
        ]
        done = np.ones(len(keys), np.bool_)
        with transient():
            answers = self._run(packed)
        for rows, conflicts in zip(calls, answers, strict=True):
            done[[rows[k - 1] for k in conflicts]] = False
        return done

    def _calls(self, keys: Sequence[bytes], own: Sequence[list[bytes]]) -> Iterator[Sequence[int]]:
        """Yield the rows of each call: so many users and bytes, and one slot of a cluster."""
        from materialize.stores.redis import by_slot

        groups = by_slot(self.client, keys) if self._is_cluster else [range(len(keys))]
        for group in groups:
            rows: list[int] = []
            size = 0
            for row in group:
                rows.append(row)
                size += sum(map(len, own[row]))
                if len(rows) == _USERS_PER_CALL or size >= _BYTES_PER_CALL:
                    yield rows
                    rows, size = [], 0
            if rows:
                yield rows

    def _run(self, calls: Sequence[list[Any]]) -> list[list[int]]:
        from redis.exceptions import NoScriptError

        if self._is_cluster or len(calls) == 1:
            # redis-py refuses EVALSHA in a cluster's pipeline.
            return [self._evaluate(call) for call in calls]
        with self.client.pipeline(transaction=False) as pipe:
            for call in calls:
                pipe.evalsha(_DIGEST, *call)
            answers: list[Any] = pipe.execute(raise_on_error=False)
        for at, answer in enumerate(answers):
            if isinstance(answer, NoScriptError):
                answers[at] = self._evaluate(calls[at])
            elif isinstance(answer, Exception):
                raise answer
        return answers

    def _evaluate(self, call: list[Any]) -> list[int]:
        """Run one call; EVAL stores the script again when the server has forgotten it."""
        from redis.exceptions import NoScriptError

        try:
            conflicts: list[int] = self.client.evalsha(_DIGEST, *call)
        except NoScriptError:
            conflicts = self.client.eval(_STEP, *call)
        return conflicts


@contextmanager
def transient() -> Iterator[None]:
    """Turn errors of a Redis that does not answer, or not yet, into transient ones."""
    from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError

    from materialize.reader.redis_layout import refusal

    try:
        yield
    except (RedisError, OSError) as exc:
        refused = refusal(exc, "The online Redis")
        if refused is exc or isinstance(exc, OutOfMemoryError | ReadOnlyError):
            raise TransientError(f"The online Redis does not take part: {exc}.") from exc
        raise refused from exc


def _arguments(expected: Row, values: Sequence[Sequence[bytes] | None]) -> list[bytes]:
    """Return what the script reads of one user."""
    arguments = [_ABSENT if value is None else value for value in expected]
    for group in values:
        if group is None:
            arguments.append(_KEPT)
        else:
            arguments.append(_SET)
            arguments += group
    return arguments


def _joined(parts: Iterable[list[bytes]]) -> list[bytes]:
    whole: list[bytes] = []
    for part in parts:
        whole += part
    return whole
