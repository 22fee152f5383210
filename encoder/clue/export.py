"""The two graphs of a contrastive encoder: items once, then users."""

from __future__ import annotations

import torch

from encoder.clue.network import ClueNetwork
from encoder.export import export_graph

__all__ = ["export_items", "export_service"]

_LENGTH = 4


def export_items(network: ClueNetwork) -> bytes:
    """Return the graph "tokens" int32 (n, length) -> "items" float32 (n, width).

    Both sizes are free; ``length`` up to ``max_item_tokens``.
    """
    tokens = torch.ones(3, min(_LENGTH, network.config.max_item_tokens), dtype=torch.int32)
    return export_graph(
        network.item, {"tokens": tokens}, "items", {"tokens": {0: "n", 1: "length"}}
    )


def export_service(network: ClueNetwork) -> bytes:
    """Return "items" float32 (n, length, width), "there" bool (n, length) -> "service".

    ``service`` is float32 (n, embedding_dim); ``n`` and ``length`` are free, the latter up to
    ``max_events``.
    """
    length = min(_LENGTH, network.config.max_events)
    examples = {
        "items": torch.zeros(3, length, network.config.width),
        "there": torch.ones(3, length, dtype=torch.bool),
    }
    free = {name: {0: "n", 1: "length"} for name in examples}
    return export_graph(network.service, examples, "service", free)
