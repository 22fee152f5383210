"""Clients of the event stream's Redis, and what is fixed there at first use."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.retry import Retry

from encoder.errors import EmbeddingError, StoreRefused, StreamConflict, TransientError
from materialize.stream.keys import config_key

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "connect",
    "expand_url",
    "fix_partitions",
    "is_transient",
    "lost_stream",
    "masked",
    "require_fit",
]

_SILENCE_SECONDS = 5.0
"""How long Redis may be silent before a call fails; more than any poll waits."""
_OLDEST_MAJOR = 7
"""XAUTOCLAIM tells which entries are gone, and XINFO how many are left, from Redis 7 on."""
_PARTITIONS = "partitions"
_REFUSED = (AuthenticationError, AuthorizationError, NoPermissionError)
# Of the errors that Redis answers with, those that pass: it loads its data, a failover made it a
# replica, its memory is full until somebody makes room.
_PASSING = (BusyLoadingError, ReadOnlyError, OutOfMemoryError)


def expand_url(url: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return a URL with each ``${NAME}`` replaced from the environment.

    Raises
    ------
    StreamConflict
        A variable is not set.
    """

    def value(found: re.Match[str]) -> str:
        if found[1] not in environ:
            raise StreamConflict(
                f"stream.url names the environment variable {found[1]!r}, which is not set. Set it."
            )
        return environ[found[1]]

    return re.sub(r"\$\{(\w+)\}", value, url)


def masked(url: str) -> str:
    """Return a URL without its password.

    Examples
    --------
    >>> masked("redis://palate:secret@redis:6379/0")
    'redis://palate:***@redis:6379/0'
    """
    password = urlsplit(url).password
    return url if not password else url.replace(f":{password}@", ":***@", 1)


def connect(url: str) -> redis.Redis:
    """Return a client of one Redis server, which answers and is fit for the event stream.

    Raises
    ------
    StreamConflict
        The URL is malformed, or the server is part of a cluster or too old.
    StoreRefused
        Wrong user, password or permissions.
    TransientError
        It does not answer.
    """
    shown = masked(url)
    try:
        client = redis.Redis.from_url(
            url,
            socket_timeout=_SILENCE_SECONDS,
            socket_connect_timeout=_SILENCE_SECONDS,
            retry=Retry(NoBackoff(), 0),  # tries are counted by the worker
        )
    except ValueError as exc:
        raise StreamConflict(
            f"stream.url is {shown!r}, no URL of a Redis: {exc}. "
            "Expected for example redis://user:password@host:6379/0."
        ) from exc
    try:
        require_fit(client, shown)
    except BaseException:
        client.close()
        raise
    return client


def require_fit(client: redis.Redis, where: str) -> None:
    """Check that a server answers and is fit for the event stream.

    Raises
    ------
    StreamConflict
        It is part of a cluster, or too old.
    StoreRefused
        Wrong user, password or permissions.
    TransientError
        It does not answer.
    """
    try:
        answer: Any = client.info("server")
        clustered: Any = client.info("cluster")
    except (RedisError, OSError) as exc:
        raise _failure(exc, where) from exc
    if clustered.get("cluster_enabled"):
        raise StreamConflict(
            f"{where} is part of a Redis cluster, and the event stream needs a single server. "
            "Name one in stream.url of palate.yaml; the online store may stay on the cluster."
        )
    version = str(answer["redis_version"])
    if int(version.split(".")[0]) < _OLDEST_MAJOR:
        raise StreamConflict(
            f"{where} is Redis {version}; the event stream needs {_OLDEST_MAJOR}.0 or newer."
        )


def is_transient(error: BaseException) -> bool:
    """Return whether another try may succeed: nothing answers, or the server is not ready."""
    if isinstance(error, _REFUSED):
        return False
    if isinstance(error, (TransientError, ConnectionError, TimeoutError, *_PASSING)):
        return True
    # redis-py's errors of the same names are no OSError.
    return isinstance(error, RedisError) and not isinstance(error, ResponseError)


def _failure(error: Exception, where: str) -> EmbeddingError:
    """Return an error of Redis as one of ours."""
    if is_transient(error):
        return TransientError(
            f"The event stream's Redis {where} does not answer: {error}. "
            "Start it, or correct stream.url in palate.yaml."
        )
    return StoreRefused(
        f"The event stream's Redis {where} refuses: {error}. "
        "Check user, password and permissions in stream.url of palate.yaml."
    )


def fix_partitions(client: redis.Redis, project: str, partitions: int | None) -> int:
    """Return the stream's number of partitions, which the first call fixes.

    Parameters
    ----------
    client : redis.Redis
    project : str
    partitions : int or None
        As wanted; None: as fixed.

    Raises
    ------
    StreamConflict
        Another number is fixed, or none is and none was given.
    """
    key = config_key(project)
    if partitions is not None:
        client.hsetnx(key, _PARTITIONS, str(partitions))
    stored: Any = client.hget(key, _PARTITIONS)
    if stored is None:
        raise StreamConflict(
            f"The event stream of project {project!r} has never been used, so its number of "
            "partitions is not fixed. Start `palate stream run` first, or give the number."
        )
    if partitions is not None and int(stored) != partitions:
        raise StreamConflict(
            f"{partitions} partitions given, and the event stream of project {project!r} has "
            f"{int(stored)}: the number is fixed at first use, because a user's events stay in one "
            f"partition. Set stream.partitions to {int(stored)} in palate.yaml. To change it, stop "
            "the producers, let `palate stream run --until-idle` end, stop all workers, delete the "
            f"key {key!r} and start again with the new number."
        )
    return int(stored)


def lost_stream(project: str) -> StreamConflict:
    """Return the error of a stream whose Redis no longer knows it."""
    return StreamConflict(
        f"Redis no longer knows the event stream of project {project!r} (key "
        f"{config_key(project)!r} is gone): it lost its data, or somebody deleted them. Events "
        "that were appended and not yet applied are lost: append them again. When the states were "
        "in the same Redis, run `palate stream seed`. Then start the workers again."
    )
