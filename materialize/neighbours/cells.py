"""The index itself: users' vectors in cells of near ones (FAISS), searched some cells at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from encoder.errors import VerificationFailed

__all__ = ["LIBRARY", "Cells", "Tuning", "build_cells", "directions", "faiss_library", "read_cells"]

LIBRARY = "faiss"
EXACT_UP_TO = 10_000
"""Up to so many users each search looks at all of them, which takes less than a millisecond."""
RECALL_AT = 50
RECALL_TARGET = 0.97
"""A build looks into as many cells as its sample of users needs for this; above the 0.95 that is
promised, because the sample is small."""
_SAMPLE = 256
_PER_LIST = 40
"""Training vectors of a cell: FAISS warns below 39."""
_ITERATIONS = 10
_STORED = "SQfp16"
"""Half precision: half the memory of float32, and cosines that are right to 1e-3."""

Float32 = npt.NDArray[np.float32]
Chunks = Callable[[], Iterable[Float32]]


def faiss_library() -> Any:
    """Return the module ``faiss``.

    Raises
    ------
    ModuleNotFoundError
        It is not installed; the message says what to do.
    """
    try:
        import faiss
    except ModuleNotFoundError as exc:
        raise ModuleNotFoundError(
            "Nearest users need the package 'faiss', which serving does not. Install it with "
            "pip install 'palate[neighbours]'.",
            name=exc.name,
        ) from exc
    return faiss


@dataclass(frozen=True)
class Tuning:
    """How many cells there are and how many a search looks into, and what that finds.

    Attributes
    ----------
    lists, probes : int
    recall : float
        Share of the true nearest ``k`` that were found, over ``users`` of the index.
    k, users : int
    """

    lists: int
    probes: int
    recall: float
    k: int
    users: int


def directions(vectors: Float32) -> tuple[Float32, npt.NDArray[np.intp]]:
    """Return vectors at length 1, float32 (n, dim), and the positions of those that have none.

    A zero vector, or one that is not finite, has no direction; its row means nothing.
    """
    length = np.linalg.norm(vectors, axis=1, keepdims=True)  # (n, 1)
    sound = np.isfinite(length) & (length > 0)
    unit: Float32 = (vectors / np.where(sound, length, 1.0)).astype(np.float32, copy=False)
    return unit, np.flatnonzero(~sound[:, 0])


class Cells:
    """An index in memory or mapped from its file; safe for threads.

    State: FAISS' index, which no call changes.

    Parameters
    ----------
    index : faiss.Index
        Of unit vectors, by inner product.
    """

    def __init__(self, index: Any) -> None:
        self._faiss = faiss_library()
        self._index = index
        self.dim, self.count = int(index.d), int(index.ntotal)
        self.lists = int(getattr(index, "nlist", 1))

    def search(
        self, queries: Float32, k: int, probes: int
    ) -> tuple[npt.NDArray[np.int64], Float32]:
        """Return positions and cosines of the nearest vectors, both (n, k), nearest first.

        Parameters
        ----------
        queries : float32 (n, dim), unit vectors, C-contiguous
        k : int
            At most ``count``.
        probes : int
            Cells to look into for ``k`` up to 50; more for a larger ``k``, and where cells hold
            fewer vectors than that.
        """
        # Who is 500th nearest lies further out than who is 50th, and in more cells.
        wanted = min(self.lists, math.ceil(probes * math.sqrt(max(1.0, k / RECALL_AT))))
        cosine, position = self._search(queries, k, wanted)
        while wanted < self.lists and (short := (position < 0).any(axis=1)).any():
            wanted = min(2 * wanted, self.lists)
            cosine[short], position[short] = self._search(queries[short], k, wanted)
        return position, np.clip(cosine, -1.0, 1.0)

    def _search(
        self, queries: Float32, k: int, probes: int
    ) -> tuple[Float32, npt.NDArray[np.int64]]:
        if self.lists == 1:
            found = self._index.search(queries, k)
        else:
            params = self._faiss.SearchParametersIVF(nprobe=probes)
            found = self._index.search(queries, k, params=params)
        return found[0], found[1]

    def write(self, path: Path) -> None:
        """Write the file that `read_cells` reads."""
        self._faiss.write_index(self._index, str(path))


def read_cells(path: Path) -> Cells:
    """Map an index's file: processes on one machine share its pages."""
    faiss = faiss_library()
    index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
    if isinstance(index, faiss.IndexIVF):
        # FAISS would start 32 threads with each search to read ahead, which doubles its time: the
        # pages are in memory, because the file was just read whole (`Manifest.verify`).
        faiss.downcast_InvertedLists(index.invlists).prefetch_nthread = 0
    return Cells(index)


