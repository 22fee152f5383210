"""The CLUE network: item texts -> item vectors -> a vector of each service -> the user's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoder.clue.tokenizer import PAD

__all__ = ["ClueConfig", "ClueNetwork", "ItemTransformer", "ServiceTransformer", "user_vector"]


@dataclass(frozen=True)
class ClueConfig:
    """Shape of the two transformers."""

    embedding_dim: int = 120
    """Length of the embedding; 300 or 3,000 made no difference to the authors."""
    width: int = 128
    """Width of both transformers, and of an item vector."""
    item_layers: int = 2
    """Layers of the item transformer."""
    service_layers: int = 2
    """Layers of the service transformer."""
    head_width: int = 32
    """Width of an attention head."""
    max_item_tokens: int = 24
    """Tokens of an item's text, guide token included."""
    max_events: int = 32
    """Newest events of a user in a service."""
    table_spread: float = 0.02
    """Standard deviation of the first token and position vectors. Smaller ones leave the start
    within fewer steps, and learn the users by heart sooner where there are few."""
    seed: int = 0
    """Seed of the initial weights."""

    def __post_init__(self) -> None:
        small = [
            f"{name} {getattr(self, name)}"
            for name in (
                *("embedding_dim", "width", "item_layers", "service_layers", "head_width"),
                "max_events",
            )
            if getattr(self, name) < 1
        ]
        if small or self.max_item_tokens < 2:
            small += [] if self.max_item_tokens > 1 else [f"max_item_tokens {self.max_item_tokens}"]
            raise ValueError(
                f"{', '.join(small)} given, at least 1 expected (max_item_tokens: at least 2)."
            )
        if not self.table_spread > 0:
            raise ValueError(f"table_spread {self.table_spread} given, more than 0 expected.")
        if self.width % self.head_width:
            raise ValueError(
                f"width {self.width} and head_width {self.head_width} given, "
                "a multiple of the head's width expected."
            )


class _Layer(nn.Module):
    """A transformer layer that normalises first, without dropout.

    References
    ----------
    Xiong et al. 2020, "On layer normalization in the transformer architecture" (pre-LN).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.norm_network = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return the layer's output (n, length, width).

        ``mask`` bool (n, 1, 1, length): what may be attended to; None: everything.
        """
        n, length, width = x.shape
        parts = self.query_key_value(self.norm_attention(x))  # (n, length, 3 * width)
        parts = parts.view(n, length, 3, self.heads, -1).transpose(1, 3)  # (n, heads, 3, length, .)
        query, key, value = parts.unbind(2)  # each (n, heads, length, head_width)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        seen = seen.transpose(1, 2).reshape(n, length, width)  # (n, length, width)
        x = x + self.attended(seen)
        wide = F.gelu(self.widen(self.norm_network(x)), approximate="tanh")
        passed: Tensor = x + self.narrow(wide)
        return passed


