"""A process that reads for every consumer, over and over, and judges each vector by the ledger."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from encoder.errors import SpaceMismatch
from materialize.client import EmbeddingClient
from materialize.context import Context
from materialize.ledger import Ledger, Pin

__all__ = ["Known", "Tally", "Watcher", "watch"]

UNKNOWN_USER = 10**9
_TOLERANCE = 1e-5
_REST_SECONDS = 0.01
"""Between two rounds: what it watches has the other half of a small machine, and a bit more."""


class Known:
    """Every vector that an encoder version has ever made of each user, on disk.

    ``encoder_version/turn.npy`` holds float32 (users, d); whoever writes rows writes these first.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, dict[str, npt.NDArray[np.float32]]] = {}

    def add(self, encoder_version: str, turn: int, vectors: npt.NDArray[np.float32]) -> None:
        folder = self._folder / encoder_version
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{turn}.tmp"
        with temporary.open("wb") as file:
            np.save(file, vectors)
        os.replace(temporary, folder / f"{turn}.npy")

    def foreign(
        self, encoder_version: str, users: npt.NDArray[np.int64], vectors: npt.NDArray[np.float32]
    ) -> int:
        """Return how many of these users' vectors no encoding of theirs explains."""
        explained = np.zeros(len(users), np.bool_)
        for again in (False, True):
            if again:
                self._reload(encoder_version)
            for made in self._read.get(encoder_version, {}).values():
                explained |= np.abs(made[users] - vectors).max(axis=1) <= _TOLERANCE
            if explained.all():
                break
        return int((~explained).sum())

    def _reload(self, encoder_version: str) -> None:
        read = self._read.setdefault(encoder_version, {})
        for path in (self._folder / encoder_version).glob("*.npy"):
            if path.name not in read:
                read[path.name] = np.load(path)


@dataclass
class Tally:
    """What was seen.

    ``spaces`` counts the reads by consumer and space.
    """

    reads: int = 0
    vectors: int = 0
    not_pinned: int = 0
    """Vectors of a space or encoder version that was the pin at no moment of the read."""
    foreign: int = 0
    """Vectors under the right mark that the user never had in that space."""
    refused: int = 0
    """Reads that the client refused: a row of another space lay in the pinned view."""
    lost: int = 0
    """Known users without a vector."""
    spaces: Counter[str] = field(default_factory=Counter)

    @property
    def violations(self) -> int:
        return self.not_pinned + self.foreign + self.refused + self.lost


class Watcher:
    """Reads as consumers do, and asks the ledger on its own what they were to read.

    Parameters
    ----------
    context : Context
    consumers : tuple of str
    users : int
        Known users, numbered from 0.
    known : Known
    clients : dict, optional
        By consumer; default: one each that asks for the pin with every read.
    """

    def __init__(
        self,
        context: Context,
        consumers: tuple[str, ...],
        users: int,
        known: Known,
        clients: dict[str, EmbeddingClient] | None = None,
    ) -> None:
        url = context.settings.ledger_url
        self._ledger = Ledger(url, pooled=True)
        self._clients = clients or {
            name: EmbeddingClient(context.store, url, name) for name in consumers
        }
        self._users, self._known = users, known
        self._rng = np.random.default_rng(0)
        self.tally = Tally()

    def look(self, consumer: str) -> None:
        """Read 20 users, one of them unknown, and count what is wrong."""
        users = np.append(self._rng.choice(self._users, 19, replace=False), UNKNOWN_USER)
        before = self._ledger.pin(consumer)
        try:
            batch = self._clients[consumer].read(users)
        except SpaceMismatch:
            self.tally.refused += 1
            return
        after = self._ledger.pin(consumer)
        found = batch.found
        assert not found[-1]
        assert np.isfinite(batch.embedding[found]).all()
        n = int(found.sum())
        self.tally.reads += 1
        self.tally.vectors += n
        self.tally.lost += len(users) - 1 - n
        self.tally.spaces[f"{consumer} {batch.space}"] += 1
        if (batch.space, batch.encoder_version) not in self._pinned(consumer, before, after):
            self.tally.not_pinned += n
        if n:
            self.tally.foreign += self._known.foreign(
                batch.encoder_version, users[found], batch.embedding[found]
            )

    def _pinned(self, consumer: str, before: Pin, after: Pin) -> set[tuple[int, str]]:
        """Return every pin of a consumer from one moment to another."""
        pins = {(before.space, before.encoder_version), (after.space, after.encoder_version)}
        if after.revision - before.revision > 1:
            moves = self._ledger.transitions("consumer", consumer)
            for move in moves[before.revision : after.revision]:
                space = self._ledger.space(int(str(move.after)))
                pins.add((space.number, space.encoder_version))
        return pins


def watch(repo: str, consumers: tuple[str, ...], users: int, known: str, folder: str) -> None:
    """Look until ``folder/stop`` is there; keep ``folder/tally.json`` up to date."""
    context = Context(Path(repo))
    watcher = Watcher(context, consumers, users, Known(Path(known)))
    out, stop = Path(folder) / "tally.json", Path(folder) / "stop"
    written = 0.0
    while not stop.exists():
        for consumer in consumers:
            watcher.look(consumer)
        time.sleep(_REST_SECONDS)
        if time.monotonic() - written > 0.2:
            written = time.monotonic()
            _write(out, watcher.tally)
    _write(out, watcher.tally)


def _write(path: Path, tally: Tally) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(vars(tally)), encoding="utf-8")
    os.replace(temporary, path)
