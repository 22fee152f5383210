"""How long a run goes on, what it refuses, and that a killed one ends with the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from encoder.errors import TrainingFault
from encoder.rows import RowSource
from encoder.training import TrainingConfig, train
from tests.startup import python_path
from tests.unit.encoder.training.tiny import CONFIG, fit, same

ROOT = Path(__file__).parents[4]


def test_training_stops_when_patience_runs_out_and_keeps_the_best(
    rows: RowSource, tmp_path: Path
) -> None:
    config = replace(CONFIG, max_epochs=50, patience=2, min_improvement=0.5)
    result = train(rows, fit(rows), config, tmp_path / "c", progress=False)
    assert result.stopped_early
    assert len(result.history) == result.best_epoch + 2
    again = train(rows, fit(rows), config, tmp_path / "c", progress=False)
    assert same(result, again)
    assert again.history == result.history


@pytest.mark.parametrize(
    ("n_rows", "expected"), [(1, 30), (100, 30), (200, 15), (399, 7), (3000, 1), (10**9, 1)]
)
def test_epochs_end_at_the_epoch_or_the_row_limit_but_never_at_none(
    n_rows: int, expected: int
) -> None:
    # 3,000 rows in all: 100 rows 30 times, 399 rows 7 times (2,793), the 8th would pass 3,000.
    assert TrainingConfig(max_epochs=30, max_rows=3000).epochs(n_rows) == expected


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    config = TrainingConfig(learning_rate=1.0, warmup_steps=4)
    rates = [config.learning_rate_at(step, 104) for step in (0, 3, 4, 54, 104)]
    assert rates == pytest.approx([0.25, 1.0, 1.0, 0.5, 0.0])
    assert replace(config, schedule="constant").learning_rate_at(104, 104) == 1.0


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


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_a_loss_that_is_not_finite_stops_at_once_and_names_the_step(
    rows: RowSource, tmp_path: Path
) -> None:
    config = replace(CONFIG, learning_rate=1e30, warmup_steps=0)
    with pytest.raises(TrainingFault, match=r"The loss is (nan|inf) at epoch 1, step 2 \(step 2"):
        train(rows, fit(rows), config, tmp_path / "c", progress=False)


def test_a_checkpoint_of_another_run_is_refused_unless_told_to_start_over(
    rows: RowSource, tmp_path: Path
) -> None:
    p = fit(rows)
    train(rows, p, CONFIG, tmp_path / "c", progress=False)
    other = replace(CONFIG, learning_rate=5e-4)
    with pytest.raises(TrainingFault, match=r"belongs to run .* resume=False to start over"):
        train(rows, p, other, tmp_path / "c", progress=False)
    fresh = train(rows, p, other, tmp_path / "c", resume=False, progress=False)
    assert same(fresh, train(rows, p, other, tmp_path / "d", progress=False))


def test_a_damaged_checkpoint_is_refused(rows: RowSource, tmp_path: Path) -> None:
    p = fit(rows)
    train(rows, p, CONFIG, tmp_path / "c", progress=False)
    path = tmp_path / "c" / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TrainingFault, match="is damaged"):
        train(rows, p, CONFIG, tmp_path / "c", progress=False)


_PROGRAM = """
import sys, torch
from dataclasses import replace
from pathlib import Path
from safetensors.torch import save_file
from encoder.preprocessing import Preprocessor
from encoder.rows import RowSource
from encoder.training import train
from tests.unit.encoder.training.tiny import CONFIG, SCHEMA
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