class _Stack(nn.Module):
    """Positions, layers, and the mean over what is there."""

    def __init__(self, layers: int, width: int, head_width: int, length: int) -> None:
        super().__init__()
        self.positions = nn.Embedding(length, width)
        self.layers = nn.ModuleList(_Layer(width, width // head_width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        """Return the means (n, width) of x (n, length, width) where ``there`` bool (n, length).

        A row of which nothing is there gives zeros.
        """
        x = x + self.positions.weight[: x.shape[1]]  # (n, length, width)
        # A row without anything would make softmax divide 0 by 0: it attends to its first place.
        first = torch.zeros_like(there)
        first[:, 0] = True
        mask = (there | (first & ~there.any(1, keepdim=True)))[:, None, None, :]
        for layer in self.layers:
            x = layer(x, mask)
        weights = there.to(x.dtype)  # (n, length)
        total = torch.einsum("nlw,nl->nw", self.norm(x), weights)  # (n, width)
        mean: Tensor = total / weights.sum(1, keepdim=True).clamp_min(1.0)
        return mean


class ItemTransformer(nn.Module):
    """Token ids -> item vector, the mean of the last layer.

    State: weights only.
    """

    def __init__(self, config: ClueConfig, vocabulary: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, config.width)
        self.stack = _Stack(
            config.item_layers, config.width, config.head_width, config.max_item_tokens
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the vectors (n_items, width) of ``tokens`` int (n_items, length)."""
        pooled: Tensor = self.stack(self.tokens(tokens), tokens != PAD)
        return pooled


class ServiceTransformer(nn.Module):
    """Vectors of a user's newest events in one service -> the user's vector in that service.

    State: weights only.
    """

    def __init__(self, config: ClueConfig) -> None:
        super().__init__()
        self.stack = _Stack(
            config.service_layers, config.width, config.head_width, config.max_events
        )
        self.project = nn.Linear(config.width, config.embedding_dim)

    def forward(self, items: Tensor, there: Tensor) -> Tensor:
        """Return float (n, embedding_dim) of length 1, zeros for a row without events.

        Parameters
        ----------
        items : float (n, length, width)
            Newest event first.
        there : bool (n, length)
        """
        vectors = self.project(self.stack(items, there))  # (n, embedding_dim)
        unit = F.normalize(vectors.float(), dim=1)  # in float32: lengths of bfloat16 are coarse
        return unit * there.any(1, keepdim=True)


class ClueOutput(NamedTuple):
    """``item`` float (n_items, width) and ``service`` float (n, embedding_dim)."""

    item: Tensor
    service: Tensor


class ClueNetwork(nn.Module):
    """Both transformers, and the temperature of the contrastive loss.

    No layer looks at other rows, so a user's embedding does not depend on who else is in the
    batch.

    State: weights only. ``log_scale`` is the logarithm of one over the temperature.

    References
    ----------
    CLUE, arXiv 2111.11294, sections 3.1 and 3.2. There a shared item transformer and a shared
    service transformer are mean pooled; sizes of layers and heads are ours. Branches that add to
    the stream begin at zero: Zhang et al. 2019, arXiv 1901.09321 (Fixup).
    """

    def __init__(self, config: ClueConfig, vocabulary: int) -> None:
        super().__init__()
        self.config = config
        self.item = ItemTransformer(config, vocabulary)
        self.service = ServiceTransformer(config)
        self.log_scale = nn.Parameter(torch.tensor(0.07).reciprocal().log())
        self._draw(torch.Generator().manual_seed(config.seed))

    def _draw(self, generator: torch.Generator) -> None:
        for part in (self.item, self.service):
            for name, module in part.named_modules():
                if isinstance(module, nn.Embedding):
                    nn.init.normal_(
                        module.weight, 0.0, self.config.table_spread, generator=generator
                    )
                elif isinstance(module, nn.Linear):
                    nn.init.zeros_(module.bias)
                    # At first a user is a projection of the tokens' mean, which tells users apart;
                    # the means that random layers add are the same for all of them.
                    if name.endswith(("attended", "narrow")):
                        nn.init.zeros_(module.weight)
                    else:
                        spread = module.in_features**-0.5
                        nn.init.normal_(module.weight, 0.0, spread, generator=generator)

    def forward(self, tokens: Tensor, events: Tensor, there: Tensor) -> ClueOutput:
        """Return item vectors and service vectors.

        Parameters
        ----------
        tokens : int (n_items, max_item_tokens)
        events : int (n, max_events)
            Rows of ``tokens``, newest event first; anything where ``there`` is False.
        there : bool (n, max_events)
        """
        items = self.item(tokens)  # (n_items, width)
        return ClueOutput(items, self.service(items[events], there))  # (n, length, width)


def user_vector(services: Tensor) -> Tensor:
    """Return the mean of the services that a user has.

    Parameters
    ----------
    services : float (n, n_services, embedding_dim)
        Zeros where the user has no event.

    Returns
    -------
    float (n, embedding_dim)
        Zeros for a user of no service.
    """
    has = services.abs().amax(2) > 0  # (n, n_services)
    return services.sum(1) / has.sum(1, keepdim=True).clamp_min(1)
