"""Names of the Feast objects that Palate declares, in one place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = [
    "ENCODER_TAG",
    "FLOAT32",
    "ITEM_KEY",
    "ITEM_VECTORS",
    "SPACE_TAG",
    "USER_KEY",
    "VECTORS_TAG",
    "VECTOR_FORMS",
    "on_demand_view",
    "space_of_view",
    "stored_view",
    "vector_form",
]

USER_KEY = "user_id"
"""Join key of the user entity."""

ITEM_KEY = "item_id"
"""Join key of the item entity."""

ITEM_VECTORS = "item_vectors"
"""Feature view of the modality encoders' item vectors."""

SPACE_TAG = "palate.space"
ENCODER_TAG = "palate.encoder_version"
VECTORS_TAG = "palate.vectors"
"""Tag of a stored view whose vectors the online store keeps in another form than float32."""

FLOAT32 = "float32"
VECTOR_FORMS = (FLOAT32, "float16", "int8")
"""Forms in which an online store keeps vectors; readers see float32 whatever the form."""

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


def vector_form(facts: Mapping[str, Any]) -> str:
    """Return the form of a space's stored vectors from its facts in the ledger.

    Examples
    --------
    >>> vector_form({"vectors": "int8"})
    'int8'
    >>> vector_form({})
    'float32'
    """
    form: str = facts.get("vectors", FLOAT32)
    return form
