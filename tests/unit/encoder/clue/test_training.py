"""Contrastive training finds what was planted, and resumes to the bit."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from encoder.clue.config import ClueTrainingConfig
from encoder.clue.grad_cache import Chunks
from encoder.clue.network import ClueConfig, ClueNetwork
from encoder.clue.training import ClueResult, train_clue
from encoder.errors import DataFault, TrainingFault
from encoder.progress import save_run
from tests.startup import python_path
from tests.unit.encoder.clue.planted import TOPICS, planted

ROOT = Path(__file__).parents[4]

CONFIG = ClueTrainingConfig(
    model=ClueConfig(embedding_dim=16, width=32, head_width=16, item_layers=1, service_layers=1,
                     max_item_tokens=8, max_events=6),
    batch_size=64, max_epochs=8, warmup_steps=5, validation_users=16, held_out_share=0.15,
    device="cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> ClueResult:
    sequences, tokenizer, _ = planted(600)
    folder = tmp_path_factory.mktemp("clue")
    return train_clue(sequences, tokenizer.vocabulary, CONFIG, folder, progress=False)


def test_half_precision_learns_the_same(trained: ClueResult, tmp_path: Path) -> None:
    sequences, tokenizer, _ = planted(600)
    config = replace(CONFIG, precision="bfloat16")
    found = train_clue(sequences, tokenizer.vocabulary, config, tmp_path, progress=False)
    expected = [epoch.validation_loss for epoch in trained.history]
    losses = [epoch.validation_loss for epoch in found.history]
    assert losses == pytest.approx(expected, abs=0.03)
    assert losses != expected
    assert found.network.item.tokens.weight.dtype == torch.float32


def test_hard_negatives_find_what_was_planted_too(trained: ClueResult, tmp_path: Path) -> None:
    sequences, tokenizer, _ = planted(600)
    config = replace(CONFIG, hardness=0.5)
    found = train_clue(sequences, tokenizer.vocabulary, config, tmp_path, progress=False)
    assert found.history[-1].validation_mrr > 0.8 * trained.history[-1].validation_mrr
    assert any(not torch.equal(w, _weights(trained)[k]) for k, w in _weights(found).items())


def test_a_training_without_hard_negatives_is_told_as_before_there_were_any() -> None:
    assert "hardness" not in CONFIG.told()
    assert replace(CONFIG, hardness=0.5).told() == {**CONFIG.told(), "hardness": 0.5}


_PROGRAM = """
import sys
from pathlib import Path

from safetensors.torch import save_file

from tests.unit.encoder.clue.test_training import trained_in_chunks

