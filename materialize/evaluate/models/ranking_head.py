"""A light two-tower head that ranks the catalogue from frozen vectors of users."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import nn

from encoder.errors import EvaluationFault
from materialize.evaluate.models.base import FullRanker, UserModel
from materialize.evaluate.models.calibrated_ranking import choose_personal
from materialize.evaluate.models.early_stopping import fit_until_worse
from materialize.evaluate.models.head import frozen
from materialize.evaluate.models.item_side import item_features
from materialize.evaluate.models.priors import ItemPrior
from materialize.evaluate.models.two_tower import ItemTower, TowerSettings, held_out
from materialize.evaluate.models.user_towers import LinearTower, standardise

if TYPE_CHECKING:
    from encoder.artifact import EncoderArtifact
    from materialize.evaluate.cohort import Cohort

__all__ = ["RankingHead", "als_vectors", "coles", "embedding", "mean_vectors", "raw_inputs"]

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

_ROWS = 128
_OTHERS = 1_000
_PRIOR_RATE = 0.03
_CHOICE_ROWS = 400


class RankingHead:
    """Ranks items by ``(A z) . (B v_i + e_i) + b_i`` and the item's prior, trained by a softmax.

    The form, the rank and the item side are those of the light head; the loss is the one for
    ranking: each training row's future items against the items of all training rows' futures and
    1,000 others. Weight decay and epoch are chosen on held-out training users, and so is how much
    the personal part counts beside the prior (see ``choose_personal``), as for recommenders.

    Parameters
    ----------
    users : UserModel
    settings : TowerSettings, optional

    Notes
    -----
    State: ``user_factors`` and ``item_factors``, whose last numbers are 1 and the item's bias, and
    the prior's weights. A second ``fit`` replaces them.
    """

    task_specific = False

    def __init__(self, users: UserModel, settings: TowerSettings | None = None) -> None:
        self.users = users
        self.name = users.name
        self.settings = TowerSettings() if settings is None else settings

    def fit(self, cohort: Cohort, encoder: EncoderArtifact, seed: int) -> None:
        """Train the head. Raises as every ranker does."""
        rows = np.flatnonzero(cohort.training & (np.diff(cohort.future.indptr) > 0))
        if len(np.unique(cohort.user_id[rows])) < 2:
            raise EvaluationFault(
                f"{len(rows)} training row(s) with an item in their future, of at least 2 users "
                "expected. Choose a longer horizon or more rows."
            )
        z = standardise(frozen(self.users, cohort, encoder, seed), cohort.training)
        best: tuple[float, _Network] | None = None
        for weight_decay in self.settings.weight_decays:
            network = _Network(cohort, z, rows, self.settings.factors, seed)
            loss = _fit(network, cohort, rows, self.settings, weight_decay, seed)
            if best is None or loss < best[0]:
                best = loss, network
        if best is None:
            raise ValueError("No weight decay given, at least one expected.")
        self._prior, (past, recent) = ItemPrior(cohort), best[1].prior.tolist()
        self._prior_weights = past, recent
        self.user_factors, self.item_factors = best[1].factors()
        held = rows[held_out(cohort.user_id[rows], seed)]
        self.item_factors *= choose_personal(cohort, held[:_CHOICE_ROWS], self._parts)

    def scores(self, rows: Int64) -> Float32:
        """Return float32 (len(rows), n_items)."""
        personal, prior = self._parts(rows)
        personal += prior
        return personal

    def _parts(self, rows: Int64) -> tuple[Float32, Float32]:
        whole, recent = self._prior.full_features(rows)
        prior = self._prior_weights[0] * whole + self._prior_weights[1] * recent
        return self.user_factors[rows] @ self.item_factors.T, prior.astype(np.float32)


class _Network(nn.Module):
    """Both towers, and the prior's two weights."""

    def __init__(self, cohort: Cohort, z: Float32, rows: Int64, factors: int, seed: int) -> None:
        super().__init__()
        future = cohort.future[rows]
        self.users = LinearTower(z, factors, seed)
        self.items = ItemTower(item_features(cohort), future.indices, factors, seed + 1)
        self.prior = nn.Parameter(torch.full((2,), 0.5))

    def forward(
        self, rows: torch.Tensor, items: torch.Tensor, past: torch.Tensor, recent: torch.Tensor
    ) -> torch.Tensor:
        """Return logits (n, n_candidates); ``past`` and ``recent`` are the prior's, likewise."""
        item = self.items(items)
        scores = torch.addmm(item[:, -1], self.users(rows), item[:, :-1].T)
        return scores + self.prior[0] * past + self.prior[1] * recent

    @torch.inference_mode()
    def factors(self) -> tuple[Float32, Float32]:
        """Return factors of all rows, with a 1, and of all items, with a bias."""
        users = self.users(torch.arange(len(self.users.vectors)))
        items = self.items(torch.arange(len(self.items.features)))
        one = torch.ones(len(users), 1)
        return torch.cat([users, one], dim=1).numpy(), items.numpy()


