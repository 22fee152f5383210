"""What lies in Redis of some users, read as Feast lays it out, and a thread that judges each read.

Parses with Feast's own messages: nothing here is shared with what writes.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import redis
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import _mmh3
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

from tests.e2e.stream_truth import encoded
from tests.e2e.stream_world import World
from transforms.layout import field
from transforms.names import EMBEDDING_FEATURES, USER_KEY

__all__ = ["OnlineReads", "Reader", "Served"]

Served = dict[str, dict[str, Any] | None]
"""View -> its row of one user, or None."""
_TOLERANCE = 1e-5
_REST_SECONDS = 0.1


class OnlineReads:
    """Reads all that is stored of a user in one command."""

    def __init__(self, world: World, port: int) -> None:
        # Never retries: an error is an answer that the caller counts.
        self._client = redis.Redis(port=port, socket_timeout=5.0, retry=None)
        self._suffix = world.project.encode()
        self._views = {
            view: [name for name in schema.names if name.startswith(field(view, ""))]
            for view, schema in world.types.items()
        }
        self._views |= {view: list(EMBEDDING_FEATURES) for view in world.embedding_views()}
        self._fields = [
            name
            for view, features in self._views.items()
            for name in (f"_ts:{view}".encode(), *(_mmh3(f"{view}:{f}") for f in features))
        ]

    def read(self, users: Sequence[int]) -> list[Served]:
        """Return what is served of each user, each user's at one moment."""
        with self._client.pipeline(transaction=False) as pipe:
            for user in users:
                pipe.hmget(self._key(user), self._fields)
            return [self._parse(answer) for answer in pipe.execute()]

    def close(self) -> None:
        self._client.close()

    def _key(self, user: int) -> bytes:
        key = EntityKey(join_keys=[USER_KEY], entity_values=[Value(int64_val=user)])
        return bytes(serialize_entity_key(key, 3)) + self._suffix

    def _parse(self, answer: Sequence[bytes | None]) -> Served:
        values, served = iter(answer), Served()
        for view, features in self._views.items():
            stamped = next(values) is not None
            row = {name: _value(next(values)) for name in features}
            served[view] = row if stamped else None
        return served


def _value(stored: bytes | None) -> Any:
    message = Value.FromString(stored or b"")
    kind = message.WhichOneof("val")
    if kind is None:
        return None
    value = getattr(message, kind)
    return list(value.val) if kind.endswith("_list_val") else value


class Reader:
    """A thread that reads users over and over and counts what no reader may ever see.

    Attributes
    ----------
    reads : int
        Users read.
    unavailable : int
        Reads that Redis did not answer.
    violations : Counter
        By kind.
    max_abs_diff : float
        Between a stored embedding and the encoder's on the raw rows of the same read.
    """

    def __init__(self, world: World, port: int, users: Sequence[int]) -> None:
        self._world, self._users = world, users
        self._online = OnlineReads(world, port)
        self._newest: dict[tuple[int, str], int] = {}
        self._stop = threading.Event()
        self.reads = self.unavailable = 0
        self.violations: Counter[str] = Counter()
        self.examples: list[str] = []
        self.max_abs_diff = 0.0
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        """End, and raise what ended it before."""
        self._stop.set()
        self._thread.join(60)
        self._online.close()
        if self._failed is not None:
            raise self._failed

    def _run(self) -> None:
        draw = random.Random(0)  # noqa: S311 - no secret
        try:
            while not self._stop.wait(_REST_SECONDS):
                users = draw.sample(self._users, 8)
                try:
                    found = self._online.read(users)
                except redis.RedisError:
                    self.unavailable += 1
                    continue
                self.judge(users, found)
        except BaseException as exc:  # noqa: BLE001 - raised by `stop`, in the test's thread
            self._failed = exc

    def judge(self, users: Sequence[int], found: Sequence[Served]) -> None:
        """Count what is wrong with reads of some users."""
        raw = {view: [served[view] for served in found] for view in self._world.layout.views}
        expected = encoded(self._world, raw)
        marks = self._world.embedding_views()
        for row, (user, served) in enumerate(zip(users, found, strict=True)):
            self.reads += 1
            for view in self._world.layout.views:
                self._moves_on(user, view, (served[view] or {}).get(field(view, "as_of")))
            for view, mark in marks.items():
                embedding, made = served[view], expected[view][row]
                self._moves_on(user, view, embedding and embedding["as_of"])
                if embedding is None:
                    if any(served[name] for name in self._world.layout.views):
                        self._count("raw rows without embedding", user, view, made)
                    continue
                if (embedding["space"], embedding["encoder_version"]) != mark:
                    self._count("another space's mark", user, view, embedding)
                apart = float(np.abs(np.array(embedding["embedding"]) - made["embedding"]).max())
                self.max_abs_diff = max(self.max_abs_diff, apart)
                same = all(embedding[k] == made[k] for k in ("as_of", "status", "n_events"))
                if apart > _TOLERANCE or not same:
                    self._count("embedding not of its raw rows", user, view, (embedding, made))

    def _moves_on(self, user: int, view: str, as_of: int | None) -> None:
        known = self._newest.get((user, view))
        if known is not None and (as_of is None or as_of < known):
            self._count("as_of went back", user, view, (known, as_of))
        elif as_of is not None:
            self._newest[user, view] = as_of

    def _count(self, kind: str, *example: Any) -> None:
        self.violations[kind] += 1
        if len(self.examples) < 5:
            self.examples.append(f"{kind}: {example}")
