"""How far is what readers see from the batch's answer, at a load and when it is over?

At the moment when the last event is due, writes to Redis are paused for as long as it takes to read
all users of the replay: an exact picture of that moment, while workers and producer go on after it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import redis

from benchmarks._stream_data import Replay
from benchmarks._stream_probe import Fields
from benchmarks._stream_runs import Offered, Session
from benchmarks._stream_truth import Judge, Judged, Truth
from materialize.stores.wire import Place, float_lists, integers

__all__ = ["AtLoad", "Picture", "at_load", "staleness", "take_picture"]

Floats = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float32]

_PAUSE_MS = 4_000
"""At most; ends as soon as the picture is taken. Workers wait 5 s for an answer."""
_NEVER = -(2**62)
_VIEW = "user_embedding"


@dataclass(frozen=True)
class Picture:
    """What readers get of some users.

    Attributes
    ----------
    users : (n,)
        Ascending.
    embedding : float32 (n, dim)
        NaN rows: no embedding yet.
    as_of : int64 (n,)
        The smallest number likewise.
    moment : float
        By ``time.monotonic()``.
    """

    users: npt.NDArray[Any]
    embedding: Matrix
    as_of: npt.NDArray[np.int64]
    moment: float

    @property
    def missing(self) -> npt.NDArray[np.bool_]:
        """Which users have no embedding."""
        return np.isnan(self.embedding[:, 0])


@dataclass(frozen=True)
class AtLoad:
    """What was found at one load.

    Differences and cosines are those of users who have an embedding, to the batch's on all events
    up to the cut-off.
    """

    offered: Offered
    users: int
    missing: float
    """Share of the replay's users without an embedding when the last event was due."""
    behind: float
    """Share of users with an event that was due and not yet in what readers saw."""
    max_abs_diff: float
    cosine_mean: float
    cosine_p5: float
    staleness_mean: float
    staleness_p95: float
    """Seconds since a user's oldest event that readers did not see was due; 0 for most."""
    active: Judged
    everybody: Judged
    drained_max_abs_diff: float
    drained_behind: float


def take_picture(client: redis.Redis, fields: Fields, users: npt.NDArray[Any], dim: int) -> Picture:
    """Read users with writes paused, so that all are of one moment."""
    keys = fields.keys(users)
    with _paused(client) as moment, client.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.hmget(key, [fields.embedding, fields.as_of])  # type: ignore[arg-type]
        answers = pipe.execute()
    vectors, _ = float_lists(
        [answer[0] for answer in answers], Place(_VIEW, "embedding"), width=dim, fill=np.nan
    )
    as_of, _ = integers([answer[1] for answer in answers], Place(_VIEW, "as_of"), fill=_NEVER)
    return Picture(users, vectors, as_of, moment)


@contextmanager
def _paused(client: redis.Redis) -> Iterator[float]:
    client.execute_command("CLIENT", "PAUSE", _PAUSE_MS, "WRITE")
    moment = time.monotonic()
    try:
        yield moment
    finally:
        took = time.monotonic() - moment
        client.execute_command("CLIENT", "UNPAUSE")
    if took * 1_000 > _PAUSE_MS:
        raise RuntimeError(
            f"Reading took {took:.1f} s and writes were paused for {_PAUSE_MS / 1_000} s: the "
            "picture is of no one moment. Read fewer users."
        )


def staleness(picture: Picture, replay: Replay, due: Floats, start: float) -> Floats:
    """Return how long each user's oldest unseen event has been due, seconds (n_users,).

    Parameters
    ----------
    picture : Picture
        Of all users of the replay.
    replay : Replay
    due : float64 (n_events,)
        Seconds after ``start``.
    start : float
        By the clock of ``picture.moment``.
    """
    user = np.searchsorted(picture.users, replay.user)
    age = picture.moment - start - due
    unseen = (replay.timestamp_us > picture.as_of[user]) & (age > 0)
    oldest = np.zeros(len(picture.users))
    np.maximum.at(oldest, user[unseen], age[unseen])
    return oldest


def at_load(
    session: Session, replay: Replay, rate: float, truth: Truth, judge: Judge, workers: int = 1
) -> AtLoad:
    """Offer the events that lead up to the cut-off at a rate, and compare with the batch."""
    users = np.unique(replay.user)
    expected = truth.embedding[truth.rows(users)]
    taken: list[tuple[Picture, Floats]] = []

    def look() -> Picture:
        return take_picture(session.client, session.bench.fields, users, expected.shape[1])

    def at_end(start: float, due: Floats) -> None:
        picture = look()
        taken.append((picture, staleness(picture, replay, due, start)))

    with session.workers(workers) as running:
        offered = session.offer(running, replay, rate, at_end)
        ended = running.stop()
    assert ended.summary["events"] == len(replay), "every event was applied once"
    (picture, stale), last = taken[0], look()
    there = ~picture.missing
    cosine = _cosine(picture.embedding[there], expected[there])
    return AtLoad(
        offered=offered,
        users=len(users),
        missing=float(picture.missing.mean()),
        behind=float((stale > 0).mean()),
        max_abs_diff=float(np.abs(picture.embedding[there] - expected[there]).max()),
        cosine_mean=float(cosine.mean()),
        cosine_p5=float(np.percentile(cosine, 5)),
        staleness_mean=float(stale.mean()),
        staleness_p95=float(np.percentile(stale, 95)),
        active=judge.judge(users, picture.embedding, only=True),
        everybody=judge.judge(users, picture.embedding, only=False),
        drained_max_abs_diff=float(np.abs(last.embedding - expected).max()),
        drained_behind=float((last.as_of < truth.as_of[truth.rows(users)]).mean()),
    )


def _cosine(a: Matrix, b: Matrix) -> Floats:
    dots = np.einsum("ij,ij->i", a, b, dtype=np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    found: Floats = dots / lengths
    return found
