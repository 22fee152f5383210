"""Users' vectors by a network, in chunks of any size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from encoder.clue.encoding import encode_items, encode_services
from encoder.clue.network import ClueConfig, ClueNetwork
from tests.unit.encoder.clue.planted import planted

CONFIG = ClueConfig(embedding_dim=12, width=16, head_width=8, max_item_tokens=8, max_events=6)


@pytest.fixture(scope="module")
def network() -> ClueNetwork:
    return ClueNetwork(CONFIG, vocabulary=320)


def test_a_user_has_the_vector_of_the_newest_events(network: ClueNetwork) -> None:
    sequences, _, _ = planted(40)
    found = encode_services(network, sequences)
    assert found.shape == (40, 2, 12)
    tokens = torch.from_numpy(sequences.tokens)
    for k, events in enumerate(sequences.services.values()):
        for user in (0, 5, 17, 39):
            mine = events.items[events.starts[user] : events.starts[user + 1]][:6]
            if not len(mine):
                assert not found[user, k].any()
                continue
            with torch.no_grad():
                items = network.item(tokens[mine.astype(np.int64)])[None]
                expected = network.service(items, torch.ones(1, len(mine), dtype=torch.bool))
            np.testing.assert_allclose(found[user, k], expected[0].numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunks_change_nothing_but_rounding(network: ClueNetwork, chunk: int) -> None:
    sequences, _, _ = planted(40)
    users = np.array([3, 30, 11, 38])
    whole, parts = (
        encode_services(network, sequences),
        encode_services(network, sequences, users, chunk),
    )
    np.testing.assert_allclose(parts, whole[users], rtol=1e-4, atol=1e-6)
    items = encode_items(network, sequences.tokens)
    np.testing.assert_allclose(
        encode_items(network, sequences.tokens, chunk), items, rtol=1e-4, atol=1e-6
    )


def test_an_item_without_text_has_a_vector(network: ClueNetwork) -> None:
    tokens = np.zeros((2, 8), np.int32)
    tokens[:, 0] = [2, 3]
    vectors = encode_items(network, tokens)
    assert vectors.any(axis=1).all()
    assert not np.allclose(vectors[0], vectors[1])
