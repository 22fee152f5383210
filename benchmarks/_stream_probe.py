"""When can a reader see an event? A process that asks the store until it does.

For each event of a sample: from when it was *due* until ``as_of`` of the user's stored embedding is
at least the event's time. A producer that is late, or a Redis that is busy, makes an event later.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import redis

from materialize.stores.wire import Place, integers

if TYPE_CHECKING:
    from benchmarks._stream_data import Replay

__all__ = ["Fields", "newest_of_their_user", "probe", "probe_fields", "write_sample"]

_PAUSE_SECONDS = 0.002
_AS_OF = Place("user_embedding", "as_of")
_AT_ONCE = 200
"""Events asked for in one round trip; the oldest first."""


def newest_of_their_user(replay: Replay) -> npt.NDArray[np.bool_]:
    """Return which events are newer than all before them of the same user: bool (n,).

    Of several at one instant the first one: a reader cannot tell the others from it.
    """
    _, user = np.unique(replay.user, return_inverse=True)
    order = np.lexsort((np.arange(len(user)), user))
    times = replay.timestamp_us[order]
    newer = np.ones(len(order), bool)
    newer[1:] = (np.diff(user[order]) != 0) | (np.diff(times) > 0)
    found = np.empty(len(order), bool)
    found[order] = newer
    return found


class Fields:
    """Where a reader finds the stored embedding of a user and its time."""

    def __init__(self, store: Any, view: str) -> None:
        from materialize.reader.fields import Wanted
        from materialize.reader.redis_layout import RedisLayout

        self._layout = RedisLayout(store.config)
        self._wanted = (Wanted(store.get_feature_view(view), ("as_of", "embedding")),)
        self.as_of, self.embedding = self._layout.hash_fields(self._wanted)

    def all_of(self, view: Any, names: Sequence[str]) -> tuple[bytes, ...]:
        """Return the hash fields of some features of a view."""
        from materialize.reader.fields import Wanted

        return self._layout.hash_fields((Wanted(view, tuple(names)),))

    def keys(self, users: npt.NDArray[Any]) -> list[bytes]:
        """Return the key of each user's hash."""
        return self._layout.keys(self._wanted, users)


def probe_fields(repository: Path, view: str) -> Fields:
    """Return the fields of a stored view."""
    from feast import FeatureStore

    return Fields(FeatureStore(repo_path=str(repository)), view)


def write_sample(
    path: Path, fields: Fields, replay: Replay, due: npt.NDArray[np.float64], each: int
) -> int:
    """Leave every ``each``-th event that a reader can tell for a process that will `probe` them.

    Returns
    -------
    int
        How many.
    """
    rows = np.flatnonzero(newest_of_their_user(replay))[::each]
    keys = fields.keys(replay.user[rows])
    width = max(map(len, keys))
    np.savez(
        path,
        keys=np.frombuffer(b"".join(key.ljust(width, b"\0") for key in keys), np.uint8),
        lengths=np.array([len(key) for key in keys]),
        field=np.frombuffer(fields.as_of, np.uint8),
        times=replay.timestamp_us[rows],
        due=due[rows],
    )
    return len(rows)


def probe(
    begin: Callable[[], float], path: str, host: str, port: int, seconds: float
) -> dict[str, Any]:
    """Ask for each event of a sample from when it is due until it can be seen.

    Parameters
    ----------
    begin : callable
        Called when all is ready; returns the start, by ``time.monotonic()``.
    path : str
        Of `write_sample`.
    host, port : str, int
        Of the online store's Redis.
    seconds : float
        What cannot be seen so long after the start is given up.

    Returns
    -------
    dict
        ``milliseconds`` of each event, in order; of one that was given up, until then. ``unseen``:
        how many were. ``rounds``: round trips; ``cpu_seconds`` of this process.
    """
    with np.load(path) as held:
        width = len(held["keys"]) // len(held["lengths"])
        flat, field = held["keys"].tobytes(), held["field"].tobytes()
        keys = [flat[k * width :][:n] for k, n in enumerate(held["lengths"].tolist())]
        times, due = held["times"], held["due"]
    taken = np.full(len(keys), np.nan)
    waiting: list[int] = []
    begun = rounds = 0
    client = redis.Redis(host=host, port=port)
    client.ping()
    start, cpu = begin(), time.process_time()
    while (begun < len(keys) or waiting) and time.monotonic() < start + seconds:
        now = time.monotonic() - start
        end = int(np.searchsorted(due, now, side="right"))
        waiting += range(begun, end)
        begun = end
        if waiting:
            asked = np.array(waiting[:_AT_ONCE])
            values = _read(client, [keys[k] for k in asked.tolist()], field)
            now = time.monotonic() - start
            rounds += 1
            as_of, _ = integers(values, _AS_OF)
            seen = asked[as_of >= times[asked]]
            taken[seen] = now - due[seen]
            gone = set(seen.tolist())
            waiting = [k for k in waiting if k not in gone]
        time.sleep(_PAUSE_SECONDS)
    unseen = np.isnan(taken)
    taken[unseen] = time.monotonic() - start - due[unseen]
    client.close()
    return {
        "milliseconds": (taken * 1e3).tolist(),
        "unseen": int(unseen.sum()),
        "rounds": rounds,
        "cpu_seconds": time.process_time() - cpu,
    }


def _read(client: redis.Redis, keys: Sequence[bytes], field: bytes) -> list[bytes | None]:
    with client.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.hget(key, field)  # type: ignore[arg-type]
        answers: list[bytes | None] = pipe.execute()
    return answers
