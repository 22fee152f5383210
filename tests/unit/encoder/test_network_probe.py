from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from encoder.heads import LinearProbe
from encoder.metrics import auc_macro
from encoder.network_probe import NetworkProbe


def _product(n: int) -> tuple[Any, Any, Any]:
    """Labels that depend on the product of two features: nothing for a linear head."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, 6)).astype(np.float32)
    return x, (x[:, [0]] * x[:, [1]] + 0.3 * rng.standard_normal((n, 1))) > 0, np.arange(n)


def test_finds_what_a_linear_head_cannot() -> None:
    x, y, users = _product(2000)
    network = NetworkProbe(32).fit(x[:1500], y[:1500], users[:1500], seed=0)
    linear = LinearProbe().fit(x[:1500], y[:1500], users[:1500], seed=0)
    assert auc_macro(y[1500:], network.scores(x[1500:])) > 0.85
    assert auc_macro(y[1500:], linear.scores(x[1500:])) < 0.6


def test_equal_calls_give_equal_scores_and_another_seed_others() -> None:
    x, y, users = _product(300)
    one, same, other = (
        NetworkProbe(8, max_epochs=3).fit(x, y, users, seed=seed).scores(x) for seed in (1, 1, 2)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_keeps_the_epoch_with_the_lowest_held_out_loss() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 40)).astype(np.float32)
    y = rng.random((200, 1)) < 0.5  # noise: it can only overfit
    network = NetworkProbe(64, patience=3, learning_rate=1e-2, weight_decays=(0.01,))
    network.fit(x, y, np.arange(200), seed=0)
    losses = network.held_out_losses
    assert losses[network.best_epoch - 1] == min(losses)
    assert len(losses) == network.best_epoch + 3


def test_keeps_the_weight_decay_that_held_out_users_like_best() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((120, 200)).astype(np.float32)
    y = x[:, [0]] + rng.standard_normal((120, 1)) > 0  # little to learn, much to learn by heart
    users = np.arange(120)
    chosen = NetworkProbe(32).fit(x, y, users, seed=0)
    alone = {
        decay: NetworkProbe(32, weight_decays=(decay,)).fit(x, y, users, seed=0)
        for decay in (1e-2, 1.0, 10.0, 30.0)
    }
    best = min(alone, key=lambda decay: min(alone[decay].held_out_losses))
    assert chosen.weight_decay == best > 1e-2
    assert np.array_equal(chosen.scores(x), alone[best].scores(x))


def test_a_constant_feature_changes_nothing() -> None:
    x, y, users = _product(300)
    constant = np.hstack([x, np.full((300, 1), 7.0, np.float32)])
    network = NetworkProbe(8, max_epochs=2).fit(constant, y, users, seed=0)
    before = network.scores(constant)
    constant[:, -1] = 1e6  # in serving it is something else
    assert np.array_equal(network.scores(constant), before)


def test_parameters_are_weights_and_biases() -> None:
    x, y, users = _product(50)
    # 6 x 8 + 8 of the hidden layer, 8 x 1 + 1 of the last.
    assert NetworkProbe(8, max_epochs=1).fit(x, y, users, seed=0).n_parameters == 65


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"x": np.full((4, 2), np.nan)}, "NaN or infinity"),
        ({"x": np.zeros((3, 2))}, r"x \(3, 2\)"),
        ({"users": np.zeros(4)}, r"1 training user\(s\)"),
    ],
)
def test_what_cannot_be_fitted_is_refused(changes: dict[str, Any], match: str) -> None:
    given = {"x": np.zeros((4, 2)), "y": np.zeros((4, 1), bool), "users": np.arange(4)} | changes
    with pytest.raises(ValueError, match=match):
        NetworkProbe(4).fit(given["x"], given["y"], given["users"], seed=0)


def test_a_width_of_none_and_other_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="hidden 0"):
        NetworkProbe(0)
    with pytest.raises(ValueError, match="No weight decay given"):
        NetworkProbe(8, weight_decays=())
    x, y, users = _product(50)
    network = NetworkProbe(4, max_epochs=1).fit(x, y, users, seed=0)
    with pytest.raises(ValueError, match=r"\(n_rows, 6\) expected"):
        network.scores(x[:, :3])
