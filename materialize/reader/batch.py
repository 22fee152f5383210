"""What a read returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from encoder.errors import EmbeddingError
from materialize.ledger import Pin

__all__ = ["CORRUPT", "NOT_FOUND", "ON_DEMAND", "STORED", "EmbeddingBatch", "FreshBatch"]

NOT_FOUND = "NOT_FOUND"
"""Status of a user whom the pinned view does not have."""

CORRUPT = "CORRUPT"
"""Status of a user whose stored values are damaged, where the caller asks for errors by row."""

STORED, ON_DEMAND = "stored", "on_demand"
"""Where a row of a freshest-wins read came from."""


@dataclass(frozen=True, eq=False)
class EmbeddingBatch:
    """Embeddings of one space, in the order of the users that were asked for.

    Attributes
    ----------
    embedding : float32 (n, d)
        A row of NaN for a user who is not found: a model that takes it in unseen answers NaN. The
        width is 0 when nobody is found and the ledger does not know it.
    as_of : int64 (n,)
        Event time of the newest raw feature inside, microseconds since the epoch; -1: not found.
    status : str (n,)
        ``warm``, ``onboarded``, ``cold``, ``NOT_FOUND`` or ``CORRUPT``.
    n_events : int64 (n,)
        Events in the longest window; -1: not found.
    space : int
    encoder_version : str
        Of a bridged view, the bridge's version.
    pin : Pin
        What the ledger said the consumer reads.
    faults : mapping of int to EmbeddingError
        By row, what is wrong with it; empty unless the caller asked for errors by row.
    """

    embedding: npt.NDArray[np.float32]
    as_of: npt.NDArray[np.int64]
    status: npt.NDArray[np.str_]
    n_events: npt.NDArray[np.int64]
    space: int
    encoder_version: str
    pin: Pin
    faults: Mapping[int, EmbeddingError] = field(default_factory=dict)

    @property
    def found(self) -> npt.NDArray[np.bool_]:
        """Which users have an embedding, bool (n,)."""
        found: npt.NDArray[np.bool_] = (self.status != NOT_FOUND) & (self.status != CORRUPT)
        return found


@dataclass(frozen=True, eq=False)
class FreshBatch(EmbeddingBatch):
    """What a freshest-wins read returns.

    Attributes
    ----------
    source : str (n,)
        ``stored``, ``on_demand``, or ``""`` for a user without an embedding.
    """

    source: npt.NDArray[np.str_] = field(default_factory=lambda: np.array([], np.str_))
