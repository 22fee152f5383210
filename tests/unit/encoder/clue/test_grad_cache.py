"""Gradients by way of cached vectors are the gradients."""

from __future__ import annotations

import pytest
import torch

from encoder.clue.grad_cache import Chunks, GradCache
from encoder.clue.info_nce import info_nce
from encoder.clue.network import ClueConfig, ClueNetwork
from encoder.clue.sequences import ClueBatch, Noise, Pairs
from encoder.placement import placement
from tests.unit.encoder.clue.planted import planted

CONFIG = ClueConfig(embedding_dim=12, width=16, head_width=8, max_item_tokens=8, max_events=6)


@pytest.fixture(scope="module")
def batch() -> ClueBatch:
    sequences, _, _ = planted()
    noise = Noise(event_dropout=0.4)
    pairs = Pairs(sequences, "training", 0.1, positives="services", max_events=6, noise=noise)
    return next(pairs.batches(40, (0, 0)))


def _gradients(
    batch: ClueBatch, chunks: Chunks, hardness: float
) -> tuple[float, dict[str, torch.Tensor]]:
    network = ClueNetwork(CONFIG, vocabulary=320).double()
    # In float64, so that the comparison is about the method and not about rounding.
    with placement("cpu") as place:
        cache = GradCache(network, place, "float32", chunks, hardness=hardness)
        loss = cache.step(batch)
    return loss, {n: p.grad for n, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("hardness", [0.0, 0.5])
@pytest.mark.parametrize("chunks", [Chunks(7, 9), Chunks(1, 1), Chunks(1000, 8), Chunks(5, 1000)])
def test_cached_gradients_are_those_of_the_whole_batch(
    batch: ClueBatch, chunks: Chunks, hardness: float
) -> None:
    loss, whole = _gradients(batch, Chunks(1000, 1000), hardness)
    cached_loss, cached = _gradients(batch, chunks, hardness)
    assert cached_loss == pytest.approx(loss, rel=1e-6)
    assert cached.keys() == whole.keys()
    assert "log_scale" in whole
    for name, gradient in whole.items():
        torch.testing.assert_close(cached[name], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("hardness", [0.0, 0.5])
def test_the_whole_batch_is_what_autograd_says(batch: ClueBatch, hardness: float) -> None:
    network = ClueNetwork(CONFIG, vocabulary=320).double()
    tokens = torch.from_numpy(batch.tokens)
    a, b = (
        network(tokens, torch.from_numpy(v.events), torch.from_numpy(v.there)).service
        for v in (batch.a, batch.b)
    )
    torch.autograd.backward(info_nce(a, b, network.log_scale, hardness))
    _, cached = _gradients(batch, Chunks(1000, 1000), hardness)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(cached[name], parameter.grad, rtol=1e-4, atol=1e-7)


def test_what_is_held_out_is_judged_without_weights(batch: ClueBatch) -> None:
    network = ClueNetwork(CONFIG, vocabulary=320)
    with placement("cpu") as place:
        loss, a, b = GradCache(network, place, "float32", hardness=0.5).loss(batch)
    assert loss == float(info_nce(a, b, network.log_scale.detach()))


def test_chunks_are_checked() -> None:
    with pytest.raises(ValueError, match="chunks of 0 items and 5 views"):
        Chunks(0, 5)
