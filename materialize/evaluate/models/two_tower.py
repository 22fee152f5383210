"""Two towers, a user's and an item's, fitted on pairs: the light head and networks of the bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from materialize.evaluate.models.base import Pairs, check_pairs
from materialize.evaluate.models.early_stopping import fit_until_worse
from materialize.evaluate.models.priors import FittedPrior

if TYPE_CHECKING:
    from materialize.evaluate.cohort import Cohort

__all__ = [
    "FittedNetwork",
    "ItemTower",
    "PairNetwork",
    "TowerSettings",
    "TwoTower",
    "fit_network",
    "held_out",
    "score_network",
]

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

_HELD_OUT_SHARE = 0.15


@dataclass(frozen=True)
class TowerSettings:
    """How a network of pairs is fitted.

    Attributes
    ----------
    factors : int
        Length of the vectors whose product scores a pair.
    learning_rate : float
        Of AdamW.
    weight_decays : tuple of float
        Tried one after the other; the one with the smallest held-out loss stays.
    max_epochs : int
    patience : int
        Epochs without a smaller held-out loss, after which a fit ends; its best epoch stays.
    batch_pairs : int
        About so many pairs make a step: those of as many whole rows.
    """

    factors: int = 32
    learning_rate: float = 1e-3
    weight_decays: tuple[float, ...] = (3.0, 15.0, 60.0)
    max_epochs: int = 15
    patience: int = 1
    batch_pairs: int = 4096


class PairNetwork(Protocol):
    """A torch module that scores pairs of a batch, beyond what the item's prior says."""

    def __call__(
        self, rows: torch.Tensor, place: torch.Tensor, items: torch.Tensor
    ) -> torch.Tensor:
        """Return logits (n_pairs,).

        Parameters
        ----------
        rows : int64 (n_batch_rows,)
            Distinct rows of the cohort.
        place : int64 (n_pairs,)
            Each pair's position in ``rows``.
        items : int64 (n_pairs,)
        """
        ...


class ItemTower(nn.Module):
    """Factors and a bias of each item, linear in its features, and free for items of the pairs.

    Parameters
    ----------
    features : float32 (n_items, n_features)
    fitted_items : int64 (n,)
        Items that the pairs hold; repeats are fine. Only these have free numbers.
    factors : int
    seed : int

    Notes
    -----
    Free numbers start at zero and have weight decay: an item that few consume stays where its
    vectors, clusters and tags put it.
    """

    features: torch.Tensor
    slot: torch.Tensor

    def __init__(self, features: Float32, fitted_items: Int64, factors: int, seed: int) -> None:
        super().__init__()
        distinct = np.unique(fitted_items)
        slot = np.full(len(features), len(distinct), np.int64)
        slot[distinct] = np.arange(len(distinct))
        self.register_buffer("features", torch.from_numpy(features), persistent=False)
        self.register_buffer("slot", torch.from_numpy(slot), persistent=False)
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(features.shape[1], factors + 1, generator=generator)
        start[:, -1] = 0
        self.weight = nn.Parameter(start / max(features.shape[1], 1) ** 0.5)
        # The last row is that of all other items: no pair holds them, so it stays at zero.
        self.free = nn.Parameter(torch.zeros(len(distinct) + 1, factors + 1))

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """Return (n, factors + 1) of distinct items; the last column is the bias."""
        return self.features[items] @ self.weight + self.free[self.slot[items]]


