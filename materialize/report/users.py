"""Users in pictures: a map of their embeddings, and who stands next to whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Neighbour", "SampleUser", "UserMap", "build_user_map", "nearest_users", "user_map"]

_MAX_USERS = 5000


@dataclass(frozen=True)
class UserMap:
    """Users on a plane.

    Attributes
    ----------
    coordinates : float (n_users, 2)
    users : sequence of str
        Ids, shown under the pointer.
    colourings : mapping of str to sequence of str
        Attribute name -> its value for each user, "" unknown; the first one is shown first.
    """

    coordinates: npt.NDArray[np.floating]
    users: Sequence[str]
    colourings: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Neighbour:
    """A user near another: cosine of their embeddings, and some of what the user consumed."""

    user: str
    similarity: float
    consumed: Sequence[str]


@dataclass(frozen=True)
class SampleUser:
    """One user, some of what the user consumed, and the nearest other users."""

    user: str
    consumed: Sequence[str]
    neighbours: Sequence[Neighbour]


def user_map(embeddings: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the first two principal components of embeddings, float64 (n_users, 2).

    Parameters
    ----------
    embeddings : float (n_users, dim), dim >= 2

    Notes
    -----
    Deterministic: full SVD, and a component's largest element (in absolute value) is positive.
    """
    # Here and not above: importing scikit-learn costs a second that the other reports need not pay.
    from sklearn.decomposition import PCA

    centred = PCA(n_components=2, svd_solver="full").fit_transform(embeddings.astype(np.float64))
    return np.asarray(centred, np.float64)


def build_user_map(
    embeddings: npt.NDArray[Any],
    users: Sequence[object],
    colourings: Mapping[str, Sequence[str]],
    *,
    seed: int = 0,
) -> UserMap:
    """Return the map of at most 5,000 of the users, drawn at random and kept in order.

    Parameters
    ----------
    embeddings : float (n_users, dim)
    users : sequence (n_users,)
    colourings : mapping of str to sequence of str (n_users,)
    seed : int
        Draws the users.
    """
    for name, values in {"users": users, **colourings}.items():
        if len(values) != len(embeddings):
            raise ValueError(
                f"{name}: {len(values)} value(s) given, {len(embeddings)} expected, one a user."
            )
    n_shown = min(_MAX_USERS, len(embeddings))
    rows = np.sort(np.random.default_rng(seed).permutation(len(embeddings))[:n_shown])
    return UserMap(
        coordinates=user_map(embeddings[rows]),
        users=[str(users[r]) for r in rows],
        colourings={name: [str(v[r]) for r in rows] for name, v in colourings.items()},
    )


def nearest_users(
    embeddings: npt.NDArray[Any], rows: Sequence[int], k: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Return the ``k`` nearest other rows of each of ``rows`` by cosine, nearest first.

    Parameters
    ----------
    embeddings : float (n_users, dim)
    rows : sequence of int (n_samples,)
    k : int
        Below n_users.

    Returns
    -------
    neighbours : int (n_samples, k)
    similarities : float64 (n_samples, k)

    Examples
    --------
    >>> found, cosine = nearest_users(np.array([[1.0, 0], [0, 1], [2, 1]]), [0], 2)
    >>> found.tolist(), cosine.round(2).tolist()
    ([[2, 1]], [[0.89, 0.0]])
    """
    if not 0 < k < len(embeddings):
        raise ValueError(f"k {k} given, 1 to {len(embeddings) - 1} expected (other users).")
    length = np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
    directions = embeddings / np.where(length == 0.0, 1.0, length)
    cosine = directions[list(rows)] @ directions.T  # (n_samples, n_users)
    cosine[np.arange(len(rows)), list(rows)] = -np.inf
    nearest = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    return nearest, np.take_along_axis(cosine, nearest, axis=1)
