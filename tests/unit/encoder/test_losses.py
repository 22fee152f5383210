"""The loss per block, on small cases."""

from __future__ import annotations

import math

import pytest
import torch

from encoder.losses import ReconstructionLoss
from encoder.preprocessing import InputBlock

# inputs: values 0-1 pooled, 2 counts, 3-5 category; masks 6, 7, 8
BLOCKS = (
    InputBlock("taste", "pooled", 0, 2, 6, 1.0),
    InputBlock("counts", "counts", 2, 3, 7, 1.0),
    InputBlock("country", "category", 3, 6, 8, 2.0),
)


def _inputs(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows)


FULL = [1.0, 2.0, -1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0]


def test_each_block_by_hand() -> None:
    prediction = torch.tensor([[0.0, 4.0, 1.0, 0.0, math.log(2.0), 0.0]])
    losses = ReconstructionLoss(BLOCKS)(prediction, _inputs(FULL))
    # taste: (1 + 4) / 2 = 2.5; counts: 2**2 = 4; country: -ln(2 / 4) / entropy 2 = ln(2) / 2
    assert losses.blocks[0].tolist() == pytest.approx([2.5, 4.0, math.log(2) / 2])
    assert losses.rows.item() == pytest.approx((2.5 + 4.0 + math.log(2) / 2) / 3)


def test_weights_are_relative() -> None:
    prediction = torch.tensor([[0.0, 4.0, 1.0, 0.0, 0.0, 0.0]])
    loss = ReconstructionLoss(BLOCKS, {"taste": 3.0, "country": 0.0})
    # (3 * 2.5 + 1 * 4 + 0) / 4
    assert loss(prediction, _inputs(FULL)).rows.item() == pytest.approx(11.5 / 4)


def test_an_absent_block_contributes_exactly_nothing() -> None:
    clean = _inputs(FULL, [0.0] * 9, [0.0, 0.0, 3.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0])
    prediction = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)) * 3
    prediction.requires_grad_()
    losses = ReconstructionLoss(BLOCKS)(prediction, clean)
    losses.rows.sum().backward()
    gradient = prediction.grad
    assert gradient is not None
    assert losses.blocks[1].tolist() == [0.0, 0.0, 0.0]
    assert losses.rows[1].item() == 0.0
    assert gradient[1].tolist() == [0.0] * 6
    assert gradient[2, [0, 1, 3, 4, 5]].tolist() == [0.0] * 5
    assert (gradient[0] != 0).all()
    assert gradient[2, 2].item() != 0.0


def test_a_hidden_block_is_still_to_be_reconstructed() -> None:
    """The mask is that of the clean row, so hiding a block from the encoder does not excuse it."""
    losses = ReconstructionLoss(BLOCKS)(torch.zeros(1, 6), _inputs(FULL))
    assert losses.blocks[0, 0].item() == pytest.approx(2.5)


def test_it_agrees_with_a_loop_in_value_and_gradient() -> None:
    generator = torch.Generator().manual_seed(1)
    clean = torch.zeros(20, 9)
    clean[:, 6:] = (torch.rand(20, 3, generator=generator) < 0.7).float()
    clean[:, :3] = torch.randn(20, 3, generator=generator) * clean[:, [6, 6, 7]]
    kinds = torch.randint(0, 3, (20,), generator=generator)
    clean[torch.arange(20), 3 + kinds] = clean[:, 8]
    prediction = torch.randn(20, 6, generator=generator).requires_grad_()
    ReconstructionLoss(BLOCKS)(prediction, clean).rows.sum().backward()
    ours = prediction.grad
    assert ours is not None

    again = prediction.detach().clone().requires_grad_()
    total = torch.zeros(())
    for y, x in zip(again, clean, strict=True):
        if x[6]:
            total = total + ((y[0] - x[0]) ** 2 + (y[1] - x[1]) ** 2) / 2
        if x[7]:
            total = total + (y[2] - x[2]) ** 2
        if x[8]:
            total = total - torch.log_softmax(y[3:], 0)[x[3:6].argmax()] / 2.0
    (total / 3).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(ours, again.grad)


def test_the_entropy_of_a_constant_category_is_floored() -> None:
    blocks = (InputBlock("country", "category", 0, 2, 2, 0.0),)
    losses = ReconstructionLoss(blocks)(torch.zeros(1, 2), torch.tensor([[1.0, 0.0, 1.0]]))
    assert losses.rows.item() == pytest.approx(math.log(2) / 0.1)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"tastes": 1.0}, "unknown block.s. tastes given. Known: country, counts, taste"),
        ({"taste": -1.0}, "at least 0"),
        ({"taste": 0.0, "counts": 0.0, "country": 0.0}, "not all 0"),
    ],
)
def test_impossible_weights_are_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReconstructionLoss(BLOCKS, weights)
