from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from encoder.heads import LinearProbe
from encoder.metrics import auc_macro


def _planted(n: int, seed: int = 0, d: int = 12, t: int = 3) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)).astype(np.float32) * np.geomspace(0.01, 100, d) + 5
    w = rng.standard_normal((d, t))
    logits = (x - 5) / np.geomspace(0.01, 100, d) @ w - 1
    y = logits + rng.logistic(size=logits.shape) > 0
    return x.astype(np.float32), y, np.arange(n)


def test_planted_directions_are_found() -> None:
    x, y, users = _planted(1500)
    probe = LinearProbe().fit(x[:1000], y[:1000], users[:1000], seed=0)
    assert auc_macro(y[1000:], probe.scores(x[1000:])) > 0.85


def test_weights_equal_scikit_learn_at_the_chosen_l2() -> None:
    x, y, users = _planted(600)
    probe = LinearProbe(max_iterations=500).fit(x, y, users, seed=0)
    inputs = StandardScaler().fit_transform(x.astype(np.float64))
    for t in range(y.shape[1]):
        # Theirs: C * sum of losses + |w|^2 / 2; ours: mean of losses + l2 |w|^2 / 2.
        theirs = LogisticRegression(C=1 / (probe.l2 * len(x)), tol=1e-8, max_iter=1000)
        theirs.fit(inputs, y[:, t])
        assert probe.weight[:, t] == pytest.approx(theirs.coef_[0], abs=5e-3)
        assert probe.bias[t] == pytest.approx(theirs.intercept_[0], abs=5e-3)


def test_same_seed_gives_bit_equal_scores() -> None:
    x, y, users = _planted(300)
    first, second = (LinearProbe().fit(x, y, users, seed=4).scores(x) for _ in range(2))
    assert first.dtype == np.float32
    assert np.array_equal(first, second)


def test_noise_gets_strong_l2_and_signal_weak() -> None:
    rng = np.random.default_rng(0)
    x, y, users = _planted(400, d=40)
    signal = LinearProbe().fit(x, y, users, seed=0)
    noise = LinearProbe().fit(x, rng.permutation(y), users, seed=0)
    assert noise.l2 >= 1
    assert signal.l2 < noise.l2 / 10
    assert signal.held_out_losses[signal.l2] == min(signal.held_out_losses.values())


def test_held_out_part_shares_no_user_with_the_fit() -> None:
    # Every user has his own random labels on ten equal rows: memorising users helps only if the
    # held-out rows are of the same users, and would then choose the weakest L2.
    rng = np.random.default_rng(1)
    users = np.repeat(np.arange(60), 10)
    x = rng.standard_normal((60, 50)).astype(np.float32)[users]
    y = (rng.random((60, 2)) < 0.5)[users]
    probe = LinearProbe().fit(x, y, users, seed=0)
    assert probe.l2 >= 1


def test_constant_column_and_single_class_target_are_harmless() -> None:
    x, y, users = _planted(200)
    x[:, 0] = 0.1
    y[:, 1] = False
    scores = LinearProbe().fit(x, y, users, seed=0).scores(x)
    assert np.isfinite(scores).all()
    assert (scores[:, 1] < -4).all()  # logit of (0 + .5) / 201 is -6


def test_scores_of_a_row_do_not_depend_on_the_other_rows() -> None:
    x, y, users = _planted(200)
    probe = LinearProbe().fit(x, y, users, seed=0)
    assert probe.scores(x[3:4]) == pytest.approx(probe.scores(x)[3:4], abs=1e-5)


def test_input_is_not_modified() -> None:
    x, y, users = _planted(100)
    before = x.copy()
    LinearProbe().fit(x, y, users, seed=0).scores(x)
    assert np.array_equal(x, before)


def test_bad_arguments_are_refused() -> None:
    x, y, users = _planted(50)
    with pytest.raises(ValueError, match=r"x \(49, 12\), y \(50, 3\)"):
        LinearProbe().fit(x[1:], y, users, seed=0)
    with pytest.raises(ValueError, match="at least 2 expected"):
        LinearProbe().fit(x, y, np.zeros(50), seed=0)
    x[7, 2] = np.nan
    with pytest.raises(ValueError, match=r"x\[7, 2\] is nan"):
        LinearProbe().fit(x, y, users, seed=0)
    x[7, 2] = 0
    with pytest.raises(ValueError, match=r"\(n_rows, 12\) expected"):
        LinearProbe().fit(x, y, users, seed=0).scores(x[:, :5])
