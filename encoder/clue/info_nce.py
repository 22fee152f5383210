"""The contrastive loss: which of these users is the same in another service."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["LARGEST_SCALE", "info_nce", "retrieval_rank"]

LARGEST_SCALE = 100.0
"""One over the smallest temperature; beyond it training becomes unstable (CLIP, section 2.5)."""


def info_nce(a: Tensor, b: Tensor, log_scale: Tensor, hardness: float = 0.0) -> Tensor:
    r"""Return the symmetric InfoNCE loss of a batch, a scalar in nats.

    With unit rows :math:`a_i, b_j` and temperature :math:`\tau`,

    .. math:: -\frac{1}{2n} \sum_i \left[ \log \frac{e^{a_i \cdot b_i / \tau}}
        {\sum_j e^{a_i \cdot b_j / \tau}} + \log \frac{e^{a_i \cdot b_i / \tau}}
        {\sum_j e^{a_j \cdot b_i / \tau}} \right]

    A guess has the loss log(n), so losses are comparable at one batch size only.

    Parameters
    ----------
    a, b : float32 (n, dim)
        Row i of both is one user; the other rows are its negatives. Length 1.
    log_scale : float32 ()
        log(1 / temperature), at most the logarithm of `LARGEST_SCALE` counts.
    hardness : float
        Negative j of user i weighs :math:`e^{\beta a_i \cdot b_j / \tau}` with
        :math:`\beta` this number, relative to the mean of the user's negatives: who is more alike
        counts more. 0: all weigh 1, as above.

    References
    ----------
    van den Oord et al. 2018, arXiv 1807.03748, equation 4.
    CLUE, arXiv 2111.11294, equation 1; the mean over rows and columns as in CLIP (Radford et al.
    2021, figure 3), from which the limit of the temperature is taken as well.
    Robinson et al. 2021, "Contrastive learning with hard negative samples", arXiv 2010.04592,
    section 3 without the correction for false negatives: the weights.
    """
    scale = log_scale.exp().clamp(max=LARGEST_SCALE)
    logits = scale * (a @ b.T)  # (n, n)
    if hardness:
        return (_weighted(logits, hardness) + _weighted(logits.T, hardness)) / 2
    same = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2


def _weighted(logits: Tensor, hardness: float) -> Tensor:
    """Return the mean loss of rows whose negatives, (n, n) without the diagonal, have weights."""
    own = logits.diagonal()
    same = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    others = logits.masked_fill(same, -torch.inf)
    # log of the sum of e^s times e^(hardness s) over its mean.
    negatives = (
        torch.logsumexp((1 + hardness) * others, 1)
        - torch.logsumexp(hardness * others, 1)
        + math.log(len(logits) - 1)
    )
    return (torch.logaddexp(own, negatives) - own).mean()


def retrieval_rank(a: Tensor, b: Tensor) -> Tensor:
    """Return at which place each row of ``a`` finds its own row of ``b``, int64 (n,) from 1.

    Ties count against it.

    Parameters
    ----------
    a, b : float (n, dim)
    """
    similarity = a @ b.T  # (n, n)
    own = similarity.diagonal()[:, None]
    return (similarity >= own).sum(1)
