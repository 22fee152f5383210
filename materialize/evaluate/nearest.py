"""Who is nearest to whom, exactly: cosine neighbours of some users among all of a sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from materialize.neighbours.cells import directions

__all__ = ["nearest_others", "unit_rows"]

_CELLS_PER_CHUNK = 2**24
"""Similarities held at a time: 64 MiB of float32."""


def unit_rows(vectors: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return the vectors at unit length, float32; a row of zeros stays zero.

    Parameters
    ----------
    vectors : float (n_rows, dim), finite

    Raises
    ------
    ValueError
        Another shape, NaN or infinity.

    Examples
    --------
    >>> unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]]))
    array([[0.6, 0.8],
           [0. , 0. ]], dtype=float32)
    """
    x = np.asarray(vectors, np.float32)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise ValueError(
            f"Vectors of shape {x.shape} given, finite ones of (n_rows, dim) expected."
        )
    return directions(x)[0]


def nearest_others(
    vectors: npt.NDArray[np.float32],
    queries: npt.NDArray[np.integer],
    k: int,
    among: Mapping[str, npt.NDArray[np.bool_]],
) -> dict[str, npt.NDArray[np.int64]]:
    """Return the rows nearest to each query by inner product, for several sets of candidates.

    Parameters
    ----------
    vectors : float32 (n_rows, dim)
        Of unit length (``unit_rows``), so that the inner product is the cosine.
    queries : int (n_queries,)
        Rows of ``vectors``. A query is never its own neighbour.
    k : int
        Neighbours of each query, at least 1.
    among : mapping of str to bool (n_rows,)
        By name, which rows may be neighbours. Equal sets are searched once.

    Returns
    -------
    dict of str to int64 (n_queries, min(k, number of candidates))
        Nearest first, equal similarities in row order. -1 fills the place of the query itself where
        the set holds too few others.

    Raises
    ------
    ValueError
        ``k`` below 1, or a set without any row.

    Notes
    -----
    Every pair is compared: O(n_queries * n_rows * dim), in chunks of 64 MiB of similarities. Which
    of several equally similar rows are the last of the first k is not said; give the rows in random
    order where equal vectors are likely and the order could mean something.
    """
    if k < 1:
        raise ValueError(f"k {k} given, at least 1 expected.")
    empty = [name for name, mask in among.items() if not mask.any()]
    if empty:
        raise ValueError(f"No row may be a neighbour among {', '.join(empty)}: leave it out.")
    sets: dict[bytes, npt.NDArray[np.int64]] = {}
    key_of = {}
    for name, mask in among.items():
        key_of[name] = mask.tobytes()
        sets.setdefault(key_of[name], np.flatnonzero(mask))
    found: dict[bytes, list[npt.NDArray[np.int64]]] = {key: [] for key in sets}
    step = max(1, _CELLS_PER_CHUNK // max(1, len(vectors)))
    for start in range(0, len(queries), step):
        rows = queries[start : start + step]
        similar = vectors[rows] @ vectors.T  # (n_chunk, n_rows)
        similar[np.arange(len(rows)), rows] = -np.inf
        for key, candidates in sets.items():
            part = similar if len(candidates) == len(vectors) else similar[:, candidates]
            found[key].append(_first(part, candidates, k))
    return {name: np.concatenate(found[key]) for name, key in key_of.items()}


def _first(
    similar: npt.NDArray[np.float32], candidates: npt.NDArray[np.int64], k: int
) -> npt.NDArray[np.int64]:
    kept = min(k, len(candidates))
    place = np.argpartition(similar, similar.shape[1] - kept, axis=1)[:, similar.shape[1] - kept :]
    place.sort(axis=1)  # so that the stable sort below leaves ties in row order
    value = np.take_along_axis(similar, place, axis=1)
    order = np.argsort(-value, axis=1, kind="stable")
    nearest = candidates[np.take_along_axis(place, order, axis=1)]
    nearest[np.take_along_axis(value, order, axis=1) == -np.inf] = -1
    return nearest