class TwoTower(nn.Module):
    """Product of a user's and an item's factors, and the item's bias.

    Parameters
    ----------
    users : nn.Module
        Rows int64 (n,) to factors (n, factors).
    items : ItemTower
    """

    def __init__(self, users: nn.Module, items: ItemTower) -> None:
        super().__init__()
        self.users = users
        self.items = items

    def forward(self, rows: torch.Tensor, place: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Return logits (n_pairs,); see ``PairNetwork``."""
        distinct, which = torch.unique(items, return_inverse=True)
        item = self.items(distinct)  # (n_distinct, factors + 1)
        user = self.users(rows)  # (n_batch_rows, factors)
        # Every row of the batch meets every distinct item: one product is cheaper than a gather.
        every = torch.addmm(item[:, -1], user, item[:, :-1].T)  # (n_batch_rows, n_distinct)
        return every.flatten()[place * len(distinct) + which]  # (n_pairs,)


@dataclass(frozen=True)
class _Batches:
    """Pairs by row, as tensors."""

    rows: Int64
    offsets: Int64
    item: torch.Tensor
    offset: torch.Tensor
    y: torch.Tensor

    @classmethod
    def of(cls, pairs: Pairs, offset: npt.NDArray[Any]) -> _Batches:
        order = np.argsort(pairs.row, kind="stable")
        rows, first = np.unique(pairs.row[order], return_index=True)
        return cls(
            rows,
            np.append(first, len(pairs)),
            torch.from_numpy(pairs.item[order]),
            torch.from_numpy(offset[order].astype(np.float32)),
            torch.from_numpy(pairs.y[order].astype(np.float32)),
        )

    def parts(self, size: int, order: Int64) -> Iterator[tuple[torch.Tensor, ...]]:
        """Yield rows, places, and the positions of their pairs."""
        sizes = np.diff(self.offsets)
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            n = sizes[chosen]
            ends = np.cumsum(n)
            within = np.arange(ends[-1]) - np.repeat(ends - n, n)
            pairs = np.repeat(self.offsets[chosen], n) + within
            place = np.repeat(np.arange(len(chosen)), n)
            yield (
                torch.from_numpy(self.rows[chosen]),
                torch.from_numpy(place),
                torch.from_numpy(pairs),
            )

    def loss(self, network: PairNetwork, part: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return the summed loss of one part."""
        rows, place, pairs = part
        logits = network(rows, place, self.item[pairs]) + self.offset[pairs]
        return binary_cross_entropy_with_logits(logits, self.y[pairs], reduction="sum")


@dataclass(frozen=True)
class FittedNetwork:
    """A network and the prior that it adds to.

    Attributes
    ----------
    network : nn.Module
        A ``PairNetwork`` in evaluation mode.
    prior : FittedPrior
    weight_decay : float
        The chosen one.
    held_out_losses : tuple of float
        Mean cross entropy of held-out users' pairs at each weight decay's best epoch.
    """

    network: nn.Module
    prior: FittedPrior
    weight_decay: float
    held_out_losses: tuple[float, ...]


def fit_network(
    make: Callable[[int], nn.Module],
    cohort: Cohort,
    pairs: Pairs,
    settings: TowerSettings,
    seed: int,
) -> FittedNetwork:
    """Return the network that predicts held-out training users' pairs best.

    Parameters
    ----------
    make : callable
        Seed to a new ``PairNetwork``.
    cohort : Cohort
    pairs : Pairs
        Of training rows.
    settings : TowerSettings
    seed : int
        Start, order of the batches, and which 15% of the users choose weight decay and epoch.

    Raises
    ------
    EvaluationFault
        See ``check_pairs``.
    FloatingPointError
        A loss that is not finite, with the epoch.
    """
    check_pairs(cohort, pairs)
    prior = FittedPrior(cohort, pairs)
    offset = pairs.offset + prior.logits(pairs.row, pairs.item)
    held = held_out(cohort.user_id[pairs.row], seed)
    fit = _Batches.of(pairs.take(~held), offset[~held])
    check = _Batches.of(pairs.take(held), offset[held])
    best: tuple[float, float, nn.Module] | None = None
    losses = []
    for weight_decay in settings.weight_decays:
        # Dropout draws from torch's own generator: seeded here, and nobody else's draws move.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            loss, network = _fit(make(seed), fit, check, settings, weight_decay, seed)
        losses.append(loss)
        if best is None or loss < best[0]:
            best = loss, weight_decay, network
    if best is None:
        raise ValueError("No weight decay given, at least one expected.")
    return FittedNetwork(best[2], prior, best[1], tuple(losses))


def _fit(
    network: nn.Module,
    fit: _Batches,
    check: _Batches,
    settings: TowerSettings,
    weight_decay: float,
    seed: int,
) -> tuple[float, nn.Module]:
    """Return the smallest held-out loss and the network of that epoch."""
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, weight_decay=weight_decay
    )
    rng = np.random.default_rng(seed)
    batch_rows = max(1, round(settings.batch_pairs * len(fit.rows) / len(fit.y)))

    def train() -> None:
        network.train()
        for part in fit.parts(batch_rows, rng.permutation(len(fit.rows))):
            optimiser.zero_grad()
            loss = fit.loss(network, part) / len(part[2])
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()

    best = fit_until_worse(
        network,
        train,
        lambda: _held_out_loss(network, check, batch_rows),
        max_epochs=settings.max_epochs,
        patience=settings.patience,
        what=f"a network of pairs at weight decay {weight_decay}",
    )
    network.eval()
    return best, network


@torch.inference_mode()
def _held_out_loss(network: nn.Module, check: _Batches, size: int) -> float:
    network.eval()
    parts = check.parts(size, np.arange(len(check.rows)))
    total = sum(float(check.loss(network, part)) for part in parts)
    return total / len(check.y)


@torch.inference_mode()
def score_network(fitted: FittedNetwork, row: Int64, item: Int64, size: int = 256) -> Float32:
    """Return logits float32 (n_pairs,), in the order given."""
    prior = fitted.prior.logits(row, item)
    batches = _Batches.of(Pairs(row, item, np.zeros(len(row), bool)), prior)
    scores = np.empty(len(row), np.float32)
    order = np.argsort(row, kind="stable")
    for rows, place, chosen in batches.parts(size, np.arange(len(batches.rows))):
        logits = fitted.network(rows, place, batches.item[chosen]) + batches.offset[chosen]
        scores[order[chosen.numpy()]] = logits.numpy()
    return scores


def held_out(users: npt.NDArray[np.generic], seed: int) -> npt.NDArray[np.bool_]:
    """Return which entries are of held-out users, bool (n,): 15% of them, by seed.

    Raises
    ------
    ValueError
        Fewer than two users.
    """
    names, owner = np.unique(users, return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"{len(names)} training user(s) given, at least 2 expected.")
    n_held = max(1, round(_HELD_OUT_SHARE * len(names)))
    held = np.zeros(len(names), bool)
    held[np.random.default_rng(seed).permutation(len(names))[:n_held]] = True
    return held[owner]
