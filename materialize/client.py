"""Reading a consumer's embeddings while serving: vectors of its pinned space, or an error.

Plain Feast follows a move when its registry cache expires, and hands out whatever rows it finds.
This client asks the ledger with each read and checks each row that comes back.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from encoder.errors import TerminalError, TimedOut, TransientError
from materialize.one_space import require_one_space
from materialize.pins import PinReader
from materialize.reader.batch import CORRUPT, NOT_FOUND, EmbeddingBatch, FreshBatch
from materialize.reader.budget import Budget
from materialize.reader.cache import RowCache
from materialize.reader.core import Core
from materialize.reader.fields import FieldReader, Users, choose_reader
from materialize.reader.metrics import ReaderMetrics
from materialize.reader.steps import Steps, perform, perform_async
from materialize.reader.views import ViewDefinitions
from materialize.reader.waiting import Waiting

if TYPE_CHECKING:
    from feast import FeatureStore

    from materialize.reader.fresh import FreshReading

__all__ = [
    "CORRUPT",
    "NOT_FOUND",
    "OUTAGE_SECONDS",
    "TIMEOUT_SECONDS",
    "EmbeddingBatch",
    "EmbeddingClient",
    "FreshBatch",
    "require_one_space",
]

OUTAGE_SECONDS = 300.0
"""How long the last known pin serves while the ledger cannot be reached, unless told otherwise."""

TIMEOUT_SECONDS = 5.0
"""What a read may take with all its waits, unless told otherwise."""

_CONNECTIONS = 16
_WAITING = 4
"""Threads that wait for the ledger and the registry."""
_UNSET: Any = object()
T = TypeVar("T")


class EmbeddingClient:
    """Reads the embeddings of one consumer; safe for threads, event loops and forks.

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
    timeout_seconds : float, optional
        What a read may take, with retries and waits for a free connection; None: no limit. A read
        may be given another one.
    connections : int
        How many connections to Redis may be open at once, for threads together and for each event
        loop; with other online stores, how many reads may wait at once.
    cache_seconds : float
        How long a row that was read may be used again; 0, the default: not at all.
    cache_users : int
        How many rows are kept at most.
    artifacts_url : str, optional
        Artifact store (``RepoSettings.artifacts_url``); `read_fresh` encodes with it.
    reader : FieldReader, optional
        Where stored fields come from; default: Redis itself if it is the online store, else the
        online store through Feast.

    Attributes
    ----------
    metrics : ReaderMetrics
        What this client did: ``registry.register(client.metrics)``.

    Notes
    -----
    State: pooled connections to the ledger and the online store, a few threads that wait for both,
    the last known pin, the views that were read, and the rows that are kept. A consumer's move
    needs no new client.
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
        timeout_seconds: float | None = TIMEOUT_SECONDS,
        connections: int = _CONNECTIONS,
        cache_seconds: float = 0.0,
        cache_users: int = 100_000,
        artifacts_url: str | None = None,
        reader: FieldReader | None = None,
    ) -> None:
        if connections < 1:
            raise ValueError(f"connections {connections!r} was given; 1 or more are expected.")
        if not cache_seconds >= 0:
            raise ValueError(
                f"cache_seconds {cache_seconds!r} was given; 0 or more seconds are expected."
            )
        Budget(timeout_seconds)  # refuses what is no time
        self._timeout = timeout_seconds
        self._pins = PinReader(
            ledger_url, consumer, pin_seconds=pin_seconds, outage_seconds=outage_seconds
        )
        self.metrics = ReaderMetrics(consumer)
        self._core = Core(
            self._pins,
            ViewDefinitions(store),
            self.metrics,
            space=space,
            cache=RowCache(cache_users, cache_seconds) if cache_seconds else None,
        )
        # Imported where it is needed: it loads the encoder's libraries.
        self._reading: FreshReading | None = None
        if artifacts_url is not None:
            from materialize.reader.fresh import FreshReading

            self._reading = FreshReading(self._core, artifacts_url)
        self._reader = choose_reader(store, connections) if reader is None else reader
        self._waiting = Waiting(_WAITING)

    def read(
        self,
        user_ids: Users,
        *,
        timeout_seconds: float | None = _UNSET,
        per_row_errors: bool = False,
    ) -> EmbeddingBatch:
        """Return the embeddings of some users, all of the space that the consumer is pinned to.

        A user who is not there is an answer (``NOT_FOUND``), not an error. Whenever one is missing
        the ledger is asked once more: a read that began before a move, whose view was removed
        meanwhile, begins again.

        Parameters
        ----------
        user_ids : sequence or array
            Ids as the user entity has them; may repeat, may be empty.
        timeout_seconds : float, optional
            What this call may take, instead of the client's time.
        per_row_errors : bool
            Answer damaged rows with status ``CORRUPT``, NaN and their error in
            ``EmbeddingBatch.faults``. Default: the first one is raised.

        Raises
        ------
        SpaceMismatch
            The pin is not of the space that this client was made for, or a stored row is not of the
            pinned space.
        CorruptValue
            A stored value is damaged; only without ``per_row_errors``.
        LedgerConflict
            The ledger knows no such consumer.
        DataFault
            The pinned view is not applied.
        TimedOut
            The time is over; the error says what was being waited for.
        TransientError
            Redis could not be read in several attempts; or the ledger cannot be reached, and was
            not for longer than ``outage_seconds``.
        StoreRefused
            Redis does not let this client read.
        TypeError
            An id is not of the user entity's type.
        """
        return self._run(self._core.read(_ids(user_ids), per_row_errors), timeout_seconds)

    async def read_async(
        self,
        user_ids: Users,
        *,
        timeout_seconds: float | None = _UNSET,
        per_row_errors: bool = False,
    ) -> EmbeddingBatch:
        """Return what `read` does, and raise what it does; the event loop goes on meanwhile."""
        steps = self._core.read(_ids(user_ids), per_row_errors)
        return await self._run_async(steps, timeout_seconds)

    def read_fresh(
        self,
        user_ids: Users,
        *,
        max_lag_seconds: float = 0.0,
        timeout_seconds: float | None = _UNSET,
        per_row_errors: bool = False,
    ) -> FreshBatch:
        """Return the stored embeddings, and encode those of users whose raw features are newer.

        A user is encoded on demand when the newest event time of the raw features in the online
        store is more than ``max_lag_seconds`` after the stored row's ``as_of``, or when there is no
        stored row; a user who has neither gets the cold-start embedding. The same `encode` makes
        stored rows, so that both ways agree on equal raw features.

        Users whose raw features are of other modality encoders than the pinned space's keep their
        stored row. Through a bridge nobody is encoded. Rows that were kept (``cache_seconds``) are
        not used.

        Parameters
        ----------
        user_ids : sequence or array
            As in `read`. An empty one loads the encoder, so that no request has to wait for it.
        max_lag_seconds : float
            By how much a stored row may be older than the user's raw features.
        timeout_seconds : float, optional
            As in `read`.
        per_row_errors : bool
            As in `read`. A user whose raw features are damaged keeps the stored row, if any, and
            has an error in ``faults``.

        Raises
        ------
        MalformedInput
            A user's raw features do not fit the encoder's schema; only without
            ``per_row_errors``.
        ArtifactError
            The encoder is missing or damaged.
        ValueError
            The client was made without ``artifacts_url``, or ``max_lag_seconds`` is below 0.
        EmbeddingError
            As `read` raises them.
        """
        steps = self._fresh(_ids(user_ids), max_lag_seconds, per_row_errors)
        return self._run(steps, timeout_seconds)

    async def read_fresh_async(
        self,
        user_ids: Users,
        *,
        max_lag_seconds: float = 0.0,
        timeout_seconds: float | None = _UNSET,
        per_row_errors: bool = False,
    ) -> FreshBatch:
        """Return what `read_fresh` does, and raise what it does; a thread encodes."""
        steps = self._fresh(_ids(user_ids), max_lag_seconds, per_row_errors)
        return await self._run_async(steps, timeout_seconds)

    def close(self) -> None:
        """Close the connections to ledger and online store; a later read opens new ones."""
        self._pins.close()
        self._reader.close()
        self._waiting.close()

    async def close_async(self) -> None:
        """Close the running event loop's connections, too; a later read opens new ones."""
        await self._reader.close_async()
        self.close()

    def _fresh(
        self, users: Users, max_lag_seconds: float, per_row_errors: bool
    ) -> Steps[FreshBatch]:
        if self._reading is None:
            raise ValueError(
                "No artifacts_url was given; encoding needs the artifact store. Make the client "
                "with `artifacts_url=settings.artifacts_url`."
            )
        if not max_lag_seconds >= 0:
            raise ValueError(
                f"max_lag_seconds {max_lag_seconds!r} was given; 0 or more seconds are expected."
            )
        return self._reading.read(users, max_lag_seconds, per_row_errors)

    def _run(self, steps: Steps[T], timeout_seconds: float | None) -> T:
        budget = self._budget(timeout_seconds)
        with _Call(self.metrics):
            return perform(steps, self._reader, self._waiting, budget)

    async def _run_async(self, steps: Steps[T], timeout_seconds: float | None) -> T:
        budget = self._budget(timeout_seconds)
        with _Call(self.metrics):
            return await perform_async(steps, self._reader, self._waiting, budget)

    def _budget(self, timeout_seconds: float | None) -> Budget:
        return Budget(self._timeout if timeout_seconds is _UNSET else timeout_seconds)


class _Call:
    """Counts a call by how it ends."""

    def __init__(self, metrics: ReaderMetrics) -> None:
        self._metrics = metrics

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._metrics.called(_outcome(kind), time.perf_counter() - self._began)


def _outcome(kind: type[BaseException] | None) -> str:
    if kind is None:
        return "ok"
    for name, base in (
        ("timed_out", TimedOut),
        ("transient", TransientError),
        ("terminal", TerminalError),
    ):
        if issubclass(kind, base):
            return name
    return "other"


def _ids(users: Any) -> Users:
    return users if isinstance(users, np.ndarray) else list(users)
