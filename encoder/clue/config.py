"""Everything that contrastive training depends on besides the data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from encoder.clue.grad_cache import Chunks
from encoder.clue.network import ClueConfig
from encoder.clue.sequences import Noise
from encoder.placement import DeviceChoice, Precision

__all__ = ["ClueTrainingConfig", "Positives"]

Positives = Literal["services", "crops", "both"]


@dataclass(frozen=True)
class ClueTrainingConfig:
    """Everything that contrastive training depends on besides the data."""

    model: ClueConfig = field(default_factory=ClueConfig)
    """The two transformers."""
    positives: Positives = "services"
    """``services``: a user in two services. ``crops``: two stretches of a user's events in one
    service, the contrast within a single service that CLUE is compared with. ``both``: one of the
    two at random each epoch, whichever a user has."""
    hardness: float = 0.0
    """How much more those among the negatives count in training who are more alike
    (`encoder.clue.info_nce.info_nce`); 0: all count the same, as in the paper."""
    batch_size: int = 256
    """Users a step, over all processes together: each has all others as negatives."""
    max_epochs: int = 30
    """Epochs at most; the cosine schedule ends here, or where ``max_steps`` does."""
    max_steps: int | None = None
    """Steps at most."""
    learning_rate: float = 5e-4
    """Peak learning rate of AdamW."""
    rate_width: int = 32
    """Width of the transformers up to which matrices learn at ``learning_rate``; wider ones learn
    at ``rate_width / width`` of it, so that one rate suits all widths (arXiv 2203.03466)."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises linearly from 0."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices."""
    clip_norm: float = 1.0
    """Largest gradient norm."""
    event_dropout: float = 0.5
    """Chance that training leaves an event out of a view, [0, 1); 0: none, as in the paper."""
    token_dropout: float = 0.3
    """Chance that training leaves a token of an item out, [0, 1); 0: none, as in the paper."""
    guide_dropout: float = 0.1
    """Chance that an item's guide token is that of an unknown service, [0, 1)."""
    user_share: float = 1.0
    """Share of the training users to take, by a hash, (0, 1]."""
    held_out_share: float = 0.1
    """Share of users whose batches decide when to stop, (0, 1)."""
    validation_users: int = 256
    """Users of a validation batch, whatever ``batch_size`` is: losses of different numbers of
    negatives cannot be compared."""
    patience: int = 8
    """Epochs without improvement before training stops; the loss stands still in the first ones."""
    min_improvement: float = 1e-4
    """Smallest fall of the validation loss that counts as improvement."""
    chunks: Chunks = field(default_factory=Chunks)
    """How much goes through a transformer at once: bounds memory, changes no result but rounding.
    The small default suits a CPU's caches; give a GPU ten times as much."""
    checkpoint_every_steps: int | None = None
    """Steps between checkpoints inside an epoch; None: only after each epoch."""
    seed: int = 0
    """Seed of the order of users, of their stretches and of guide tokens."""
    device: DeviceChoice = "auto"
    """``auto``: a GPU when torch sees one."""
    precision: Precision = "auto"
    """``auto``: bfloat16 autocast on a GPU that has it, float32 elsewhere."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile; ``auto``: on a GPU."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "validation_users"):
            if getattr(self, name) < 2:
                raise ValueError(
                    f"{name} {getattr(self, name)} given, at least 2 expected: a user needs "
                    "somebody to be told from."
                )
        for name in ("rate_width", "max_epochs", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} given, at least 1 expected.")
        for name in ("max_steps", "checkpoint_every_steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(
                    f"{name} {getattr(self, name)} given, at least 1 or None expected."
                )
        if not 0.0 <= self.hardness < math.inf:
            raise ValueError(f"hardness {self.hardness} given, a number of at least 0 expected.")
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} {getattr(self, name)} given, more than 0 expected.")
        if not 0.0 < self.held_out_share < 1.0:
            raise ValueError(f"held_out_share {self.held_out_share} given, (0, 1) expected.")
        if not 0.0 < self.user_share <= 1.0:
            raise ValueError(f"user_share {self.user_share} given, (0, 1] expected.")
        for name in ("event_dropout", "token_dropout", "guide_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} {getattr(self, name)} given, [0, 1) expected.")

    def told(self) -> dict[str, Any]:
        """Return all fields as plain types, by which a training is known again.

        One that came later stands there only where it changes something: what was trained before
        it came stays known.
        """
        fields = asdict(self)
        if not self.hardness:
            del fields["hardness"]
        return fields

    @property
    def noise(self) -> Noise:
        """What training hides of the views."""
        return Noise(self.event_dropout, self.token_dropout, self.guide_dropout)

    def steps(self, steps_per_epoch: int) -> int:
        """Return the number of steps that ``max_epochs`` and ``max_steps`` allow."""
        steps = self.max_epochs * steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)
