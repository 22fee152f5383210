"""A training frame of one space is named; a mix is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoder.errors import DataFault, SpaceMismatch
from materialize.one_space import require_one_space

ONE, TWO = (1, "aaaaaaaaaaaa"), (2, "bbbbbbbbbbbb")
PREFIXES = ["", "user_embedding__", "user_embedding_s1__"]
Frame = pd.DataFrame | pa.Table
Mark = tuple[int | None, str | None]


def _frame(
    kind: str, marks: list[Mark], start: str = "", embedding: list[Any] | None = None
) -> Frame:
    columns: dict[str, Any] = {
        "user_id": list(range(len(marks))),
        f"{start}space": [space for space, _ in marks],
        f"{start}encoder_version": [version for _, version in marks],
    }
    if embedding is not None:
        columns[f"{start}embedding"] = embedding
    return pd.DataFrame(columns) if kind == "pandas" else pa.table(columns)


@pytest.mark.parametrize("start", PREFIXES)
@pytest.mark.parametrize("kind", ["pandas", "arrow"])
def test_the_one_space_is_found_under_every_kind_of_name(kind: str, start: str) -> None:
    frame = _frame(kind, [TWO, TWO, (None, None)], start, [[1.0, 2.0], [3.0, 4.0], None])
    assert require_one_space(frame) == TWO
    assert require_one_space(frame, start.removesuffix("__")) == TWO


@pytest.mark.parametrize("start", PREFIXES)
@pytest.mark.parametrize("kind", ["pandas", "arrow"])
def test_a_mix_is_refused_and_both_spaces_are_counted(kind: str, start: str) -> None:
    with pytest.raises(
        SpaceMismatch,
        match=r"2 rows of space 2 \(bbbbbbbbbbbb\) and 1 rows of space 1 \(aaaaaaaaaaaa\).*"
        r"palate consumers list",
    ):
        require_one_space(_frame(kind, [TWO, ONE, TWO, (None, None)], start))


@pytest.mark.parametrize("kind", ["pandas", "arrow"])
def test_one_space_of_two_encoder_versions_is_a_mix(kind: str) -> None:
    # What a bridge makes: vectors of space 1, some of them mapped from another encoder's.
    with pytest.raises(SpaceMismatch, match=r"space 1 \(aaaaaaaaaaaa\) and .* space 1 \(bbbbb"):
        require_one_space(_frame(kind, [ONE, ONE, (1, TWO[1])]))


@pytest.mark.parametrize("kind", ["pandas", "arrow"])
def test_nulls_alone_are_refused(kind: str) -> None:
    with pytest.raises(DataFault, match="None of the 2 rows has an embedding"):
        require_one_space(_frame(kind, [(None, None), (None, None)]))
    with pytest.raises(DataFault, match="None of the 0 rows"):
        require_one_space(_frame(kind, []))


@pytest.mark.parametrize("mark", [(None, None), (1, None), (None, ONE[1])])
@pytest.mark.parametrize("kind", ["pandas", "arrow"])
def test_a_vector_that_does_not_say_whose_it_is_is_refused(kind: str, mark: Mark) -> None:
    vectors = [[1.0], [2.0]]
    with pytest.raises(SpaceMismatch, match=r"unknown|no encoder version"):
        require_one_space(_frame(kind, [ONE, mark], embedding=vectors))
    with pytest.raises(SpaceMismatch, match=r"unknown|no encoder version"):
        require_one_space(_frame(kind, [mark, mark], embedding=vectors))


def test_several_views_ask_for_a_name() -> None:
    frame = _frame("pandas", [ONE], "user_embedding_s1__")
    frame = frame.merge(_frame("pandas", [TWO], "user_embedding_s2__"))
    with pytest.raises(ValueError, match="'user_embedding_s1', 'user_embedding_s2'"):
        require_one_space(frame)
    assert require_one_space(frame, "user_embedding_s2") == TWO
    with pytest.raises(ValueError, match="under prefix 'user_embedding'"):
        require_one_space(frame, "user_embedding")


def test_a_frame_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="'space' and 'encoder_version' among the features"):
        require_one_space(pd.DataFrame({"user_id": [1], "embedding": [[1.0]]}))


def test_what_pandas_makes_of_integers_with_gaps_is_understood() -> None:
    frame = pd.DataFrame({"space": [2.0, np.nan], "encoder_version": [TWO[1], None]})
    assert frame["space"].dtype == np.float64
    assert require_one_space(frame) == TWO


@given(st.lists(st.sampled_from([ONE, TWO, (None, None)]), max_size=30), st.booleans())
def test_exactly_the_frames_with_one_mark_pass(marks: list[Mark], arrow: bool) -> None:
    frame = _frame("arrow" if arrow else "pandas", marks)
    present = {mark for mark in marks if mark != (None, None)}
    if len(present) == 1:
        assert require_one_space(frame) == present.pop()
    else:
        with pytest.raises((SpaceMismatch, DataFault)):
            require_one_space(frame)
