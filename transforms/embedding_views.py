"""Feast declarations of one space: the stored view and the on-demand view."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from types import FunctionType
from typing import cast

from feast import Entity, FeatureView, FileSource, OnDemandFeatureView, PushSource
from feast.data_format import ParquetFormat

from transforms.names import (
    ENCODER_TAG,
    FLOAT32,
    SPACE_TAG,
    VECTORS_TAG,
    on_demand_view,
    stored_view,
)
from transforms.on_demand import EMBEDDING_FIELDS, EmbeddingTransformation

__all__ = ["declare_on_demand_view", "declare_stored_view"]


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
    name = stored_view(space)
    tags = {SPACE_TAG: str(space), ENCODER_TAG: encoder_version}
    if vectors != FLOAT32:
        tags[VECTORS_TAG] = vectors
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
        description=f"User embeddings of space {space}.",
    )


def declare_on_demand_view(
    sources: list[FeatureView], *, space: int, encoder_version: str, store: str
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
    """
    name = on_demand_view(space)
    transformation = EmbeddingTransformation.of(
        view=name, space=space, encoder_version=encoder_version, store=store
    )
    return OnDemandFeatureView(
        name=name,
        sources=list(sources),
        schema=list(EMBEDDING_FIELDS),
        feature_transformation=transformation,
        # Feast types the attribute of an instance as a bound method; it is the plain function.
        udf=cast(FunctionType, transformation.udf),
        udf_string=transformation.udf_string,
        mode="python",
        tags={SPACE_TAG: str(space), ENCODER_TAG: encoder_version},
        description=f"Space {space}, encoded at request time from the raw features.",
    )
