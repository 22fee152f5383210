"""Feast declaration of what one consumer reads: a feature service that names its pinned view."""

from __future__ import annotations

from feast import FeatureService, FeatureView

from transforms.names import EMBEDDING_ALIAS, ENCODER_TAG, REVISION_TAG, SPACE_TAG

__all__ = ["declare_service"]


def declare_service(
    name: str, view: FeatureView, space: int, encoder_version: str, revision: int | None = None
) -> FeatureService:
    """Return a service that reads one embedding view under an alias.

    The alias is the same for every space, so the full names of the features
    (``user_embedding__embedding``) stay as they are when the consumer moves.

    Parameters
    ----------
    name : str
        The consumer's name; ``EMBEDDING_ALIAS`` is the service of the default space.
    view : FeatureView
        A stored or bridged view. Only these keep their features under an alias: Feast drops those
        of an aliased on-demand view without an error.
    space : int
    encoder_version : str
        What the view's rows carry: of a bridged view, the bridge's version.
    revision : int, optional
        The consumer's revision in the ledger; the default space has none.
    """
    tags = {SPACE_TAG: str(space), ENCODER_TAG: encoder_version}
    if revision is not None:
        tags[REVISION_TAG] = str(revision)
    return FeatureService(
        name=name,
        features=[view.with_name(EMBEDDING_ALIAS)],
        tags=tags,
        description=f"User embeddings of space {space}, as {EMBEDDING_ALIAS}.",
    )
