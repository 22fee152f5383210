"""Reading a consumer's embeddings while serving: vectors of its pinned space, or an error.

Plain Feast follows a move when its registry cache expires, and hands out whatever rows it finds.
This client asks the ledger with each read and checks each row that comes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from encoder.errors import SpaceMismatch
from materialize.ledger import Pin
from materialize.one_space import require_one_space
from materialize.online_rows import OnlineRows, RowReader, Rows
from materialize.pins import PinReader
from transforms.names import is_bridged_view

if TYPE_CHECKING:
    from feast import FeatureStore

__all__ = ["NOT_FOUND", "OUTAGE_SECONDS", "EmbeddingBatch", "EmbeddingClient", "require_one_space"]

NOT_FOUND = "NOT_FOUND"
"""Status of a user whom the pinned view does not have."""

OUTAGE_SECONDS = 300.0
"""How long the last known pin serves while the ledger cannot be reached, unless told otherwise."""


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
        ``warm``, ``onboarded``, ``cold`` or ``NOT_FOUND``.
    n_events : int64 (n,)
        Events in the longest window; -1: not found.
    space : int
    encoder_version : str
        Of a bridged view, the bridge's version.
    pin : Pin
        What the ledger said the consumer reads.
    """

    embedding: npt.NDArray[np.float32]
    as_of: npt.NDArray[np.int64]
    status: npt.NDArray[np.str_]
    n_events: npt.NDArray[np.int64]
    space: int
    encoder_version: str
    pin: Pin

    @property
    def found(self) -> npt.NDArray[np.bool_]:
        """Which users have an embedding, bool (n,)."""
        found: npt.NDArray[np.bool_] = self.status != NOT_FOUND
        return found


class EmbeddingClient:
    """Reads the embeddings of one consumer; safe for threads.

    Parameters
    ----------
    store : FeatureStore
        Of the feature repository.
    ledger_url : str
        SQLAlchemy URL of the ledger (``RepoSettings.ledger_url``).
    consumer : str
    space : int, optional
        The space that the caller's model was trained on: a pin elsewhere is an error. None: the
        caller looks at ``EmbeddingBatch.space`` itself.
    pin_seconds : float
        How long a pin may be used before the ledger is asked again; 0, the default: each read asks,
        so that a move is seen by the next read.
    outage_seconds : float
        How long the last known pin goes on, with a warning, while the ledger cannot be reached.
    reader : RowReader, optional
        Where rows come from; default: the store's online store.

    Notes
    -----
    State: pooled connections to the ledger, the last known pin, and the view that it names. A
    consumer's move needs no new client.
    """

    def __init__(
        self,
        store: FeatureStore,
        ledger_url: str,
        consumer: str,
        *,
        space: int | None = None,
        pin_seconds: float = 0.0,
        outage_seconds: float = OUTAGE_SECONDS,
        reader: RowReader | None = None,
    ) -> None:
        self._space = space
        self._pins = PinReader(
            ledger_url, consumer, pin_seconds=pin_seconds, outage_seconds=outage_seconds
        )
        self._reader = OnlineRows(store) if reader is None else reader
        self._widths: dict[str, int] = {}

    def read(self, user_ids: Sequence[Any] | npt.NDArray[Any]) -> EmbeddingBatch:
        """Return the embeddings of some users, all of the space that the consumer is pinned to.

        A user who is not there is an answer (``NOT_FOUND``), not an error. Whenever one is missing
        the ledger is asked once more: a read that began before a move, whose view was removed
        meanwhile, begins again.

        Parameters
        ----------
        user_ids : sequence or array
            Ids as the user entity has them; may repeat, may be empty.

        Raises
        ------
        SpaceMismatch
            The pin is not of the space that this client was made for, or a stored row is not of the
            pinned space.
        LedgerConflict
            The ledger knows no such consumer.
        DataFault
            The pinned view is not applied.
        TransientError
            The ledger cannot be reached, and was not for longer than ``outage_seconds``.
        """
        users = user_ids.tolist() if isinstance(user_ids, np.ndarray) else list(user_ids)
        pin = self._pins.current()
        while True:
            self._require_own_space(pin)
            try:
                batch = self._read(pin, users)
            except Exception:
                # Every store has an error of its own for a view that is gone.
                again = self._pins.ask()
                if again == pin:
                    raise
            else:
                if batch.found.all():
                    return batch
                again = self._pins.ask()
                if again == pin:
                    return batch
            pin = again

    def close(self) -> None:
        """Close the connections to the ledger; a later read opens new ones."""
        self._pins.close()

    def _require_own_space(self, pin: Pin) -> None:
        if self._space is not None and pin.space != self._space:
            raise SpaceMismatch(
                f"Consumer {pin.consumer!r} reads space {pin.space} ({pin.encoder_version}), and "
                f"this process serves a model of space {self._space}. Deploy the model of space "
                f"{pin.space}, or run `palate consumers rollback {pin.consumer}`."
            )

    def _read(self, pin: Pin, users: list[Any]) -> EmbeddingBatch:
        rows = self._reader.read(pin, users)
        _require_pinned(rows, pin)
        n = len(users)
        status = np.full(n, NOT_FOUND, object)
        status[rows.found] = rows.status
        embedding = np.full((n, self._width(rows, pin)), np.nan, np.float32)
        as_of, n_events = np.full(n, -1, np.int64), np.full(n, -1, np.int64)
        if rows.found.any():
            embedding[rows.found] = rows.embedding
            as_of[rows.found], n_events[rows.found] = rows.as_of, rows.n_events
        return EmbeddingBatch(
            embedding,
            as_of,
            status.astype(np.str_),
            n_events,
            pin.space,
            pin.encoder_version,
            pin,
        )

    def _width(self, rows: Rows, pin: Pin) -> int:
        """Return the width of the pin's vectors, also when nobody is found."""
        if rows.found.any():
            self._widths[pin.encoder_version] = rows.embedding.shape[1]
        elif pin.encoder_version not in self._widths:
            return self._pins.embedding_dim(pin) or 0
        return self._widths[pin.encoder_version]


def _require_pinned(rows: Rows, pin: Pin) -> None:
    """Refuse rows that are not of the pin's space and encoder version, or do not say so."""
    marks = list(zip(rows.space, rows.encoder_version, strict=True))
    wrong = [mark for mark in marks if mark != (pin.space, pin.encoder_version)]
    if wrong:
        space, encoder_version = wrong[0]
        remedy = (
            "`palate materialize --force` writes the live spaces and bridges anew"
            if is_bridged_view(pin.view)
            else f"`palate materialize --space {pin.space} --force` writes the view anew"
        )
        raise SpaceMismatch(
            f"{len(wrong)} of {len(marks)} rows of {pin.view} are of space "
            f"{'unknown' if space is None else space} ({encoder_version or 'no encoder version'}); "
            f"consumer {pin.consumer!r} reads space {pin.space} ({pin.encoder_version}). No vector "
            f"is handed out. {remedy}."
        )
