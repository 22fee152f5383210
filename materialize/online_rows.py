"""Rows of views, read from any Feast online store for serving."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from materialize.reader.budget import Budget
from materialize.reader.fields import Found, Users, Wanted, user_column
from materialize.reader.waiting import Waiting
from materialize.stores.wire import Stored
from transforms.names import USER_KEY

if TYPE_CHECKING:
    from feast import RepoConfig
    from feast.infra.online_stores.online_store import OnlineStore

__all__ = ["FeastFields", "entity_keys"]


class FeastFields:
    """Reads fields through a store's ``online_read``; safe for threads if the store is.

    Not `get_online_features`: that refuses a view which `feast materialize` is filling, and for
    good after one that was killed; and over a SQL registry it goes on, until its cache expires,
    with the view that a feature service named before.

    Parameters
    ----------
    config : RepoConfig
    online : OnlineStore
        Of its own: nobody else closes it.
    threads : int
        How many calls may wait at once: Feast's stores know no time limit.

    Notes
    -----
    State: the store's connections, and threads. Errors of the store's driver are handed on.
    """

    def __init__(self, config: RepoConfig, online: OnlineStore, threads: int) -> None:
        self._config, self._online = config, online
        self._waiting = Waiting(threads)
        self._where = type(online).__name__

    def read(self, wanted: Sequence[Wanted], users: Users, budget: Budget) -> Found:
        """Return the wanted fields; see `FieldReader`."""
        return self._waiting.run(lambda: self._read(wanted, users), budget, self._where)

    async def read_async(self, wanted: Sequence[Wanted], users: Users, budget: Budget) -> Found:
        """Return what `read` does; a thread waits, not the event loop."""
        return await self._waiting.run_async(lambda: self._read(wanted, users), budget, self._where)

    def close(self) -> None:
        """Let the threads end. Feast's stores have no way to close their connections."""
        self._waiting.close()

    async def close_async(self) -> None:
        """Do what `close` does."""
        self.close()

    def _read(self, wanted: Sequence[Wanted], users: Users) -> Found:
        (column,) = wanted[0].view.entity_columns
        text = column.dtype.to_value_type().name == "STRING"
        keys = entity_keys(user_column(users, text=text).to_pylist(), text=text)
        columns: list[Stored] = []
        for one in wanted:
            rows: list[Any] = (
                self._online.online_read(self._config, one.view, keys, list(one.fields))
                if keys
                else []
            )
            columns += [[_stored(values, name) for _, values in rows] for name in one.fields]
        return Found(columns)


def entity_keys(users: Sequence[Any], *, text: bool) -> list[Any]:
    """Return Feast's keys of users; ``text``: their ids are strings, else integers.

    Raises
    ------
    TypeError
        An id is of another type.
    """
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    if text:
        values = [Value(string_val=user) for user in users]
    else:
        values = [Value(int64_val=operator.index(user)) for user in users]
    return [EntityKey(join_keys=[USER_KEY], entity_values=[value]) for value in values]


def _stored(values: dict[str, Any] | None, name: str) -> bytes | None:
    """Return one feature as it lies in the store; an unset value is ``b""``."""
    if values is None or name not in values:
        return None
    stored: bytes = values[name].SerializeToString()
    return stored
