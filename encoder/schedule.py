"""The learning rate of a step."""

from __future__ import annotations

import math

__all__ = ["warm_cosine"]


def warm_cosine(step: int, total_steps: int, peak: float, warmup_steps: int) -> float:
    """Return the learning rate of zero-based ``step``: a linear rise, then half a cosine to 0."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))
