"""Names of the Feast objects that Palate declares, in one place."""

from __future__ import annotations

import re

__all__ = [
    "ENCODER_TAG",
    "ITEM_KEY",
    "ITEM_VECTORS",
    "SPACE_TAG",
    "USER_KEY",
    "on_demand_view",
    "space_of_view",
    "stored_view",
]

USER_KEY = "user_id"
"""Join key of the user entity."""

ITEM_KEY = "item_id"
"""Join key of the item entity."""

ITEM_VECTORS = "item_vectors"
"""Feature view of the modality encoders' item vectors."""

SPACE_TAG = "palate.space"
ENCODER_TAG = "palate.encoder_version"

_STORED = re.compile(r"^user_embedding_s(\d+)$")


def stored_view(space: int) -> str:
    """Return the name of a space's stored feature view."""
    return f"user_embedding_s{space}"


def on_demand_view(space: int) -> str:
    """Return the name of a space's on-demand feature view."""
    return f"user_embedding_on_demand_s{space}"


def space_of_view(view: str) -> int | None:
    """Return the space of a stored view's name, or None for any other name.

    Examples
    --------
    >>> space_of_view("user_embedding_s12")
    12
    >>> space_of_view("user_activity") is None
    True
    """
    match = _STORED.match(view)
    return int(match.group(1)) if match else None
