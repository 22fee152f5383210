"""Who is fitted on, and who is judged: a split of users that never changes."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["training_users"]

_TRAINING_SHARE = 0.6


def training_users(user_id: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return which rows belong to training users: 60% of users, by a stable hash of the id.

    Parameters
    ----------
    user_id : (n_rows,)
        Integers or strings; all rows of a user get the same answer, in every run and release.

    Examples
    --------
    >>> training_users(np.array([1, 2, 3, 1]))
    array([ True,  True, False,  True])
    """
    names, row = np.unique(np.asarray(user_id).astype(str), return_inverse=True)
    hashed = [hashlib.blake2b(f"probe:{u}".encode(), digest_size=4).digest() for u in names]
    share = np.array([int.from_bytes(h, "big") for h in hashed]) / 2**32
    return np.asarray((share < _TRAINING_SHARE)[row], bool)
