"""How protobuf packs numbers: what stands before a list of them, and varints as numbers."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from materialize.stores.values import packed_header

__all__ = ["LONGEST_VARINT", "list_head", "varint_values"]

LONGEST_VARINT = 10
"""Bytes of an integer, at most."""


@lru_cache(maxsize=4096)
def list_head(tag: bytes, size: int) -> bytes | None:
    """Return what stands before packed numbers in a value of ``size`` bytes; None: no such value.

    Parameters
    ----------
    tag : bytes
        Of the list's field in Feast's ``Value``.
    size : int
    """
    heads = (packed_header(tag, size - length) for length in range(2, min(size, 14) + 1))
    # A longer list has no shorter header, so that at most one fits.
    return next((head for length, head in enumerate(heads, 2) if len(head) == length), None)


def varint_values(groups: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Return varints as int64 (m,).

    Parameters
    ----------
    groups : uint8 (m, length)
        The bytes of a varint a row; zeros behind a shorter one.
    """
    shifts = np.arange(groups.shape[1], dtype=np.uint64) * np.uint64(7)
    parts = (groups & np.uint8(127)).astype(np.uint64) << shifts  # (m, length)
    whole: npt.NDArray[np.int64] = np.bitwise_or.reduce(parts, axis=1).view(np.int64)
    return whole
