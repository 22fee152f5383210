"""Training of the denoising autoencoder: one loop, resumable to the bit."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from encoder.autoencoder import Corruption, DenoisingAutoencoder
from encoder.compatibility import Compatibility, CompatibilityLoss, variance_of
from encoder.errors import TrainingFault
from encoder.losses import BlockLosses, ReconstructionLoss
from encoder.placement import Placement, placement
from encoder.preprocessing import InputBlock, Preprocessor
from encoder.progress import EpochRecord, Progress, resume_run, save_run
from encoder.rows import InputMatrix, RowSource, cache_inputs
from encoder.training_config import TrainingConfig

__all__ = ["EpochRecord", "TrainingConfig", "TrainingResult", "train"]

logger = logging.getLogger(__name__)

_VALIDATION_ROWS = 8192
_SAMPLE_ROWS = 256
_VALIDATION = 2**31
"""In place of an epoch in the seed: every epoch is validated under the same corruption."""


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


class _Losses(NamedTuple):
    """Losses of a batch.

    ``rows`` float32 (n,): what is minimised. ``blocks`` float32 (n, n_blocks), as `BlockLosses`;
    those of what comes next are last. ``distances`` float32 (n,): unweighted, to the reference
    encoder; None without one.
    """

    rows: Tensor
    blocks: Tensor
    distances: Tensor | None


class _Objective(nn.Module):
    """Model and loss in one module: what is compiled and, with several GPUs, synchronised."""

    def __init__(
        self,
        model: DenoisingAutoencoder,
        loss: ReconstructionLoss,
        prediction: ReconstructionLoss | None,
        prediction_weight: float,
        compatibility: CompatibilityLoss | None,
        compatibility_weight: float,
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.prediction, self.prediction_weight = prediction, prediction_weight
        self.compatibility, self.compatibility_weight = compatibility, compatibility_weight

    def forward(self, shown: Tensor, clean: Tensor, future: Tensor, reference: Tensor) -> _Losses:
        output = self.model(shown)
        losses: BlockLosses = self.loss(output.values, clean)
        rows, blocks, distances = losses.rows, losses.blocks, None
        if self.prediction is not None:
            predicted: BlockLosses = self.prediction(output.future, future)
            rows = rows + self.prediction_weight * predicted.rows
            blocks = torch.cat([blocks, predicted.blocks], dim=1)  # (n, n_blocks + n_future)
        if self.compatibility is not None:
            # Of the clean row, as consumers get it. Of the corrupted one it would be cheaper, and
            # the embedding would come out at a mean of what the hidden blocks may hold (ADR 0019).
            distances = self.compatibility(self.model.encoder(clean), reference)
            rows = rows + self.compatibility_weight * distances
        return _Losses(rows, blocks, distances)


def train(
    rows: RowSource,
    preprocessor: Preprocessor,
    config: TrainingConfig,
    checkpoint_dir: Path,
    *,
    future: Preprocessor | None = None,
    compatibility: Compatibility | None = None,
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
        Parquet files; the table need not fit in memory. With ``future``, it reads those columns
        too (``rows.future``).
    preprocessor : Preprocessor
    config : TrainingConfig
    checkpoint_dir : Path
        Takes the checkpoint (three times the weights) and, while training runs, the encoder
        inputs of all rows (``n_rows * n_inputs * 4`` bytes), beside them what comes next and the
        reference encoder's embeddings.
    future : Preprocessor, optional
        Of what comes next; predicted with weight ``config.prediction_weight`` beside the
        reconstruction. None changes no bit of the result.
    compatibility : Compatibility, optional
        Stay close to an earlier encoder. None changes no bit of the result.
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
    SpaceMismatch
        The reference encoder reads raw features of another modality version.
    ValueError
        The reference encoder's embedding has another length.
    """
    blocks = preprocessor.input_slices
    next_blocks = () if future is None else future.input_slices
    run = _fingerprint(rows, preprocessor, config, future, compatibility)
    checkpoint_dir.mkdir(parents=True, exist_ok=True)
    checkpoint = checkpoint_dir / "checkpoint.safetensors"
    content = _fingerprint(rows, preprocessor, config.held_out_share, future, compatibility)
    cache = checkpoint_dir / f"inputs-{content}"
    beside = [] if future is None else [future.transform]
    beside += [] if compatibility is None else [compatibility.reference.encode]
    # Where the columns of what comes next begin and end; the reference's embeddings follow.
    n_inputs = preprocessor.n_inputs
    columns_of = [n_inputs, n_inputs + (0 if future is None else future.n_inputs)]

    with placement(config.device) as place:
        show = progress and place.leads
        if place.leads:
            cache_inputs(rows, preprocessor, cache, config.held_out_share, show, beside)
        place.wait()
        inputs = cache_inputs(rows, preprocessor, cache, config.held_out_share, show, beside)

        model = DenoisingAutoencoder(blocks, config.model, next_blocks)
        corruption = Corruption(blocks, config.model).to(place.device)
        losses_of = _block_losses(blocks, next_blocks, config)
        objective = _Objective(
            model,
            *losses_of,
            *_compatibility_loss(
                compatibility, inputs.training, columns_of[1], config, predicted=losses_of[2]
            ),
        )
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
        at: Progress[EpochRecord] = Progress()
        best: dict[str, Tensor] = {}
        if resume and checkpoint.exists():
            at, best = resume_run(
                checkpoint, run, model, optimizer, EpochRecord, Progress[EpochRecord]
            )
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
                    columns = torch.from_numpy(mine).to(place.device, non_blocking=True)
                    clean, *further = columns.tensor_split(columns_of, dim=1)
                    shown = corruption(clean, _generator(place, *order, at.step_in_epoch))
                    with place.autocast(config.precision):
                        losses = synchronised(shown, clean, *further)
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
                    due = every and at.steps % every == 0 and at.step_in_epoch < steps_per_epoch
                    if due and place.leads:
                        save_run(checkpoint, run, model, optimizer, at, best)

                trained = time.perf_counter() - started
                total = torch.tensor([at.loss_sum], dtype=torch.float64, device=place.device)
                train_loss = place.summed(total).item() / (at.row_sum * place.world_size)
                validation_loss, errors, distance = _validate(
                    objective, corruption, inputs.validation, columns_of, config, place
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
                    compatibility_error=distance,
                )
                if validation_loss < at.best_loss - config.min_improvement:
                    at.best_epoch, at.best_loss = record.epoch, validation_loss
                    best = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
                at.history.append(record)
                at.epoch, at.step_in_epoch, at.loss_sum, at.row_sum = record.epoch, 0, 0.0, 0
                if place.leads:
                    save_run(checkpoint, run, model, optimizer, at, best)
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
        sample=sample[:, : preprocessor.n_inputs],
    )


