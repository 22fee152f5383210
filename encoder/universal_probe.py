"""The fixed network of the RecSys Challenge 2025, which judges representations of users."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

__all__ = ["CHALLENGE", "NARROW", "ProbeConfig", "UniversalNetwork", "fit_probe"]

_MAX_DIM = 2048
_ROWS = 4096


@dataclass(frozen=True)
class ProbeConfig:
    """Shape and training of the network; the defaults are the challenge's constants."""

    thin: int = 2048
    """Width between the blocks (HIDDEN_SIZE_THIN)."""
    wide: int = 4096
    """Width inside a block (HIDDEN_SIZE_WIDE)."""
    n_blocks: int = 3
    """Inverted bottleneck blocks."""
    batch_size: int = 128
    """Rows of a step."""
    learning_rate: float = 1e-3
    """Of AdamW; its other settings are torch's defaults, weight decay 0.01 among them."""
    epochs: int = 3
    """The best of them counts (MAX_EPOCH)."""
    min_steps: int = 1
    """Fewest steps of an epoch. An epoch is one pass over the rows, or as many passes as make so
    many steps: the challenge has 1,000,000 users and 7,813 steps a pass."""

    def __post_init__(self) -> None:
        for name in ("thin", "wide", "n_blocks", "batch_size", "epochs", "min_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} given, at least 1 expected.")
        if not 0.0 < self.learning_rate < math.inf:
            raise ValueError(
                f"learning_rate {self.learning_rate} given, a positive number expected."
            )


CHALLENGE = ProbeConfig()
"""As the organisers ran it: 50 million weights, for a GPU."""

NARROW = ProbeConfig(thin=256, wide=512, min_steps=50)
"""The same network an eighth as wide: 64 times fewer operations, for two CPU cores.

The fewest steps are a compromise for thousands of users. On 2,066 simulated ones AUROC of (churn,
category, item) was .725, .712, .640 with one pass an epoch (17 steps), .721, .712, .700 with 30 and
.677, .668, .771 with 100: rare items take longer than churn takes to be learned by heart."""


class UniversalNetwork(nn.Module):
    """Three inverted bottlenecks with residual connections and layer normalisation.

    State: weights only, in torch's default initialisation.

    Parameters
    ----------
    n_features, n_targets : int
    config : ProbeConfig

    References
    ----------
    https://github.com/Synerise/recsys2025, ``training_pipeline/model.py``: the order of layers.
    Bachmann, Anagnostidis, Hofmann (2023), Scaling MLPs: A Tale of Inductive Bias,
    arXiv 2306.13575, section 4: the block.
    """

    def __init__(self, n_features: int, n_targets: int, config: ProbeConfig) -> None:
        super().__init__()
        self.into = nn.Sequential(nn.Linear(n_features, config.thin), nn.LayerNorm(config.thin))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(config.thin),
                nn.Linear(config.thin, config.wide),
                nn.GELU(),
                nn.Linear(config.wide, config.thin),
            )
            for _ in range(config.n_blocks)
        )
        self.out = nn.Sequential(nn.LayerNorm(config.thin), nn.Linear(config.thin, n_targets))

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (n, n_targets) of ``features`` float (n, n_features)."""
        hidden = self.into(features)  # (n, thin)
        for block in self.blocks:
            hidden = hidden + block(hidden)  # (n, thin)
        logits: Tensor = self.out(hidden)  # (n, n_targets)
        return logits


def fit_probe(
    x: npt.NDArray[Any],
    y: npt.NDArray[np.bool_],
    x_test: npt.NDArray[Any],
    *,
    config: ProbeConfig = CHALLENGE,
    seed: int,
    device: str | torch.device = "cpu",
) -> Iterator[npt.NDArray[np.float32]]:
    """Train on some rows and yield the logits of others after each epoch.

    Parameters
    ----------
    x : float (n_rows, n_features)
        Representations of the training rows; at most 2,048 numbers, that fit float16: the network
        reads them rounded to it, as the challenge's entries are.
    y : bool (n_rows, n_targets)
    x_test : float (n_test, n_features)
    config : ProbeConfig
    seed : int
        Of the initial weights and the order of the rows.
    device : str or torch.device

    Yields
    ------
    float32 (n_test, n_targets)
        ``config.epochs`` times.

    Raises
    ------
    ValueError
        Shapes that do not fit, more than 2,048 numbers, NaN, or numbers beyond float16 (65,504).
    FloatingPointError
        The loss became NaN or infinite.

    Notes
    -----
    Cross entropy averaged over rows and targets. As in the challenge the rows come in the same
    order in each epoch; here that order is shuffled once by the seed. The same input, seed, thread
    count and device give the same logits; the caller's random state is left alone.
    """
    _check(x, y, x_test)
    target = torch.device(device)
    inputs = _as_submitted(x, "x")
    tests = _as_submitted(x_test, "x_test")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = UniversalNetwork(x.shape[1], y.shape[1], config).to(target)
    # One kernel for all weights; the challenge's default loops over them. Same arithmetic.
    optimiser = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, fused=True)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(inputs), generator=generator)
    labels = torch.from_numpy(np.asarray(y, np.float32))
    batches = torch.split(order, config.batch_size)
    passes = math.ceil(config.min_steps / len(batches))
    for epoch in range(config.epochs):
        for step, rows in enumerate(batches * passes):
            optimiser.zero_grad()
            logits = network(inputs[rows].to(target))  # (batch, n_targets)
            loss = binary_cross_entropy_with_logits(logits, labels[rows].to(target))
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"The universal probe's loss is {loss.item()} in step {step} of epoch {epoch}."
                )
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        yield _logits(network, tests, target)


@torch.inference_mode()
def _logits(
    network: UniversalNetwork, tests: Tensor, device: torch.device
) -> npt.NDArray[np.float32]:
    parts = [network(rows.to(device)).cpu().numpy() for rows in torch.split(tests, _ROWS)]
    return np.concatenate(parts)


def _as_submitted(x: npt.NDArray[Any], name: str) -> Tensor:
    """Return what is left of ``x`` after float16, as float32."""
    with np.errstate(over="ignore"):  # the overflow is told below, with its place
        rounded = np.asarray(x, np.float16).astype(np.float32)
    if not np.isfinite(rounded).all():
        row, column = np.argwhere(~np.isfinite(rounded))[0]
        raise ValueError(
            f"{name}[{row}, {column}] is {x[row, column]}, finite numbers within float16 (65504) "
            "are expected. Standardise the representation."
        )
    return torch.from_numpy(rounded)


def _check(x: npt.NDArray[Any], y: npt.NDArray[Any], x_test: npt.NDArray[Any]) -> None:
    two_dimensional = x.ndim == y.ndim == x_test.ndim == 2
    if not two_dimensional or x.shape[1] != x_test.shape[1] or not len(x) == len(y) > 0:
        raise ValueError(
            f"x {x.shape}, y {y.shape} and x_test {x_test.shape} given, expected "
            "(n_rows, n_features), (n_rows, n_targets) and (n_test, n_features) with n_rows > 0."
        )
    if not len(x_test):
        raise ValueError("x_test has no row: there is nothing to judge the probe on.")
    if x.shape[1] > _MAX_DIM:
        raise ValueError(
            f"Representations of {x.shape[1]} numbers given, the challenge takes {_MAX_DIM:,} at "
            "most."
        )
