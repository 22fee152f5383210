"""The network and its corruption."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from encoder.autoencoder import AutoencoderConfig, Corruption, DenoisingAutoencoder
from encoder.preprocessing import InputBlock, Preprocessor
from tests.strategies import VERSION, batches, random_batch, schemas
from transforms.layout import Modality, RawLayout

SCHEMA = RawLayout((Modality("collaborative", 4, 3),), (7,), categories=("gender",)).schema(VERSION)
BATCH = random_batch(SCHEMA, 400, present=0.7)
PREPROCESSOR = Preprocessor.fit(SCHEMA, [BATCH])
BLOCKS = PREPROCESSOR.input_slices
N_VALUES = PREPROCESSOR.n_values
INPUTS = torch.from_numpy(PREPROCESSOR.transform(BATCH))


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _corrupt(inputs: torch.Tensor = INPUTS, **config: float) -> torch.Tensor:
    quiet = {"block_dropout": 0.0, "view_dropout": 0.0, "noise_std": 0.0, "unknown_rate": 0.0}
    settings = AutoencoderConfig(**(quiet | config))  # type: ignore[arg-type]
    corrupted: torch.Tensor = Corruption(BLOCKS, settings)(inputs, _generator())
    return corrupted


@given(st.data())
def test_a_corrupted_row_keeps_a_block_and_hides_whole_ones(data: st.DataObject) -> None:
    """A block is either as it was or all zeros with mask 0, and a row with blocks keeps one."""
    schema = data.draw(schemas())
    batch = data.draw(batches(schema))
    p = Preprocessor.fit(schema, [batch])
    clean = torch.from_numpy(p.transform(batch))
    config = AutoencoderConfig(block_dropout=0.9, noise_std=0.0, unknown_rate=0.0)
    seed = data.draw(st.integers(0, 1000))
    corrupted = Corruption(p.input_slices, config)(clean, _generator(seed))
    for b in p.input_slices:
        hidden = corrupted[:, b.mask] == 0
        assert (corrupted[hidden, b.start : b.stop] == 0).all()
        assert torch.equal(corrupted[~hidden, b.start : b.stop], clean[~hidden, b.start : b.stop])
        assert (clean[~hidden, b.mask] == 1).all()
    present = clean[:, p.n_values :].any(dim=1)
    assert torch.equal(corrupted[:, p.n_values :].any(dim=1), present)


def test_blocks_are_hidden_at_the_stated_rate() -> None:
    # Complete rows: one with a single block always keeps it.
    clean = INPUTS[INPUTS[:, N_VALUES:].all(dim=1)].repeat(50, 1)
    kept = _corrupt(clean, block_dropout=0.2)[:, N_VALUES:].sum() / clean[:, N_VALUES:].sum()
    assert kept.item() == pytest.approx(0.8, abs=0.02)


def test_views_are_hidden_whole_at_the_stated_rate_and_one_stays() -> None:
    views = [b.view for b in BLOCKS]
    assert set(views) == {"user_activity", "user_profile"}
    clean = INPUTS[INPUTS[:, N_VALUES:].all(dim=1)].repeat(200, 1)
    shown = _corrupt(clean, view_dropout=0.3)[:, N_VALUES:]
    for name in set(views):
        own = shown[:, [view == name for view in views]]
        assert torch.equal(own.any(dim=1), own.all(dim=1))
        # Hidden itself (0.3), but not when it is the luckier of two hidden ones (0.3 * 0.3 / 2).
        assert own.any(dim=1).float().mean().item() == pytest.approx(1 - 0.3 + 0.045, abs=0.02)
    assert shown.any(dim=1).all()


def test_a_row_of_one_view_keeps_it() -> None:
    activity = torch.tensor([float(b.view == "user_activity") for b in BLOCKS])
    alone = INPUTS.clone()
    for b, keep in zip(BLOCKS, activity.tolist(), strict=True):
        alone[:, b.start : b.stop] *= keep
    alone[:, N_VALUES:] *= activity
    assert torch.equal(_corrupt(alone, view_dropout=0.9), alone)


def test_noise_falls_on_present_values_that_are_not_categories() -> None:
    noise = _corrupt(noise_std=0.5) - INPUTS
    for b in BLOCKS:
        present = INPUTS[:, b.mask] == 1
        assert (noise[~present, b.start : b.stop] == 0).all()
        if b.kind == "category":
            assert (noise[:, b.start : b.stop] == 0).all()
        else:
            assert noise[present, b.start : b.stop].std().item() == pytest.approx(0.5, rel=0.15)
    assert (noise[:, N_VALUES:] == 0).all()


def test_a_forgotten_category_is_shown_as_unknown() -> None:
    corrupted = _corrupt(unknown_rate=0.5)
    block = next(b for b in BLOCKS if b.kind == "category")
    present = INPUTS[:, block.mask] == 1
    one_hot = corrupted[:, block.start : block.stop]
    assert torch.equal(one_hot.sum(dim=1), present.float())
    assert one_hot[present, -1].mean().item() == pytest.approx(0.5, abs=0.1)
    assert (INPUTS[:, block.stop - 1] == 0).all()
    assert torch.equal(corrupted[:, : block.start], INPUTS[:, : block.start])


def test_corruption_depends_on_its_generator_only_and_leaves_the_inputs_alone() -> None:
    before = INPUTS.clone()
    corruption = Corruption(BLOCKS, AutoencoderConfig())
    torch.manual_seed(1)
    first = corruption(INPUTS, _generator(5))
    torch.manual_seed(2)
    assert torch.equal(corruption(INPUTS, _generator(5)), first)
    assert not torch.equal(corruption(INPUTS, _generator(6)), first)
    assert torch.equal(INPUTS, before)


def test_weights_follow_from_the_seed() -> None:
    def weights(seed: int) -> Any:
        return DenoisingAutoencoder(BLOCKS, AutoencoderConfig(seed=seed)).state_dict()[
            "encoder.0.weight"
        ]

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_predicting_draws_no_other_weights_for_the_rest() -> None:
    plain = DenoisingAutoencoder(BLOCKS, AutoencoderConfig())
    model = DenoisingAutoencoder(BLOCKS, AutoencoderConfig(), BLOCKS[:2])
    added = set(model.state_dict()) - set(plain.state_dict())
    assert added == {"predictor.0.weight", "predictor.0.bias"}
    for name, weight in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight)
    output = model(INPUTS[:5])
    assert output.future.shape == (5, BLOCKS[1].stop)
    assert plain(INPUTS[:5]).future is None


def test_selu_layers_keep_mean_and_variance() -> None:
    """Klambauer et al. 2017: standard normal inputs stay near mean 0 and variance 1."""
    blocks = (InputBlock("x", "pooled", 0, 299, 299, 1.0),)
    model = DenoisingAutoencoder(blocks, AutoencoderConfig(hidden=(256, 256, 256)))
    x = torch.randn(2000, 300, generator=_generator(1))
    for layer, activation in pairwise(list(model.encoder)[:-1]):
        if isinstance(layer, torch.nn.Linear):
            x = activation(layer(x))
            assert x.mean().item() == pytest.approx(0.0, abs=0.1)
            assert x.var().item() == pytest.approx(1.0, abs=0.15)


@given(st.permutations(range(12)), st.integers(1, 11))
def test_an_embedding_does_not_depend_on_who_else_is_in_the_batch(
    order: list[int], cut: int
) -> None:
    """Rows encoded in any order and any split give the same embeddings within 1e-6."""
    model = DenoisingAutoencoder(BLOCKS, AutoencoderConfig(8, (16,)))
    whole = model.encode(INPUTS[:12]).numpy()
    shuffled = INPUTS[:12][order]
    parts = [model.encode(shuffled[:cut]).numpy(), model.encode(shuffled[cut:]).numpy()]
    np.testing.assert_allclose(np.concatenate(parts), whole[order], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embedding_dim": 0}, "embedding_dim 0"),
        ({"hidden": ()}, r"hidden \(\)"),
        ({"block_dropout": 1.0}, r"block_dropout 1.0 given, \[0, 1\) expected"),
        ({"view_dropout": 1.0}, r"view_dropout 1.0 given, \[0, 1\) expected"),
        ({"unknown_rate": -0.1}, "unknown_rate -0.1"),
        ({"noise_std": -1.0}, "noise_std -1.0"),
    ],
)
def test_an_impossible_config_is_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoencoderConfig(**change)  # type: ignore[arg-type]
