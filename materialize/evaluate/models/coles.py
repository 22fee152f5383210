"""CoLES: self-supervision on event sequences, by pytorch-lifestream."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from materialize.evaluate.models.fits import Fit, past_fingerprint, shared_fit
from materialize.evaluate.models.sequences import Sequences, of_past, of_rows, vocabulary

if TYPE_CHECKING:
    import torch

    from encoder.artifact import EncoderArtifact
    from materialize.evaluate.cohort import Cohort

__all__ = ["ColesSettings", "ColesVectors", "fit_coles"]

logger = logging.getLogger(__name__)

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

_SEED = 0
_ITEM, _CLUSTER, _GAP, _TIME = "item", "cluster", "gap", "event_time"


@dataclass(frozen=True)
class ColesSettings:
    """Settings of the network and its training.

    Attributes
    ----------
    width : int
        Of the recurrent state, which is the representation.
    item_width, cluster_width : int
        Of the embeddings of an event's item and item clusters.
    n_items : int
        Most popular items that have an embedding of their own; the others share one.
    slices : int
        Of each user's events in a step.
    shortest, longest : int
        Events of a slice.
    users : int
        In a step.
    steps : int
    learning_rate : float
        Highest of a one-cycle schedule.
    read : int
        Newest events that make a representation.
    """

    width: int = 128
    item_width: int = 48
    cluster_width: int = 16
    n_items: int = 8_000
    slices: int = 4
    shortest: int = 3
    longest: int = 40
    users: int = 64
    steps: int = 300
    learning_rate: float = 3e-3
    read: int = 100


class ColesVectors:
    """A recurrent network's state after a row's newest 100 events.

    The network learns, from events before the cut-off and no label, to give slices of one user's
    events alike states, and those of other users other ones. An event is its item, the item's
    clusters in each modality, and the logarithm of the days since the event before.

    One fit serves all tasks and seeds: it takes most of a minute. The head that reads the vectors
    is fitted for each seed. A row without events has zeros.

    References
    ----------
    Babaev et al. CoLES: contrastive learning for event sequences with self-supervision. SIGMOD
    2022, sections 3 and 4 (random slices, contrastive loss with hard negatives).
    """

    name = "coles"

    def __init__(self, settings: ColesSettings | None = None) -> None:
        self.settings = ColesSettings() if settings is None else settings

    def vectors(self, cohort: Cohort, encoder: EncoderArtifact, seed: int) -> Float32:
        """Return float32 (n_rows, width); zeros for a row without events.

        Raises
        ------
        FloatingPointError
            A loss that is not finite.
        """
        found = shared_fit(
            cohort,
            f"coles {self.settings}",
            _SEED,
            lambda: fit_coles(cohort, self.settings, _SEED),
        )
        return np.asarray(found["vectors"], np.float32)


def fit_coles(cohort: Cohort, settings: ColesSettings, seed: int) -> Fit:
    """Return ``vectors`` float32 (n_rows, width) of a network trained on the past.

    The network is shared by all cohorts that have this past.
    """
    import torch

    columns = _item_columns(cohort, settings)

    def trained() -> Fit:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder = _network(columns, settings)
            _train(encoder, _batches(of_past(cohort), columns, settings, seed), settings)
        return {name: values.numpy() for name, values in encoder.state_dict().items()}

    state = shared_fit(past_fingerprint(cohort), f"coles network {settings}", seed, trained)
    encoder = _network(columns, settings)
    encoder.load_state_dict({name: torch.from_numpy(values) for name, values in state.items()})
    encoder.eval()
    return {"vectors": _states(encoder, of_rows(cohort), columns, settings)}


def _network(columns: dict[str, Int64], settings: ColesSettings) -> Any:
    """Return the library's encoder of sequences, untrained."""
    from ptls.nn import RnnSeqEncoder, TrxEncoder

    return RnnSeqEncoder(
        trx_encoder=TrxEncoder(
            embeddings={
                name: {
                    "in": int(values.max()) + 1,
                    "out": settings.item_width if name == _ITEM else settings.cluster_width,
                }
                for name, values in columns.items()
            },
            numeric_values={_GAP: "identity"},
        ),
        hidden_size=settings.width,
        type="gru",
    )


