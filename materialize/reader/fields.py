"""Stored fields of some users: the one question that serving code has for an online store."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from materialize.reader.budget import Budget
from materialize.stores.wire import Stored

if TYPE_CHECKING:
    from feast import FeatureStore, FeatureView

__all__ = ["FieldReader", "Found", "Users", "Wanted", "choose_reader", "user_column"]

Users = Sequence[Any] | npt.NDArray[Any]
"""Ids as the user entity has them."""


@dataclass(frozen=True)
class Wanted:
    """Features of one view, as Feast's registry has it."""

    view: FeatureView
    fields: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Found:
    """What a store has of n users."""

    columns: Sequence[Stored]
    """One a wanted field, in the order of the question: n serialised values, None where absent."""
    broken: Mapping[int, str] = field(default_factory=dict)
    """By row: what lies there instead of fields, as a noun with its article."""


class FieldReader(Protocol):
    """Where serialised values come from; safe for threads and event loops."""

    def read(self, wanted: Sequence[Wanted], users: Users, budget: Budget) -> Found:
        """Return the wanted fields of all users.

        Parameters
        ----------
        wanted : sequence of Wanted
            Views of the user entity.
        users : sequence or array
            May repeat, may be empty.
        budget : Budget

        Raises
        ------
        TransientError
            The store does not answer; `TimedOut` when the time is over.
        StoreRefused
            It answers that it will not.
        TypeError
            An id is not of the user entity's type.
        """

    async def read_async(self, wanted: Sequence[Wanted], users: Users, budget: Budget) -> Found:
        """Return what `read` does, without keeping the event loop waiting."""

    def close(self) -> None:
        """Close the connections; a later read opens new ones."""

    async def close_async(self) -> None:
        """Close the connections of the running event loop."""


def choose_reader(store: FeatureStore, connections: int) -> FieldReader:
    """Return the fastest reader of a repository's online store.

    Parameters
    ----------
    store : FeatureStore
    connections : int
        How many may be open at once to Redis, for each event loop and for threads together.
    """
    from feast.infra.online_stores.helpers import get_online_store_from_config

    settings = store.config.online_store
    # Both Feast's store and ours have these settings; `redis_type` is a cluster's, too.
    if hasattr(settings, "redis_type") and hasattr(settings, "connection_string"):
        from materialize.reader.redis import RedisFields
        from materialize.reader.redis_managed import ManagedRedisFields

        if settings.redis_type == "redis":
            return RedisFields(store.config, connections)
        return ManagedRedisFields(store.config, connections)
    from materialize.online_rows import FeastFields

    return FeastFields(store.config, get_online_store_from_config(settings), connections)


def user_column(users: Users, *, text: bool) -> pa.Array:
    """Return ids as the column from which keys are cut; ``text``: strings, else integers.

    Raises
    ------
    TypeError
        An id is of another type.
    """
    if text:
        texts = users.tolist() if isinstance(users, np.ndarray) else list(users)
        wrong = [user for user in texts if not isinstance(user, str)]
        if wrong:
            raise TypeError(f"The id {wrong[0]!r} was given; the user entity's ids are strings.")
        return pa.array(texts, pa.string())
    if not (isinstance(users, np.ndarray) and users.dtype.kind in "iu"):
        users = np.array([operator.index(user) for user in users], np.int64)
    return pa.array(users).cast(pa.int64())
