"""Feast declarations of a space."""

from __future__ import annotations

from pathlib import Path

from feast import Entity, FileSource, ValueType
from feast.types import Array, Float32

from tests.encoders import LAYOUT
from transforms.embedding_views import (
    declare_bridged_view,
    declare_on_demand_view,
    declare_stored_view,
)
from transforms.names import (
    BRIDGE_TAG,
    ENCODER_TAG,
    SPACE_TAG,
    USER_KEY,
    VECTORS_TAG,
    bridged_view,
    on_demand_view,
    space_of_view,
    stored_view,
)
from transforms.on_demand import OnDemandSpec, spec_of
from transforms.raw_views import declare_raw_views

USER = Entity(name="user", join_keys=[USER_KEY], value_type=ValueType.INT64)
VERSION = "c0ffee123456"


def test_both_views_of_a_space_offer_the_same_features_and_say_whose_they_are() -> None:
    stored = declare_stored_view(USER, space=4, encoder_version=VERSION, folder=Path("/offline/x"))
    raw = declare_raw_views(USER, LAYOUT, Path("/features"))
    fresh = declare_on_demand_view(raw, space=4, encoder_version=VERSION, store="/encoders")
    assert (stored.name, fresh.name) == (stored_view(4), on_demand_view(4))
    assert space_of_view(stored.name) == 4
    offered = [
        {f.name: (f.dtype, f.description) for f in view.features} for view in (stored, fresh)
    ]
    assert offered[0] == offered[1]
    for view in (stored, fresh):
        assert view.tags == {SPACE_TAG: "4", ENCODER_TAG: VERSION}
    assert set(fresh.source_feature_view_projections) == {view.name for view in raw}
    assert f"encoder_version='{VERSION}'" in fresh.feature_transformation.udf_string
    assert fresh.mode == "python"
    assert not fresh.write_to_online_store


def test_only_a_view_with_request_context_demands_it() -> None:
    raw = declare_raw_views(USER, LAYOUT, Path("/features"))
    names = {"space": 4, "encoder_version": VERSION, "store": "/encoders"}
    without = declare_on_demand_view(raw, **names)  # type: ignore[arg-type]
    assert without.get_request_data_schema() == {}
    assert "request_context" not in without.feature_transformation.udf_string
    given = declare_on_demand_view(raw, **names, request_context=["device"])  # type: ignore[arg-type]
    assert list(given.get_request_data_schema()) == ["device"]
    assert spec_of(given) == OnDemandSpec(given.name, 4, VERSION, "/encoders", ("device",))
    assert spec_of(without) == OnDemandSpec(without.name, 4, VERSION, "/encoders")


def test_only_a_compact_form_is_tagged() -> None:
    for form, more in (("float32", {}), ("int8", {VECTORS_TAG: "int8"})):
        view = declare_stored_view(
            USER, space=4, encoder_version=VERSION, folder=Path("/offline/x"), vectors=form
        )
        assert view.tags == {SPACE_TAG: "4", ENCODER_TAG: VERSION, **more}
        assert view.features[0].dtype == Array(Float32)


def test_the_stored_view_reads_its_folder_and_takes_pushes() -> None:
    view = declare_stored_view(USER, space=4, encoder_version=VERSION, folder=Path("/offline/x"))
    assert isinstance(view.batch_source, FileSource)
    assert view.batch_source.path == "/offline/x"
    assert view.batch_source.timestamp_field == "event_timestamp"
    assert view.batch_source.created_timestamp_column == "created_timestamp"
    assert view.stream_source is not None
    assert view.stream_source.name == "user_embedding_s4_push"


def test_a_bridged_view_offers_what_the_target_does_and_says_where_it_comes_from() -> None:
    target = declare_stored_view(USER, space=3, encoder_version=VERSION, folder=Path("/offline/x"))
    bridged = declare_bridged_view(
        USER,
        target=3,
        source=4,
        bridge_version="b41d6e123456",
        folder=Path("/offline/y"),
        vectors="int8",
    )
    assert bridged.name == bridged_view(3, 4)
    assert bridged.schema == target.schema
    assert bridged.tags == {
        SPACE_TAG: "3",
        ENCODER_TAG: "b41d6e123456",
        BRIDGE_TAG: "4",
        VECTORS_TAG: "int8",
    }
    assert isinstance(bridged.batch_source, FileSource)
    assert bridged.batch_source.path == "/offline/y"
    assert bridged.stream_source is not None
    assert bridged.stream_source.name == f"{bridged_view(3, 4)}_push"
