"""Names of the Feast objects that Palate declares, in one place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = [
    "BRIDGE_TAG",
    "EMBEDDING_ALIAS",
    "EMBEDDING_FEATURES",
    "ENCODER_TAG",
    "FLOAT32",
    "ITEM_KEY",
    "ITEM_VECTORS",
    "REVISION_TAG",
    "SPACE_TAG",
    "USER_KEY",
    "VECTORS_TAG",
    "VECTOR_FORMS",
    "bridged_view",
    "is_bridged_view",
    "is_on_demand_view",
    "on_demand_view",
    "request_context",
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

EMBEDDING_ALIAS = "user_embedding"
"""What every consumer's service calls its embedding view, whichever space that is of; also the name
of the default space's service."""

EMBEDDING_FEATURES = ("embedding", "as_of", "space", "encoder_version", "status", "n_events")
"""Features of an embedding view, stored or on demand, in their order."""

SPACE_TAG = "palate.space"
ENCODER_TAG = "palate.encoder_version"
BRIDGE_TAG = "palate.bridged_from"
"""Tag of a bridged view: the space whose vectors were mapped."""
REVISION_TAG = "palate.revision"
"""Tag of a consumer's service: how often the ledger had moved the consumer."""
VECTORS_TAG = "palate.vectors"
"""Tag of a stored view whose vectors the online store keeps in another form than float32."""

FLOAT32 = "float32"
VECTOR_FORMS = (FLOAT32, "float16", "int8")
"""Forms in which an online store keeps vectors; readers see float32 whatever the form."""

_STORED = re.compile(r"^user_embedding_s(\d+)$")
_ON_DEMAND = re.compile(r"^user_embedding_on_demand_s\d+$")
_BRIDGED = re.compile(r"^user_embedding_s\d+_from_s\d+$")


def stored_view(space: int) -> str:
    """Return the name of a space's stored feature view."""
    return f"user_embedding_s{space}"


def bridged_view(target: int, source: int) -> str:
    """Return the name of the view that holds a source space's vectors mapped into a target's.

    Its rows are of the target space; their encoder version is the bridge's.

    Examples
    --------
    >>> bridged_view(3, 4)
    'user_embedding_s3_from_s4'
    """
    return f"{stored_view(target)}_from_s{source}"


def is_bridged_view(name: str) -> bool:
    """Return whether a name is that of a bridged view.

    Examples
    --------
    >>> is_bridged_view("user_embedding_s3_from_s4"), is_bridged_view("user_embedding_s3")
    (True, False)
    """
    return _BRIDGED.match(name) is not None


def on_demand_view(space: int) -> str:
    """Return the name of a space's on-demand feature view."""
    return f"user_embedding_on_demand_s{space}"


def is_on_demand_view(name: str) -> bool:
    """Return whether a name is that of a space's on-demand view.

    Examples
    --------
    >>> is_on_demand_view("user_embedding_on_demand_s3"), is_on_demand_view("user_embedding_s3")
    (True, False)
    """
    return _ON_DEMAND.match(name) is not None


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


def request_context(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the context columns that requests of a space's on-demand view give, from its facts.

    Examples
    --------
    >>> request_context({"request_context": ["device"]})
    ('device',)
    >>> request_context({})
    ()
    """
    return tuple(facts.get("request_context", ()))
