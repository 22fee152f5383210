"""SASRec: self-attention over a user's events, trained to name the next one."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from materialize.evaluate.models.base import FullRanker, PairModel
from materialize.evaluate.models.calibrated import CalibratedRanker
from materialize.evaluate.models.calibrated_ranking import CalibratedRanking
from materialize.evaluate.models.fits import Fit, shared_fit
from materialize.evaluate.models.sequences import Sequences, of_past, of_rows, vocabulary

if TYPE_CHECKING:
    from encoder.artifact import EncoderArtifact
    from materialize.evaluate.cohort import Cohort

__all__ = [
    "SasRec",
    "SasRecNetwork",
    "SasRecSettings",
    "fit_sasrec",
    "pairs",
    "ranking",
    "sequence_windows",
]

logger = logging.getLogger(__name__)

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

_SEED = 0


@dataclass(frozen=True)
class SasRecSettings:
    """Settings of one network and its training.

    Attributes
    ----------
    width, heads, layers : int
    length : int
        Events that it reads.
    dropout : float
    n_items : int
        Most popular items that have an embedding; others are scored by popularity.
    negatives : int
        Items that each step's targets are told from, drawn uniformly.
    events : int
        About so many events are trained on: the number of epochs follows, 2 to 40.
    batch : int
        Sequences a step.
    learning_rate : float
        Highest of a one-cycle schedule.
    """

    width: int = 64
    heads: int = 2
    layers: int = 2
    length: int = 50
    dropout: float = 0.2
    n_items: int = 20_000
    negatives: int = 256
    events: int = 2_000_000
    batch: int = 32
    learning_rate: float = 3e-3


def pairs() -> PairModel:
    """Return the model of pairs."""
    return CalibratedRanker(SasRec())


def ranking() -> FullRanker:
    """Return the model that ranks the catalogue."""
    return CalibratedRanking(SasRec())


class SasRecNetwork(nn.Module):
    """Transformer with a causal mask over item embeddings and positions.

    Parameters
    ----------
    n_items : int
    settings : SasRecSettings
    """

    def __init__(self, n_items: int, settings: SasRecSettings) -> None:
        super().__init__()
        self.items = nn.Embedding(n_items + 1, settings.width, padding_idx=n_items)
        self.positions = nn.Embedding(settings.length, settings.width)
        for table in (self.items, self.positions):
            nn.init.normal_(table.weight, std=settings.width**-0.5)
        self.bias = nn.Parameter(torch.zeros(n_items))
        self.dropout = nn.Dropout(settings.dropout)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                settings.width,
                settings.heads,
                2 * settings.width,
                settings.dropout,
                "gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(settings.layers)
        )
        self.norm = nn.LayerNorm(settings.width)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """Return the state after each event, (n, length, width).

        Sequences are padded at their end: with a causal mask no event sees the padding.
        """
        n = items.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(n)
        x = self.dropout(self.items(items) + self.positions.weight[:n])
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=True)
        found: torch.Tensor = self.norm(x)
        return found


class SasRec:
    """Ranks items by the state of a small transformer after a row's newest 50 events.

    State: ``user_factors`` and ``item_factors``, whose last numbers are 1 and the item's bias. One
    fit serves all tasks and seeds of a cohort: it learns from events before the cut-off alone, and
    takes a minute or two.

    References
    ----------
    Kang, McAuley. Self-attentive sequential recommendation. ICDM 2018.
    Klenitskiy, Vasilev. Turning dross into gold loss: is BERT4Rec really better than SASRec?
    RecSys 2023 (cross entropy over sampled negatives instead of one negative a target).
    """

    name = "sasrec"
    task_specific = False

    def __init__(self, settings: SasRecSettings | None = None) -> None:
        self.settings = SasRecSettings() if settings is None else settings

    def fit(self, cohort: Cohort, encoder: EncoderArtifact, seed: int) -> None:
        """Train, or take what another task of this cohort has trained.

        Raises
        ------
        FloatingPointError
            A loss that is not finite.
        """
        found = shared_fit(
            cohort,
            f"sasrec {self.settings}",
            _SEED,
            lambda: fit_sasrec(cohort, self.settings, _SEED),
        )
        self.user_factors = np.asarray(found["users"])
        self.item_factors = np.asarray(found["items"])

    def scores(self, rows: Int64) -> Float32:
        """Return float32 (len(rows), n_items); the items' biases for a row without events."""
        scores: Float32 = self.user_factors[rows] @ self.item_factors.T
        return scores


def fit_sasrec(cohort: Cohort, settings: SasRecSettings, seed: int) -> Fit:
    """Return ``users`` float32 (n_rows, width + 1) and ``items`` float32 (n_items, width + 1)."""
    kept = vocabulary(cohort, settings.n_items)
    place = np.full(len(cohort.catalogue.popularity), -1, np.int64)
    place[kept] = np.arange(len(kept))
    log_share = np.log(cohort.catalogue.popularity + 1)
    log_share -= np.log(np.exp(log_share).sum())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SasRecNetwork(len(kept), settings)
        with torch.no_grad():
            network.bias.copy_(torch.from_numpy(log_share[kept]))
        _train(network, _known(of_past(cohort), place), settings, seed)
    users = _states(network, _known(of_rows(cohort), place), settings)
    items = np.zeros((len(place), settings.width + 1), np.float32)
    items[:, -1] = log_share
    items[kept, :-1] = network.items.weight.detach().numpy()[:-1]
    items[kept, -1] = network.bias.detach().numpy()
    return {"users": users, "items": items}


