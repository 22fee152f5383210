"""Operations of a step, counted by torch and by hand."""

from __future__ import annotations

import numpy as np
import torch

from encoder.clue.flops import FlopMeter
from encoder.clue.grad_cache import Chunks
from encoder.clue.network import ClueConfig, ClueNetwork
from encoder.clue.sequences import ClueBatch, Views

WIDTH, LENGTH, EVENTS, DIM = 16, 4, 3, 12
CONFIG = ClueConfig(
    embedding_dim=DIM, width=WIDTH, head_width=8, max_item_tokens=LENGTH, max_events=EVENTS,
    item_layers=1, service_layers=2,
)  # fmt: skip


def _batch(n_items: int = 10, n_users: int = 6) -> ClueBatch:
    rng = np.random.default_rng(0)
    views = [
        Views(
            rng.integers(0, n_items, (n_users, EVENTS)).astype(np.int32),
            np.ones((n_users, EVENTS), bool),
        )
        for _ in range(2)
    ]
    return ClueBatch(np.ones((n_items, LENGTH), np.int32), *views)


def _layer(length: int) -> int:
    # 12 width^2 weights a place (attention 4, network 8), and two products of attention.
    return 2 * 12 * WIDTH**2 * length + 4 * WIDTH * length**2


def test_a_forward_pass_is_counted_by_hand() -> None:
    meter = FlopMeter(ClueNetwork(CONFIG, vocabulary=50))
    mean = 2 * LENGTH * WIDTH
    assert meter._item(LENGTH).forward == _layer(LENGTH) + mean
    project = 2 * WIDTH * DIM
    assert meter._view(EVENTS).forward == 2 * _layer(EVENTS) + 2 * EVENTS * WIDTH + project


def test_a_step_is_three_forward_passes_and_a_fourth_with_caching() -> None:
    meter = FlopMeter(ClueNetwork(CONFIG, vocabulary=50))
    batch = _batch()
    whole, cached = meter.of(batch, Chunks(100, 100)), meter.of(batch, Chunks(4, 5))
    forward = 10 * meter._item(LENGTH).forward + 12 * meter._view(EVENTS).forward
    assert whole.executed == whole.model == cached.model
    assert cached.executed == cached.model + forward
    # Backward is twice forward, but that attention computes its scores again.
    assert 3.0 <= whole.model / (forward + 2 * DIM * 6**2) < 3.3


def test_the_loss_grows_with_the_square_of_the_batch() -> None:
    meter = FlopMeter(ClueNetwork(CONFIG, vocabulary=50))
    assert meter._loss(6) == 3 * 2 * DIM * 6**2
    assert meter._loss(12) == 4 * meter._loss(6)


def test_counting_leaves_weights_and_gradients_alone() -> None:
    network = ClueNetwork(CONFIG, vocabulary=50)
    before = network.item.tokens.weight.clone()
    FlopMeter(network).of(_batch(), Chunks(4, 5))
    assert torch.equal(network.item.tokens.weight, before)
    assert all(p.grad is None for p in network.parameters())
