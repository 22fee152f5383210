"""The contrastive encoder in serving: two ONNX graphs and a memory of items. Needs no torch."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from encoder.artifact_files import Arrays
from encoder.clue.inputs import ClueInputs
from encoder.clue.token_rows import TokenRows
from encoder.clue.tokenizer import PAD
from encoder.kinds import EncoderKind, Sessions

__all__ = ["COLD", "ITEMS", "KEPT_ITEMS", "KIND", "MODEL_FIELDS", "SERVICE", "ClueRunner"]

Float32 = npt.NDArray[np.float32]
Longs = npt.NDArray[np.int64]
Ints = npt.NDArray[np.int32]

ITEMS, SERVICE = "items.onnx", "service.onnx"
COLD = "cold"
"""Weight float32 (embedding_dim,): the embedding of a user without any event."""

MODEL_FIELDS = (
    *("kind", "vocabulary", "n_guides", "embedding_dim", "width", "item_layers", "service_layers"),
    *("head_width", "max_item_tokens", "max_events"),
)

KEPT_ITEMS = "kept_items"
"""Field of the manifest's ``model``: item vectors kept in memory; decides no embedding."""

_KEPT_ITEMS = 65_536
"""Where the field is missing: 32 MiB at a width of 128."""
_AT_ONCE = 256
"""Items, or sequences of events, that go through a graph at once."""
_ROWS = 1024


class ClueRunner:
    """Encodes rows of token ids: each different item once, then each service of each user.

    Vectors of the items used last are kept, as many as the training users' events ask for, so that
    a request pays for items that nobody met lately, and for its own sequences of events.

    A sequence is filled up to the next power of two, never to the longest of the batch: its sums
    then have the same terms whoever is in the batch, and an embedding is that of its row alone.

    State: the vectors kept; safe for threads.

    Parameters
    ----------
    sessions : callable
        Name of a graph and number of threads -> session.
    model : mapping
        The manifest's.
    weights : dict of arrays
        With ``cold``.
    """

    def __init__(self, sessions: Sessions, model: Mapping[str, Any], weights: Arrays) -> None:
        self._sessions = sessions
        self._cold: Float32 = weights[COLD]
        self._n_guides, self._width = int(model["n_guides"]), int(model["width"])
        self._item_tokens, self._events = int(model["max_item_tokens"]), int(model["max_events"])
        self._most_kept = int(model.get(KEPT_ITEMS, _KEPT_ITEMS))
        self._kept: OrderedDict[bytes, Float32] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, inputs: npt.NDArray[Any], threads: int) -> Float32:
        """Return the embeddings float32 (n, embedding_dim) of rows int32 (n, length)."""
        embedding = np.empty((len(inputs), len(self._cold)), np.float32)
        for start in range(0, len(inputs), _ROWS):
            part = slice(start, start + _ROWS)
            embedding[part] = self._encode(inputs[part], threads)
        return embedding

    def _encode(self, inputs: Ints, threads: int) -> Float32:
        rows = TokenRows.of(inputs, self._n_guides)
        embedding = np.tile(self._cold, (len(inputs), 1))
        if not len(rows.row):
            return embedding
        tokens = rows.padded(self._item_tokens)  # (n_items, max_item_tokens)
        keys, place = np.unique(
            np.ascontiguousarray(tokens).view(f"V{tokens.strides[0]}").ravel(), return_inverse=True
        )
        vectors = self._items(keys, threads)  # (n_distinct, width)
        services = self._services(vectors, place.ravel(), rows, threads)  # (n_sequences, dim)
        owner = rows.row[rows.sequence]
        first = np.flatnonzero(np.diff(owner, prepend=-1))
        count = np.diff(np.append(first, len(owner)))
        embedding[owner[first]] = np.add.reduceat(services, first, axis=0) / count[:, None]
        return embedding

    def _items(self, keys: npt.NDArray[np.void], threads: int) -> Float32:
        """Return the vectors of distinct items, those kept as they are."""
        vectors = np.empty((len(keys), self._width), np.float32)
        named = [bytes(key) for key in keys]
        with self._lock:
            found = [self._kept.get(name) for name in named]
            for name, vector in zip(named, found, strict=True):
                if vector is not None:
                    self._kept.move_to_end(name)
        new = []
        for k, vector in enumerate(found):
            if vector is None:
                new.append(k)
            else:
                vectors[k] = vector
        if new:
            made = self._new_items(keys[new].view(np.int32).reshape(len(new), -1), threads)
            vectors[new] = made
            with self._lock:
                for k, vector in zip(new, made, strict=True):
                    self._kept[named[k]] = vector.copy()  # a view would keep its whole batch
                while len(self._kept) > self._most_kept:
                    self._kept.popitem(last=False)
        return vectors

    def _new_items(self, tokens: Ints, threads: int) -> Float32:
        session = self._sessions(ITEMS, threads)
        vectors = np.empty((len(tokens), self._width), np.float32)
        lengths = (tokens != PAD).sum(axis=1)
        for rows, width in _alike(lengths, self._item_tokens):
            (vectors[rows],) = session.run(
                ["items"], {"tokens": np.ascontiguousarray(tokens[rows, :width])}
            )
        return vectors

    def _services(self, vectors: Float32, place: Longs, rows: TokenRows, threads: int) -> Float32:
        """Return the vector of each run of events, float32 (n_sequences, embedding_dim)."""
        session = self._sessions(SERVICE, threads)
        first, length = rows.sequence, rows.sequence_length
        found = np.empty((len(first), len(self._cold)), np.float32)
        for runs, width in _alike(length, self._events):
            there = np.arange(width) < length[runs, None]  # (n, width)
            at = np.where(there, first[runs, None] + np.arange(width), 0)
            items = np.where(there[..., None], vectors[place[at]], np.float32(0))
            (found[runs],) = session.run(["service"], {"items": items, "there": there})
        return found


def _alike(lengths: Longs, most: int) -> Iterator[tuple[Longs, int]]:
    """Yield positions of like length, some at once, and the width that they are filled up to."""
    widths = np.minimum(2 ** np.ceil(np.log2(np.maximum(lengths, 1))).astype(np.int64), most)
    for width in np.unique(widths).tolist():
        rows = np.flatnonzero(widths == width)
        for start in range(0, len(rows), _AT_ONCE):
            yield rows[start : start + _AT_ONCE], width


KIND = EncoderKind(
    graphs=(ITEMS, SERVICE),
    model=MODEL_FIELDS,
    weights=("item.", "service.", COLD),
    preprocessing=lambda config: {"inputs": config},
    inputs=ClueInputs.from_state,
    runner=lambda sessions, model, weights, _inputs: ClueRunner(sessions, model, weights),
)
"""What an artifact of the contrastive kind holds."""
