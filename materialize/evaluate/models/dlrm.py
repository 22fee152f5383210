"""A network in the manner of DLRM: embeddings of blocks and of the item, and their products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from materialize.evaluate.models.base import Pairs, check_pairs
from materialize.evaluate.models.item_side import item_features
from materialize.evaluate.models.two_tower import (
    ItemTower,
    TowerSettings,
    fit_network,
    score_network,
)
from materialize.evaluate.models.user_towers import standardise

if TYPE_CHECKING:
    from encoder.artifact import EncoderArtifact
    from materialize.evaluate.cohort import Cohort

__all__ = ["Dlrm", "DlrmNetwork"]

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

_FACTORS = 16
_TOP = (64, 32)
_DROPOUT = 0.1
_SETTINGS = TowerSettings(factors=_FACTORS, weight_decays=(1.0, 5.0))


class DlrmNetwork(nn.Module):
    """Scores pairs from products of all embeddings: of each block of raw features, of the item.

    Parameters
    ----------
    inputs : float32 (n_rows, n_inputs), standardised
    blocks : sequence of (int, int)
        Columns ``[start, stop)`` of each block; the columns after the last are presence masks.
    items : ItemTower
    factors : int
        Length of each embedding.
    seed : int

    References
    ----------
    Naumov et al. Deep learning recommendation model for personalization and recommendation systems.
    arXiv 1906.00091, 2019, section 2.
    """

    inputs: torch.Tensor

    def __init__(
        self,
        inputs: Float32,
        blocks: Sequence[tuple[int, int]],
        items: ItemTower,
        factors: int,
        seed: int,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("inputs", torch.from_numpy(inputs), persistent=False)
        self.blocks = list(blocks)
        self.embeddings = nn.ModuleList(
            _linear(stop - start, factors, generator) for start, stop in self.blocks
        )
        # DLRM's bottom network: all dense features at once.
        self.bottom = nn.Sequential(
            _linear(inputs.shape[1], _TOP[0], generator),
            nn.ReLU(),
            nn.Dropout(_DROPOUT),
            _linear(_TOP[0], factors, generator),
        )
        self.items = items
        n_vectors = len(self.blocks) + 1
        pairs_of_vectors = torch.tril_indices(n_vectors, n_vectors, -1)
        self.register_buffer("below", pairs_of_vectors, persistent=False)
        width = 2 * factors + n_vectors + pairs_of_vectors.shape[1]
        self.top = nn.Sequential(
            _linear(width, _TOP[0], generator),
            nn.ReLU(),
            nn.Dropout(_DROPOUT),
            _linear(_TOP[0], _TOP[1], generator),
            nn.ReLU(),
            _linear(_TOP[1], 1, generator),
        )

    below: torch.Tensor

    def forward(self, rows: torch.Tensor, place: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Return logits (n_pairs,); see ``PairNetwork``."""
        x = self.inputs[rows]
        dense = self.bottom(x)  # (n_batch_rows, factors)
        parts = [
            embed(x[:, start:stop])
            for embed, (start, stop) in zip(self.embeddings, self.blocks, strict=True)
        ]
        users = torch.stack([dense, *parts], dim=1)  # (n_batch_rows, n_vectors, factors)
        among = (users @ users.transpose(1, 2))[:, self.below[0], self.below[1]]
        distinct, which = torch.unique(items, return_inverse=True)
        item = self.items(distinct)[which]  # (n_pairs, factors + 1)
        met = (users[place] @ item[:, :-1, None]).squeeze(-1)  # (n_pairs, n_vectors)
        top = self.top(torch.cat([dense[place], item[:, :-1], among[place], met], dim=1))
        logits: torch.Tensor = top.squeeze(-1) + item[:, -1]
        return logits


class Dlrm:
    """The DLRM-like network as a model of pairs; prior, loss and held-out choice as in the head.

    State: ``fitted``; a second ``fit`` replaces it.
    """

    name = "dlrm"
    task_specific = True

    def __init__(self, settings: TowerSettings | None = None) -> None:
        self.settings = _SETTINGS if settings is None else settings

    def fit(self, cohort: Cohort, encoder: EncoderArtifact, pairs: Pairs, seed: int) -> None:
        """Train the network. Raises as every pair model does."""
        check_pairs(cohort, pairs)
        inputs = standardise(cohort.inputs(encoder), cohort.training)
        blocks = [(b.start, b.stop) for b in cohort.blocks(encoder).input_slices]
        features, factors = item_features(cohort), self.settings.factors

        def make(start: int) -> DlrmNetwork:
            items = ItemTower(features, pairs.item, factors, start + 1)
            return DlrmNetwork(inputs, blocks, items, factors, start)

        self.fitted = fit_network(make, cohort, pairs, self.settings, seed)

    def score(self, row: Int64, item: Int64) -> Float32:
        """Return log odds float32 (n_pairs,)."""
        return score_network(self.fitted, row, item)


def _linear(width: int, out: int, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(width, out)
    with torch.no_grad():
        layer.weight.normal_(0, max(width, 1) ** -0.5, generator=generator)
        layer.bias.zero_()
    return layer
