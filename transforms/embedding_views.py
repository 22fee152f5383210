"""Feast declarations of one space: the stored view, the on-demand view, and bridged views."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from types import FunctionType
from typing import cast

from feast import (
    Entity,
    FeatureView,
    Field,
    FileSource,
    OnDemandFeatureView,
    PushSource,
    RequestSource,
)
from feast.data_format import ParquetFormat
from feast.types import String

from transforms.names import (
    BRIDGE_TAG,
    ENCODER_TAG,
    FLOAT32,
    SPACE_TAG,
    VECTORS_TAG,
    bridged_view,
    on_demand_view,
    stored_view,
)
from transforms.on_demand import EMBEDDING_FIELDS, EmbeddingTransformation

__all__ = ["declare_bridged_view", "declare_on_demand_view", "declare_stored_view"]


def declare_stored_view(
    user: Entity, *, space: int, encoder_version: str, folder: Path, vectors: str = FLOAT32
) -> FeatureView:
    """Return the view that serves a space's stored embeddings, online and point-in-time.

    Parameters
    ----------
    user : Entity
    space : int
    encoder_version : str
    folder : Path
        Absolute folder of the view's Parquet files.
    vectors : str
        Form in which the online store keeps embeddings, one of ``VECTOR_FORMS``; the feature's type
        is a list of float32 whatever the form.
    """
    return _declare(
        user,
        stored_view(space),
        folder,
        vectors,
        {SPACE_TAG: str(space), ENCODER_TAG: encoder_version},
        f"User embeddings of space {space}.",
    )


def declare_bridged_view(
    user: Entity,
    *,
    target: int,
    source: int,
    bridge_version: str,
    folder: Path,
    vectors: str = FLOAT32,
) -> FeatureView:
    """Return the view that serves a space from another one's vectors, through a bridge.

    Its fields are those of a stored view. Its rows are marked with the target space and the bridge
    as their encoder version, so that no reader takes them for vectors of the target's encoder.

    Parameters
    ----------
    user : Entity
    target : int
        The space that readers were trained on.
    source : int
        The space whose vectors are mapped.
    bridge_version : str
    folder : Path
        Absolute folder of the view's Parquet files.
    vectors : str
        Form in which the online store keeps embeddings.
    """
    return _declare(
        user,
        bridged_view(target, source),
        folder,
        vectors,
        {SPACE_TAG: str(target), ENCODER_TAG: bridge_version, BRIDGE_TAG: str(source)},
        f"User embeddings of space {source}, mapped into space {target}.",
    )


def _declare(
    user: Entity, name: str, folder: Path, vectors: str, tags: dict[str, str], description: str
) -> FeatureView:
    if vectors != FLOAT32:
        tags = tags | {VECTORS_TAG: vectors}
    return FeatureView(
        name=name,
        entities=[user],
        ttl=timedelta(0),
        schema=list(EMBEDDING_FIELDS),
        source=PushSource(
            name=f"{name}_push",
            batch_source=FileSource(
                name=f"{name}_source",
                path=str(folder),
                file_format=ParquetFormat(),
                timestamp_field="event_timestamp",
                created_timestamp_column="created_timestamp",
            ),
        ),
        tags=tags,
        description=description,
    )


def declare_on_demand_view(
    sources: list[FeatureView],
    *,
    space: int,
    encoder_version: str,
    store: str,
    request_context: Sequence[str] = (),
) -> OnDemandFeatureView:
    """Return the view that encodes a user's raw features at request time.

    Parameters
    ----------
    sources : list of FeatureView
        The raw views whose columns the encoder's schema names.
    space : int
    encoder_version : str
    store : str
        Absolute folder or fsspec URL of the artifact store; it becomes part of the view.
    request_context : sequence of str
        Context columns that each request gives, null where it knows nothing. Feast then demands
        them in every entity row, so there is no such source without any.
    """
    name = on_demand_view(space)
    transformation = EmbeddingTransformation.of(
        view=name,
        space=space,
        encoder_version=encoder_version,
        store=store,
        request_context=request_context,
    )
    request = RequestSource(
        name=f"{name}_request",
        schema=[Field(name=column, dtype=String) for column in request_context],
        description="What only the request knows; null: the stored circumstance stays.",
    )
    return OnDemandFeatureView(
        name=name,
        sources=[*sources, *([request] if request_context else [])],
        schema=list(EMBEDDING_FIELDS),
        feature_transformation=transformation,
        # Feast types the attribute of an instance as a bound method; it is the plain function.
        udf=cast(FunctionType, transformation.udf),
        udf_string=transformation.udf_string,
        mode="python",
        tags={SPACE_TAG: str(space), ENCODER_TAG: encoder_version},
        description=f"Space {space}, encoded at request time from the raw features.",
    )
