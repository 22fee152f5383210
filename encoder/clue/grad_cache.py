"""A step over a batch of any size in bounded memory: gradients by way of cached vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from encoder.clue.info_nce import info_nce
from encoder.clue.network import ClueNetwork
from encoder.clue.sequences import ClueBatch, Views
from encoder.clue.tokenizer import PAD
from encoder.placement import Placement, Precision

__all__ = ["Chunks", "GradCache", "Rows"]


@dataclass(frozen=True)
class Chunks:
    """How much goes through a transformer at once."""

    items: int = 256
    """Items, in the item transformer."""
    views: int = 128
    """Views (a user in a service), in the service transformer."""

    def __post_init__(self) -> None:
        if self.items < 1 or self.views < 1:
            raise ValueError(
                f"chunks of {self.items} items and {self.views} views given, at least 1 expected."
            )


class GradCache:
    """Loss and gradients of a contrastive batch, chunk by chunk.

    All vectors are computed once without a graph; the loss gives the gradient of each vector; then
    every chunk is computed again with a graph, and its vectors' gradients are sent back through it.
    That costs a second forward pass, and memory holds one chunk's graph beside the vectors,
    however many users stand in the batch. It is done at two levels: an item that many users share
    is encoded once a batch, not once a user. A batch of a single chunk takes the plain way.

    State: none but the network's parameters, whose gradients it sets.

    Parameters
    ----------
    network : ClueNetwork
    place : Placement
        With several processes, each brings its users of the same batch, as many as the others;
        all are negatives of all.
    precision : {"auto", "float32", "bfloat16"}
    chunks : Chunks
    compiled : bool
        torch.compile both transformers.
    hardness : float
        Of the negatives in `step`, see `encoder.clue.info_nce.info_nce`; `loss` has none, so that
        what is held out is judged alike.

    References
    ----------
    Gao et al. 2021, "Scaling deep contrastive learning batch size under memory limited setup"
    (GradCache), arXiv 2101.06983, section 3.
    """

    def __init__(
        self,
        network: ClueNetwork,
        place: Placement,
        precision: Precision = "auto",
        chunks: Chunks | None = None,
        compiled: bool = False,
        hardness: float = 0.0,
    ) -> None:
        self.network, self.place, self.precision = network, place, precision
        self.hardness = hardness
        self.chunks = chunks or Chunks()
        compiling: Callable[[torch.nn.Module], Callable[..., Tensor]] = (
            (lambda part: torch.compile(part, dynamic=True)) if compiled else (lambda part: part)
        )
        self._item, self._service = compiling(network.item), compiling(network.service)

    def step(self, batch: ClueBatch) -> float:
        """Set the parameters' gradients to those of the batch's loss; return the loss in nats."""
        self.network.zero_grad(set_to_none=True)
        rows = Rows.of(batch, self.place.device)
        loss = self._plain(rows) if rows.fits(self.chunks) else self._cached(rows)
        self._sum_gradients()
        return loss

    @torch.no_grad()
    def loss(self, batch: ClueBatch) -> tuple[float, Tensor, Tensor]:
        """Return the batch's loss and both views' vectors float32 (n, embedding_dim)."""
        rows = Rows.of(batch, self.place.device)
        vectors = self._vectors(rows, self._items(rows))
        a, b = vectors.chunk(2)
        return float(info_nce(a, b, self.network.log_scale)), a, b

    def _plain(self, rows: Rows) -> float:
        with self.place.autocast(self.precision):
            vectors = self._vectors(rows, self._items(rows))
        return self._backward(vectors)

    def _cached(self, rows: Rows) -> float:
        with torch.no_grad():
            items = self._items(rows)  # (n_items, width)
            vectors = self._vectors(rows, items)  # (2 * n, embedding_dim)
        vectors.requires_grad_()
        loss = self._backward(vectors)
        of_vectors = _gradient(vectors)  # (2 * n, embedding_dim)
        of_items = torch.zeros_like(items, dtype=torch.float32)
        for part in rows.view_chunks(self.chunks.views):
            # Only the items of this chunk: a gradient of all of them would be written each time.
            mine, local = torch.unique(part.events, return_inverse=True)
            leaf = items[mine].requires_grad_()  # (n_mine, width)
            with self.place.autocast(self.precision):
                again = self._service(leaf[local], part.there)
            torch.autograd.backward(again, of_vectors[part.at])
            of_items.index_add_(0, mine, _gradient(leaf).float())
        for at, tokens in rows.item_chunks(self.chunks.items):
            with self.place.autocast(self.precision):
                encoded = self._item(tokens)
            torch.autograd.backward(encoded, of_items[at].to(encoded.dtype))
        return loss

    def _backward(self, vectors: Tensor) -> float:
        """Send the loss of ``vectors`` (both views, one behind the other) back; return it."""
        sides = vectors.chunk(2)
        a, b = (self.place.gathered(side) for side in sides)
        loss = info_nce(a, b, self.network.log_scale, self.hardness)
        torch.autograd.backward(loss)
        return loss.item()

    def _items(self, rows: Rows) -> Tensor:
        with self.place.autocast(self.precision):
            parts = [self._item(tokens) for _, tokens in rows.item_chunks(self.chunks.items)]
        return torch.cat(parts)  # (n_items, width)

    def _vectors(self, rows: Rows, items: Tensor) -> Tensor:
        order, parts = [], []
        with self.place.autocast(self.precision):
            for part in rows.view_chunks(self.chunks.views):
                order.append(part.at)
                parts.append(self._service(items[part.events], part.there))
        back = torch.argsort(torch.cat(order))
        return torch.cat(parts)[back]  # (2 * n, embedding_dim)

    def _sum_gradients(self) -> None:
        """Add up the processes' gradients: each has those of its own users' vectors."""
        scale = self.network.log_scale
        for parameter in self.network.parameters():
            if parameter.grad is not None:
                self.place.summed(parameter.grad)
        if scale.grad is not None:  # every process has the whole of it
            scale.grad /= self.place.world_size


def _gradient(leaf: Tensor) -> Tensor:
    """Return a leaf's gradient; zeros where nothing came back to it."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


