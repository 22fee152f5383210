"""How many floating-point operations a step takes: counted by torch, not estimated by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from encoder.clue.info_nce import info_nce
from encoder.clue.network import ClueNetwork

if TYPE_CHECKING:
    from encoder.clue.grad_cache import Chunks
    from encoder.clue.sequences import ClueBatch

__all__ = ["FlopMeter", "Flops"]


_Shape = tuple[int, ...]


class Flops(NamedTuple):
    """Operations of a step, a multiplication and an addition counted as two.

    Attributes
    ----------
    model : int
        Of a forward and a backward pass: what a scaling law is about.
    executed : int
        With the second forward pass of gradient caching: what the machine did.
    """

    model: int
    executed: int


class _Cost(NamedTuple):
    forward: int
    both: int


@dataclass
class FlopMeter:
    """Counts the operations of steps over one network.

    Torch counts the products of a transformer once for each length that occurs, on rows of that
    length; a batch's operations are that, times its rows. Element-wise operations are not counted,
    as in the literature.

    State: what was counted, by length.

    Parameters
    ----------
    network : ClueNetwork
        Its parameters and gradients are not touched.

    References
    ----------
    Kaplan et al. 2020, arXiv 2001.08361, section 2.1 (what compute is in a scaling law).
    """

    network: ClueNetwork
    _items: dict[int, _Cost] = field(default_factory=dict)
    _views: dict[int, _Cost] = field(default_factory=dict)

    def of(self, batch: ClueBatch, chunks: Chunks) -> Flops:
        """Return the operations of ``GradCache.step`` for a batch."""
        from encoder.clue.grad_cache import Rows

        rows = Rows.of(batch, torch.device("cpu"))
        costs = [(len(t), self._item(t.shape[1])) for _, t in rows.item_chunks(chunks.items)]
        costs += [
            (len(part.at), self._view(part.events.shape[1]))
            for part in rows.view_chunks(chunks.views)
        ]
        model = sum(n * cost.both for n, cost in costs) + self._loss(batch.n_users)
        again = 0 if rows.fits(chunks) else sum(n * cost.forward for n, cost in costs)
        return Flops(model, model + again)

    def _item(self, length: int) -> _Cost:
        if length not in self._items:
            device = self.network.log_scale.device
            tokens = torch.ones(1, length, dtype=torch.int32, device=device)
            self._items[length] = _count(lambda: self.network.item(tokens).sum())
        return self._items[length]

    def _view(self, length: int) -> _Cost:
        if length not in self._views:
            width, device = self.network.config.width, self.network.log_scale.device
            items = torch.ones(1, length, width, device=device, requires_grad=True)
            there = torch.ones(1, length, dtype=torch.bool, device=device)
            self._views[length] = _count(lambda: self.network.service(items, there).sum())
        return self._views[length]

    def _loss(self, n_users: int) -> int:
        # One product forward, two backward; counted on a small batch, as it grows with the square.
        a, b = torch.ones(2, 2, self.network.config.embedding_dim, requires_grad=True)
        scale = torch.zeros((), requires_grad=True)
        return _count(lambda: info_nce(a, b, scale)).both * n_users**2 // 4


def _attention(query: _Shape, key: _Shape, value: _Shape, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward(
    gradient: _Shape, query: _Shape, key: _Shape, value: _Shape, *_: Any, **__: Any
) -> int:
    return int(
        sdpa_backward_flop_count(gradient, query, key, value)  # type: ignore[no-untyped-call]
    )


_ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""Torch knows what attention costs on GPUs only."""


def _count(run: Callable[[], Tensor]) -> _Cost:
    """Return the operations of ``run`` and of its backward pass; gradients stay as they were."""
    with FlopCounterMode(display=False, custom_mapping=_ON_CPU) as forward:
        result = run()
    with FlopCounterMode(display=False, custom_mapping=_ON_CPU) as backward:
        leaves = [x for x in _leaves(result) if x.requires_grad]
        torch.autograd.grad(result, leaves, allow_unused=True)
    first = forward.get_total_flops()
    return _Cost(first, first + backward.get_total_flops())


def _leaves(result: Tensor) -> list[Tensor]:
    """Return what a backward pass would give gradients to."""
    found, seen, todo = [], set(), [result.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        todo += [following for following, _ in node.next_functions]
    return found
