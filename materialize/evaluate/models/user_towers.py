"""Towers of users: linear for frozen vectors, a network for raw features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

__all__ = ["LinearTower", "NetworkTower", "standardise"]

Float32 = npt.NDArray[np.float32]


class LinearTower(nn.Module):
    """Factors that are linear in a row's vector.

    Parameters
    ----------
    vectors : float32 (n_rows, n_features), standardised
    factors : int
    seed : int
    """

    vectors: torch.Tensor

    def __init__(self, vectors: Float32, factors: int, seed: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.from_numpy(vectors), persistent=False)
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(vectors.shape[1], factors, generator=generator)
        self.weight = nn.Parameter(0.1 * start / vectors.shape[1] ** 0.5)
        self.bias = nn.Parameter(torch.zeros(factors))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return (n, factors)."""
        return torch.addmm(self.bias, self.vectors[rows], self.weight)


class NetworkTower(nn.Module):
    """Factors by a network with dropout.

    Parameters
    ----------
    vectors : float32 (n_rows, n_features), standardised
    hidden : sequence of int
        Widths of the hidden layers.
    factors : int
    dropout : float
        Share of hidden units left out while fitting.
    seed : int
        Of the weights. Dropout draws from torch's global generator, which the caller seeds.
    """

    vectors: torch.Tensor

    def __init__(
        self, vectors: Float32, hidden: Sequence[int], factors: int, dropout: float, seed: int
    ) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.from_numpy(vectors), persistent=False)
        generator = torch.Generator().manual_seed(seed)
        layers: list[nn.Module] = []
        width = vectors.shape[1]
        for size in (*hidden, factors):
            layer = nn.Linear(width, size)
            with torch.no_grad():
                layer.weight.normal_(0, width**-0.5, generator=generator)
                layer.bias.zero_()
            layers += [layer, nn.GELU(), nn.Dropout(dropout)]
            width = size
        self.layers = nn.Sequential(*layers[:-2])

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return (n, factors)."""
        found: torch.Tensor = self.layers(self.vectors[rows])
        return found


def standardise(vectors: Float32, training: npt.NDArray[np.bool_]) -> Float32:
    """Return columns of mean 0 and variance 1 over training rows, clipped to +-10.

    A column that is constant there becomes zeros. The input stays as it is.
    """
    known = vectors[training]
    mean = known.mean(axis=0, dtype=np.float64)
    spread = known.std(axis=0, dtype=np.float64)
    constant = spread <= 1e-6 * np.maximum(np.abs(mean), 1e-6)
    scaled = (vectors - mean) / np.where(constant, 1.0, spread)
    scaled[:, constant] = 0
    return np.asarray(np.clip(scaled, -10, 10), np.float32)
