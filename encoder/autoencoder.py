"""The denoising autoencoder: corrupted inputs -> embedding -> clean block values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from encoder.preprocessing import InputBlock

__all__ = ["AutoencoderConfig", "Corruption", "DenoisingAutoencoder", "Reconstruction"]


@dataclass(frozen=True)
class AutoencoderConfig:
    """Shape of the network and strength of the corruption."""

    embedding_dim: int = 120
    """Length of the embedding."""
    hidden: tuple[int, ...] = (512, 256)
    """Widths of the encoder's hidden layers; the decoder mirrors them."""
    block_dropout: float = 0.2
    """Chance that a present block is hidden from the encoder, [0, 1)."""
    view_dropout: float = 0.3
    """Chance that all blocks of a raw view are hidden at once, where the row has another view,
    [0, 1). A user who has only just joined looks so: picks or profile, and no activity."""
    noise_std: float = 0.1
    """Standard deviation of Gaussian noise on present values that are not categories."""
    unknown_rate: float = 0.05
    """Chance that a present category is shown as unknown. Otherwise the weights of the unknown
    input never learn, and a string first met in serving moves the embedding at random."""
    seed: int = 0
    """Seed of the initial weights."""

    def __post_init__(self) -> None:
        if self.embedding_dim < 1 or not self.hidden or min(self.hidden) < 1:
            raise ValueError(
                f"embedding_dim {self.embedding_dim} and hidden {self.hidden} given, "
                "widths of at least 1 and at least one hidden layer expected."
            )
        for name in ("block_dropout", "view_dropout", "unknown_rate"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} {getattr(self, name)} given, [0, 1) expected.")
        if self.noise_std < 0:
            raise ValueError(f"noise_std {self.noise_std} given, at least 0 expected.")


class Reconstruction(NamedTuple):
    """What the autoencoder returns.

    Attributes
    ----------
    embedding : float (n, embedding_dim)
    values : float (n, n_values)
        Per block, in input order: values, or logits for a category.
    future : float (n, n_future) or None
        The same for the blocks of what comes next; None when the model predicts none.
    """

    embedding: Tensor
    values: Tensor
    future: Tensor | None


class DenoisingAutoencoder(nn.Module):
    """A SELU network with a linear bottleneck, which is the embedding.

    A decoder rebuilds the inputs from it. What comes next is read off by one linear layer, as
    consumers read the embedding.

    No layer looks at other rows (no batch normalisation), so a user's embedding does not depend
    on who else is in the batch.

    State: weights only.

    Parameters
    ----------
    blocks : sequence of InputBlock
        The preprocessor's ``input_slices``.
    config : AutoencoderConfig
    future : sequence of InputBlock, optional
        Blocks to predict; none changes no bit of the other weights.

    References
    ----------
    Vincent et al. 2008, "Extracting and composing robust features with denoising autoencoders".
    Klambauer et al. 2017, "Self-normalizing neural networks" (SELU, LeCun-normal weights).
    GUR, arXiv 2403.00584: an autoencoder as the general user representation of a company.
    """

    def __init__(
        self,
        blocks: Sequence[InputBlock],
        config: AutoencoderConfig,
        future: Sequence[InputBlock] = (),
    ) -> None:
        super().__init__()
        n_values = blocks[-1].stop
        n_inputs = n_values + len(blocks)
        self.encoder = _mlp([n_inputs, *config.hidden, config.embedding_dim])
        self.decoder = _mlp([config.embedding_dim, *reversed(config.hidden), n_values])
        self.predictor = _mlp([config.embedding_dim, future[-1].stop]) if future else None
        # In this order: the predictor draws last.
        generator = torch.Generator().manual_seed(config.seed)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, 0.0, layer.in_features**-0.5, generator=generator)
                nn.init.zeros_(layer.bias)

    def forward(self, inputs: Tensor) -> Reconstruction:
        """Return embedding, reconstruction and prediction of ``inputs`` float (n, n_inputs)."""
        embedding = self.encoder(inputs)  # (n, embedding_dim)
        future = None if self.predictor is None else self.predictor(embedding)  # (n, n_future)
        return Reconstruction(embedding, self.decoder(embedding), future)  # (n, n_values)

    @torch.inference_mode()
    def encode(self, inputs: Tensor) -> Tensor:
        """Return the embedding of clean ``inputs``, float (n, embedding_dim)."""
        embedding: Tensor = self.encoder(inputs)
        return embedding


