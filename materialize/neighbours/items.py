"""Items near users: what the encoder's decoder says they consume more than others do."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from encoder.artifact import EncoderArtifact
from encoder.decoding import decode_taste
from encoder.modality import ModalityEncoders
from encoder.schema import FeatureSchema
from materialize.neighbours.cells import directions
from transforms.layout import ACTIVITY, column

__all__ = ["ItemNeighbours"]

Float32 = npt.NDArray[np.float32]


class ItemNeighbours:
    """The items of one modality, to be searched by user embedding; safe for threads.

    An embedding and an item vector lie in different spaces and cannot be compared. But the encoder
    has learned to rebuild a user's pooled item vector (a weighted mean of the vectors of what the
    user consumed) from the embedding. How that departs from the average user's lies in the items'
    space: the answer is the items with the largest cosine to it, those that the user consumes more
    than others do. All items are compared, and none is left out for having been consumed.

    State: the item vectors at length 1; nothing changes.

    Parameters
    ----------
    artifact : EncoderArtifact
        Of the space of the embeddings. Items that came after it was trained are not in it.
    modality : str, optional
        ``collaborative``, ``content`` or a brought vector's name; default: the first one.

    Raises
    ------
    ValueError
        The encoder reads no such modality.
    """

    def __init__(self, artifact: EncoderArtifact, modality: str | None = None) -> None:
        self._artifact = artifact
        self.modality, self._block = _longest_window(artifact.manifest.schema, modality)
        encoders = ModalityEncoders.from_state(*artifact.modality.state())
        (own,) = (m for m in encoders.modalities if m.name == self.modality)
        known = own.vectors.any(axis=1)  # an item without a vector is near nobody
        self._ids = encoders.item_ids.filter(pa.array(known))
        self._vectors, _ = directions(own.vectors[known])

    @property
    def count(self) -> int:
        """Items with a vector."""
        return len(self._ids)

    def tastes(self, embedding: Float32) -> Float32:
        """Return what users consume more than others do, unit vectors float32 (n, dim).

        Parameters
        ----------
        embedding : float32 (n, embedding_dim)
            As stored, not at length 1: the decoder is not linear.

        Raises
        ------
        ArtifactError
            The artifact has no decoder, or one that has learned nothing of the modality.
        """
        tastes, _ = directions(decode_taste(self._artifact, embedding, self._block))
        return tastes

    def search(self, tastes: Float32, k: int) -> tuple[npt.NDArray[Any], Float32]:
        """Return the items nearest to some tastes, exactly.

        Parameters
        ----------
        tastes : float32 (n, dim)
            From `tastes`, or a mean of several.
        k : int
            At least 1; at most all items are returned.

        Returns
        -------
        ids : int64 or object (of str) (n, min(k, count))
            Nearest first.
        cosine : float32 (n, min(k, count))
        """
        if k < 1:
            raise ValueError(f"k {k} given, at least 1 expected.")
        k = min(k, self.count)
        unit, _ = directions(tastes)
        cosine = unit @ self._vectors.T  # (n, n_items)
        nearest = np.argpartition(-cosine, k - 1, axis=1)[:, :k]  # (n, k)
        own = np.take_along_axis(cosine, nearest, axis=1)
        order = np.argsort(-own, axis=1, kind="stable")
        nearest = np.take_along_axis(nearest, order, axis=1)
        ids = self._ids.take(pa.array(nearest.ravel())).to_numpy(zero_copy_only=False)
        return ids.reshape(nearest.shape), np.take_along_axis(own, order, axis=1)


def _longest_window(schema: FeatureSchema, modality: str | None) -> tuple[str, str]:
    """Return the modality and its block of pooled history over the longest window."""
    found: dict[str, tuple[int, str]] = {}
    for block in schema.blocks:
        name = re.fullmatch(r"(.+)_(\d+)d", block.name)
        if block.kind == "pooled" and block.column == column(ACTIVITY, "pooled") and name:
            days = int(name.group(2))
            found[name.group(1)] = max(found.get(name.group(1), (0, "")), (days, block.name))
    chosen = next(iter(found)) if modality is None else modality
    if chosen not in found:
        raise ValueError(
            f"Modality {chosen!r} given, one of {', '.join(sorted(found))} expected: those are the "
            "ones that the encoder reads."
        )
    return chosen, found[chosen][1]