def build_cells(
    count: int,
    dim: int,
    sample: Callable[[int], Float32],
    chunks: Chunks,
    *,
    exact_up_to: int = EXACT_UP_TO,
) -> tuple[Cells, Tuning]:
    """Build an index of unit vectors and measure what it finds.

    Parameters
    ----------
    count, dim : int
    sample : callable
        Number of rows (at most ``count``) -> so many vectors of random users, float32 (n, dim).
    chunks : callable
        Returns an iterable over all vectors in order, float32 (n, dim); called once.
    exact_up_to : int
        Up to so many vectors the index is one cell, and searches are exact.

    Raises
    ------
    VerificationFailed
        ``chunks`` did not give ``count`` vectors.

    Notes
    -----
    Memory: the index (2 bytes a number and 8 a user) and the training vectors (160 float32 vectors
    for each square root of ``count``). The cells are found by k-means, 4 for each square root.
    """
    faiss = faiss_library()
    exact = count <= exact_up_to
    lists = 1 if exact else max(2, round(4 * math.sqrt(count)))
    factory = _STORED if exact else f"IVF{lists},{_STORED}"
    index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    if exact:
        index.train(sample(1))  # half precision needs no training, but FAISS asks for it
    else:
        index.cp.niter = _ITERATIONS
        # The cells' limits: the shortest way on a sphere is the largest inner product.
        index.cp.spherical = True
        index.train(sample(min(count, _PER_LIST * lists)))
    queries, k = sample(min(count, _SAMPLE)), min(count, RECALL_AT)
    best = np.full((len(queries), k), -np.inf, np.float32)
    truth = np.full((len(queries), k), -1, np.int64)
    for chunk in chunks():
        if not exact:
            _keep_best(faiss, best, truth, queries, chunk, int(index.ntotal))
        index.add(chunk)
    if index.ntotal != count:
        raise VerificationFailed(f"{count} vectors to index, {index.ntotal} came.")
    cells = Cells(index)
    if exact:
        return cells, Tuning(1, 1, 1.0, k, len(queries))
    return cells, _tune(cells, queries, truth)


def _keep_best(
    faiss: Any,
    best: Float32,
    truth: npt.NDArray[np.int64],
    queries: Float32,
    chunk: Float32,
    start: int,
) -> None:
    """Update the nearest vectors so far, cosines and positions, by those of a chunk (in place)."""
    k = best.shape[1]
    cosine, position = faiss.knn(
        queries, chunk, min(k, len(chunk)), metric=faiss.METRIC_INNER_PRODUCT
    )
    both = np.concatenate([best, cosine], axis=1)
    where = np.concatenate([truth, position + start], axis=1)
    order = np.argsort(-both, axis=1, kind="stable")[:, :k]
    best[:] = np.take_along_axis(both, order, axis=1)
    truth[:] = np.take_along_axis(where, order, axis=1)


def _tune(cells: Cells, queries: Float32, truth: npt.NDArray[np.int64]) -> Tuning:
    """Return the fewest cells, in steps of a half more, with which searches find enough."""
    k, probes = truth.shape[1], 1
    while True:
        found, _ = cells.search(queries, k, probes)
        recall = _recall(found, truth)
        if recall >= RECALL_TARGET or probes == cells.lists:
            return Tuning(cells.lists, probes, recall, k, len(queries))
        probes = min(cells.lists, max(probes + 1, probes * 3 // 2))


def _recall(found: npt.NDArray[np.int64], truth: npt.NDArray[np.int64]) -> float:
    hits = sum(len(np.intersect1d(f, t)) for f, t in zip(found, truth, strict=True))
    return hits / truth.size
