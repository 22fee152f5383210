"""Rows of token ids taken apart: items with their service, and a user's events in each service."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from encoder.clue.tokenizer import PAD

__all__ = ["TokenRows"]

Longs = npt.NDArray[np.int64]
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class TokenRows:
    """The items of rows, in the order in which they stand there.

    Attributes
    ----------
    row, guide, length : int64 (n_items,)
        Row of each item, its first token (which names the service), and its number of tokens.
    place : int64 (n_tokens,)
        Which item each token belongs to.
    token : int32 (n_tokens,)
    """

    row: Longs
    guide: Longs
    length: Longs
    place: Longs
    token: Ints

    @classmethod
    def of(cls, inputs: Ints, n_guides: int) -> TokenRows:
        """Take rows apart; an item begins at each guide token.

        Parameters
        ----------
        inputs : int32 (n_rows, n)
            A guide token first in each row; `PAD` behind the last token.
        n_guides : int
            Guide tokens are 1 to ``n_guides``.
        """
        row, column = np.nonzero(inputs != PAD)
        token = inputs[row, column]
        first = np.flatnonzero(token <= n_guides)
        length = np.diff(np.append(first, len(token)))
        return cls(
            row=row[first],
            guide=token[first].astype(np.int64),
            length=length,
            place=np.repeat(np.arange(len(first)), length),
            token=token,
        )

    def padded(self, width: int) -> Ints:
        """Return the tokens of each item, int32 (n_items, width), `PAD` behind the last one."""
        tokens = np.full((len(self.row), width), PAD, np.int32)
        tokens[np.arange(width) < self.length[:, None]] = self.token
        return tokens

    @cached_property
    def sequence(self) -> Longs:
        """First item of each run of items of one row and service: int64 (n_sequences,)."""
        new = (np.diff(self.row, prepend=-1) != 0) | (np.diff(self.guide, prepend=-1) != 0)
        return np.flatnonzero(new)

    @cached_property
    def sequence_length(self) -> Longs:
        """Number of items of each run: int64 (n_sequences,)."""
        return np.diff(np.append(self.sequence, len(self.row)))
