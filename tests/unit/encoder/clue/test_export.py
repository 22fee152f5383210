"""The graphs of a contrastive encoder say what its network says."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch

from encoder.clue.export import export_items, export_service
from encoder.clue.network import ClueConfig, ClueNetwork
from encoder.export import PARITY

CONFIG = ClueConfig(embedding_dim=12, width=16, head_width=8, max_item_tokens=8, max_events=6)


@pytest.fixture(scope="module")
def network() -> ClueNetwork:
    return ClueNetwork(CONFIG, vocabulary=320)


@pytest.fixture(scope="module")
def graphs(network: ClueNetwork) -> tuple[ort.InferenceSession, ort.InferenceSession]:
    items, service = export_items(network), export_service(network)
    return ort.InferenceSession(items), ort.InferenceSession(service)


@pytest.mark.parametrize(("n", "length"), [(1, 1), (5, 8), (64, 3)])
def test_items_agree_with_torch(
    network: ClueNetwork, graphs: tuple[ort.InferenceSession, ...], n: int, length: int
) -> None:
    tokens = np.random.default_rng(0).integers(0, 320, (n, length)).astype(np.int32)
    tokens[:, 0] = 2
    (found,) = graphs[0].run(["items"], {"tokens": tokens})
    with torch.no_grad():
        expected = network.item(torch.from_numpy(tokens)).numpy()
    assert found.shape == (n, 16)
    assert np.abs(found - expected).max() <= PARITY


@pytest.mark.parametrize(("n", "length"), [(1, 1), (5, 6), (64, 3)])
def test_services_agree_with_torch(
    network: ClueNetwork, graphs: tuple[ort.InferenceSession, ...], n: int, length: int
) -> None:
    rng = np.random.default_rng(0)
    items = rng.standard_normal((n, length, 16)).astype(np.float32)
    there = np.arange(length) < rng.integers(0, length + 1, (n, 1))
    (found,) = graphs[1].run(["service"], {"items": items, "there": there})
    with torch.no_grad():
        expected = network.service(torch.from_numpy(items), torch.from_numpy(there)).numpy()
    assert np.abs(found - expected).max() <= PARITY
    assert not found[~there.any(1)].any()


def test_the_graphs_hold_no_path_of_this_machine(network: ClueNetwork) -> None:
    for graph in (export_items(network), export_service(network)):
        assert b"site-packages" not in graph
        assert b"clue" not in graph
