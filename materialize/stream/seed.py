"""The hand-over from batch to stream: events of the clean tables into the states of their users."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from materialize.config import RepoSettings
from materialize.ledger import Ledger

if TYPE_CHECKING:
    from feast import FeatureStore

__all__ = ["SeedReport", "seed_states"]


@dataclass(frozen=True)
class SeedReport:
    """What a seed did, or (dry run) would do.

    Attributes
    ----------
    outcome : str
        ``seeded``, ``unchanged`` (the same data were seeded before) or ``planned``.
    floor_day : str
        Every event from this date (00:00 UTC) on is in the states.
    users, events, picks, sign_ups : int
        Read from the clean tables, from the floor day on.
    written : int
        Users whose state gained something.
    rows_made : int
        Of these, users whose raw rows and embeddings had been made from less, and were made anew.
    state_bytes : int
        Of the states that were written; of all states, estimated, in a dry run.
    seconds : float
    """

    outcome: str
    floor_day: str
    users: int = 0
    events: int = 0
    picks: int = 0
    sign_ups: int = 0
    written: int = 0
    rows_made: int = 0
    state_bytes: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


def seed_states(
    store: FeatureStore,
    settings: RepoSettings,
    ledger: Ledger,
    *,
    until: datetime | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: bool = True,
) -> SeedReport:
    """Put what the clean tables hold into the states, as the union of both.

    Parameters
    ----------
    store : FeatureStore
        Its online store is Palate's for Redis.
    settings : RepoSettings
    ledger : Ledger
    until : datetime or None
        Only events before this instant; None: all. A replay of the rest then stands for the stream.
    force : bool
        Read all partitions again although the same data were seeded before (states were lost).
    dry_run : bool
        Count, and estimate the bytes in Redis; writes nothing.
    progress : bool
        A bar on standard error.

    Returns
    -------
    SeedReport

    Raises
    ------
    DataFault
        No clean tables, or an online store that cannot hold states.
    """
    raise NotImplementedError
