"""Names of Feast objects."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.names import bridged_view, on_demand_view, space_of_view, stored_view


@given(st.integers(0, 10**9))
def test_a_stored_view_names_its_space(space: int) -> None:
    assert space_of_view(stored_view(space)) == space
    assert space_of_view(on_demand_view(space)) is None


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_no_two_views_share_a_name(one: int, other: int) -> None:
    spaces = {one, other}
    names = {view(space) for view in (stored_view, on_demand_view) for space in spaces}
    names |= {bridged_view(target, source) for target in spaces for source in spaces}
    assert len(names) == 2 * len(spaces) + len(spaces) ** 2


def test_a_bridged_view_is_no_stored_view_of_either_space() -> None:
    assert space_of_view(bridged_view(3, 4)) is None


@pytest.mark.parametrize(
    "view",
    ["user_activity", "user_embedding_s", "user_embedding_sx", "user_embedding_s1_old", ""],
)
def test_other_names_have_no_space(view: str) -> None:
    assert space_of_view(view) is None
