"""``palate similar``: who or what is nearest to some users, by their vectors of this moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from encoder.errors import DataFault, SpaceMismatch
from materialize.ledger import Space
from materialize.neighbours.cells import directions
from materialize.neighbours.index import NeighbourIndex
from materialize.neighbours.items import ItemNeighbours
from transforms.names import USER_KEY, stored_view

if TYPE_CHECKING:
    from feast import FeatureStore

__all__ = ["SimilarItem", "SimilarUser", "online_vectors", "similar_items", "similar_users"]

NOT_FOUND = "NOT_FOUND"
_CHUNK = 500

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SimilarUser:
    """A user, the cosine to whom was asked for, and the user's status online at this moment."""

    user: Any
    cosine: float
    status: str


@dataclass(frozen=True)
class SimilarItem:
    """An item, and the cosine of its vector to the decoded taste."""

    item: Any
    cosine: float


def similar_users(
    store: FeatureStore, index: NeighbourIndex, space: Space, users: Sequence[Any], top: int
) -> list[SimilarUser]:
    """Return the users nearest to one user, or to the mean direction of several; nearest first.

    Parameters
    ----------
    store : FeatureStore
    index : NeighbourIndex
        Of the space.
    space : Space
    users : sequence
        Ids, at least one. They are left out of the answer.
    top : int
        At least 1.

    Raises
    ------
    DataFault
        A user is unknown, or the users' directions cancel out.
    SpaceMismatch
        A row online is of another space.
    """
    target = _mean(directions(online_vectors(store, space, users))[0])
    asked = set(users)
    ids, cosine = index.search(target, top + len(asked))
    near = zip(ids[0].tolist(), cosine[0].tolist(), strict=True)
    found = [(user, value) for user, value in near if user not in asked][:top]
    status = _statuses(store, space, [user for user, _ in found])
    return [
        SimilarUser(user, value, state) for (user, value), state in zip(found, status, strict=True)
    ]


def similar_items(
    store: FeatureStore, items: ItemNeighbours, space: Space, users: Sequence[Any], top: int
) -> list[SimilarItem]:
    """Return the items nearest to what one user, or several in the mean, consume; nearest first.

    Raises
    ------
    DataFault
        A user is unknown, or the users' tastes cancel out.
    SpaceMismatch
        A row online is of another space.
    """
    target = _mean(items.tastes(online_vectors(store, space, users)))
    ids, cosine = items.search(target, top)
    return [
        SimilarItem(item, near)
        for item, near in zip(ids[0].tolist(), cosine[0].tolist(), strict=True)
    ]


def online_vectors(store: FeatureStore, space: Space, users: Sequence[Any]) -> Float32:
    """Return users' embeddings as the online store has them, float32 (n, dim).

    Raises
    ------
    DataFault
        A user is not there.
    SpaceMismatch
        A row is of another space or encoder version.
    """
    view = stored_view(space.number)
    rows = _read(store, view, users, ("embedding", "space", "encoder_version"))
    unknown = [user for user, vector in zip(users, rows["embedding"], strict=True) if not vector]
    if unknown:
        raise DataFault(
            f"{view} has no embedding of user(s) {', '.join(map(repr, unknown[:10]))} online. "
            f"Check the id, or write the user: `palate materialize --space {space.number}`."
        )
    marks = set(zip(rows["space"], rows["encoder_version"], strict=True))
    if marks != {(space.number, space.encoder_version)}:
        raise SpaceMismatch(
            f"Rows of {view} online are of (space, encoder version) {sorted(marks, key=str)}, "
            f"({space.number}, {space.encoder_version!r}) expected. Write the view anew: `palate "
            f"materialize --space {space.number} --force`."
        )
    return np.array(rows["embedding"], np.float32)


def _statuses(store: FeatureStore, space: Space, users: Sequence[Any]) -> list[str]:
    rows = _read(store, stored_view(space.number), users, ("status",))
    return [status or NOT_FOUND for status in rows["status"]]


def _read(
    store: FeatureStore, view: str, users: Sequence[Any], features: Sequence[str]
) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {name: [] for name in features}
    for start in range(0, len(users), _CHUNK):
        answer = store.get_online_features(
            features=[f"{view}:{name}" for name in features],
            entity_rows=[{USER_KEY: user} for user in users[start : start + _CHUNK]],
        ).to_dict()
        for name in features:
            found[name] += answer[name]
    return found


def _mean(unit: Float32) -> Float32:
    """Return the mean direction of unit vectors, float32 (1, dim)."""
    mean, wrong = directions(unit.mean(axis=0, keepdims=True))
    if len(wrong):
        raise DataFault(
            "The directions of these users cancel out, so nobody is near their mean. Ask for them "
            "one by one."
        )
    return mean
