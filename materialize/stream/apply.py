"""Deliveries into users' states, raw rows and embeddings: one micro-batch, one step a user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from materialize.config import RepoSettings
from materialize.ledger import Ledger

if TYPE_CHECKING:
    import pyarrow as pa
    from feast import FeatureStore

    from materialize.stream.source import Delivery

__all__ = ["Applier", "ApplyReport", "Rejected"]


@dataclass(frozen=True)
class Rejected:
    """A delivery that cannot be applied.

    Attributes
    ----------
    delivery : Delivery
    reason : str
        A reason code (docs/guides/stream.md).
    detail : str
        What was given, what was expected, what to do.
    """

    delivery: Delivery
    reason: str
    detail: str


@dataclass(frozen=True)
class ApplyReport:
    """What a micro-batch did.

    Attributes
    ----------
    outcomes : dict of (str, str) to int
        (type of the event, outcome) -> deliveries. Outcomes: ``applied``, ``duplicate``,
        ``outside``, or the reason of a rejected one; what could not be parsed has type ``unknown``.
    rejected : tuple of Rejected
        For the caller to hand to the source.
    offline : dict of str to pyarrow.Table
        View -> rows that are in the online store now and have to be kept offline too, before the
        deliveries are acknowledged.
    users : int
        Users of the deliveries.
    written : int
        Users whose hash was changed.
    conflicts : int
        Steps that were taken again, because another writer had come first.
    newest_event_us : int
        Largest event time of the applied events; 0 without any.
    seconds : dict of str to float
        By stage: ``parse``, ``read``, ``state``, ``rows``, ``encode``, ``write``, ``report``.
    """

    outcomes: Mapping[tuple[str, str], int]
    rejected: tuple[Rejected, ...]
    offline: Mapping[str, pa.Table]
    users: int
    written: int
    conflicts: int
    newest_event_us: int
    seconds: Mapping[str, float]


class Applier:
    """Applies deliveries to one repository; not safe for threads.

    Parameters
    ----------
    store : FeatureStore
        With Palate's Redis online store.
    settings : RepoSettings
    ledger : Ledger

    Raises
    ------
    DataFault
        Another online store, no raw features, or a raw view is not applied.
    """

    def __init__(self, store: FeatureStore, settings: RepoSettings, ledger: Ledger) -> None:
        raise NotImplementedError

    def apply(self, deliveries: Sequence[Delivery]) -> ApplyReport:
        """Apply a micro-batch: state, raw rows and embeddings of each user move in one step.

        Raises
        ------
        TransientError
            The online store does not answer, or others kept changing the same users; nothing is
            half done, and the same deliveries may be applied again.
        """
        raise NotImplementedError

    def refresh(self) -> None:
        """Take up what changed: live spaces, bridges, item vectors, the registry, the floor.

        Cheap when nothing did.
        """
        raise NotImplementedError