@dataclass(frozen=True)
class _Part:
    """A chunk of views: ``at`` int64 (n,) says which; cut to the longest of them."""

    at: Tensor
    events: Tensor
    there: Tensor


@dataclass(frozen=True)
class Rows:
    """A batch on a device, ready to be cut into chunks.

    Attributes
    ----------
    tokens : int32 (n_items, max_item_tokens)
    lengths : list of int
        Tokens of each item, descending.
    events : int32 (2 * n_users, max_events)
        Both views, one behind the other.
    there : bool (2 * n_users, max_events)
    order : int64 (2 * n_users,)
        Views, longest first.
    events_of : list of int
        Events of each view, in that order.
    """

    tokens: Tensor
    lengths: list[int]
    events: Tensor
    there: Tensor
    order: Tensor
    events_of: list[int]

    @classmethod
    def of(cls, batch: ClueBatch, device: torch.device) -> Rows:
        """Put a batch on a device."""
        both: Views = Views(
            np.concatenate([batch.a.events, batch.b.events]),
            np.concatenate([batch.a.there, batch.b.there]),
        )
        events_of = both.there.sum(1)
        order = np.argsort(-events_of, kind="stable")
        return cls(
            torch.from_numpy(batch.tokens).to(device),
            (batch.tokens != PAD).sum(1).tolist(),
            torch.from_numpy(both.events).to(device),
            torch.from_numpy(both.there).to(device),
            torch.from_numpy(order).to(device),
            events_of[order].tolist(),
        )

    def fits(self, chunks: Chunks) -> bool:
        """Return whether the batch is a single chunk."""
        return len(self.tokens) <= chunks.items and len(self.there) <= chunks.views

    def item_chunks(self, size: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield where a chunk's items stand, and their tokens, cut to the longest of them."""
        # Items come longest first.
        for start in range(0, len(self.tokens), size):
            at = slice(start, start + size)
            yield at, self.tokens[at, : self.lengths[start]]

    def view_chunks(self, size: int) -> Iterator[_Part]:
        """Yield chunks of views, each cut to its longest."""
        for start in range(0, len(self.order), size):
            at, width = self.order[start : start + size], max(self.events_of[start], 1)
            yield _Part(at, self.events[at, :width], self.there[at, :width])
