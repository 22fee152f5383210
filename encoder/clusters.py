"""Groups of similar items: what the interest histogram counts."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from encoder.svd import l2_normalise

__all__ = ["assign_clusters", "fit_centroids"]

Floats = npt.NDArray[np.float32]

_CHUNK = 65_536


def fit_centroids(vectors: Floats, weights: npt.NDArray[np.float64], n: int, seed: int) -> Floats:
    """Return centroids of the items' directions, popular items counting more.

    Parameters
    ----------
    vectors : float32 (n_items, dim)
        A row of zeros is an item without a vector; it takes no part.
    weights : float64 (n_items,)
        Popularity; items of weight 0 take no part.
    n : int
        Largest number of centroids; fewer where fewer items take part.
    seed : int

    Returns
    -------
    float32 (n_centroids, dim)

    References
    ----------
    Sculley. Web-scale k-means clustering. WWW 2010.
    """
    from sklearn.cluster import MiniBatchKMeans

    used = (weights > 0) & vectors.any(axis=1)
    if not used.any():
        return np.zeros((0, vectors.shape[1]), np.float32)
    # sklearn draws its batches by row: sorted by nothing in particular is what it expects.
    model = MiniBatchKMeans(min(n, int(used.sum())), random_state=seed, n_init=3, batch_size=4096)
    model.fit(l2_normalise(vectors[used]), sample_weight=weights[used])
    return np.ascontiguousarray(model.cluster_centers_, np.float32)


def assign_clusters(vectors: Floats, centroids: Floats) -> npt.NDArray[np.int32]:
    """Return the nearest centroid of each item's direction, -1 for an item without a vector.

    Parameters
    ----------
    vectors : float32 (n_items, dim)
    centroids : float32 (n_centroids, dim)

    Returns
    -------
    int32 (n_items,)
    """
    cluster = np.full(len(vectors), -1, np.int32)
    if not len(centroids):
        return cluster
    half_square = (centroids**2).sum(axis=1) / 2  # (n_centroids,)
    for start in range(0, len(vectors), _CHUNK):
        part = l2_normalise(vectors[start : start + _CHUNK])
        nearest = (part @ centroids.T - half_square).argmax(axis=1)
        cluster[start : start + _CHUNK] = np.where(part.any(axis=1), nearest, -1)
    return cluster
