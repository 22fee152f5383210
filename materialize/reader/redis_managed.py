"""Fields from a Redis cluster, or from the master that sentinels name: redis-py finds the node."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import tenacity
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from materialize.reader.budget import Budget, retry_options
from materialize.reader.fields import Found, Users, Wanted
from materialize.reader.redis_layout import (
    TRANSIENT,
    RedisLayout,
    as_columns,
    refusal,
    require_answers,
)
from materialize.reader.waiting import Waiting

if TYPE_CHECKING:
    from feast import RepoConfig

__all__ = ["ManagedRedisFields"]

_SILENCE_SECONDS = 2.0
"""How long a node may be silent, unless the connection string says otherwise."""


class ManagedRedisFields:
    """Reads fields where redis-py must find out which server to ask; safe for threads.

    A call waits in a thread, because redis-py's clients know no deadline of a whole call.

    Parameters
    ----------
    config : RepoConfig
    connections : int
        How many calls may wait at once.

    Notes
    -----
    State: redis-py's client with its connections and what it knows of the nodes.
    """

    def __init__(self, config: RepoConfig, connections: int) -> None:
        self._config = config
        self._layout = RedisLayout(config)
        self._waiting = Waiting(connections)
        self._where = f"Redis ({config.online_store.redis_type.value})"
        self._lock = threading.Lock()
        self._client: Any = None

    def read(self, wanted: Sequence[Wanted], users: Users, budget: Budget) -> Found:
        """Return the wanted fields; see `FieldReader`."""
        return self._waiting.run(lambda: self._read(wanted, users, budget), budget, self._where)

    async def read_async(self, wanted: Sequence[Wanted], users: Users, budget: Budget) -> Found:
        """Return what `read` does; the threads wait, not the event loop."""
        return await self._waiting.run_async(
            lambda: self._read(wanted, users, budget), budget, self._where
        )

    def close(self) -> None:
        """Close the connections; a later read opens new ones."""
        self._waiting.close()
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    async def close_async(self) -> None:
        """Close the connections; a later read opens new ones."""
        self.close()

    def _read(self, wanted: Sequence[Wanted], users: Users, budget: Budget) -> Found:
        keys, names = self._layout.keys(wanted, users), self._layout.hash_fields(wanted)
        again = tenacity.Retrying(**retry_options(budget, self._where, TRANSIENT))
        return as_columns(again(self._ask, keys, names), len(names))

    def _ask(self, keys: Sequence[bytes], names: Sequence[bytes]) -> Sequence[Any]:
        if not keys:
            return []
        try:
            with self._opened().pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.hmget(key, names)
                answers = pipe.execute(raise_on_error=False)
        except RedisError as exc:
            raise refusal(exc, self._where) from exc.__cause__
        return require_answers(answers, self._where)

    def _opened(self) -> Any:
        from feast.infra.online_stores.redis import RedisOnlineStore

        with self._lock:
            if self._client is None:
                client = RedisOnlineStore()._get_client(_bounded(self._config.online_store))
                client.set_retry(Retry(NoBackoff(), 0))  # tries are counted here
                self._client = client
            return self._client


def _bounded(settings: Any) -> Any:
    """Return the store's settings with a limit on the silence of one node."""
    text = settings.connection_string
    if "socket_timeout=" not in text:
        text = f"{text},socket_timeout={_SILENCE_SECONDS}"
    return settings.model_copy(update={"connection_string": text})
