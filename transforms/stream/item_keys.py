"""Items as 64-bit keys, and where a key stands among the items of the modality encoders."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from weakref import WeakKeyDictionary

import mmh3
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from encoder.errors import DataFault
from encoder.modality import ModalityEncoders

__all__ = ["ItemKeys", "item_key", "item_keys", "keys_of"]

Ints = npt.NDArray[np.int64]


def item_key(item_id: int | str) -> int:
    """Return the key of an item id: an integer as it is, 64 bits of MurmurHash3 of a string.

    Examples
    --------
    >>> item_key(42), item_key("a")
    (42, -8839064797231613815)
    """
    return item_id if isinstance(item_id, int) else _text_key(item_id)


@lru_cache(maxsize=100_000)
def _text_key(text: str) -> int:
    return int(mmh3.hash64(text)[0])


@dataclass(frozen=True)
class ItemKeys:
    """The items of some modality encoders, by key.

    Attributes
    ----------
    keys : int64 (n_items,), ascending
    position : int64 (n_items,)
        In the encoders' ``item_ids``.
    rank : int64 (n_items,)
        Of the id among all ids in ascending order: the order in which the batch adds up a day.
    """

    keys: Ints
    position: Ints
    rank: Ints

    @classmethod
    def of(cls, encoders: ModalityEncoders) -> ItemKeys:
        """Return the keys of all items.

        Raises
        ------
        DataFault
            Two ids have one key.
        """
        ids = encoders.item_ids
        keys = keys_of(ids)
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        same = np.flatnonzero(ordered[1:] == ordered[:-1])
        if len(same):
            a, b = (ids[int(order[same[0] + k])].as_py() for k in (0, 1))
            raise DataFault(
                f"Items {a!r} and {b!r} have one 64-bit key, one item a key is expected. "
                "Rename one of them."
            )
        rank = np.empty(len(keys), np.int64)
        rank[np.asarray(pc.array_sort_indices(ids), np.int64)] = np.arange(len(keys))
        return cls(ordered, order.astype(np.int64), rank[order])

    def locate(self, keys: Ints) -> tuple[Ints, Ints]:
        """Return where distinct keys stand.

        Parameters
        ----------
        keys : int64 (n,), distinct

        Returns
        -------
        position : int64 (n,)
            -1 for an unknown item.
        rank : int64 (n,), distinct
            Unknown items come after all known ones.
        """
        n_items = len(self.keys)
        at = np.searchsorted(self.keys, keys)
        known = at < n_items
        known[known] = self.keys[at[known]] == keys[known]
        position = np.full(len(keys), -1, np.int64)
        rank = n_items + np.arange(len(keys))
        position[known], rank[known] = self.position[at[known]], self.rank[at[known]]
        return position, rank


def item_keys(encoders: ModalityEncoders) -> ItemKeys:
    """Return the keys of all items; made once for as long as the encoders live."""
    found = _made.get(encoders)
    if found is None:
        found = _made[encoders] = ItemKeys.of(encoders)
    return found


_made: WeakKeyDictionary[ModalityEncoders, ItemKeys] = WeakKeyDictionary()


def keys_of(ids: pa.Array) -> Ints:
    """Return the key of each id: int64 (n,)."""
    if pa.types.is_integer(ids.type):
        return np.asarray(ids.cast(pa.int64()), np.int64)
    keys = [mmh3.hash64(text)[0] for text in ids.to_pylist()]
    return np.array(keys, np.int64)
