"""A row at fault takes no other row down, and has no embedding that somebody could believe."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoder.artifact import EncoderArtifact
from encoder.errors import MalformedInput, SpaceMismatch
from encoder.store import ArtifactStore
from tests.encoders import tiny_artifact
from tests.repositories import as_batch, raw_rows
from transforms.faults import blank_rows, rows_at_fault
from transforms.layout import ACTIVITY, column
from transforms.runtime import configure, encode, encode_on_demand, row_error_counts

POOLED, COUNTS = column(ACTIVITY, "pooled"), column(ACTIVITY, "counts")
MODALITY, AS_OF = column(ACTIVITY, "modality"), column(ACTIVITY, "as_of")


@pytest.fixture(scope="module")
def artifact() -> EncoderArtifact:
    return tiny_artifact(0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, artifact: EncoderArtifact) -> str:
    url = str(tmp_path_factory.mktemp("encoders"))
    ArtifactStore(url).save(artifact)
    return url


@pytest.fixture
def per_row() -> Iterator[None]:
    configure(on_error="row")
    yield
    configure()


_FAULTS: dict[str, tuple[str, Any, type[Exception]]] = {
    "another width": (POOLED, [1.0], MalformedInput),
    "no number": (POOLED, ["x", 1.0, 1.0, 1.0], MalformedInput),
    "a digit as text": (POOLED, ["1", 1.0, 1.0, 1.0], MalformedInput),
    "NaN": (POOLED, [float("nan")] * 4, MalformedInput),
    "a negative count": (COUNTS, [-1.0] * 6, MalformedInput),
    "no whole number": (AS_OF, "yesterday", MalformedInput),
    "another modality version": (MODALITY, "f" * 12, SpaceMismatch),
}


def _inputs(faulty: dict[int, str], n: int = 6) -> dict[str, list[Any]]:
    inputs: dict[str, list[Any]] = raw_rows(list(range(100, 100 + n))).to_pydict()
    for row, name in faulty.items():
        field, value, _ = _FAULTS[name]
        inputs[field][row] = value
    return inputs


def _answer(artifact: EncoderArtifact, store: str, inputs: dict[str, Any]) -> dict[str, list[Any]]:
    version = artifact.encoder_version
    return encode_on_demand(inputs, view="v", space=3, encoder_version=version, store=store)


@given(faulty=st.dictionaries(st.integers(0, 5), st.sampled_from(sorted(_FAULTS))))
def test_rows_at_fault_are_marked_and_the_others_answered_as_without_them(
    artifact: EncoderArtifact, store: str, faulty: dict[int, str]
) -> None:
    """Whatever the faults, the other rows have the embedding that the encoder gives them."""
    expected = artifact.encode(blank_rows(as_batch(raw_rows(list(range(100, 106)))), faulty))
    configure(on_error="row")
    try:
        answer = _answer(artifact, store, _inputs(faulty))
    finally:
        configure()
    for row in range(6):
        if row in faulty:
            assert answer["embedding"][row] is None
            assert answer["status"][row] == "error"
            assert (answer["as_of"][row], answer["n_events"][row]) == (0, 0)
        else:
            assert np.array_equal(answer["embedding"][row], expected[row])
            assert answer["status"][row] == "warm"
    assert answer["space"] == [3] * 6


@pytest.mark.parametrize("name", sorted(_FAULTS))
def test_each_fault_raises_by_default_and_names_user_and_column(
    artifact: EncoderArtifact, store: str, name: str
) -> None:
    field, _, kind = _FAULTS[name]
    with pytest.raises(kind) as caught:
        _answer(artifact, store, _inputs({4: name}))
    assert "104" in str(caught.value)
    assert field in str(caught.value)


def test_encode_tells_which_rows_have_no_embedding_and_why(
    artifact: EncoderArtifact, store: str
) -> None:
    batch = as_batch(raw_rows([7, 8, 9, 10]))
    batch.columns[COUNTS].values[1, 0] = -1.0
    batch.columns[MODALITY].values[3] = "f" * 12
    with pytest.raises(SpaceMismatch):
        encode(batch, artifact.encoder_version, store)
    encoded = encode(batch, artifact.encoder_version, store, on_error="row")
    assert sorted(encoded.errors) == [1, 3]
    negative, mixed = encoded.errors[1], encoded.errors[3]
    assert isinstance(negative, MalformedInput)
    assert (negative.row, negative.user, negative.column) == (1, "8", COUNTS)
    assert isinstance(mixed, SpaceMismatch)
    assert "Row 3 (10)" in str(mixed)
    assert np.isnan(encoded.embedding[[1, 3]]).all()
    assert np.isfinite(encoded.embedding[[0, 2]]).all()
    assert encoded.status.tolist() == ["warm", "error", "warm", "error"]


def test_a_missing_column_is_nobodys_row(
    artifact: EncoderArtifact, store: str, per_row: None
) -> None:
    inputs = _inputs({})
    del inputs[POOLED]
    with pytest.raises(MalformedInput, match="not among the inputs"):
        _answer(artifact, store, inputs)
    batch = as_batch(raw_rows([1, 2]))
    columns = {name: c for name, c in batch.columns.items() if name != POOLED}
    lacking = type(batch)(columns, 2, batch.users)
    with pytest.raises(MalformedInput, match="is missing"):
        encode(lacking, artifact.encoder_version, store, on_error="row")


def test_rows_without_an_embedding_are_counted_and_logged(
    artifact: EncoderArtifact, store: str, per_row: None, caplog: pytest.LogCaptureFixture
) -> None:
    before = row_error_counts()
    with caplog.at_level(logging.WARNING, "transforms.faults"):
        _answer(artifact, store, _inputs({1: "NaN", 2: "another width", 5: "NaN"}))
        _answer(artifact, store, _inputs({3: "another modality version"}))
        _answer(artifact, store, _inputs({}))
    after = row_error_counts()
    added = {name: after[name] - before.get(name, 0) for name in after}
    assert added == {"MalformedInput": 3, "SpaceMismatch": 1}
    first, second = caplog.messages
    assert f"encoder {artifact.encoder_version}: 3 row(s) answered without an embedding" in first
    assert "101" in first
    assert "1 row(s)" in second


def test_only_faulty_rows_leave_no_embedding_at_all(
    artifact: EncoderArtifact, store: str, per_row: None
) -> None:
    answer = _answer(artifact, store, _inputs(dict.fromkeys(range(6), "another modality version")))
    assert answer["embedding"] == [None] * 6
    assert answer["status"] == ["error"] * 6


@given(bad=st.sets(st.integers(0, 9)))
def test_the_search_finds_exactly_the_rows_at_fault(
    artifact: EncoderArtifact, bad: set[int]
) -> None:
    """Each row at fault is found with an error of its own, and no other row is."""
    batch = as_batch(raw_rows(list(range(10))))
    batch.columns[POOLED].values[sorted(bad), 0] = np.inf
    found = rows_at_fault(batch, artifact.preprocessor.transform)
    assert set(found) == bad
    assert all(isinstance(e, MalformedInput) and e.row == row for row, e in found.items())