folder = Path(sys.argv[1])
network = trained_in_chunks(int(sys.argv[2]), float(sys.argv[3]), folder).network
save_file(network.state_dict(), folder / "weights.safetensors")
"""


def trained_in_chunks(chunk: int, hardness: float, folder: Path) -> ClueResult:
    """Train a little, ``chunk`` items and views at once."""
    sequences, tokenizer, _ = planted(300)
    config = replace(CONFIG, max_epochs=2, chunks=Chunks(chunk, chunk), hardness=hardness)
    return train_clue(sequences, tokenizer.vocabulary, config, folder, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chunk", "hardness"),
    [(4, 0.0), (4096, 0.0), (4, 0.5)],
    ids=["cached", "in_one_piece", "hard_negatives"],
)
def test_two_processes_train_the_same_network_as_one(
    chunk: int, hardness: float, tmp_path: Path
) -> None:
    """Each takes half of every batch, and has the users of both as negatives."""
    one = trained_in_chunks(chunk, hardness, tmp_path / "one").network.state_dict()
    program = tmp_path / "program.py"
    program.write_text(_PROGRAM)
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", str(program)),
            *(str(tmp_path), str(chunk), str(hardness)),
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": python_path(ROOT), "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=200,
    )
    two = load_file(tmp_path / "weights.safetensors")
    start = ClueNetwork(CONFIG.model, len(one["item.tokens.weight"])).state_dict()
    moved = [float((one[name] - value).abs().max()) for name, value in start.items()]
    assert max(moved) > 1e-3, "training did nothing"
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, rtol=1e-3, atol=1e-4)


def test_users_of_a_topic_are_found_across_services(trained: ClueResult) -> None:
    # Six topics in batches of 16: only the topic can be known, so at best about 16 / 6 users
    # share the first place. A guess has the loss log(16) = 2.77.
    best = trained.history[trained.best_epoch - 1]
    assert best.validation_loss < 2.77 - 0.9
    assert best.validation_mrr > 0.4
    assert trained.network.log_scale.exp() < 200


def test_vectors_of_two_services_agree_by_topic(trained: ClueResult) -> None:
    sequences, _, topic = planted(600)
    users = np.arange(120, 600)  # with both services
    vectors = []
    for service in sequences.services.values():
        newest = np.minimum(service.lengths[users], 6)
        events, there = service.windows(users, np.zeros_like(newest), newest, 6)
        with torch.no_grad():
            out = trained.network(
                torch.from_numpy(sequences.tokens),
                torch.from_numpy(events),
                torch.from_numpy(there),
            )
        vectors.append(out.service.numpy())
    means = [np.stack([v[topic[users] == t].mean(0) for t in range(TOPICS)]) for v in vectors]
    assert (np.argmax(means[0] @ means[1].T, axis=1) == np.arange(TOPICS)).all()


def test_history_tells_cost_and_speed(trained: ClueResult) -> None:
    history = trained.history
    assert [epoch.epoch for epoch in history] == list(range(1, len(history) + 1))
    assert all(epoch.tokens_per_second > 0 for epoch in history)
    flops = [epoch.model_flops for epoch in history]
    assert flops == sorted(set(flops))
    assert history[-1].executed_flops >= history[-1].model_flops


def _weights(result: ClueResult) -> dict[str, torch.Tensor]:
    return result.network.state_dict()


def test_a_killed_run_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences, tokenizer, _ = planted()
    config = replace(CONFIG, max_epochs=2, checkpoint_every_steps=1, chunks=Chunks(50, 30))
    whole = train_clue(sequences, tokenizer.vocabulary, config, tmp_path / "a", progress=False)

    saved = 0

    def killed(*arguments: Any) -> None:
        nonlocal saved
        save_run(*arguments)
        saved += 1
        if saved == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr("encoder.clue.training.save_run", killed)
    with pytest.raises(KeyboardInterrupt):
        train_clue(sequences, tokenizer.vocabulary, config, tmp_path / "b", progress=False)
    monkeypatch.undo()
    resumed = train_clue(sequences, tokenizer.vocabulary, config, tmp_path / "b", progress=False)
    assert all(torch.equal(w, _weights(resumed)[k]) for k, w in _weights(whole).items())
    told = (
        "train_loss",
        "learning_rate",
        "validation_loss",
        "steps",
        "model_flops",
        "executed_flops",
    )
    for one, other in zip(whole.history, resumed.history, strict=True):
        assert [getattr(one, k) for k in told] == [getattr(other, k) for k in told]


def test_wide_matrices_learn_slower_than_tables(tmp_path: Path) -> None:
    """The first step of Adam moves a weight by the rate, whatever the gradient."""
    sequences, tokenizer, _ = planted()
    config = replace(CONFIG, max_steps=1, warmup_steps=1, weight_decay=0.0, rate_width=8)
    result = train_clue(sequences, tokenizer.vocabulary, config, tmp_path, progress=False)
    start = ClueNetwork(CONFIG.model, tokenizer.vocabulary).state_dict()
    moved = {name: float((w - start[name]).abs().max()) for name, w in _weights(result).items()}
    rate = config.learning_rate
    assert moved["item.tokens.weight"] == pytest.approx(rate, rel=1e-2)
    assert moved["service.stack.norm.bias"] == pytest.approx(rate, rel=1e-2)
    assert moved["service.project.weight"] == pytest.approx(rate * 8 / CONFIG.model.width, rel=1e-2)


def test_steps_end_where_they_are_told_to(tmp_path: Path) -> None:
    sequences, tokenizer, _ = planted()
    config = replace(CONFIG, max_steps=2)
    result = train_clue(sequences, tokenizer.vocabulary, config, tmp_path, progress=False)
    assert result.history[-1].steps == 2
    assert not result.stopped_early


def test_another_configuration_does_not_go_on(tmp_path: Path) -> None:
    sequences, tokenizer, _ = planted()
    config = replace(CONFIG, max_steps=1)
    train_clue(sequences, tokenizer.vocabulary, config, tmp_path, progress=False)
    with pytest.raises(TrainingFault, match="belongs to run"):
        train_clue(
            sequences, tokenizer.vocabulary, replace(config, seed=1), tmp_path, progress=False
        )


def test_too_few_users_are_told(tmp_path: Path) -> None:
    sequences, tokenizer, _ = planted()
    for name, config in {
        "batch_size 5,000": replace(CONFIG, batch_size=5_000),
        "validation_users 200": replace(CONFIG, validation_users=200),
    }.items():
        with pytest.raises(DataFault, match=f"{name} given, no pair of services"):
            train_clue(sequences, tokenizer.vocabulary, config, tmp_path)
    shorter = replace(CONFIG, model=replace(CONFIG.model, max_item_tokens=4))
    with pytest.raises(ValueError, match="Items of 8 tokens given, max_item_tokens is 4"):
        train_clue(sequences, tokenizer.vocabulary, shorter, tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("batch_size", 1), ("max_steps", 0), ("event_dropout", 1.0), ("token_dropout", -0.1),
     ("guide_dropout", 1.0),
     ("user_share", 1.5), ("held_out_share", 0.0), ("learning_rate", 0.0), ("patience", 0),
     ("rate_width", 0), ("hardness", -0.5), ("hardness", float("nan"))],
)  # fmt: skip
def test_settings_are_checked(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} {value} given"):
        ClueTrainingConfig(**{field: value})  # type: ignore[arg-type]
