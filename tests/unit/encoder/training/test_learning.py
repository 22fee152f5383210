"""Training is the plain loop, deterministic, learns what comes next and finds planted structure."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from encoder.autoencoder import AutoencoderConfig, Corruption, DenoisingAutoencoder
from encoder.losses import ReconstructionLoss
from encoder.preprocessing import Preprocessor
from encoder.rows import RowSource, cache_inputs
from encoder.schema import FeatureSchema
from encoder.training import TrainingConfig, train
from tests.strategies import VERSION, random_batch, take, to_table
from tests.unit.encoder.training.tiny import CONFIG, FUTURE, fit, same, weights
from transforms.layout import Modality, RawLayout


def _with_future(rows: RowSource) -> tuple[RowSource, Preprocessor]:
    """Return the rows with what comes next beside them, and its preprocessing."""
    batch = random_batch(FUTURE, 600, seed=3)
    for k, part in enumerate((slice(0, 250), slice(250, 600))):
        path = rows.path / f"{k}.parquet"
        table = pq.read_table(path)
        further = to_table(take(batch, part))
        for name in FUTURE.columns:
            table = table.append_column(name, further.column(name))
        pq.write_table(table, path)
    both = replace(rows, future=FUTURE)
    return both, Preprocessor.fit(FUTURE, both.batches("training"))


# --- the loop


def test_training_lowers_the_loss_and_keeps_a_record(rows: RowSource, tmp_path: Path) -> None:
    p = fit(rows)
    result = train(rows, p, replace(CONFIG, max_epochs=8), tmp_path / "c", progress=False)
    losses = [record.validation_loss for record in result.history]
    assert losses[-1] < 0.9 * losses[0]
    assert [record.epoch for record in result.history] == list(range(1, len(losses) + 1))
    assert result.best_epoch == int(np.argmin(losses)) + 1
    for record in result.history:
        assert set(record.block_errors) == {b.name for b in p.input_slices}
        assert record.rows_per_second > 0
    assert result.n_training_rows + result.n_validation_rows == 600
    assert result.sample.shape == (result.n_validation_rows, p.n_inputs)
    assert json.dumps([vars(record) for record in result.history])
    assert sorted(f.name for f in (tmp_path / "c").iterdir()) == ["checkpoint.safetensors"]


def test_equal_seeds_give_equal_weights_and_others_do_not(rows: RowSource, tmp_path: Path) -> None:
    p = fit(rows)
    first = train(rows, p, CONFIG, tmp_path / "a", progress=False)
    torch.manual_seed(7)
    assert same(first, train(rows, p, CONFIG, tmp_path / "b", progress=False))
    other = train(rows, p, replace(CONFIG, seed=1), tmp_path / "d", progress=False)
    assert not same(first, other)


def test_training_is_the_plain_loop_bit_for_bit(rows: RowSource, tmp_path: Path) -> None:
    """The loop written out, without anything that training may do besides."""
    p = fit(rows)
    result = train(rows, p, CONFIG, tmp_path / "c", progress=False)
    assert result.best_epoch == CONFIG.max_epochs  # so that the last weights are the best

    inputs = cache_inputs(rows, p, tmp_path / "cache", progress=False).training
    model = DenoisingAutoencoder(p.input_slices, CONFIG.model)
    corruption = Corruption(p.input_slices, CONFIG.model)
    criterion = ReconstructionLoss(p.input_slices)
    optimizer = torch.optim.AdamW(
        model.parameters(), CONFIG.learning_rate, weight_decay=CONFIG.weight_decay, fused=True
    )
    total = CONFIG.max_epochs * inputs.n_batches(CONFIG.batch_size, CONFIG.buffer_rows)
    steps = 0
    for epoch in range(CONFIG.max_epochs):
        batches = inputs.shuffled(CONFIG.batch_size, CONFIG.buffer_rows, (CONFIG.seed, epoch))
        for step, batch in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = CONFIG.learning_rate_at(steps, total)
            seed = np.random.SeedSequence((CONFIG.seed, epoch, step, 0)).generate_state(1, "uint64")
            generator = torch.Generator().manual_seed(int(seed[0] >> 1))
            clean = torch.from_numpy(batch)
            loss = criterion(model(corruption(clean, generator)).values, clean).rows.mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CONFIG.clip_norm)
            optimizer.step()
            steps += 1
    trained = result.model.state_dict()
    assert all(torch.equal(trained[k], v) for k, v in model.state_dict().items())


# --- what comes next


def test_what_comes_next_is_learned_recorded_and_reproducible(
    rows: RowSource, tmp_path: Path
) -> None:
    p = fit(rows)
    plain = train(rows, p, CONFIG, tmp_path / "plain", progress=False)
    rows, future = _with_future(rows)
    first = train(rows, p, CONFIG, tmp_path / "a", future=future, progress=False)
    names = {b.name for b in p.input_slices} | {b.name for b in future.input_slices}
    assert all(set(record.block_errors) == names for record in first.history)
    assert first.sample.shape[1] == p.n_inputs
    assert set(weights(first)) - set(weights(plain)) == {
        "predictor.0.weight",
        "predictor.0.bias",
    }
    again = train(rows, p, CONFIG, tmp_path / "b", future=future, progress=False)
    assert same(first, again)
    heavier = replace(CONFIG, prediction_weight=9.0)
    other = train(rows, p, heavier, tmp_path / "c", future=future, progress=False)
    assert not np.array_equal(
        weights(first)["encoder.0.weight"], weights(other)["encoder.0.weight"]
    )
    # Beside the rows, unread: not a bit of the encoder changes, but the run is another one.
    unread = replace(rows, future=None)
    assert same(plain, train(unread, p, CONFIG, tmp_path / "d", progress=False))


def test_the_prediction_is_one_term_of_the_loss_by_hand(rows: RowSource, tmp_path: Path) -> None:
    """Without corruption, the validation loss is reconstruction + weight * prediction, mean over
    rows, each term the mean of the losses of its blocks."""
    p = fit(rows)
    rows, future = _with_future(rows)
    still = replace(
        CONFIG.model, block_dropout=0.0, view_dropout=0.0, noise_std=0.0, unknown_rate=0.0
    )
    config = replace(CONFIG, model=still, prediction_weight=2.0, max_epochs=1)
    result = train(rows, p, config, tmp_path / "c", future=future, progress=False)
    batches = list(rows.batches("validation"))
    inputs = torch.from_numpy(np.concatenate([p.transform(b) for b in batches]))
    after = torch.from_numpy(np.concatenate([future.transform(b) for b in batches]))
    with torch.inference_mode():
        output = result.model(inputs)
        rebuilt = ReconstructionLoss(p.input_slices)(output.values, inputs).rows
        predicted = ReconstructionLoss(future.input_slices)(output.future, after).rows
    expected = (rebuilt + 2.0 * predicted).mean().item()
    assert result.history[0].validation_loss == pytest.approx(expected, rel=1e-5)


def test_block_weights_reach_rebuilt_and_predicted_blocks(rows: RowSource, tmp_path: Path) -> None:
    p = fit(rows)
    rows, future = _with_future(rows)
    even = train(rows, p, CONFIG, tmp_path / "a", future=future, progress=False)
    weighted = replace(CONFIG, block_weights={"collaborative_next_3d": 5.0})
    other = train(rows, p, weighted, tmp_path / "b", future=future, progress=False)
    assert not same(even, other)
    wrong = replace(CONFIG, block_weights={"collaborative_next_4d": 5.0})
    with pytest.raises(ValueError, match=r"unknown block.s. collaborative_next_4d given"):
        train(rows, p, wrong, tmp_path / "c", future=future, progress=False)


# --- quality


def _segments(n: int, seed: int) -> tuple[FeatureSchema, object, npt.NDArray[np.int64]]:
    """Return rows of four planted segments; each window sees its segment under strong noise."""
    schema = RawLayout((Modality("collaborative", 16, 2),), (1, 7, 30)).schema(VERSION)
    rng = np.random.default_rng(seed)
    segment = rng.integers(0, 4, n)
    centres = np.random.default_rng(0).standard_normal((4, 16))
    batch = random_batch(schema, n, seed, present=1.0)
    pooled = batch.columns[schema.blocks[0].column].values
    pooled[:] = np.tile(centres[segment], 3) + 3.0 * rng.standard_normal((n, 48))
    return schema, batch, segment


def test_planted_segments_are_recovered_better_than_by_a_random_projection(tmp_path: Path) -> None:
    """Four numbers a user: the autoencoder keeps what the windows share, a projection does not."""
    schema, batch, segment = _segments(4000, seed=1)
    pq.write_table(to_table(batch), tmp_path / "rows.parquet")  # type: ignore[arg-type]
    rows = RowSource(tmp_path / "rows.parquet", schema)
    p = fit(rows)
    config = TrainingConfig(
        model=AutoencoderConfig(4, (64,), block_dropout=0.3), batch_size=128, max_epochs=15,
        learning_rate=3e-3, device="cpu",
    )  # fmt: skip
    model = train(rows, p, config, tmp_path / "c", progress=False).model
    inputs = p.transform(batch)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    projected = inputs @ rng.standard_normal((inputs.shape[1], 4)).astype(np.float32)
    embedded = model.encode(torch.from_numpy(inputs)).numpy()

    def accuracy(features: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
        scaled = features / features.std(axis=0)
        probe = LogisticRegression(max_iter=500).fit(scaled[:2000], labels[:2000])
        return float(probe.score(scaled[2000:], labels[2000:]))

    assert accuracy(embedded, segment) > accuracy(projected, segment) + 0.15
    assert accuracy(embedded, rng.permutation(segment)) < 0.32  # chance is 0.25
