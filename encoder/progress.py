"""How far a training run has come: its history, and saving and resuming it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from encoder.checkpoint import read_checkpoint, write_checkpoint

__all__ = ["EpochRecord", "Progress", "resume_run", "save_run"]


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
    compatibility_error : float or None
        Held-out rows without corruption: squared distance to the reference encoder's embedding, as
        a share of its variance. None without a reference.
    """

    epoch: int
    train_loss: float
    validation_loss: float
    block_errors: dict[str, float]
    learning_rate: float
    steps: int
    seconds: float
    rows_per_second: float
    compatibility_error: float | None = None


Record = TypeVar("Record")
At = TypeVar("At")


@dataclass
class Progress(Generic[Record]):
    """The scalars of a checkpoint; ``history`` holds one dataclass an epoch."""

    epoch: int = 0
    step_in_epoch: int = 0
    steps: int = 0
    loss_sum: float = 0.0
    row_sum: int = 0
    best_epoch: int = 0
    best_loss: float = math.inf
    history: list[Record] = field(default_factory=list)


def save_run(
    path: Path,
    run: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    at: Progress[Record],
    best: Mapping[str, Tensor],
) -> None:
    """Write the checkpoint of a run: weights, the best ones, optimiser state and scalars."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"best.{k}": v for k, v in best.items()}
    for k, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{k}.{name}": value for name, value in state.items()}
    write_checkpoint(path, run, tensors, asdict(at))


def resume_run(
    path: Path,
    run: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    record: Callable[..., Record],
    progress: Callable[..., At],
) -> tuple[At, dict[str, Tensor]]:
    """Load a checkpoint into model and optimizer; return the scalars and the best weights.

    ``progress`` makes the scalars from their fields, ``record`` an epoch of the history.
    """
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
    scalars["history"] = [record(**told) for told in scalars["history"]]
    return progress(**scalars), parts["best"]
