"""Training of the denoising autoencoder: one loop, resumable to the bit."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from encoder.autoencoder import AutoencoderConfig, Corruption, DenoisingAutoencoder
from encoder.checkpoint import read_checkpoint, write_checkpoint
from encoder.errors import TrainingFault
from encoder.losses import BlockLosses, ReconstructionLoss
from encoder.placement import DeviceChoice, Placement, Precision, placement
from encoder.preprocessing import InputBlock, Preprocessor
from encoder.rows import InputMatrix, RowSource, cache_inputs

__all__ = ["EpochRecord", "TrainingConfig", "TrainingResult", "train"]

logger = logging.getLogger(__name__)

_VALIDATION_ROWS = 8192
_SAMPLE_ROWS = 256
_VALIDATION = 2**31
"""In place of an epoch in the seed: every epoch is validated under the same corruption."""


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that training depends on besides the rows."""

    model: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    """The network and its corruption."""
    batch_size: int = 512
    """Rows a step, over all processes together."""
    max_epochs: int = 30
    """Epochs at most; the cosine schedule ends here, or where ``max_rows`` does."""
    max_rows: int = 6_000_000
    """Training rows at most, all epochs together, rounded down to whole epochs, at least one. A set
    with more rows needs fewer passes, and a night's training has a known length."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """What follows the warm-up."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises linearly from 0."""
    weight_decay: float = 1e-4
    """Decoupled weight decay."""
    clip_norm: float = 1.0
    """Largest gradient norm."""
    block_weights: Mapping[str, float] = field(default_factory=dict)
    """Block name -> relative weight in the loss; default 1."""
    held_out_share: float = 0.1
    """Share of users whose rows decide when to stop, (0, 1)."""
    patience: int = 4
    """Epochs without improvement before training stops."""
    min_improvement: float = 1e-4
    """Smallest fall of the validation loss that counts as improvement."""
    buffer_rows: int = 65_536
    """Rows in memory to shuffle."""
    checkpoint_every_steps: int | None = None
    """Steps between checkpoints inside an epoch; None: only after each epoch."""
    seed: int = 0
    """Seed of the row order and of the corruption."""
    device: DeviceChoice = "auto"
    """``auto``: a GPU when torch sees one."""
    precision: Precision = "auto"
    """``auto``: bfloat16 autocast on a GPU that has it, float32 elsewhere."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile; ``auto``: on a GPU."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_epochs", "max_rows", "patience", "buffer_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} given, at least 1 expected.")
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} {getattr(self, name)} given, more than 0 expected.")
        if not 0.0 < self.held_out_share < 1.0:
            raise ValueError(f"held_out_share {self.held_out_share} given, (0, 1) expected.")
        if self.checkpoint_every_steps is not None and self.checkpoint_every_steps < 1:
            raise ValueError(
                f"checkpoint_every_steps {self.checkpoint_every_steps} given, "
                "at least 1 or None expected."
            )

    def epochs(self, n_training_rows: int) -> int:
        """Return the number of epochs that ``max_epochs`` and ``max_rows`` allow."""
        return max(1, min(self.max_epochs, self.max_rows // n_training_rows))

    def learning_rate_at(self, step: int, total_steps: int) -> float:
        """Return the learning rate of zero-based ``step``."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        done = (step - self.warmup_steps) / max(total_steps - self.warmup_steps, 1)
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of the history.

    Attributes
    ----------
    epoch : int
        From 1.
    train_loss : float
        Mean over the epoch's rows, under corruption.
    validation_loss : float
        Mean over held-out rows under the same corruption every epoch; decides when to stop.
    block_errors : dict of str to float
        Held-out rows without corruption: the share of each block's variance (of a category's
        entropy) that the embedding loses. Blocks that no held-out row has are left out.
    learning_rate : float
        Of the epoch's last step.
    steps : int
        Since the start of training.
    seconds : float
        Wall time of the epoch, of its last part when it was resumed.
    rows_per_second : float
        Training rows only, without validation.
    """

    epoch: int
    train_loss: float
    validation_loss: float
    block_errors: dict[str, float]
    learning_rate: float
    steps: int
    seconds: float
    rows_per_second: float


@dataclass(frozen=True)
class TrainingResult:
    """A trained model.

    Attributes
    ----------
    model : DenoisingAutoencoder
        Weights of the best epoch, float32 on the CPU.
    history : tuple of EpochRecord
    best_epoch : int
        From 1: the epoch with the lowest validation loss.
    stopped_early : bool
        Whether ``patience`` ran out before the last epoch.
    n_training_rows, n_validation_rows : int
    sample : float32 (at most 256, n_inputs)
        Inputs of held-out rows, to check the exported graph with.
    """

    model: DenoisingAutoencoder
    history: tuple[EpochRecord, ...]
    best_epoch: int
    stopped_early: bool
    n_training_rows: int
    n_validation_rows: int
    sample: npt.NDArray[np.float32]


@dataclass
class _Progress:
    """The scalars of a checkpoint."""

    epoch: int = 0
    step_in_epoch: int = 0
    steps: int = 0
    loss_sum: float = 0.0
    row_sum: int = 0
    best_epoch: int = 0
    best_loss: float = math.inf
    history: list[EpochRecord] = field(default_factory=list)


class _Objective(nn.Module):
    """Model and loss in one module: what is compiled and, with several GPUs, synchronised."""

    def __init__(self, model: DenoisingAutoencoder, loss: ReconstructionLoss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, shown: Tensor, clean: Tensor) -> BlockLosses:
        losses: BlockLosses = self.loss(self.model(shown).values, clean)
        return losses


def train(
    rows: RowSource,
    preprocessor: Preprocessor,
    config: TrainingConfig,
    checkpoint_dir: Path,
    *,
    resume: bool = True,
    progress: bool = True,
) -> TrainingResult:
    """Train a denoising autoencoder on the rows of users that are not held out.

    Randomness comes from ``config.seed``, the epoch and the step only, and a checkpoint holds
    weights, optimiser state and sums: a run that is killed and called again ends with the same
    bits as one that was not (same machine, torch version and number of threads). A finished run
    that is called again returns its result without training.

    Several GPUs: start the calling program with ``torchrun --nproc-per-node=N``.

    Parameters
    ----------
    rows : RowSource
        Parquet files; the table need not fit in memory.
    preprocessor : Preprocessor
    config : TrainingConfig
    checkpoint_dir : Path
        Takes the checkpoint (three times the weights) and, while training runs, the encoder
        inputs of all rows (``n_rows * n_inputs * 4`` bytes).
    resume : bool
        False: start over, whatever is there.
    progress : bool
        Show rows per second, loss and epoch on stderr.

    Raises
    ------
    TrainingFault
        The loss is not finite (names epoch and step), or the checkpoint belongs to another
        configuration, preprocessing or set of rows.
    DataFault
        There are no rows, or no row of a held-out user.
    """
    blocks = preprocessor.input_slices
    run = _fingerprint(rows, preprocessor, config)
    checkpoint_dir.mkdir(parents=True, exist_ok=True)
    checkpoint = checkpoint_dir / "checkpoint.safetensors"
    cache = checkpoint_dir / f"inputs-{_fingerprint(rows, preprocessor, config.held_out_share)}"

    with placement(config.device) as place:
        show = progress and place.leads
        if place.leads:
            cache_inputs(rows, preprocessor, cache, config.held_out_share, show)
        place.wait()
        inputs = cache_inputs(rows, preprocessor, cache, config.held_out_share, show)

        model = DenoisingAutoencoder(blocks, config.model)
        corruption = Corruption(blocks, config.model).to(place.device)
        objective = _Objective(model, ReconstructionLoss(blocks, config.block_weights))
        compiled = config.compile == "on" or (
            config.compile == "auto" and place.device.type == "cuda"
        )
        synchronised = place.wrap(objective, compiled)
        optimizer = torch.optim.AdamW(
            model.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        steps_per_epoch = inputs.training.n_batches(config.batch_size, config.buffer_rows)
        n_rows = inputs.training.n_rows
        epochs = config.epochs(n_rows)
        total_steps = steps_per_epoch * epochs
        at = _Progress()
        best: dict[str, Tensor] = {}
        if resume and checkpoint.exists():
            at, best = _resume(checkpoint, run, model, optimizer)
            logger.info("run %s resumed at epoch %s, step %s", run, at.epoch + 1, at.step_in_epoch)

        with tqdm(
            total=epochs * n_rows,
            initial=at.epoch * n_rows + at.row_sum,
            desc="train",
            unit="row",
            unit_scale=True,
            disable=not show,
        ) as bar:
            while at.epoch < epochs and not _out_of_patience(at, config):
                started, first_row = time.perf_counter(), at.row_sum
                order = (config.seed, at.epoch)
                for batch in inputs.training.shuffled(
                    config.batch_size, config.buffer_rows, order, at.step_in_epoch
                ):
                    rate = config.learning_rate_at(at.steps, total_steps)
                    for group in optimizer.param_groups:
                        group["lr"] = rate
                    mine = batch[place.rank :: place.world_size]
                    clean = torch.from_numpy(mine).to(place.device, non_blocking=True)
                    shown = corruption(clean, _generator(place, *order, at.step_in_epoch))
                    with place.autocast(config.precision):
                        losses = synchronised(shown, clean)
                    # Gradients are averaged over processes; this makes them the batch's mean.
                    loss = losses.rows.sum() * (place.world_size / len(batch))
                    value = loss.item()
                    if not math.isfinite(value):
                        raise TrainingFault(
                            f"The loss is {value} at epoch {at.epoch + 1}, step "
                            f"{at.step_in_epoch + 1} (step {at.steps + 1} of the run). "
                            f"Lower learning_rate ({config.learning_rate}) and train again."
                        )
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
                    optimizer.step()

                    at.loss_sum += value * len(batch)
                    at.row_sum += len(batch)
                    at.step_in_epoch += 1
                    at.steps += 1
                    bar.update(len(batch))
                    bar.set_postfix(epoch=at.epoch + 1, loss=f"{value:.4f}", refresh=False)
                    every = config.checkpoint_every_steps
                    if every and at.steps % every == 0 and at.step_in_epoch < steps_per_epoch:
                        _save(checkpoint, run, place, model, optimizer, at, best)

                trained = time.perf_counter() - started
                total = torch.tensor([at.loss_sum], dtype=torch.float64, device=place.device)
                train_loss = place.summed(total).item() / (at.row_sum * place.world_size)
                validation_loss, errors = _validate(
                    objective, corruption, inputs.validation, blocks, config, place
                )
                record = EpochRecord(
                    epoch=at.epoch + 1,
                    train_loss=train_loss,
                    validation_loss=validation_loss,
                    block_errors=errors,
                    learning_rate=rate,
                    steps=at.steps,
                    seconds=time.perf_counter() - started,
                    rows_per_second=(at.row_sum - first_row) / trained,
                )
                if validation_loss < at.best_loss - config.min_improvement:
                    at.best_epoch, at.best_loss = record.epoch, validation_loss
                    best = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
                at.history.append(record)
                at.epoch, at.step_in_epoch, at.loss_sum, at.row_sum = record.epoch, 0, 0.0, 0
                _save(checkpoint, run, place, model, optimizer, at, best)
                logger.info(
                    "run %s epoch %s: train %.4f, validation %.4f, %.0f rows/s",
                    *(run, record.epoch, train_loss, validation_loss, record.rows_per_second),
                )
        sample = inputs.validation.read(0, min(_SAMPLE_ROWS, inputs.validation.n_rows))
        place.wait()
        if place.leads:
            shutil.rmtree(cache)

    model = model.cpu()
    model.load_state_dict(best, strict=True)
    return TrainingResult(
        model=model,
        history=tuple(at.history),
        best_epoch=at.best_epoch,
        stopped_early=at.epoch < epochs,
        n_training_rows=inputs.training.n_rows,
        n_validation_rows=inputs.validation.n_rows,
        sample=sample,
    )


def _out_of_patience(at: _Progress, config: TrainingConfig) -> bool:
    return at.epoch - at.best_epoch >= config.patience


def _generator(place: Placement, *seed: int) -> torch.Generator:
    """Return a generator that depends on ``seed`` (and the process) only."""
    state = np.random.SeedSequence((*seed, place.rank)).generate_state(1, np.uint64)
    # torch takes signed 64 bits
    return torch.Generator(place.device).manual_seed(int(state[0] >> 1))


@torch.inference_mode()
def _validate(
    objective: _Objective,
    corruption: Corruption,
    matrix: InputMatrix,
    blocks: Sequence[InputBlock],
    config: TrainingConfig,
    place: Placement,
) -> tuple[float, dict[str, float]]:
    """Return the loss under a fixed corruption and each block's error without corruption."""
    generator = _generator(place, config.seed, _VALIDATION)
    loss = torch.zeros(1, dtype=torch.float64, device=place.device)
    errors = torch.zeros(len(blocks), dtype=torch.float64, device=place.device)
    present = torch.zeros_like(errors)
    for batch in matrix.in_order(_VALIDATION_ROWS):
        clean = torch.from_numpy(batch).to(place.device)
        with place.autocast(config.precision):
            corrupted: BlockLosses = objective(corruption(clean, generator), clean)
            exact: BlockLosses = objective(clean, clean)
        loss += corrupted.rows.double().sum()
        errors += exact.blocks.double().sum(dim=0)  # (n_blocks,)
        present += clean[:, blocks[-1].stop :].double().sum(dim=0)  # (n_blocks,)
    loss, errors = place.agreed(loss), place.agreed(errors)
    return loss.item() / matrix.n_rows, {
        b.name: (e / n).item() for b, e, n in zip(blocks, errors, present, strict=True) if n > 0
    }


