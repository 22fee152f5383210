"""The generated function of an on-demand view."""

from __future__ import annotations

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.on_demand import EMBEDDING_FIELDS, EmbeddingTransformation, udf_source

ARGUMENTS = {"view": "v", "space": 1, "encoder_version": "0" * 12, "store": "/encoders"}


@given(
    store=st.text(max_size=40),
    version=st.text("0123456789abcdef", min_size=12, max_size=12),
    space=st.integers(1, 10**6),
)
def test_the_text_holds_literals_and_one_import_inside(
    store: str, version: str, space: int
) -> None:
    """Whatever the store's name, the function's only free name is the one that it imports."""
    source = udf_source(view="v", space=space, encoder_version=version, store=store)
    (function,) = ast.parse(source).body
    assert isinstance(function, ast.FunctionDef)
    assert (function.name, [a.arg for a in function.args.args]) == ("v", ["inputs"])
    doc, imported, answer = function.body
    assert isinstance(doc, ast.Expr)
    assert isinstance(imported, ast.ImportFrom)
    assert imported.module == "transforms.runtime"
    assert isinstance(answer, ast.Return)
    assert isinstance(answer.value, ast.Call)
    given = {k.arg: ast.literal_eval(k.value) for k in answer.value.keywords}
    assert given == {"view": "v", "space": space, "encoder_version": version, "store": store}
    names = {n.id for n in ast.walk(answer) if isinstance(n, ast.Name)}
    assert names == {"encode_on_demand", "inputs"}


@pytest.mark.parametrize(
    "changed", [{"encoder_version": "1" * 12}, {"space": 2}, {"store": "/other"}]
)
def test_what_changes_the_answer_changes_the_text(changed: dict[str, object]) -> None:
    one = EmbeddingTransformation.of(**ARGUMENTS)  # type: ignore[arg-type]
    other = EmbeddingTransformation.of(**(ARGUMENTS | changed))  # type: ignore[arg-type]
    assert one.udf_string != other.udf_string
    assert one != other
    assert one == EmbeddingTransformation.of(**ARGUMENTS)  # type: ignore[arg-type]


@pytest.mark.parametrize("view", ["", "a-b", "1a", "a b", "a;b", "class"])
def test_a_view_name_that_cannot_name_a_function_is_refused(view: str) -> None:
    with pytest.raises(ValueError, match="a Python identifier is expected"):
        udf_source(**(ARGUMENTS | {"view": view}))  # type: ignore[arg-type]


def test_the_output_fields_are_told_without_running_the_function() -> None:
    transformation = EmbeddingTransformation.of(**ARGUMENTS)  # type: ignore[arg-type]
    assert transformation.infer_features({}) == list(EMBEDDING_FIELDS)
    with pytest.raises(Exception, match="Unknown encoder version"):
        transformation.udf({})
