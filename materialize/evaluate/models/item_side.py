"""What is known of an item beside its id, as one row of numbers."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from materialize.evaluate.cohort import Cohort

__all__ = ["item_features", "item_tags"]

Float32 = npt.NDArray[np.float32]

_MAX_TAGS = 64


def item_features(cohort: Cohort) -> Float32:
    """Return vectors, clusters and tags of the catalogue, float32 (n_items, n_features).

    Vectors are centred over the items that have one and scaled to a mean square of 1 a modality;
    clusters and the 64 most frequent tags are zeros and ones, tags scaled by the root of their
    number. An item without a vector has zeros.
    """
    catalogue = cohort.catalogue
    parts: list[npt.NDArray[Any]] = []
    for vectors in catalogue.vectors.values():
        known = np.asarray(vectors.any(axis=1))
        if known.any():
            centred = np.where(known[:, None], vectors - vectors[known].mean(axis=0), 0)
            scale = np.sqrt(np.square(centred[known]).mean(dtype=np.float64))
            parts.append(centred / max(scale, 1e-12))
    parts += [
        cluster[:, None] == np.arange(cluster.max() + 1)
        for cluster in catalogue.clusters.values()
        if (cluster >= 0).any()
    ]
    parts.append(item_tags(cohort))
    return np.concatenate([np.asarray(part, np.float32) for part in parts], axis=1)


def item_tags(cohort: Cohort, max_tags: int = _MAX_TAGS) -> Float32:
    """Return the items' most frequent tags, float32 (n_items, n_tags), each row of length 1 or 0.

    Frequent by items; ties by name. No column where no item has a tag.
    """
    tags = cohort.catalogue.tags
    count = Counter(tag for own in tags for tag in set(own))
    frequent = sorted(count, key=lambda tag: (-count[tag], tag))[:max_tags]
    place = {tag: at for at, tag in enumerate(frequent)}
    matrix = np.zeros((len(tags), len(frequent)), np.float32)
    for item, own in enumerate(tags):
        matrix[item, [place[tag] for tag in own if tag in place]] = 1
    length = np.linalg.norm(matrix, axis=1, keepdims=True)
    scaled: Float32 = np.divide(matrix, length, out=matrix, where=length > 0)
    return scaled