def _fit(
    network: _Network,
    cohort: Cohort,
    rows: Int64,
    settings: TowerSettings,
    weight_decay: float,
    seed: int,
) -> float:
    """Train in place and return the smallest held-out loss."""
    future = cohort.future[rows].astype(np.float32)
    held = held_out(cohort.user_id[rows], seed)
    rng = np.random.default_rng(seed)
    used = np.unique(future.indices)
    others = np.setdiff1d(np.arange(future.shape[1]), used)
    others = rng.permutation(others)[:_OTHERS]
    candidates = np.sort(np.concatenate([used, others])).astype(np.int64)
    targets = sparse.csr_array(future[:, candidates])
    prior = [network.prior]
    learned = [p for p in network.parameters() if p is not network.prior]
    optimiser = torch.optim.AdamW(
        [
            {"params": learned, "weight_decay": weight_decay},
            {"params": prior, "lr": _PRIOR_RATE, "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
    )
    items = torch.from_numpy(candidates)

    which, *tables = ItemPrior(cohort).by_day(rows, candidates)
    past, recent = (torch.from_numpy(table.astype(np.float32)) for table in tables)

    def loss_of(part: Int64) -> torch.Tensor:
        own = torch.from_numpy(targets[part].toarray())
        days = torch.from_numpy(which[part])
        logits = network(torch.from_numpy(rows[part]), items, past[days], recent[days])
        log_share = torch.log_softmax(logits, dim=1)
        return -((own * log_share).sum(dim=1) / own.sum(dim=1)).mean()

    fit, check = np.flatnonzero(~held), np.flatnonzero(held)

    def train() -> None:
        order = rng.permutation(fit)
        for start in range(0, len(order), _ROWS):
            optimiser.zero_grad()
            loss_of(order[start : start + _ROWS]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()

    @torch.inference_mode()
    def held_out_loss() -> float:
        parts = [check[start : start + _ROWS] for start in range(0, len(check), _ROWS)]
        return sum(float(loss_of(part)) * len(part) for part in parts) / len(check)

    return fit_until_worse(
        network,
        train,
        held_out_loss,
        max_epochs=settings.max_epochs,
        patience=settings.patience,
        what=f"a ranking head at weight decay {weight_decay}",
    )


def _head(name: str) -> FullRanker:
    from materialize.evaluate.models.registry import user_model

    return RankingHead(user_model(name))


def embedding() -> FullRanker:
    """Return the ranking head on the embedding that is judged."""
    return _head("embedding")


def of_space(name: str) -> FullRanker:
    """Return the ranking head on the embedding of another space."""
    return _head(name)


def mean_vectors() -> FullRanker:
    """Return the ranking head on mean item vectors."""
    return _head("mean_vectors")


def raw_inputs() -> FullRanker:
    """Return the ranking head on the preprocessed raw features."""
    return _head("raw_inputs")


def als_vectors() -> FullRanker:
    """Return the ranking head on the factors of ALS."""
    return _head("als_vectors")


def coles() -> FullRanker:
    """Return the ranking head on CoLES vectors."""
    return _head("coles")
