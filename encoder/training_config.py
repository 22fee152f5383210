"""Everything that training depends on besides the rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from encoder.autoencoder import AutoencoderConfig
from encoder.placement import DeviceChoice, Precision
from encoder.schedule import warm_cosine

__all__ = ["TrainingConfig"]


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
    weight_decay: float = 1.0
    """Decoupled weight decay: each step shrinks weights by this share of the learning rate. What it
    keeps out is memory: an encoder that has learned by heart what its training users did next gives
    them embeddings that a head trusts too much (docs/quality.md)."""
    clip_norm: float = 1.0
    """Largest gradient norm."""
    block_weights: Mapping[str, float] = field(default_factory=dict)
    """Block name -> relative weight in the loss; default 1."""
    prediction_weight: float = 3.0
    """Weight of the loss of what comes next, beside the reconstruction; 0: nothing is predicted."""
    prediction_days: tuple[int, ...] | None = None
    """Lengths of the spans after a row's newest event that are predicted, in days; None: the
    evaluation's horizon, and four times that."""
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
        days = self.prediction_days
        if days is not None and (not days or min(days) < 1 or len(set(days)) < len(days)):
            raise ValueError(
                f"prediction_days {list(days)} given, different numbers of at least 1 expected."
            )
        if not self.prediction_weight >= 0:
            raise ValueError(
                f"prediction_weight {self.prediction_weight} given, at least 0 expected."
            )
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
        if self.schedule == "constant" and step >= self.warmup_steps:
            return self.learning_rate
        return warm_cosine(step, total_steps, self.learning_rate, self.warmup_steps)