def _fingerprint(rows: RowSource, preprocessor: Preprocessor, config: object) -> str:
    """Return 12 hex digits of everything that decides the numbers."""
    arrays, state = preprocessor.state()
    if isinstance(config, TrainingConfig):
        # How often a run is saved does not change what it computes.
        config = {k: v for k, v in asdict(config).items() if k != "checkpoint_every_steps"}
    text = json.dumps(
        [rows.fingerprint(), preprocessor.schema.to_dict(), state, config], sort_keys=True
    )
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()[:12]


def _save(
    path: Path,
    run: str,
    place: Placement,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    at: _Progress,
    best: Mapping[str, Tensor],
) -> None:
    if not place.leads:
        return
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"best.{k}": v for k, v in best.items()}
    for k, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{k}.{name}": value for name, value in state.items()}
    write_checkpoint(path, run, tensors, asdict(at))


def _resume(
    path: Path, run: str, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[_Progress, dict[str, Tensor]]:
    """Load a checkpoint into model and optimizer; return the scalars and the best weights."""
    tensors, scalars = read_checkpoint(path, run)
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        part, key = name.split(".", 1)
        parts[part][key] = tensor
    model.load_state_dict(parts["model"], strict=True)
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in parts["optimizer"].items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    scalars["history"] = [EpochRecord(**record) for record in scalars["history"]]
    return _Progress(**scalars), parts["best"]
