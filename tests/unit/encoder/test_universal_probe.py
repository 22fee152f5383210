from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import gelu, layer_norm

from encoder.metrics import auc_macro
from encoder.universal_probe import CHALLENGE, NARROW, ProbeConfig, UniversalNetwork, fit_probe

SMALL = ProbeConfig(thin=32, wide=64)


def _planted(n: int, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 10)).astype(np.float32)
    w = np.random.default_rng(99).standard_normal((10, 4))
    return x, x @ w - 1 + rng.logistic(size=(n, 4)) > 0


def test_the_challenge_has_the_organisers_constants() -> None:
    assert (CHALLENGE.thin, CHALLENGE.wide, CHALLENGE.n_blocks) == (2048, 4096, 3)
    assert (CHALLENGE.batch_size, CHALLENGE.learning_rate, CHALLENGE.epochs) == (128, 1e-3, 3)
    assert CHALLENGE.min_steps == 1


def test_the_network_has_the_weights_of_three_inverted_bottlenecks() -> None:
    # 120 -> 2048: 120 * 2048 + 2048 = 247,808, and a layer normalisation of 2 * 2048 = 4,096.
    # A block: normalisation 4,096, 2048 * 4096 + 4096 = 8,392,704 and 4096 * 2048 + 2048 =
    # 8,390,656: 16,787,456, three of them 50,362,368. Out: 4,096 + 2048 * 100 + 100 = 208,996.
    with torch.device("meta"):
        network = UniversalNetwork(120, 100, CHALLENGE)
    assert sum(p.numel() for p in network.parameters()) == 247_808 + 4_096 + 50_362_368 + 208_996


def test_forward_is_the_challenges_formula() -> None:
    network = UniversalNetwork(5, 3, SMALL).double()
    x = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    into, first_norm = network.into
    h = layer_norm(x @ into.weight.T + into.bias, (32,), first_norm.weight, first_norm.bias)
    for norm, up, _, down in network.blocks:
        inner = layer_norm(h, (32,), norm.weight, norm.bias)
        h = h + gelu(inner @ up.weight.T + up.bias) @ down.weight.T + down.bias
    last_norm, out = network.out
    expected = layer_norm(h, (32,), last_norm.weight, last_norm.bias) @ out.weight.T + out.bias
    assert torch.allclose(network(x), expected)


def test_planted_directions_are_found() -> None:
    x, y = _planted(3000)
    *_, logits = fit_probe(x[:2000], y[:2000], x[2000:], config=SMALL, seed=0)
    assert logits.dtype == np.float32
    assert logits.shape == (1000, 4)
    assert auc_macro(y[2000:], logits) > 0.85


def test_shuffled_labels_stay_at_chance() -> None:
    # Ten directions only: one shuffle may resemble the planted one, several do not on average.
    x, y = _planted(1500)
    found = []
    for seed in range(6):
        shuffled = np.random.default_rng(seed).permutation(y[:500])
        *_, logits = fit_probe(x[:500], shuffled, x[500:], config=SMALL, seed=seed)
        found.append(auc_macro(y[500:], logits))
    assert np.mean(found) == pytest.approx(0.5, abs=0.1)


def test_the_same_seed_gives_bit_equal_logits_and_leaves_the_callers_randomness_alone() -> None:
    x, y = _planted(300)
    before = torch.random.get_rng_state()
    first, second = (list(fit_probe(x, y, x, config=SMALL, seed=4)) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert len(first) == 3
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    (other, *_) = fit_probe(x, y, x, config=SMALL, seed=5)
    assert not np.array_equal(other, first[0])


def test_logits_of_each_epoch_come_before_the_next_one_is_trained() -> None:
    x, y = _planted(300)
    shorter = list(fit_probe(x, y, x, config=replace(SMALL, epochs=1), seed=0))
    longer = list(fit_probe(x, y, x, config=SMALL, seed=0))
    assert np.array_equal(shorter[0], longer[0])
    assert not np.array_equal(longer[0], longer[1])


def test_an_epoch_has_as_many_passes_as_make_the_fewest_steps() -> None:
    # 300 rows are 3 batches; 9 steps are 3 passes, so that one epoch equals three of one pass.
    x, y = _planted(300)
    *_, three = fit_probe(x, y, x, config=SMALL, seed=0)
    (once,) = fit_probe(x, y, x, config=replace(SMALL, epochs=1, min_steps=9), seed=0)
    assert np.array_equal(once, three)


def test_representations_are_read_as_float16() -> None:
    x, y = _planted(300)
    finer = x * np.float32(1 + 2**-14)  # below half a step of float16
    rounded = x.astype(np.float16).astype(np.float32)
    (a, *_), (b, *_) = (fit_probe(v, y, v, config=SMALL, seed=0) for v in (rounded, x))
    assert np.array_equal(a, b)
    assert not np.array_equal(finer, x)


def test_narrow_is_the_challenge_an_eighth_as_wide() -> None:
    narrower = replace(CHALLENGE, thin=CHALLENGE.thin // 8, wide=CHALLENGE.wide // 8, min_steps=50)
    assert narrower == NARROW


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((2, 2049)), "x_test": np.zeros((1, 2049))}, "2,048 at most"),
        ({"x": np.array([[1e5], [0.0]]), "x_test": np.zeros((1, 1))}, r"x\[0, 0\] is 100000"),
        ({"x_test": np.array([[0.0, np.nan, 0.0]])}, r"x_test\[0, 1\] is nan"),
        ({"x_test": np.zeros((1, 4))}, r"x \(2, 3\), y \(2, 1\) and x_test \(1, 4\)"),
        ({"x_test": np.zeros((0, 3))}, "nothing to judge"),
        ({"y": np.ones((3, 1), bool)}, r"y \(3, 1\)"),
    ],
)
def test_bad_input_is_refused_with_what_was_given(change: Any, message: str) -> None:
    given = {"x": np.zeros((2, 3)), "y": np.ones((2, 1), bool), "x_test": np.zeros((1, 3))}
    with pytest.raises(ValueError, match=message):
        list(fit_probe(**(given | change), config=SMALL, seed=0))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"thin": 0}, "thin 0"), ({"min_steps": 0}, "min_steps 0"), ({"learning_rate": 0.0}, "0.0")],
)
def test_a_config_that_cannot_be_trained_is_refused(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CHALLENGE, **change)
