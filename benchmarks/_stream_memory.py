"""What a user takes in Redis: state, raw rows, embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import redis

from materialize.stream.atomic import REVISION_FIELD, STATE_FIELD

__all__ = ["UserBytes", "user_bytes"]


@dataclass(frozen=True)
class UserBytes:
    """Mean bytes of a user over a sample.

    ``state``, ``raw`` and ``embedding`` are names and values of hash fields; ``whole`` is what the
    key takes in Redis, its own overhead included.
    """

    users: int
    state: float
    raw: float
    embedding: float
    whole: float


def user_bytes(
    client: redis.Redis, keys: list[bytes], embedding_fields: set[bytes], embedding_view: str
) -> UserBytes:
    """Return the mean bytes of users.

    Parameters
    ----------
    client : redis.Redis
    keys : list of bytes
    embedding_fields : set of bytes
        Fields of the stored view; what belongs neither to it nor to the state is of the raw views.
    embedding_view : str
        Its name.
    """
    own = embedding_fields | {f"_ts:{embedding_view}".encode()}
    taken: dict[str, list[float]] = {"state": [], "raw": [], "embedding": []}
    whole: list[float] = []
    with client.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.hgetall(key)
            pipe.memory_usage(key, samples=0)
        answers: list[Any] = pipe.execute()
    for fields, size in zip(answers[::2], answers[1::2], strict=True):
        if size is None:
            continue  # comes with the replay
        sums = dict.fromkeys(taken, 0.0)
        for name, value in fields.items():
            kind = "raw"
            if name in (STATE_FIELD, REVISION_FIELD):
                kind = "state"
            elif name in own:
                kind = "embedding"
            sums[kind] += len(name) + len(value)
        for kind, total in sums.items():
            taken[kind].append(total)
        whole.append(size)
    means: dict[str, float] = {name: _mean(np.array(each)) for name, each in taken.items()}
    return UserBytes(users=len(whole), **means, whole=_mean(np.array(whole)))


def _mean(each: npt.NDArray[np.float64]) -> float:
    return float(each.mean())
