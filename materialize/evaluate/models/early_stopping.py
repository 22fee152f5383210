"""Training until held-out users' loss grows: the loop that heads and networks of pairs share."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import nn

__all__ = ["fit_until_worse"]

logger = logging.getLogger(__name__)


def fit_until_worse(
    network: nn.Module,
    train: Callable[[], None],
    held_out_loss: Callable[[], float],
    *,
    max_epochs: int,
    patience: int,
    what: str,
) -> float:
    """Train in place, leave the network at its best epoch and return that epoch's loss.

    Parameters
    ----------
    network : nn.Module
    train : callable
        Runs one epoch.
    held_out_loss : callable
        Loss of users who are not trained on.
    max_epochs : int
    patience : int
        Epochs without a smaller loss, after which training ends.
    what : str
        For messages: the network and its setting.

    Raises
    ------
    FloatingPointError
        A loss that is not finite, with the epoch.
    """
    best, kept, worse = np.inf, copy.deepcopy(network.state_dict()), 0
    for epoch in range(max_epochs):
        train()
        found = held_out_loss()
        logger.debug("%s, epoch %d: %.5f", what, epoch + 1, found)
        if not np.isfinite(found):
            raise FloatingPointError(
                f"The held-out loss of {what} is {found} after epoch {epoch + 1}."
            )
        if found < best:
            best, kept, worse = found, copy.deepcopy(network.state_dict()), 0
        else:
            worse += 1
            if worse > patience:
                break
    network.load_state_dict(kept)
    return float(best)
