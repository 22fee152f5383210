"""Loss per block, of the reconstruction and of what comes next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoder.preprocessing import InputBlock

__all__ = ["BlockLosses", "ReconstructionLoss"]

_SMALLEST_ENTROPY = 0.1
"""Nats. A category that hardly varies would otherwise outweigh everything else."""


class BlockLosses(NamedTuple):
    """Losses of a batch.

    Attributes
    ----------
    rows : float32 (n,)
        Weighted sum over a row's blocks; a row's loss does not depend on the other rows.
    blocks : float32 (n, n_blocks)
        Unweighted; exactly 0 where the block is absent.
    """

    rows: Tensor
    blocks: Tensor


class ReconstructionLoss(nn.Module):
    r"""Masked reconstruction error of every block, on one scale.

    For row i and block b with values :math:`x` and prediction :math:`y`:

    - pooled, histogram, counts, numbers: :math:`m_{ib} \frac{1}{|b|} \sum_{j \in b} (y_{ij} -
      x_{ij})^2`, the squared error normalised by the block's width;
    - category: the cross entropy of the softmax over the block's logits, divided by the entropy
      of the training frequencies (floored at 0.1 nats).

    :math:`m_{ib}` is the presence of the block in the *clean* row, so a block that the corruption
    hid is still to be reconstructed, and a block that the data lacks contributes exactly 0 to
    value and gradient. Both kinds are near 1 for a constant guess; a loss of 0.3 means that 30 %
    of the block's variance (or entropy) is lost. The row's loss is the mean over blocks with
    weights ``weights`` (equal by default); it is a sum over rows, so shards of a batch add up.

    Inputs: prediction float (n, n_values), clean inputs float32 (n, n_inputs).

    Parameters
    ----------
    blocks : sequence of InputBlock
    weights : mapping of str to float, optional
        Block name -> relative weight, default 1 each.

    Raises
    ------
    ValueError
        A weight names no block or is negative, or all are 0.

    References
    ----------
    Vincent et al. 2008, "Extracting and composing robust features with denoising autoencoders",
    section 2.3: the loss compares with the clean input.
    GUR, arXiv 2403.00584: reconstruction of heterogeneous user features, per feature group.
    """

    spread: Tensor
    weights: Tensor

    def __init__(
        self, blocks: Sequence[InputBlock], weights: Mapping[str, float] | None = None
    ) -> None:
        super().__init__()
        weights = weights or {}
        names = self.names = tuple(b.name for b in blocks)
        unknown = sorted(set(weights) - set(names))
        if unknown:
            raise ValueError(
                f"Weights for unknown block(s) {', '.join(unknown)} given. "
                f"Known: {', '.join(sorted(names))}."
            )
        values = torch.tensor([float(weights.get(name, 1.0)) for name in names])
        if bool((values < 0).any()) or float(values.sum()) <= 0:
            raise ValueError(f"Block weights {dict(weights)!r} given, at least 0 and not all 0.")
        self.n_values = blocks[-1].stop
        self.categories = [(k, b) for k, b in enumerate(blocks) if b.kind == "category"]
        # One matrix product gives all squared-error blocks at once; slicing each block would make
        # autograd write a full-size gradient per block.
        spread = torch.zeros(self.n_values, len(blocks))
        for k, b in enumerate(blocks):
            if b.kind != "category":
                spread[b.start : b.stop, k] = 1.0 / b.width
        self.register_buffer("spread", spread, persistent=False)
        self.register_buffer("weights", values / values.sum(), persistent=False)

    def forward(self, prediction: Tensor, inputs: Tensor) -> BlockLosses:
        """Return the losses of ``prediction`` (n, n_values) against clean ``inputs``."""
        prediction = prediction.float()  # autocast may hand over bfloat16
        target = inputs[:, : self.n_values]  # (n, n_values)
        present = inputs[:, self.n_values :]  # (n, n_blocks)
        blocks = ((prediction - target).square() @ self.spread) * present  # (n, n_blocks)
        if self.categories:
            # Zero rows of a one-hot target give exactly zero cross entropy and gradient.
            crossed = torch.zeros_like(blocks)
            for k, b in self.categories:
                loss = F.cross_entropy(
                    prediction[:, b.start : b.stop], target[:, b.start : b.stop], reduction="none"
                )
                crossed[:, k] = loss / max(b.constant_loss, _SMALLEST_ENTROPY)
            blocks = blocks + crossed
        return BlockLosses(blocks @ self.weights, blocks)
