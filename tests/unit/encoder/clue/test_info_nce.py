"""The contrastive loss, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from encoder.clue.info_nce import LARGEST_SCALE, info_nce, retrieval_rank


def test_two_users_by_hand() -> None:
    a = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    b = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    # Temperature 0.5: logits [[2, 1.2], [0, 1.6]].
    rows = (math.log1p(math.exp(1.2 - 2)) + math.log1p(math.exp(0 - 1.6))) / 2
    columns = (math.log1p(math.exp(0 - 2)) + math.log1p(math.exp(1.2 - 1.6))) / 2
    loss = info_nce(a, b, torch.tensor(math.log(2.0)))
    assert loss.item() == pytest.approx((rows + columns) / 2)


def test_hard_negatives_weigh_more_by_hand() -> None:
    a = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]])
    b = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]])
    logits, hardness = [[2.0 * float(x @ y) for y in b] for x in a], 0.7
    expected = 0.0
    for sides in (logits, list(zip(*logits, strict=True))):
        for user, row in enumerate(sides):
            others = [s for k, s in enumerate(row) if k != user]
            mean = sum(math.exp(hardness * s) for s in others) / len(others)
            negatives = sum(math.exp(hardness * s) / mean * math.exp(s) for s in others)
            expected += math.log1p(negatives / math.exp(row[user])) / 6
    loss = info_nce(a, b, torch.tensor(math.log(2.0)), hardness)
    assert loss.item() == pytest.approx(expected)
    assert loss.item() > info_nce(a, b, torch.tensor(math.log(2.0))).item()


@pytest.mark.parametrize("hardness", [0.0, 1.0])
def test_a_guess_has_the_loss_log_n(hardness: float) -> None:
    same = torch.ones(8, 4) / 2
    loss = info_nce(same, same, torch.tensor(3.0), hardness)
    assert loss.item() == pytest.approx(math.log(8))


def test_a_hardness_near_none_is_none_and_the_sharpest_temperature_stays_finite() -> None:
    a, b = torch.nn.functional.normalize(torch.randn(2, 6, 5), dim=2).requires_grad_()
    scale = torch.tensor(1.0)
    assert info_nce(a, b, scale, 1e-6).item() == pytest.approx(info_nce(a, b, scale).item())
    loss = info_nce(a, b, torch.tensor(math.log(LARGEST_SCALE)), 10.0)
    (gradient,) = torch.autograd.grad(loss, [a])
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


def test_both_sides_count_the_same() -> None:
    a, b = torch.nn.functional.normalize(torch.randn(2, 6, 5), dim=2)
    scale = torch.tensor(1.0)
    assert info_nce(a, b, scale).item() == pytest.approx(info_nce(b, a, scale).item())


def test_the_temperature_is_bounded() -> None:
    a, b = torch.nn.functional.normalize(torch.randn(2, 6, 5), dim=2)
    limit = torch.tensor(math.log(LARGEST_SCALE))
    assert info_nce(a, b, limit + 3).item() == pytest.approx(info_nce(a, b, limit).item())


def test_ranks_count_ties_against_the_user() -> None:
    a = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    b = torch.tensor([[1.0, 0.0], [0.6, 0.8], [1.0, 0.0]])
    assert retrieval_rank(a, b).tolist() == [2, 1, 2]