def _known(events: Sequences, place: Int64) -> Sequences:
    """Return the events whose items have an embedding, by its place."""
    item = place[events.item]
    keep = item >= 0
    offsets = np.append(0, np.cumsum(keep))[events.offsets]
    return Sequences(offsets, item[keep], events.day[keep])


def _train(network: SasRecNetwork, events: Sequences, settings: SasRecSettings, seed: int) -> None:
    # A window needs an event to read and one to name.
    users = np.flatnonzero(events.sizes >= 2)
    if not users.size:
        return
    n_events = int(events.sizes[users].sum())
    epochs = int(np.clip(round(settings.events / n_events), 2, 40))
    rng = np.random.default_rng(seed)
    windows = [sequence_windows(events, users, settings.length + 1, rng) for _ in range(epochs)]
    steps = sum(-(-len(starts) // settings.batch) for starts, _ in windows)
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, settings.learning_rate, total_steps=steps
    )
    generator = torch.Generator().manual_seed(seed)
    network.train()
    for epoch, (starts, sizes) in enumerate(windows):
        total, order = 0.0, rng.permutation(len(starts))
        for first in range(0, len(order), settings.batch):
            chosen = order[first : first + settings.batch]
            padded = _padded(events.item, starts[chosen], sizes[chosen], len(network.bias))
            loss = _loss(network, torch.from_numpy(padded), settings.negatives, generator)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            total += loss.item() * len(chosen)
        logger.debug("SASRec epoch %d of %d: loss %.4f", epoch + 1, epochs, total / len(order))
        if not np.isfinite(total):
            raise FloatingPointError(f"The loss of SASRec is {total} in epoch {epoch + 1}.")
    network.eval()


def sequence_windows(
    events: Sequences, users: Int64, length: int, rng: np.random.Generator
) -> tuple[Int64, Int64]:
    """Return start and size of windows that cover each user's events, shifted at random.

    Neighbouring windows share one event: the last one named is the first one read.
    """
    step = length - 1
    n = events.sizes[users]
    shift = np.minimum(rng.integers(0, step, len(users)), n - 2)
    count = -(-(n - 1 - shift) // step) + (shift > 0)
    owner = np.repeat(np.arange(len(users)), count)
    at = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    before = (shift > 0)[owner]
    start = np.where(before & (at == 0), 0, shift[owner] + (at - before) * step)
    size = np.where(before & (at == 0), shift[owner] + 1, np.minimum(length, n[owner] - start))
    return events.offsets[users][owner] + start, size


def _padded(item: Int64, starts: Int64, sizes: Int64, padding: int) -> Int64:
    """Return int64 (n, longest), each row's events and then the padding."""
    columns = np.arange(int(sizes.max()))
    inside = columns < sizes[:, None]
    return np.where(inside, item[np.where(inside, starts[:, None] + columns, 0)], padding)


def _loss(
    network: SasRecNetwork, items: torch.Tensor, n_negatives: int, generator: torch.Generator
) -> torch.Tensor:
    """Return the mean cross entropy of each next item against sampled ones."""
    n_items = len(network.bias)
    target = items[:, 1:]
    real = target != n_items
    state = network(items[:, :-1])[real]  # (n_targets, width)
    target = target[real]
    positive = (state * network.items(target)).sum(1) + network.bias[target]
    negatives = torch.randint(n_items, (min(n_negatives, n_items),), generator=generator)
    scores = torch.addmm(network.bias[negatives], state, network.items(negatives).T)
    # A sampled softmax: the sample stands for all items; a target is no negative of its own.
    scores = scores + np.log(n_items / len(negatives))
    scores = scores.masked_fill(negatives == target[:, None], float("-inf"))
    logits = torch.cat([positive[:, None], scores], dim=1)
    return cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))


@torch.inference_mode()
def _states(network: SasRecNetwork, events: Sequences, settings: SasRecSettings) -> Float32:
    """Return the state after each row's newest event, and 1, float32 (n_rows, width + 1)."""
    network.eval()
    states = np.zeros((len(events), settings.width + 1), np.float32)
    states[:, -1] = 1
    size = np.minimum(events.sizes, settings.length)
    some = np.flatnonzero(size)
    some = some[np.argsort(size[some], kind="stable")]  # alike lengths together: less padding
    for first in range(0, len(some), 4 * settings.batch):
        rows = some[first : first + 4 * settings.batch]
        starts = events.offsets[rows + 1] - size[rows]
        padded = _padded(events.item, starts, size[rows], len(network.bias))
        found = network(torch.from_numpy(padded))
        states[rows, :-1] = found[torch.arange(len(rows)), torch.from_numpy(size[rows] - 1)].numpy()
    return states