def _item_columns(cohort: Cohort, settings: ColesSettings) -> dict[str, Int64]:
    """Return each item's categories, int64 (n_items,) by name; 0 is the library's padding."""
    kept = vocabulary(cohort, settings.n_items)
    item = np.full(len(cohort.catalogue.popularity), len(kept) + 1, np.int64)
    item[kept] = np.arange(len(kept)) + 1
    clusters = {
        f"{_CLUSTER}_{name}": cluster.astype(np.int64) + 2
        for name, cluster in cohort.catalogue.clusters.items()
        if (cluster >= 0).any()
    }
    return {_ITEM: item} | clusters


def _batches(
    events: Sequences, columns: dict[str, Int64], settings: ColesSettings, seed: int
) -> Iterator[tuple[Any, torch.Tensor]]:
    """Yield padded slices and whose they are."""
    import torch

    users = np.flatnonzero(events.sizes >= settings.shortest)
    if len(users) < 2:
        return
    rng = np.random.default_rng(seed)
    for _ in range(settings.steps):
        chosen = rng.choice(users, min(settings.users, len(users)), replace=False)
        owner = np.repeat(np.arange(len(chosen)), settings.slices)
        first, n = events.offsets[chosen][owner], events.sizes[chosen][owner]
        size = rng.integers(settings.shortest, np.minimum(n, settings.longest) + 1)
        start = first + rng.integers(0, n - size + 1)
        yield _padded(events, columns, start, size), torch.from_numpy(owner)


def _padded(events: Sequences, columns: dict[str, Int64], start: Int64, size: Int64) -> Any:
    """Return slices as the library's padded batch."""
    import torch
    from ptls.data_load.padded_batch import PaddedBatch

    within = np.arange(int(size.max()))
    inside = within < size[:, None]
    at = np.where(inside, start[:, None] + within, start[:, None])
    item = events.item[at]
    days = events.day[at]
    gap = np.log1p(np.maximum(np.diff(days, axis=1, prepend=days[:, :1]), 0))
    payload = {
        name: torch.from_numpy(np.where(inside, values[item], 0))
        for name, values in columns.items()
    }
    payload[_GAP] = torch.from_numpy(np.where(inside, gap, 0).astype(np.float32))
    payload[_TIME] = torch.from_numpy(np.where(inside, days, 0).astype(np.float32))
    return PaddedBatch(payload, torch.from_numpy(size))


def _train(
    encoder: Any, batches: Iterator[tuple[Any, torch.Tensor]], settings: ColesSettings
) -> None:
    """Train in place: the library's network, slices' loss and hard negatives, a plain loop."""
    import torch
    from ptls.frames.coles import CoLESModule

    module = CoLESModule(seq_encoder=encoder)
    optimiser = torch.optim.Adam(module.parameters(), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, settings.learning_rate, total_steps=settings.steps + 1
    )
    module.train()
    for step, (slices, owner) in enumerate(batches):
        states, labels = module.shared_step(slices, owner)
        loss = module._loss(states, labels)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"The loss of CoLES is {loss.item()} in step {step + 1}.")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            logger.debug("CoLES step %d: loss %.4f", step + 1, loss.item())


def _states(
    encoder: Any, events: Sequences, columns: dict[str, Int64], settings: ColesSettings
) -> Float32:
    """Return the state after each row's newest events, float32 (n_rows, width)."""
    import torch

    states = np.zeros((len(events), settings.width), np.float32)
    size = np.minimum(events.sizes, settings.read)
    some = np.flatnonzero(size)
    some = some[np.argsort(size[some], kind="stable")]  # alike lengths together: less padding
    with torch.inference_mode():
        for first in range(0, len(some), 256):
            rows = some[first : first + 256]
            start = events.offsets[rows + 1] - size[rows]
            states[rows] = encoder(_padded(events, columns, start, size[rows])).numpy()
    return states
