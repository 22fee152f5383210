"""A retirement that can be killed at a chosen step, and a reader beside it, each a real process."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import feast.infra.online_stores.helpers  # noqa: F401 - imported here, not while the clock runs
import numpy as np

import materialize.stores.redis  # noqa: F401
from materialize.context import Context
from materialize.ledger import Ledger
from materialize.retirement import retire_space
from tests.forks import FORKS, preload
from tests.spaces import vectors
from transforms.names import stored_view

__all__ = ["Reader", "retire_and_kill"]

_SECONDS = 90.0
_WORDS = ("start_retiring", "update_facts", "retire_bridge", "finish_retiring")
preload(__name__)


def retire_and_kill(repo: Path, number: int, *, after: int) -> bool:
    """Retire a space in a process that is killed right after its n-th word to the ledger.

    Returns whether it was killed; else it ended by itself, without a fault.
    """
    process = FORKS.Process(target=_retire, args=(str(repo), number, after))
    process.start()
    process.join(_SECONDS)
    code = process.exitcode
    process.close()
    assert code in (0, -signal.SIGKILL), f"the retirement ended with {code}"
    return code != 0


def _retire(repo: str, number: int, after: int) -> None:
    context = Context(Path(repo))
    told = 0

    def word(method: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal told
            answer = method(*arguments, **named)
            told += 1
            if told == after:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        return call

    ledger = Ledger(context.settings.ledger_url)
    for name in _WORDS:
        setattr(ledger, name, word(getattr(ledger, name)))
    where = (context.store, context.settings, ledger)
    retire_space(*where, number, who="test", why="superseded", progress=False)


class Reader:
    """Reads users of a space over and over until it is stopped.

    Parameters
    ----------
    repo : Path
    number : int
    users : sequence of int
    """

    def __init__(self, repo: Path, number: int, users: Sequence[int]) -> None:
        self._here, there = FORKS.Pipe()
        self._process = FORKS.Process(target=_read, args=(str(repo), number, list(users), there))
        self._process.start()
        there.close()
        assert self._here.poll(_SECONDS)
        assert self._here.recv() == "ready"

    def stop(self) -> tuple[int, list[str]]:
        """Return how many reads it did, and what was wrong with some of them."""
        self._here.send("stop")
        reads, faults = self._here.recv()
        self._process.join(_SECONDS)
        self._process.close()
        self._here.close()
        return reads, faults


def _read(repo: str, number: int, users: list[int], parent: Connection) -> None:
    context = Context(Path(repo))
    store, version = context.store, context.ledger.space(number).encoder_version
    draw, reads, faults = random.Random(0), 0, []  # noqa: S311 - no secret
    parent.send("ready")
    while not parent.poll(0):
        asked = draw.sample(users, 20)
        try:
            answer = store.get_online_features(
                features=[f"{stored_view(number)}:{name}" for name in ("embedding", "space")],
                entity_rows=[{"user_id": user} for user in asked],
            ).to_dict()
            found = np.array(answer["embedding"], np.float32)
            if set(answer["space"]) != {number} or not np.array_equal(
                found, vectors(version, asked)
            ):
                faults.append(f"read {reads}: other vectors")
        except Exception as exc:  # noqa: BLE001 - the test wants to hear of all of them
            faults.append(f"read {reads}: {exc!r}")
        reads += 1
    parent.recv()
    parent.send((reads, faults))
