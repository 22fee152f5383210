"""Users in pictures: a map of their embeddings, and who stands next to whom."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from materialize.report import theme

__all__ = ["Neighbours", "UserMap", "build_user_map", "nearest_users", "user_data", "user_map"]

_CHUNK = 1_000
_LEADING_NUMBER = re.compile(r"-?\d+(\.\d+)?")


@dataclass(frozen=True)
class UserMap:
    """Users on a plane.

    Attributes
    ----------
    coordinates : float (n_users, 2)
    explained : float
        Share of the embeddings' variance that the plane shows, 0 to 1.
    users : sequence of str
        Ids, shown under the pointer.
    colourings : mapping of str to sequence of str
        Attribute name -> its value for each user, "" unknown; the first one is shown first.
    """

    coordinates: npt.NDArray[np.floating]
    explained: float
    users: Sequence[str]
    colourings: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Neighbours:
    """Who stands next to each user of a map, and what each of them consumed.

    Attributes
    ----------
    rows : int (n_users, k)
        Rows of the map, nearest first, never the user's own.
    cosine : float (n_users, k)
    items : sequence of str
        Labels.
    consumed : sequence of sequence of int
        Of each user: positions in ``items``, most consumed first.
    """

    rows: npt.NDArray[np.integer]
    cosine: npt.NDArray[np.floating]
    items: Sequence[str]
    consumed: Sequence[Sequence[int]]


def user_map(embeddings: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float64], float]:
    """Return the first two principal components of embeddings, and what they explain.

    Parameters
    ----------
    embeddings : float (n_users, dim), dim >= 2

    Returns
    -------
    coordinates : float64 (n_users, 2)
    explained : float
        Their share of the variance.

    Notes
    -----
    Deterministic: full SVD, and a component's largest element (in absolute value) is positive.
    """
    # Here and not above: importing scikit-learn costs a second that the other reports need not pay.
    from sklearn.decomposition import PCA

    pca = PCA(n_components=2, svd_solver="full")
    centred = pca.fit_transform(embeddings.astype(np.float64))
    return np.asarray(centred, np.float64), float(pca.explained_variance_ratio_.sum())


def build_user_map(
    embeddings: npt.NDArray[Any],
    users: Sequence[object],
    colourings: Mapping[str, Sequence[str]],
) -> UserMap:
    """Return the map of some users.

    Parameters
    ----------
    embeddings : float (n_users, dim)
    users : sequence (n_users,)
    colourings : mapping of str to sequence of str (n_users,)

    Raises
    ------
    ValueError
        A sequence is not one value a user.
    """
    for name, values in {"users": users, **colourings}.items():
        if len(values) != len(embeddings):
            raise ValueError(
                f"{name}: {len(values)} value(s) given, {len(embeddings)} expected, one a user."
            )
    coordinates, explained = user_map(embeddings)
    return UserMap(
        coordinates,
        explained,
        [str(user) for user in users],
        {name: [str(v) for v in values] for name, values in colourings.items()},
    )


def nearest_users(
    embeddings: npt.NDArray[Any], k: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Return the ``k`` nearest other rows of each row by cosine, nearest first; exact.

    Parameters
    ----------
    embeddings : float (n_users, dim)
    k : int
        Below n_users.

    Returns
    -------
    neighbours : int (n_users, k)
        Of equally near ones, the first.
    cosine : float64 (n_users, k)
        0 where a vector is zero.

    Examples
    --------
    >>> found, cosine = nearest_users(np.array([[1.0, 0], [0, 1], [2, 1]]), 2)
    >>> found[0].tolist(), cosine[0].round(2).tolist()
    ([2, 1], [0.89, 0.0])
    """
    if not 0 < k < len(embeddings):
        raise ValueError(f"k {k} given, 1 to {len(embeddings) - 1} expected (other users).")
    length = np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
    directions = embeddings / np.where(length == 0.0, 1.0, length)
    rows = np.empty((len(embeddings), k), np.intp)
    cosine = np.empty((len(embeddings), k), np.float64)
    for start in range(0, len(embeddings), _CHUNK):
        found = directions[start : start + _CHUNK] @ directions.T  # (chunk, n_users)
        here = np.arange(len(found))
        found[here, start + here] = -np.inf
        chunk = np.argsort(-found, axis=1, kind="stable")[:, :k]
        rows[start : start + _CHUNK] = chunk
        cosine[start : start + _CHUNK] = np.take_along_axis(found, chunk, axis=1)
    return rows, cosine


def user_data(users: UserMap, neighbours: Neighbours | None) -> dict[str, Any]:
    """Return map and neighbours as the JSON types that the page's script reads.

    A colouring's values become positions in its list of names. Values that begin with a number and
    are few are ordered by it and get a scale of colours, of others the most frequent ones get a
    colour each. ``colours`` has those of the first names; ``unknown`` is the place of the unknown
    value, the last one, or None.
    """
    near: dict[str, Any] | None = None
    if neighbours is not None:
        near = {
            "rows": neighbours.rows.tolist(),
            "cosine": [[round(float(c), 3) for c in row] for row in neighbours.cosine],
            "items": list(neighbours.items),
            "consumed": [list(row) for row in neighbours.consumed],
        }
    return {
        "x": [round(float(x), 4) for x in users.coordinates[:, 0]],
        "y": [round(float(y), 4) for y in users.coordinates[:, 1]],
        "users": list(users.users),
        "colourings": [_colouring(name, values) for name, values in users.colourings.items()],
        "near": near,
    }


def _colouring(name: str, values: Sequence[str]) -> dict[str, Any]:
    counts = Counter(value for value in values if value)
    if len(counts) <= len(theme.PALETTE) and all(map(_LEADING_NUMBER.match, counts)):
        names = sorted(counts, key=lambda value: (_number(value), value))
        colours = theme.scale(len(names))
    else:
        names = sorted(counts, key=lambda value: (-counts[value], value))
        colours = list(theme.PALETTE[: len(names)])
    position = {value: k for k, value in enumerate([*names, ""])}
    unknown = "" in values
    return {
        "name": name,
        "names": [*names, "unknown"] if unknown else names,
        "colours": colours,
        "unknown": len(names) if unknown else None,
        "codes": [position[value] for value in values],
    }


def _number(value: str) -> float:
    found = _LEADING_NUMBER.match(value)
    return float(found.group()) if found else 0.0
