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


def test_a_guess_has_the_loss_log_n() -> None:
    same = torch.ones(8, 4) / 2
    assert info_nce(same, same, torch.tensor(3.0)).item() == pytest.approx(math.log(8))


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
