"""Do streamed rows equal a batch recomputation? Raw rows and embeddings of a sample of users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from materialize.config import RepoSettings
from materialize.ledger import Ledger

if TYPE_CHECKING:
    import pyarrow as pa
    from feast import FeatureStore

__all__ = ["StreamCheck", "UserDifference", "check_stream"]


@dataclass(frozen=True)
class UserDifference:
    """One user and view whose online row is not what the batch would make.

    Attributes
    ----------
    user_id : int or str
    view : str
    why : str
        ``missing`` (no row online), ``behind`` (given events are not in the user's state yet),
        ``ahead`` (the online row is newer than every given event) or ``different`` (the row is not
        what its events make).
    max_abs_diff : float
        NaN when the rows cannot be compared.
    """

    user_id: Any
    view: str
    why: str
    max_abs_diff: float


@dataclass(frozen=True)
class StreamCheck:
    """Result of `check_stream`.

    Attributes
    ----------
    users : int
        Users that were compared.
    rows : dict of str to int
        Rows compared, by view.
    max_abs_diff : dict of str to float
        Largest absolute difference of a number, by view, over rows of equal ``as_of``.
    min_cosine : float
        Of an online embedding and its recomputation, over the same rows; 1.0 without any.
    differences : tuple of UserDifference
        Rows that are beyond the limit or of another ``as_of``.
    limit : float
    """

    users: int
    rows: dict[str, int]
    max_abs_diff: dict[str, float]
    min_cosine: float
    differences: tuple[UserDifference, ...]
    limit: float

    @property
    def agrees(self) -> bool:
        """Whether no row differs."""
        return not self.differences

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self) | {"agrees": self.agrees}


def check_stream(
    store: FeatureStore,
    settings: RepoSettings,
    ledger: Ledger,
    users: Sequence[int | str] | int,
    *,
    events: pa.Table | None = None,
    limit: float = 1e-4,
) -> StreamCheck:
    """Compare online rows with what the batch makes of the same events.

    Parameters
    ----------
    store : FeatureStore
    settings : RepoSettings
    ledger : Ledger
    users : sequence of ids, or int
        Whom to compare; a number draws so many by a hash of their ids.
    events : pyarrow.Table or None
        Consumed items instead of those of the event streams: ``user_id``, ``item_id``, ``ts``,
        ``weight``, ``context`` as in the clean tables. The clean tables count in either case.
    limit : float
        Largest absolute difference of a number that is not reported.

    Raises
    ------
    DataFault
        No clean tables or raw features.
    """
    raise NotImplementedError
