"""The CLUE network on its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from encoder.clue.network import ClueConfig, ClueNetwork, user_vector

CONFIG = ClueConfig(
    embedding_dim=12, width=16, head_width=8, max_item_tokens=6, max_events=5, item_layers=1
)


@pytest.fixture
def network() -> ClueNetwork:
    return ClueNetwork(CONFIG, vocabulary=50)


def test_shapes_and_lengths(network: ClueNetwork) -> None:
    tokens = torch.randint(1, 50, (7, 6), dtype=torch.int32)
    events = torch.randint(0, 7, (3, 5), dtype=torch.int32)
    there = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    out = network(tokens, events, there)
    assert out.item.shape == (7, 16)
    assert out.service.shape == (3, 12)
    assert out.service.norm(dim=1).tolist() == pytest.approx([1, 1, 0], abs=1e-6)


def test_padding_changes_nothing(network: ClueNetwork) -> None:
    tokens = torch.randint(1, 50, (4, 3), dtype=torch.int32)
    padded = torch.cat([tokens, torch.zeros(4, 3, dtype=torch.int32)], dim=1)
    torch.testing.assert_close(network.item(padded), network.item(tokens))
    items = torch.randn(2, 2, 16)
    there = torch.ones(2, 2, dtype=torch.bool)
    wide = torch.cat([items, torch.randn(2, 3, 16)], dim=1)
    fewer = torch.cat([there, torch.zeros(2, 3, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(network.service(wide, fewer), network.service(items, there))


def test_a_user_does_not_depend_on_the_batch(network: ClueNetwork) -> None:
    items = torch.randn(5, 4, 16)
    there = torch.rand(5, 4) < 0.7
    there[:, 0] = True
    alone = torch.cat([network.service(items[k : k + 1], there[k : k + 1]) for k in range(5)])
    torch.testing.assert_close(network.service(items, there), alone)


def test_order_of_events_counts(network: ClueNetwork) -> None:
    items, there = torch.randn(1, 4, 16), torch.ones(1, 4, dtype=torch.bool)
    difference = network.service(items, there) - network.service(items.flip(1), there)
    assert difference.abs().max() > 1e-4


def test_the_seed_decides_the_weights() -> None:
    one, same, other = (
        ClueNetwork(ClueConfig(seed=seed, max_events=3), vocabulary=50) for seed in (1, 1, 2)
    )
    weight = one.item.tokens.weight
    assert torch.equal(weight, same.item.tokens.weight)
    assert not torch.equal(weight, other.item.tokens.weight)


def test_depth_changes_nothing_at_first() -> None:
    """Layers add nothing yet: an item is the mean of its tokens, each with its position."""
    deep = ClueNetwork(replace(CONFIG, item_layers=3), vocabulary=50).item
    tokens = torch.tensor([[5, 7, 9, 11, 0, 0]], dtype=torch.int32)
    there = deep.tokens.weight[[5, 7, 9, 11]] + deep.stack.positions.weight[:4]
    expected = F.layer_norm(there, [CONFIG.width]).mean(0)
    torch.testing.assert_close(deep(tokens)[0], expected)


def test_a_user_is_the_mean_of_the_services_there_are() -> None:
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    none = torch.zeros(2)
    services = torch.stack([torch.stack([a, b]), torch.stack([a, none]), torch.stack([none, none])])
    assert user_vector(services).tolist() == [[0.5, 0.5], [1.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("field", "value"), [("width", 0), ("max_item_tokens", 1), ("item_layers", 0)]
)
def test_sizes_are_checked(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{field} {value} given"):
        ClueConfig(**{field: value})
    with pytest.raises(ValueError, match=r"table_spread 0\.0 given"):
        ClueConfig(table_spread=0.0)
    with pytest.raises(ValueError, match="multiple of the head's width"):
        ClueConfig(width=100, head_width=32)