class Corruption(nn.Module):
    """Hides whole views and blocks and adds noise, as the data's own gaps do.

    A block that is hidden has values and mask 0, exactly like an absent one. A row that has any
    block keeps at least one; one that has several views keeps one of them.

    State: constant buffers that follow from the blocks; not saved.

    Parameters
    ----------
    blocks : sequence of InputBlock
    config : AutoencoderConfig
    """

    owner: Tensor
    views: Tensor
    noise: Tensor
    unknown: Tensor
    forgettable: Tensor

    def __init__(self, blocks: Sequence[InputBlock], config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.n_values = blocks[-1].stop
        # From one number a block to one a value by a matrix product: exact with zeros and ones,
        # and far faster than an index along the second dimension.
        owner = torch.zeros(len(blocks), self.n_values)
        noise, unknown = torch.zeros_like(owner), torch.zeros_like(owner)
        for k, b in enumerate(blocks):
            owner[k, b.start : b.stop] = 1.0
            if b.kind == "category":
                unknown[k, b.stop - 1] = 1.0
            else:
                noise[k, b.start : b.stop] = config.noise_std
        names = list(dict.fromkeys(b.view for b in blocks))
        views = torch.tensor([[float(b.view == name) for b in blocks] for name in names])
        rates = [config.unknown_rate if b.kind == "category" else 0.0 for b in blocks]
        self.register_buffer("owner", owner, persistent=False)
        self.register_buffer("views", views, persistent=False)
        self.register_buffer("noise", noise, persistent=False)
        self.register_buffer("unknown", unknown, persistent=False)
        self.register_buffer("forgettable", torch.tensor(rates), persistent=False)

    def forward(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Return a corrupted copy of ``inputs`` float32 (n, n_inputs).

        Parameters
        ----------
        inputs : float32 (n, n_inputs)
        generator : torch.Generator
            On the inputs' device; the only source of randomness.
        """
        device = inputs.device
        values, present = inputs[:, : self.n_values], inputs[:, self.n_values :]
        offered = present
        if self.config.view_dropout > 0 and len(self.views) > 1:
            offered = present * self._kept_views(present, generator)
        luck = torch.rand(present.shape, generator=generator, device=device)
        # The luckiest offered block always stays; when any stays, it is among them anyway.
        luckiest = (luck * offered).argmax(dim=1, keepdim=True)  # (n, 1)
        kept = (luck >= self.config.block_dropout).float().scatter_(1, luckiest, 1.0)
        shown = kept * offered  # (n, n_blocks)
        luck = torch.rand(present.shape, generator=generator, device=device)
        forgotten = (luck < self.forgettable).float()  # (n, n_blocks)
        noise = torch.randn(values.shape, generator=generator, device=device)
        values = values * ((shown * (1.0 - forgotten)) @ self.owner)  # (n, n_values)
        values = values.addcmul_(noise, shown @ self.noise)  # (n, n_values)
        values = values.addmm_(shown * forgotten, self.unknown)  # (n, n_values)
        return torch.cat([values, shown], dim=1)  # (n, n_inputs)

    def _kept_views(self, present: Tensor, generator: torch.Generator) -> Tensor:
        """Return 1 for the blocks of views that are not hidden, float32 (n, n_blocks)."""
        has = (present @ self.views.T > 0).float()  # (n, n_views)
        luck = torch.rand(has.shape, generator=generator, device=present.device)
        luckiest = (luck * has).argmax(dim=1, keepdim=True)  # (n, 1)
        kept = (luck >= self.config.view_dropout).float().scatter_(1, luckiest, 1.0)
        return kept @ self.views  # (n, n_blocks)


def _mlp(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.SELU()]
    return nn.Sequential(*layers[:-1])
