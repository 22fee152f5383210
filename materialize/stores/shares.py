"""What a view takes of an online store."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["OnlineShare"]


class OnlineShare(NamedTuple):
    """Rows and bytes of one view in an online store.

    Attributes
    ----------
    rows : int or None
        Users with a row; None: the store does not tell.
    size_bytes : int or None
        None: the store does not tell.
    """

    rows: int | None
    size_bytes: int | None
