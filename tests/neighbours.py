"""Vectors with a planted structure, and who is really near whom."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

__all__ = ["Planted", "nearest", "recall"]

Float32 = npt.NDArray[np.float32]


class Planted:
    """A world of tastes from which users are drawn; equal arguments give equal vectors.

    A user has a main taste and some of a second one (popular tastes have more users), and a good
    deal that is the user's own. Directions matter unequally, as in embeddings: a few carry most of
    the variance, so that distances are those of about 20 dimensions and not of 120.

    Parameters
    ----------
    dim : int
    tastes : int
    seed : int
    own : float
        Share of the vector that is the user's own, relative to the tastes'.
    """

    def __init__(self, dim: int = 120, *, tastes: int = 4_000, seed: int = 0, own: float = 0.7):
        rng = np.random.default_rng(seed)
        spread = np.arange(1, dim + 1, dtype=np.float32) ** -0.5
        self._spread = (spread / np.linalg.norm(spread)).astype(np.float32)
        self._tastes = rng.standard_normal((tastes, dim), np.float32) * self._spread
        self._basis = np.linalg.qr(rng.standard_normal((dim, dim)))[0].astype(np.float32)
        weight = np.arange(1, tastes + 1) ** -0.8
        self._share, self._own, self._seed = weight / weight.sum(), own, seed

    def draw(self, n: int, *, stream: int = 0, chunk: int = 65_536) -> Iterator[Float32]:
        """Yield unit vectors of ``n`` users, float32 (up to ``chunk``, dim); streams differ."""
        rng = np.random.default_rng([self._seed, 1 + stream])
        for start in range(0, n, chunk):
            m = min(chunk, n - start)
            main, second = rng.choice(len(self._tastes), (2, m), p=self._share)
            weight = rng.beta(4, 1, (m, 1)).astype(np.float32)
            vectors = weight * self._tastes[main] + (1 - weight) * self._tastes[second]
            own = rng.standard_normal(vectors.shape, np.float32) * self._spread
            vectors = (vectors + self._own * own) @ self._basis
            yield vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def users(self, n: int, *, stream: int = 0) -> Float32:
        """Return unit vectors of ``n`` users at once."""
        return np.concatenate(list(self.draw(n, stream=stream)))


def nearest(vectors: Float32, queries: Float32, k: int) -> tuple[npt.NDArray[np.int64], Float32]:
    """Return positions and cosines of the nearest ``vectors`` by brute force, nearest first."""
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (queries, vectors)]
    cosine = unit[0] @ unit[1].T
    order = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(cosine, order, axis=1)


def recall(found: npt.NDArray[np.int64], truth: npt.NDArray[np.int64]) -> float:
    """Return the share of the true nearest that was found, in the mean over queries."""
    return float(
        np.mean([len(np.intersect1d(f, t)) / len(t) for f, t in zip(found, truth, strict=True)])
    )
