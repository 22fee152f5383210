"""A network on frozen features: what a team would train for one task of its own."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

__all__ = ["NetworkProbe"]

logger = logging.getLogger(__name__)

_HELD_OUT_SHARE = 0.2
_VALIDATION_ROWS = 8192


class NetworkProbe:
    """Multi-label network with one hidden layer that stops where held-out users' loss is lowest.

    Parameters
    ----------
    hidden : int
        Width of the hidden layer.
    dropout : float
        Share of the hidden units that are left out of a step, [0, 1).
    learning_rate : float
        Of AdamW.
    weight_decays : tuple of float
        Tried one after the other; the one with the smallest held-out loss stays.
    batch_size : int
    max_epochs : int
    patience : int
        Epochs without improvement of the held-out loss before training stops.

    Notes
    -----
    Features are standardised, constant ones set to 0. The weights of the best epoch of the best
    weight decay are kept; they have not seen the held-out users (20%), as those of a product's
    model would not. The same input, seed and thread count give the same weights.

    State: ``fit`` learns ``mean`` and ``scale`` float32 (n_features,), ``network``, the chosen
    ``weight_decay``, its ``best_epoch`` (from 1) and ``held_out_losses`` (one an epoch, mean cross
    entropy of a target). A second ``fit`` replaces all of it.
    """

    def __init__(
        self,
        hidden: int,
        *,
        dropout: float = 0.3,
        learning_rate: float = 1e-3,
        weight_decays: tuple[float, ...] = (1e-2, 1.0, 10.0, 30.0),
        batch_size: int = 128,
        max_epochs: int = 60,
        patience: int = 5,
    ) -> None:
        if hidden < 1 or not 0.0 <= dropout < 1.0:
            raise ValueError(
                f"hidden {hidden} and dropout {dropout} given, at least 1 and [0, 1) expected."
            )
        if not weight_decays:
            raise ValueError("No weight decay given, at least one expected.")
        self.hidden, self.dropout = hidden, dropout
        self.learning_rate, self.weight_decays = learning_rate, weight_decays
        self.batch_size, self.max_epochs, self.patience = batch_size, max_epochs, patience

    @property
    def n_parameters(self) -> int:
        """Weights and biases."""
        return sum(p.numel() for p in self.network.parameters())

    def fit(
        self, x: npt.NDArray[Any], y: npt.NDArray[np.bool_], users: npt.NDArray[Any], *, seed: int
    ) -> NetworkProbe:
        """Fit on training rows and return self.

        Parameters
        ----------
        x : float (n_rows, n_features), finite
        y : bool (n_rows, n_targets)
        users : (n_rows,)
            Whose row it is; a user is never on both sides of the held-out split.
        seed : int
            Of the held-out users, the weights, the order of rows and the dropout.

        Raises
        ------
        ValueError
            Shapes that do not fit, NaN or infinity, or fewer than two users.
        FloatingPointError
            The loss became NaN or infinite.
        """
        if x.ndim != 2 or y.ndim != 2 or not len(x) == len(y) == len(users) > 0:
            raise ValueError(
                f"x {x.shape}, y {y.shape} and users {users.shape} given, expected "
                "(n_rows, n_features), (n_rows, n_targets) and (n_rows,) with n_rows > 0."
            )
        if not np.isfinite(x).all():
            raise ValueError("x with NaN or infinity was given, finite values are expected.")
        names, owner = np.unique(users, return_inverse=True)
        if len(names) < 2:
            raise ValueError(f"{len(names)} training user(s) given, at least 2 expected.")
        n_held = max(1, round(_HELD_OUT_SHARE * len(names)))
        held = np.zeros(len(names), bool)
        held[np.random.default_rng(seed).permutation(len(names))[:n_held]] = True
        held_rows = held[owner]
        self.mean = x.mean(axis=0, dtype=np.float64).astype(np.float32)
        spread = x.std(axis=0, dtype=np.float64)
        # A constant feature would be rounding noise blown up; it is 0 instead.
        self._used = (spread > 1e-6).astype(np.float32)
        self.scale = np.where(spread > 1e-6, spread, 1.0).astype(np.float32)
        inputs, labels = self._inputs(x), torch.from_numpy(y.astype(np.float32))
        data = (inputs[~held_rows], labels[~held_rows], inputs[held_rows], labels[held_rows])
        tried = [self._trained(*data, weight_decay, seed) for weight_decay in self.weight_decays]
        best = min(tried, key=lambda one: min(one.held_out_losses))
        self.network, self.held_out_losses = best.network, best.held_out_losses
        self.weight_decay, self.best_epoch = best.weight_decay, best.best_epoch
        return self

    @torch.inference_mode()
    def scores(self, x: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return logits, float32 (n_rows, n_targets), comparable between targets.

        Parameters
        ----------
        x : float (n_rows, n_features), finite, the columns of ``fit``
        """
        if x.ndim != 2 or x.shape[1] != len(self.mean):
            raise ValueError(f"x of shape {x.shape} given, (n_rows, {len(self.mean)}) expected.")
        parts = [
            self.network(part).numpy() for part in torch.split(self._inputs(x), _VALIDATION_ROWS)
        ]
        return np.concatenate(parts).astype(np.float32, copy=False)

    def _inputs(self, x: npt.NDArray[Any]) -> Tensor:
        picked = x.astype(np.float32)
        picked -= self.mean
        picked *= self._used / self.scale
        return torch.from_numpy(picked)

    def _trained(
        self,
        inputs: Tensor,
        labels: Tensor,
        held: Tensor,
        truth: Tensor,
        weight_decay: float,
        seed: int,
    ) -> _Trained:
        """Return the network at its best epoch."""
        generator = torch.Generator().manual_seed(seed)
        network = _OneHidden(inputs.shape[1], self.hidden, labels.shape[1], generator)
        optimiser = torch.optim.AdamW(
            network.parameters(), self.learning_rate, weight_decay=weight_decay
        )
        losses: list[float] = []
        best, best_epoch = copy.deepcopy(network.state_dict()), 0
        for epoch in range(1, self.max_epochs + 1):
            order = torch.randperm(len(inputs), generator=generator)
            for rows in torch.split(order, self.batch_size):
                logits = network(inputs[rows], self.dropout, generator)  # (n, n_targets)
                loss = binary_cross_entropy_with_logits(logits, labels[rows])
                if not torch.isfinite(loss):
                    raise FloatingPointError(f"The loss is {loss.item()} in epoch {epoch}.")
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            with torch.inference_mode():
                losses.append(binary_cross_entropy_with_logits(network(held), truth).item())
            if losses[-1] == min(losses):
                best, best_epoch = copy.deepcopy(network.state_dict()), epoch
            elif epoch - best_epoch >= self.patience:
                break
        network.load_state_dict(best)
        logger.debug(
            "hidden %d, weight decay %g: best epoch %d", self.hidden, weight_decay, best_epoch
        )
        return _Trained(network, weight_decay, best_epoch, losses)


@dataclass(frozen=True)
class _Trained:
    """A network at its best epoch, and how it came there."""

    network: _OneHidden
    weight_decay: float
    best_epoch: int
    held_out_losses: list[float]


class _OneHidden(nn.Module):
    """Linear, ReLU, linear; He-normal weights, all randomness is the generator's."""

    def __init__(self, n_in: int, hidden: int, n_out: int, generator: torch.Generator) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(n_in, hidden), nn.Linear(hidden, n_out)
        for layer, gain in ((self.into, 2.0), (self.out, 1.0)):
            spread = (gain / layer.in_features) ** 0.5
            nn.init.normal_(layer.weight, 0.0, spread, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(
        self, inputs: Tensor, dropout: float = 0.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return logits (n, n_targets); units are dropped only where ``dropout`` is above 0."""
        hidden = torch.relu(self.into(inputs))  # (n, hidden)
        if dropout > 0:
            kept = torch.rand(hidden.shape, generator=generator) >= dropout
            hidden = hidden * kept / (1.0 - dropout)
        logits: Tensor = self.out(hidden)
        return logits
