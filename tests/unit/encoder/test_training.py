"""Training is deterministic, resumable to the bit, and finds planted structure."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression

from encoder.autoencoder import AutoencoderConfig, Corruption, DenoisingAutoencoder
from encoder.errors import DataFault, TrainingFault
from encoder.losses import ReconstructionLoss
from encoder.preprocessing import Preprocessor
from encoder.rows import InputMatrix, RowSource, cache_inputs, held_out
from encoder.schema import FeatureSchema
from encoder.training import TrainingConfig, train
from tests.startup import python_path
from tests.strategies import VERSION, random_batch, take, to_table
from transforms.future import future_schema
from transforms.layout import Modality, RawLayout

ROOT = Path(__file__).parents[3]
LAYOUT = RawLayout((Modality("collaborative", 4, 3),), (7,), categories=("gender",))
SCHEMA, FUTURE = LAYOUT.schema(VERSION), future_schema(LAYOUT, (3, 9), VERSION)
CONFIG = TrainingConfig(
    model=AutoencoderConfig(8, (16,)),
    batch_size=32,
    max_epochs=3,
    warmup_steps=5,
    buffer_rows=1024,
    device="cpu",
)


@pytest.fixture(autouse=True)
def _one_thread() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def rows(tmp_path: Path) -> RowSource:
    folder = tmp_path / "rows"
    folder.mkdir()
    batch = random_batch(SCHEMA, 600)
    for k, part in enumerate((slice(0, 250), slice(250, 600))):
        pq.write_table(to_table(take(batch, part)), folder / f"{k}.parquet")
    return RowSource(folder, SCHEMA, batch_rows=128)


def _weights(result: object) -> dict[str, npt.NDArray[np.float32]]:
    return {k: v.numpy() for k, v in result.model.state_dict().items()}  # type: ignore[attr-defined]


def _same(a: object, b: object) -> bool:
    first, second = _weights(a), _weights(b)
    return all(np.array_equal(first[k], second[k]) for k in first | second)


def _fit(rows: RowSource) -> Preprocessor:
    return Preprocessor.fit(rows.schema, rows.batches("training"))


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


# --- rows


def test_parts_split_the_users_and_lose_no_row(rows: RowSource) -> None:
    users = {p: [u for b in rows.batches(p) for u in b.users] for p in ("all", "training", "validation")}  # fmt: skip  # noqa: E501
    assert users["all"] == [f"user-{k}" for k in range(600)]
    assert sorted(users["training"] + users["validation"]) == sorted(users["all"])
    assert not set(users["training"]) & set(users["validation"])
    assert rows.count() == 600


def test_the_held_out_share_is_met_and_a_user_never_changes_sides() -> None:
    users = [f"u{k}" for k in range(20_000)]
    kept = held_out(users, 0.1)
    assert kept.mean() == pytest.approx(0.1, abs=0.01)
    assert np.array_equal(held_out(users[::-1], 0.1)[::-1], kept)
    assert (held_out(users, 0.2) >= kept).all()


def test_the_fingerprint_follows_the_content(rows: RowSource) -> None:
    before = rows.fingerprint()
    assert rows.fingerprint() == before
    pq.write_table(to_table(random_batch(SCHEMA, 250, seed=1)), rows.path / "0.parquet")
    assert rows.fingerprint() != before


def test_missing_files_and_columns_are_named(rows: RowSource, tmp_path: Path) -> None:
    with pytest.raises(DataFault, match="No Parquet file with training rows under"):
        RowSource(tmp_path / "nothing", SCHEMA).files()
    table = pq.read_table(rows.path / "1.parquet").drop_columns([SCHEMA.blocks[0].column])
    pq.write_table(table, rows.path / "1.parquet")
    with pytest.raises(DataFault, match=f"1.parquet lacks the column.s. {SCHEMA.blocks[0].column}"):
        list(rows.batches())


def test_shuffling_yields_every_row_once_in_an_order_of_the_seed(tmp_path: Path) -> None:
    values = np.arange(5000 * 2, dtype=np.float32).reshape(5000, 2)
    values.tofile(tmp_path / "m.f32")
    matrix = InputMatrix(tmp_path / "m.f32", 5000, 2)
    first = list(matrix.shuffled(100, 2048, (0, 0)))
    assert len(first) == matrix.n_batches(100, 2048)
    order = np.concatenate(first)[:, 0]
    assert not np.array_equal(order, values[:, 0])
    assert np.array_equal(np.sort(order), values[:, 0])
    assert np.array_equal(np.concatenate(list(matrix.shuffled(100, 2048, (0, 0))))[:, 0], order)
    assert not np.array_equal(np.concatenate(list(matrix.shuffled(100, 2048, (0, 1))))[:, 0], order)
    for skipped in (1, 21, len(first)):
        rest = list(matrix.shuffled(100, 2048, (0, 0), skipped))
        assert len(rest) == len(first) - skipped
        assert all(np.array_equal(a, b) for a, b in zip(rest, first[skipped:], strict=True))


def test_cached_inputs_are_the_preprocessed_rows(rows: RowSource, tmp_path: Path) -> None:
    p = _fit(rows)
    cached = cache_inputs(rows, p, tmp_path / "cache", progress=False)
    expected = np.concatenate([p.transform(b) for b in rows.batches("training")])
    assert np.array_equal(np.concatenate(list(cached.training.in_order(100))), expected)
    assert cached.training.n_rows + cached.validation.n_rows == 600


def test_a_part_without_rows_is_refused(rows: RowSource, tmp_path: Path) -> None:
    with pytest.raises(DataFault, match="No user falls into the validation part of 600 rows"):
        cache_inputs(rows, _fit(rows), tmp_path / "cache", 1e-9, progress=False)


# --- the loop


def test_training_lowers_the_loss_and_keeps_a_record(rows: RowSource, tmp_path: Path) -> None:
    p = _fit(rows)
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
    p = _fit(rows)
    first = train(rows, p, CONFIG, tmp_path / "a", progress=False)
    torch.manual_seed(7)
    assert _same(first, train(rows, p, CONFIG, tmp_path / "b", progress=False))
    other = train(rows, p, replace(CONFIG, seed=1), tmp_path / "d", progress=False)
    assert not _same(first, other)


def test_training_is_the_plain_loop_bit_for_bit(rows: RowSource, tmp_path: Path) -> None:
    """The loop written out, without anything that training may do besides."""
    p = _fit(rows)
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


def test_what_comes_next_is_learned_recorded_and_reproducible(
    rows: RowSource, tmp_path: Path
) -> None:
    p = _fit(rows)
    plain = train(rows, p, CONFIG, tmp_path / "plain", progress=False)
    rows, future = _with_future(rows)
    first = train(rows, p, CONFIG, tmp_path / "a", future=future, progress=False)
    names = {b.name for b in p.input_slices} | {b.name for b in future.input_slices}
    assert all(set(record.block_errors) == names for record in first.history)
    assert first.sample.shape[1] == p.n_inputs
    assert set(_weights(first)) - set(_weights(plain)) == {
        "predictor.0.weight",
        "predictor.0.bias",
    }
    again = train(rows, p, CONFIG, tmp_path / "b", future=future, progress=False)
    assert _same(first, again)
    heavier = replace(CONFIG, prediction_weight=9.0)
    other = train(rows, p, heavier, tmp_path / "c", future=future, progress=False)
    assert not np.array_equal(
        _weights(first)["encoder.0.weight"], _weights(other)["encoder.0.weight"]
    )
    # Beside the rows, unread: not a bit of the encoder changes, but the run is another one.
    unread = replace(rows, future=None)
    assert _same(plain, train(unread, p, CONFIG, tmp_path / "d", progress=False))


def test_the_prediction_is_one_term_of_the_loss_by_hand(rows: RowSource, tmp_path: Path) -> None:
    """Without corruption, the validation loss is reconstruction + weight * prediction, mean over
    rows, each term the mean of the losses of its blocks."""
    p = _fit(rows)
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
    p = _fit(rows)
    rows, future = _with_future(rows)
    even = train(rows, p, CONFIG, tmp_path / "a", future=future, progress=False)
    weighted = replace(CONFIG, block_weights={"collaborative_next_3d": 5.0})
    other = train(rows, p, weighted, tmp_path / "b", future=future, progress=False)
    assert not _same(even, other)
    wrong = replace(CONFIG, block_weights={"collaborative_next_4d": 5.0})
    with pytest.raises(ValueError, match=r"unknown block.s. collaborative_next_4d given"):
        train(rows, p, wrong, tmp_path / "c", future=future, progress=False)


def test_training_stops_when_patience_runs_out_and_keeps_the_best(
    rows: RowSource, tmp_path: Path
) -> None:
    config = replace(CONFIG, max_epochs=50, patience=2, min_improvement=0.5)
    result = train(rows, _fit(rows), config, tmp_path / "c", progress=False)
    assert result.stopped_early
    assert len(result.history) == result.best_epoch + 2
    again = train(rows, _fit(rows), config, tmp_path / "c", progress=False)
    assert _same(result, again)
    assert again.history == result.history


def test_a_checkpoint_of_another_run_is_refused_unless_told_to_start_over(
    rows: RowSource, tmp_path: Path
) -> None:
    p = _fit(rows)
    train(rows, p, CONFIG, tmp_path / "c", progress=False)
    other = replace(CONFIG, learning_rate=5e-4)
    with pytest.raises(TrainingFault, match=r"belongs to run .* resume=False to start over"):
        train(rows, p, other, tmp_path / "c", progress=False)
    fresh = train(rows, p, other, tmp_path / "c", resume=False, progress=False)
    assert _same(fresh, train(rows, p, other, tmp_path / "d", progress=False))


def test_a_damaged_checkpoint_is_refused(rows: RowSource, tmp_path: Path) -> None:
    p = _fit(rows)
    train(rows, p, CONFIG, tmp_path / "c", progress=False)
    path = tmp_path / "c" / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TrainingFault, match="is damaged"):
        train(rows, p, CONFIG, tmp_path / "c", progress=False)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_a_loss_that_is_not_finite_stops_at_once_and_names_the_step(
    rows: RowSource, tmp_path: Path
) -> None:
    config = replace(CONFIG, learning_rate=1e30, warmup_steps=0)
    with pytest.raises(TrainingFault, match=r"The loss is (nan|inf) at epoch 1, step 2 \(step 2"):
        train(rows, _fit(rows), config, tmp_path / "c", progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size 0 given, at least 1"),
        ({"learning_rate": 0.0}, "learning_rate 0.0 given, more than 0"),
        ({"held_out_share": 1.0}, "held_out_share 1.0"),
        ({"checkpoint_every_steps": 0}, "checkpoint_every_steps 0"),
        ({"prediction_weight": -1.0}, "prediction_weight -1.0 given, at least 0"),
        ({"prediction_days": (7, 7)}, r"prediction_days \[7, 7\] given, different numbers"),
        ({"prediction_days": (0,)}, r"prediction_days \[0\] given"),
    ],
)
def test_an_impossible_config_is_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**change)  # type: ignore[arg-type]


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    config = TrainingConfig(learning_rate=1.0, warmup_steps=4)
    rates = [config.learning_rate_at(step, 104) for step in (0, 3, 4, 54, 104)]
    assert rates == pytest.approx([0.25, 1.0, 1.0, 0.5, 0.0])
    assert replace(config, schedule="constant").learning_rate_at(104, 104) == 1.0


_PROGRAM = """
import sys, torch
from pathlib import Path
from safetensors.torch import save_file
from encoder.preprocessing import Preprocessor
from encoder.rows import RowSource
from encoder.training import train
from tests.unit.encoder.test_training import CONFIG, SCHEMA, replace
torch.set_num_threads(1)
rows = RowSource(Path(sys.argv[1]), SCHEMA)
preprocessor = Preprocessor.fit(SCHEMA, rows.batches("training"))
config = replace(CONFIG, max_epochs=12, checkpoint_every_steps=3, batch_size=int(sys.argv[3]))
folder = Path(sys.argv[2])
result = train(rows, preprocessor, config, folder, progress=False)
if not int(__import__("os").environ.get("RANK", "0")):
    save_file(result.model.state_dict(), folder / "weights.safetensors")
