"""Feast declaration of a consumer's service."""

from __future__ import annotations

from pathlib import Path

from feast import Entity, FeatureService, ValueType

from transforms.embedding_views import declare_bridged_view, declare_stored_view
from transforms.names import ENCODER_TAG, REVISION_TAG, SPACE_TAG, USER_KEY
from transforms.services import declare_service

USER = Entity(name="user", join_keys=[USER_KEY], value_type=ValueType.INT64)
STORED = declare_stored_view(USER, space=4, encoder_version="c0ffee123456", folder=Path("/x"))
BRIDGED = declare_bridged_view(
    USER, target=3, source=4, bridge_version="b41d6e123456", folder=Path("/y")
)


def _names(service: FeatureService) -> tuple[str, str, list[str]]:
    (projection,) = service.feature_view_projections
    return projection.name, projection.name_to_use(), [f.name for f in projection.features]


def test_a_service_reads_its_view_under_a_name_that_every_space_shares() -> None:
    stored = declare_service("home", STORED, 4, "c0ffee123456", 2)
    bridged = declare_service("home", BRIDGED, 3, "b41d6e123456", 3)
    assert _names(stored)[:2] == ("user_embedding_s4", "user_embedding")
    assert _names(bridged)[:2] == ("user_embedding_s3_from_s4", "user_embedding")
    assert _names(stored)[2] == _names(bridged)[2]


def test_a_service_says_what_it_is_pinned_to() -> None:
    pinned = declare_service("home", STORED, 4, "c0ffee123456", 2)
    assert pinned.tags == {SPACE_TAG: "4", ENCODER_TAG: "c0ffee123456", REVISION_TAG: "2"}
    default = declare_service("user_embedding", STORED, 4, "c0ffee123456")
    assert default.tags == {SPACE_TAG: "4", ENCODER_TAG: "c0ffee123456"}


def test_the_view_keeps_its_own_name() -> None:
    declare_service("home", STORED, 4, "c0ffee123456", 2)
    assert STORED.projection.name_to_use() == "user_embedding_s4"
