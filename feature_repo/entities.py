"""Who has features: users, and the items they consume."""

from __future__ import annotations

from feast import Entity, ValueType

from transforms.names import ITEM_KEY, USER_KEY

__all__ = ["declare_entities"]


def declare_entities(user_type: str, item_type: str) -> tuple[Entity, Entity]:
    """Return the user and the item entity; the types are ``int64`` or ``string``."""
    types = {"int64": ValueType.INT64, "string": ValueType.STRING}
    user = Entity(name="user", join_keys=[USER_KEY], value_type=types[user_type])
    item = Entity(name="item", join_keys=[ITEM_KEY], value_type=types[item_type])
    return user, item
