"""The contrastive loss: which of these users is the same in another service."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["LARGEST_SCALE", "info_nce", "retrieval_rank"]

LARGEST_SCALE = 100.0
"""One over the smallest temperature; beyond it training becomes unstable (CLIP, section 2.5)."""


def info_nce(a: Tensor, b: Tensor, log_scale: Tensor) -> Tensor:
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

    References
    ----------
    van den Oord et al. 2018, arXiv 1807.03748, equation 4.
    CLUE, arXiv 2111.11294, equation 1; the mean over rows and columns as in CLIP (Radford et al.
    2021, figure 3), from which the limit of the temperature is taken as well.
    """
    scale = log_scale.exp().clamp(max=LARGEST_SCALE)
    logits = scale * (a @ b.T)  # (n, n)
    same = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2


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
