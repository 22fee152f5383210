"""Do the stored and the on-demand view of a space answer the same? Read both, compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from encoder.errors import DataFault
from materialize.config import RepoSettings
from materialize.source import parquet_files
from materialize.stores.compact import compact_form, rounding_bound
from transforms.names import USER_KEY, on_demand_view, stored_view

if TYPE_CHECKING:
    from feast import FeatureStore

__all__ = ["Comparison", "compare_views", "sample_users"]

_CHUNK = 100


@dataclass(frozen=True)
class Comparison:
    """Result of ``compare_views``.

    Attributes
    ----------
    users : int
        Users that both views answered.
    missing : int
        Users that the stored view does not have.
    max_abs_diff : float
        Largest absolute difference of an element of an embedding; NaN when one is NaN.
    vectors : str
        Form in which the stored vectors are kept.
    max_unexplained_diff : float
        Largest part of a difference that rounding to this form cannot make, at least 0; NaN
        likewise. Of float32 it is ``max_abs_diff``.
    same_as_of, same_status : bool
        Whether both views agree on them for every user.
    """

    users: int
    missing: int
    max_abs_diff: float
    vectors: str
    max_unexplained_diff: float
    same_as_of: bool
    same_status: bool

    def agrees(self, limit: float) -> bool:
        """Return whether nobody is missing and nothing differs or is NaN.

        Vectors may differ by ``limit`` beyond what their form explains.
        """
        same = self.same_as_of and self.same_status and not self.missing
        return same and self.max_unexplained_diff <= limit  # NaN is not

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


def sample_users(settings: RepoSettings, space: int, n: int, seed: int = 0) -> list[Any]:
    """Return up to ``n`` users that a space has rows of, drawn at random and reproducible.

    Raises
    ------
    DataFault
        The space has no rows offline.
    """
    users: set[Any] = set()
    for path in parquet_files(settings.offline_dir / stored_view(space)):
        users.update(pq.read_table(path, columns=[USER_KEY]).column(USER_KEY).to_pylist())
    if not users:
        raise DataFault(f"Space {space} has no rows. Run `palate materialize --space {space}`.")
    ordered = sorted(users)
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(ordered), size=min(n, len(ordered)), replace=False)
    return [ordered[k] for k in sorted(chosen.tolist())]


def compare_views(store: FeatureStore, space: int, users: Sequence[Any]) -> Comparison:
    """Read the same users through both views of a space and compare every element.

    Parameters
    ----------
    store : FeatureStore
    space : int
    users : sequence
        User ids.
    """
    features = ("embedding", "as_of", "status")
    form = compact_form(store.get_feature_view(stored_view(space)))
    # Of the circumstances of a request none is known here: those that are stored stay.
    fields = store.get_on_demand_feature_view(on_demand_view(space)).get_request_data_schema()
    nothing = dict.fromkeys(fields)
    largest, unexplained = 0.0, 0.0
    compared, missing, same_as_of, same_status = 0, 0, True, True
    for start in range(0, len(users), _CHUNK):
        rows = [{USER_KEY: user} | nothing for user in users[start : start + _CHUNK]]
        stored, fresh = (
            store.get_online_features(
                features=[f"{view}:{name}" for name in features], entity_rows=rows
            ).to_dict()
            for view in (stored_view(space), on_demand_view(space))
        )
        for row in range(len(rows)):
            if stored["embedding"][row] is None:
                missing += 1
                continue
            compared += 1
            kept, exact = np.array([view["embedding"][row] for view in (stored, fresh)], np.float32)
            difference = np.abs(kept - exact)
            beyond = difference - rounding_bound(exact[None], form)[0]
            # Not max(): it would pass over NaN.
            largest = float(np.maximum(largest, difference.max()))
            unexplained = float(np.maximum(unexplained, beyond.max()))
            same_as_of &= stored["as_of"][row] == fresh["as_of"][row]
            same_status &= stored["status"][row] == fresh["status"][row]
    return Comparison(compared, missing, largest, form, unexplained, same_as_of, same_status)
