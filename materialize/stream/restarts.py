"""Whether a server was started anew: what it had not yet on disk may be gone since."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis.cluster import RedisCluster

__all__ = ["Restarts"]


class Restarts:
    """Compares the servers behind some clients with those of the last call.

    A client connects again without a word, so only the server can tell: Redis draws another
    ``run_id`` at each start, and a replica that took over has one of its own.

    Parameters
    ----------
    clients : sequence of redis.Redis or RedisCluster
        Asked for the first time here.
    """

    def __init__(self, clients: Sequence[Any]) -> None:
        self._clients = clients
        self._seen = self._ask()

    def __call__(self) -> bool:
        """Return whether a server is another one than at the last call, or at the beginning.

        Raises
        ------
        redis.RedisError
            One does not answer; the next call compares with what was seen before.
        """
        seen, self._seen = self._seen, self._ask()
        return seen != self._seen

    def _ask(self) -> list[frozenset[str]]:
        return [_run_ids(client) for client in self._clients]


def _run_ids(client: Any) -> frozenset[str]:
    if not isinstance(client, RedisCluster):
        return frozenset({client.info("server")["run_id"]})
    answers: Any = client.info("server", target_nodes=RedisCluster.PRIMARIES)
    # A cluster of one primary answers as that node does.
    each = [answers] if "run_id" in answers else answers.values()
    return frozenset(answer["run_id"] for answer in each)
