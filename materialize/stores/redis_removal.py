"""One view's values out of Redis: a scan over all keys that touches this view's fields only."""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from materialize.stores.shares import OnlineShare

__all__ = ["redis_share", "remove_from_redis"]

logger = logging.getLogger(__name__)

_KEYS_PER_CALL = 250
"""Keys of one SCAN and of the pipeline after it. Four times as many are no faster and make other
readers wait (p99 of 25 ms against 12, idle 7; 2 busy cores)."""
_SAMPLED_FIRST, _SAMPLED_OF = 256, 64
"""The first keys are measured all, then one of so many: MEMORY USAGE costs as much as the rest."""
_GLOB = frozenset(b"*?[]\\^-")

Progress = Callable[[int], object]


def redis_share(
    client: Any,
    view: str,
    features: Sequence[str],
    join_keys: Sequence[str],
    project: str,
    *,
    keys_per_second: float | None = None,
    progress: Progress | None = None,
) -> OnlineShare:
    """Return how many users have a row of a view, and its bytes (names and values); reads only.

    The bytes are the mean of a sample times the rows. Parameters as of `remove_from_redis`.
    """
    stamp, fields = _fields(view, features)
    rows, sampled, payload = 0, 0, 0
    for keys, chosen in _batches(client, join_keys, project, keys_per_second, progress):
        with client.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hexists(key, stamp)
            for at in chosen:
                for field in fields:
                    pipe.hstrlen(keys[at], field)
            answers = pipe.execute()
        here, lengths = answers[: len(keys)], iter(answers[len(keys) :])
        rows += sum(map(bool, here))
        for at in chosen:
            own = [len(f) + length for f, length in zip(fields, lengths, strict=False) if length]
            if here[at]:
                sampled, payload = sampled + 1, payload + sum(own)
    return OnlineShare(rows, _scaled(payload, sampled, rows))


def remove_from_redis(
    client: Any,
    view: str,
    features: Sequence[str],
    join_keys: Sequence[str],
    project: str,
    *,
    keys_per_second: float | None = None,
    progress: Progress | None = None,
    removed: Callable[[OnlineShare], object] | None = None,
) -> OnlineShare:
    """Delete a view's hash fields from every user of a project; safe to kill and to repeat.

    Parameters
    ----------
    client : redis.Redis or redis.cluster.RedisCluster
    view : str
        Name as the online store has it.
    features, join_keys : sequence of str
        Of the view.
    project : str
        Keys of other projects are left alone, also of one whose name ends in this one's.
    keys_per_second : float, optional
        Upper bound of the keys that are looked at; default: as fast as the server answers.
    progress : callable, optional
        Called with a number of keys as they are done.
    removed : callable, optional
        Called after each batch with what it removed.

    Returns
    -------
    OnlineShare
        Users whose row was removed; bytes by which their keys' memory fell, the mean of a sample
        times the rows, None where the server does not answer MEMORY USAGE.

    Notes
    -----
    Fields of other views stay; a user's hash vanishes with its last field. Redis keeps no index of
    a view, so every key is looked at. A scan that is cut short begins anew: users without the view
    cost a look.
    """
    _, fields = _fields(view, features)
    rows, sampled, freed = 0, 0, 0
    measured = _tells_memory(client)
    for keys, chosen in _batches(client, join_keys, project, keys_per_second, progress):
        measure = set(chosen) if measured else set()
        with client.pipeline(transaction=False) as pipe:
            for at, key in enumerate(keys):
                if at in measure:
                    pipe.memory_usage(key, samples=0)
                pipe.hdel(key, *fields)
                if at in measure:
                    pipe.memory_usage(key, samples=0)
            answers = iter(pipe.execute())
        gone = 0
        for at in range(len(keys)):
            before = next(answers) if at in measure else None
            had = bool(next(answers))
            after = next(answers) if at in measure else None
            gone += had
            if had and at in measure:
                sampled, freed = sampled + 1, freed + (before or 0) - (after or 0)
        rows += gone
        if removed is not None:
            removed(OnlineShare(gone, _scaled(freed, sampled, gone) if measured else None))
    return OnlineShare(rows, _scaled(freed, sampled, rows) if measured else None)


def _fields(view: str, features: Sequence[str]) -> tuple[bytes, list[bytes]]:
    """Return the field that every row has, and all fields of a view."""
    from feast.infra.online_stores.helpers import _mmh3

    stamp = f"_ts:{view}".encode()
    return stamp, [*(_mmh3(f"{view}:{feature}") for feature in features), stamp]


def _batches(
    client: Any,
    join_keys: Sequence[str],
    project: str,
    keys_per_second: float | None,
    progress: Progress | None,
) -> Iterator[tuple[list[bytes], list[int]]]:
    """Yield keys of the project's users, and which of them to measure."""
    from feast.infra.key_encoding_utils import serialize_entity_key_prefix

    prefix, suffix = serialize_entity_key_prefix(list(join_keys)), project.encode("utf-8")
    found = client.scan_iter(match=_escaped(prefix) + b"*" + _escaped(suffix), count=_KEYS_PER_CALL)
    began, seen = time.monotonic(), 0
    while batch := list(islice(found, _KEYS_PER_CALL)):
        keys = [key for key in batch if _is_users(key, prefix, len(join_keys), suffix)]
        measure = [
            at
            for at in range(len(keys))
            if seen + at < _SAMPLED_FIRST or (seen + at) % _SAMPLED_OF == 0
        ]
        if keys:
            yield keys, measure
        seen += len(batch)
        if progress is not None:
            progress(len(batch))
        if keys_per_second is not None:
            time.sleep(max(0.0, began + seen / keys_per_second - time.monotonic()))


def _is_users(key: bytes, prefix: bytes, n_values: int, suffix: bytes) -> bool:
    """Return whether a key is the prefix, so many values, and exactly the suffix.

    The pattern alone would take project ``b`` for part of the keys of project ``ab``.
    """
    if not key.startswith(prefix):
        return False
    at = len(prefix)
    for _ in range(n_values):
        if len(key) < at + 8:
            return False
        _kind, length = struct.unpack_from("<II", key, at)
        at += 8 + length
    return key[at:] == suffix


def _escaped(text: bytes) -> bytes:
    return b"".join(b"\\" + bytes([c]) if c in _GLOB else bytes([c]) for c in text)


def _tells_memory(client: Any) -> bool:
    from redis.exceptions import RedisError

    try:
        client.memory_usage(b"palate", samples=0)
    except RedisError as exc:
        logger.warning("bytes are not told: the server refuses MEMORY USAGE (%s)", exc)
        return False
    return True


def _scaled(total: int, sampled: int, rows: int) -> int:
    return round(total / sampled * rows) if sampled else 0