"""


def _command(rows: RowSource, folder: Path, batch_size: int) -> list[str]:
    return [sys.executable, "-c", _PROGRAM, str(rows.path), str(folder), str(batch_size)]


@pytest.mark.slow
def test_a_run_that_is_killed_and_called_again_ends_with_the_same_bits(
    rows: RowSource, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    subprocess.run(_command(rows, whole, 4), cwd=ROOT, check=True)
    process = subprocess.Popen(_command(rows, cut, 4), cwd=ROOT)
    deadline = time.monotonic() + 60
    while not (cut / "checkpoint.safetensors").exists():
        assert time.monotonic() < deadline
        time.sleep(0.002)  # polls a condition with a deadline
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (cut / "weights.safetensors").exists()
    subprocess.run(_command(rows, cut, 4), cwd=ROOT, check=True)
    expected = load_file(whole / "weights.safetensors")
    resumed = load_file(cut / "weights.safetensors")
    assert set(resumed) == set(expected)
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_two_processes_train_the_same_model_as_one(rows: RowSource, tmp_path: Path) -> None:
    """Under torchrun each process takes half of every batch; without corruption the result is that
    of one process up to rounding."""
    program = tmp_path / "program.py"
    zero = "block_dropout=0.0, view_dropout=0.0, noise_std=0.0, unknown_rate=0.0"
    quiet = f"model=replace(CONFIG.model, {zero}), "
    program.write_text(_PROGRAM.replace("max_epochs=12, ", "max_epochs=2, " + quiet))
    environ = os.environ | {"PYTHONPATH": python_path(ROOT), "OMP_NUM_THREADS": "1"}
    weights = []
    for n in (1, 2):
        folder = tmp_path / f"processes-{n}"
        subprocess.run(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                *("--nproc-per-node", str(n), str(program), str(rows.path), str(folder), "31"),
            ],
            cwd=ROOT,
            env=environ,
            check=True,
        )
        weights.append(load_file(folder / "weights.safetensors"))
    for name, expected in weights[0].items():
        torch.testing.assert_close(weights[1][name], expected, rtol=1e-3, atol=1e-4)


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
    p = _fit(rows)
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


@pytest.mark.parametrize(
    ("n_rows", "expected"), [(1, 30), (100, 30), (200, 15), (399, 7), (3000, 1), (10**9, 1)]
)
def test_epochs_end_at_the_epoch_or_the_row_limit_but_never_at_none(
    n_rows: int, expected: int
) -> None:
    # 3,000 rows in all: 100 rows 30 times, 399 rows 7 times (2,793), the 8th would pass 3,000.
    assert TrainingConfig(max_epochs=30, max_rows=3000).epochs(n_rows) == expected
