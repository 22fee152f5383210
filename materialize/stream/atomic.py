"""One step of a user in Redis: state, raw rows and embeddings move together, or nothing does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from feast import FeatureStore

__all__ = ["REVISION_FIELD", "STATE_FIELD", "UserHashes"]

STATE_FIELD = b"_palate:state"
"""Field of a user's hash that holds what `UserStates.encode` gives."""
REVISION_FIELD = b"_palate:revision"
"""When the state was changed last, decimal microseconds since 1970: grows with every step, also
after the hash was lost in between."""

Row = Sequence[bytes | None]


class UserHashes:
    """The users' hashes of a repository's Redis online store.

    Parameters
    ----------
    store : FeatureStore

    Raises
    ------
    DataFault
        The online store is not Palate's for Redis.
    """

    def __init__(self, store: FeatureStore) -> None:
        raise NotImplementedError

    def keys(self, users: Sequence[int] | Sequence[str]) -> list[bytes]:
        """Return the key of each user's hash."""
        raise NotImplementedError

    def read(self, keys: Sequence[bytes], fields: Sequence[bytes]) -> list[list[bytes | None]]:
        """Return the fields of each hash, None where there is no such field; one round trip.

        Raises
        ------
        TransientError
            Redis does not answer.
        """
        raise NotImplementedError

    def commit(
        self,
        keys: Sequence[bytes],
        guards: Sequence[bytes],
        expected: Sequence[Row],
        groups: Sequence[Sequence[bytes]],
        values: Sequence[Sequence[Sequence[bytes] | None]],
    ) -> npt.NDArray[np.bool_]:
        """Set fields of each hash in which the guards are still as they were read.

        Parameters
        ----------
        keys : sequence of bytes, n
            Distinct.
        guards : sequence of bytes
            Fields that must not have changed.
        expected : sequence of rows, n
            What was read of the guards; None: there was no such field.
        groups : sequence of (sequence of bytes)
            Fields that are set together, for example those of one view.
        values : sequence, n
            For each key and group the fields' values, or None: the group stays as it is.

        Returns
        -------
        bool (n,)
            False: another writer came first, and nothing of this user was set.

        Raises
        ------
        TransientError
            Redis does not answer; some users may have been written, each one whole.
        """
        raise NotImplementedError