def _block_losses(
    blocks: Sequence[InputBlock], next_blocks: Sequence[InputBlock], config: TrainingConfig
) -> tuple[ReconstructionLoss, ReconstructionLoss | None, float]:
    """Return the loss of the reconstruction, that of what comes next, and the latter's weight.

    Raises
    ------
    ValueError
        ``block_weights`` names no block, or leaves nothing to rebuild or to predict.
    """
    predicted = {b.name for b in next_blocks}
    weights: tuple[dict[str, float], dict[str, float]] = ({}, {})
    for name, weight in config.block_weights.items():
        weights[name in predicted][name] = weight
    rebuilt = ReconstructionLoss(blocks, weights[0])
    if not next_blocks:
        return rebuilt, None, 0.0
    return rebuilt, ReconstructionLoss(next_blocks, weights[1]), config.prediction_weight


def _compatibility_loss(
    compatibility: Compatibility | None,
    training: InputMatrix,
    first: int,
    config: TrainingConfig,
    *,
    predicted: float,
) -> tuple[CompatibilityLoss | None, float]:
    """Return the term and its weight; the reference's embeddings begin at column ``first``.

    ``predicted`` is the weight of the prediction.
    """
    if compatibility is None:
        return None, 0.0
    width, expected = training.n_inputs - first, config.model.embedding_dim
    if width != expected:
        raise ValueError(
            f"embedding_dim {expected} given, the encoder to be compatible with "
            f"({compatibility.reference.encoder_version}) has {width}. Give both the same, or "
            "train without `compatibility` and serve a bridge."
        )
    variance = variance_of(training, first)
    # One weight means the same with and without a prediction, whose loss stands beside.
    return CompatibilityLoss(variance), compatibility.weight * (1.0 + predicted)


def _out_of_patience(at: Progress[EpochRecord], config: TrainingConfig) -> bool:
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
    columns_of: Sequence[int],
    config: TrainingConfig,
    place: Placement,
) -> tuple[float, dict[str, float], float | None]:
    """Return the loss under a fixed corruption; without any, block errors and the distance."""
    generator = _generator(place, config.seed, _VALIDATION)
    terms = [t for t in (objective.loss, objective.prediction) if t is not None]
    names = [name for term in terms for name in term.names]
    loss = torch.zeros(1, dtype=torch.float64, device=place.device)
    distance = torch.zeros_like(loss)
    errors = torch.zeros(len(names), dtype=torch.float64, device=place.device)
    present = torch.zeros_like(errors)
    for batch in matrix.in_order(_VALIDATION_ROWS):
        columns = torch.from_numpy(batch).to(place.device)
        clean, *further = columns.tensor_split(list(columns_of), dim=1)
        with place.autocast(config.precision):
            corrupted: _Losses = objective(corruption(clean, generator), clean, *further)
            exact: _Losses = objective(clean, clean, *further)
        loss += corrupted.rows.double().sum()
        errors += exact.blocks.double().sum(dim=0)  # (n_blocks + n_future,)
        masks = [c[:, t.n_values :] for t, c in zip(terms, (clean, *further), strict=False)]
        present += torch.cat(masks, dim=1).double().sum(dim=0)  # (n_blocks + n_future,)
        if exact.distances is not None:
            distance += exact.distances.double().sum()
    loss, errors, distance = place.agreed(loss), place.agreed(errors), place.agreed(distance)
    return (
        loss.item() / matrix.n_rows,
        {name: (e / n).item() for name, e, n in zip(names, errors, present, strict=True) if n > 0},
        None if objective.compatibility is None else distance.item() / matrix.n_rows,
    )


def _fingerprint(
    rows: RowSource,
    preprocessor: Preprocessor,
    config: object,
    future: Preprocessor | None,
    compatibility: Compatibility | None,
) -> str:
    """Return 12 hex digits of everything that decides the numbers."""
    arrays, state = preprocessor.state()
    arrays = dict(arrays)
    if isinstance(config, TrainingConfig):
        # How often a run is saved does not change what it computes.
        config = {k: v for k, v in asdict(config).items() if k != "checkpoint_every_steps"}
    content = [rows.fingerprint(), preprocessor.schema.to_dict(), state, config]
    if future is not None:
        content.append(future.schema.to_dict())
        arrays |= {f"future.{name}": array for name, array in future.state()[0].items()}
    if compatibility is not None:
        content.append([compatibility.reference.encoder_version, compatibility.weight])
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()[:12]
