"""Contrastive training: one loop, resumable to the bit."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from encoder.clue.config import ClueTrainingConfig
from encoder.clue.flops import FlopMeter
from encoder.clue.grad_cache import GradCache
from encoder.clue.info_nce import retrieval_rank
from encoder.clue.network import ClueNetwork
from encoder.clue.sequences import Pairs, UserSequences
from encoder.errors import DataFault, TrainingFault
from encoder.placement import Placement, placement
from encoder.progress import Progress, resume_run, save_run
from encoder.schedule import warm_cosine

__all__ = ["ClueEpoch", "ClueResult", "train_clue", "training_pairs"]

logger = logging.getLogger(__name__)

_VALIDATION = 2**31
"""In place of an epoch in the seed: every epoch is validated on the same batches."""


@dataclass(frozen=True)
class ClueEpoch:
    """One epoch of the history.

    Attributes
    ----------
    epoch : int
        From 1.
    train_loss : float
        Mean over the epoch's batches, nats.
    validation_loss : float
        Mean over batches of ``validation_users`` held-out users, whole views, nats; decides when
        to stop.
    validation_mrr : float
        Mean of one over the place at which a held-out user finds itself in the other view.
    temperature : float
        At the end of the epoch.
    learning_rate : float
        Of the epoch's last step.
    steps : int
        Since the start of training.
    seconds : float
        Wall time of the epoch, of its last part when it was resumed.
    tokens_per_second : float
        Tokens that the item transformer read in training, padding left out; of the same part.
    model_flops, executed_flops : int
        Since the start of training, see `encoder.clue.flops.Flops`.
    """

    epoch: int
    train_loss: float
    validation_loss: float
    validation_mrr: float
    temperature: float
    learning_rate: float
    steps: int
    seconds: float
    tokens_per_second: float
    model_flops: int
    executed_flops: int


@dataclass
class _At(Progress[ClueEpoch]):
    """How far training has come, and what it has cost."""

    model_flops: int = 0
    executed_flops: int = 0


@dataclass(frozen=True)
class ClueResult:
    """A trained network.

    Attributes
    ----------
    network : ClueNetwork
        Weights of the best epoch, float32 on the CPU.
    history : tuple of ClueEpoch
    best_epoch : int
        From 1: the epoch with the lowest validation loss.
    stopped_early : bool
        Whether ``patience`` ran out before the last step.
    n_training_users, n_validation_users : int
        Users with two views.
    """

    network: ClueNetwork
    history: tuple[ClueEpoch, ...]
    best_epoch: int
    stopped_early: bool
    n_training_users: int
    n_validation_users: int


def train_clue(
    sequences: UserSequences,
    vocabulary: int,
    config: ClueTrainingConfig,
    checkpoint_dir: Path,
    *,
    resume: bool = True,
    progress: bool = True,
) -> ClueResult:
    """Train a CLUE network on the users that are not held out.

    Randomness comes from ``config.seed``, the epoch and the batch only, and a checkpoint holds
    weights, optimiser state and sums: a run that is killed and called again ends with the same
    bits as one that was not (same machine, torch version and number of threads). A finished run
    that is called again returns its result without training.

    Several GPUs: start the calling program with ``torchrun --nproc-per-node=N``. The batch is
    shared out among them, and each user has the users of all as negatives.

    Parameters
    ----------
    sequences : UserSequences
    vocabulary : int
        Of the tokenizer that made ``sequences.tokens``.
    config : ClueTrainingConfig
    checkpoint_dir : Path
        Takes the checkpoint, four times the weights.
    resume : bool
        False: start over, whatever is there.
    progress : bool
        Show steps, loss and epoch on stderr.

    Raises
    ------
    DataFault
        Too few users have two views for a single training or validation batch.
    TrainingFault
        The loss is not finite (names epoch and step), or the checkpoint belongs to another
        configuration or other data.
    ValueError
        The token table is wider than the network reads, or the batch cannot be shared out.
    """
    if sequences.tokens.shape[1] > config.model.max_item_tokens:
        raise ValueError(
            f"Items of {sequences.tokens.shape[1]} tokens given, max_item_tokens is "
            f"{config.model.max_item_tokens}. Tokenize with that length."
        )
    training, validation = _parts(sequences, config)
    checkpoint_dir.mkdir(parents=True, exist_ok=True)
    checkpoint = checkpoint_dir / "checkpoint.safetensors"
    run = _fingerprint(sequences, vocabulary, config)

    with placement(config.device) as place:
        if config.batch_size % place.world_size:
            raise ValueError(
                f"batch_size {config.batch_size} given, a multiple of {place.world_size} expected: "
                "so many processes share it out."
            )
        network = ClueNetwork(config.model, vocabulary).to(place.device)
        compiled = config.compile == "on" or (
            config.compile == "auto" and place.device.type == "cuda"
        )
        cache = GradCache(
            network, place, config.precision, config.chunks, compiled, config.hardness
        )
        meter = FlopMeter(network)
        optimizer = _optimizer(network, config)
        total_steps = config.steps(training.n_batches(config.batch_size, (config.seed, 0)))
        at, best = _At(), dict[str, Tensor]()
        if resume and checkpoint.exists():
            at, best = resume_run(checkpoint, run, network, optimizer, ClueEpoch, _At)
            logger.info("run %s resumed at epoch %s, step %s", run, at.epoch + 1, at.step_in_epoch)

        with tqdm(
            total=total_steps,
            initial=at.steps,
            desc="train",
            unit="step",
            disable=not (progress and place.leads),
        ) as bar:
            while at.steps < total_steps and at.epoch - at.best_epoch < config.patience:
                started, tokens = time.perf_counter(), 0
                order = (config.seed, at.epoch)
                for batch in training.batches(config.batch_size, order, first=at.step_in_epoch):
                    rate = warm_cosine(
                        at.steps, total_steps, config.learning_rate, config.warmup_steps
                    )
                    for group in optimizer.param_groups:
                        group["lr"] = rate * group["share"]
                    value = cache.step(batch.slice(place.rank, place.world_size))
                    if not math.isfinite(value):
                        raise TrainingFault(
                            f"The loss is {value} at epoch {at.epoch + 1}, step "
                            f"{at.step_in_epoch + 1} (step {at.steps + 1} of the run). "
                            f"Lower learning_rate ({config.learning_rate}) and train again."
                        )
                    nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
                    optimizer.step()

                    flops = meter.of(batch, config.chunks)
                    at.model_flops += flops.model
                    at.executed_flops += flops.executed
                    at.loss_sum += value
                    at.row_sum += batch.n_users
                    at.step_in_epoch += 1
                    at.steps += 1
                    tokens += batch.n_tokens
                    bar.update()
                    bar.set_postfix(epoch=at.epoch + 1, loss=f"{value:.4f}", refresh=False)
                    every = config.checkpoint_every_steps
                    if every and at.steps % every == 0 and place.leads:
                        save_run(checkpoint, run, network, optimizer, at, best)
                    if at.steps == total_steps:
                        break

                if not at.step_in_epoch:
                    raise DataFault(
                        f"Epoch {at.epoch + 1} has no whole batch of {config.batch_size:,} users. "
                        "Lower batch_size, or give more data."
                    )
                trained = time.perf_counter() - started
                loss, mrr = _validate(cache, validation, config, place)
                record = ClueEpoch(
                    epoch=at.epoch + 1,
                    train_loss=at.loss_sum / at.step_in_epoch,
                    validation_loss=loss,
                    validation_mrr=mrr,
                    temperature=math.exp(-network.log_scale.item()),
                    learning_rate=warm_cosine(
                        at.steps - 1, total_steps, config.learning_rate, config.warmup_steps
                    ),
                    steps=at.steps,
                    seconds=time.perf_counter() - started,
                    tokens_per_second=tokens / trained,
                    model_flops=at.model_flops,
                    executed_flops=at.executed_flops,
                )
                if loss < at.best_loss - config.min_improvement:
                    at.best_epoch, at.best_loss = record.epoch, loss
                    best = {k: v.detach().cpu().clone() for k, v in network.state_dict().items()}
                at.history.append(record)
                at.epoch, at.step_in_epoch, at.loss_sum, at.row_sum = record.epoch, 0, 0.0, 0
                if place.leads:
                    save_run(checkpoint, run, network, optimizer, at, best)
                logger.info(
                    "run %s epoch %s: train %.4f, validation %.4f, MRR %.4f, %.0f tokens/s",
                    *(run, record.epoch, record.train_loss, loss, mrr, record.tokens_per_second),
                )

    network = network.cpu()
    network.load_state_dict(best, strict=True)
    return ClueResult(
        network=network,
        history=tuple(at.history),
        best_epoch=at.best_epoch,
        stopped_early=at.steps < total_steps,
        n_training_users=len(training.users),
        n_validation_users=len(validation.users),
    )


def training_pairs(sequences: UserSequences, config: ClueTrainingConfig) -> Pairs:
    """Return the users to train on.

    Raises
    ------
    DataFault
        No user has two views.
    """
    return Pairs(
        sequences,
        "training",
        config.held_out_share,
        positives=config.positives,
        max_events=config.model.max_events,
        noise=config.noise,
        share=config.user_share,
    )


def _parts(sequences: UserSequences, config: ClueTrainingConfig) -> tuple[Pairs, Pairs]:
    training = training_pairs(sequences, config)
    validation = Pairs(
        sequences,
        "validation",
        config.held_out_share,
        positives=config.positives,
        max_events=config.model.max_events,
    )
    sizes = {
        "batch_size": (training, config.batch_size, (config.seed, 0)),
        "validation_users": (validation, config.validation_users, (config.seed, _VALIDATION)),
    }
    for name, (pairs, size, seed) in sizes.items():
        if not pairs.n_batches(size, seed):
            raise DataFault(
                f"{name} {size:,} given, no pair of services has so many of the "
                f"{len(pairs.users):,} users with two views. Lower {name}, or give more data."
            )
    return training, validation


def _optimizer(network: ClueNetwork, config: ClueTrainingConfig) -> torch.optim.Optimizer:
    """Return AdamW whose groups have a ``share`` of the learning rate.

    Vectors (biases, norms, the temperature) are left without decay. Tables of vectors have the
    whole rate, other matrices less, the wider they are.

    References
    ----------
    Yang et al. 2022, arXiv 2203.03466, table 8 (Adam: tables a constant rate, matrices one over
    their width).
    """
    tables = {id(m.weight) for m in network.modules() if isinstance(m, nn.Embedding)}
    share = min(1.0, config.rate_width / config.model.width)
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for parameter in network.parameters():
        matrix = parameter.ndim > 1
        decay = config.weight_decay if matrix else 0.0
        group = (decay, share if matrix and id(parameter) not in tables else 1.0)
        groups.setdefault(group, []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": decay, "share": part}
            for (decay, part), parameters in groups.items()
        ],
        config.learning_rate,
        betas=(0.9, 0.98),
        fused=True,
    )


def _validate(
    cache: GradCache, pairs: Pairs, config: ClueTrainingConfig, place: Placement
) -> tuple[float, float]:
    """Return loss and mean reciprocal rank of held-out users among ``validation_users``."""
    size, seed = config.validation_users, (config.seed, _VALIDATION)
    found: list[tuple[float, float]] = []
    for batch in pairs.batches(size, seed):
        loss, a, b = cache.loss(batch)
        ranks: Sequence[Tensor] = (retrieval_rank(a, b), retrieval_rank(b, a))
        found.append((loss, float(torch.cat(list(ranks)).double().reciprocal().mean())))
    means = torch.tensor(found, dtype=torch.float64, device=place.device).mean(0)
    loss, mrr = place.agreed(means).tolist()
    return loss, mrr


def _fingerprint(sequences: UserSequences, vocabulary: int, config: ClueTrainingConfig) -> str:
    """Return 12 hex digits of everything that decides the numbers."""
    # How often a run is saved does not change what it computes.
    told = {k: v for k, v in config.told().items() if k != "checkpoint_every_steps"}
    content = [sequences.fingerprint(), vocabulary, told]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
