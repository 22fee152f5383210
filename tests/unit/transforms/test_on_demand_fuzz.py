"""Ten thousand generated inputs to the on-demand view's function: an embedding or a typed error."""

from __future__ import annotations

import logging
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from encoder.artifact import EncoderArtifact
from encoder.errors import MalformedInput, SpaceMismatch
from encoder.store import ArtifactStore
from tests.encoders import SCHEMA, tiny_artifact
from tests.repositories import raw_rows
from tests.strategies import VERSION
from transforms.names import USER_KEY
from transforms.on_demand import EmbeddingTransformation
from transforms.runtime import configure

_USERS = 25
"""Inputs (users) of one example: making an example costs more than encoding one."""
_EXAMPLES = 220
_PROFILES = ("values", "types")
_INPUTS = 10_000

_NUMBERS = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, -0.0, -1.0, 1e-320, 1e38, 3.5e38, -3.5e38, 1e308, 2**63, 10**400]),
    st.integers(-(2**70), 2**70),
)
_OTHERS: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.text(max_size=4),
    st.binary(max_size=4),
    st.sampled_from(["1.5", "", "nan", (), {}, {"a": 1}, set(), object(), 1j, [[]], [[1.0] * 4]]),
)
_ANYTHING = st.one_of(_NUMBERS, _OTHERS, st.lists(_OTHERS, max_size=7), st.lists(_NUMBERS))


def _odd(name: str, profile: str) -> st.SearchStrategy[Any]:
    """Values of a column that the encoder may or may not take."""
    right: st.SearchStrategy[Any]
    if name in SCHEMA.array_columns:
        width = SCHEMA.array_columns[name]
        right = st.lists(_NUMBERS, min_size=width, max_size=width)
        mixed = st.lists(st.one_of(_NUMBERS, _OTHERS), min_size=width, max_size=width)
        wrong = st.one_of(st.lists(_NUMBERS, max_size=2 * width), st.just("1" * width), mixed)
    elif name in SCHEMA.text_columns:
        width = SCHEMA.text_columns[name]
        right = st.lists(st.one_of(st.text(), st.none()), min_size=width, max_size=width)
        wrong = st.one_of(st.lists(st.text(), max_size=3), st.lists(_ANYTHING, max_size=3))
    elif name in SCHEMA.as_of_columns:
        right = st.integers(-(2**63), 2**63 - 1)
        wrong = st.one_of(st.integers(), st.floats(), st.text())
    else:
        right = st.one_of(st.just(VERSION), st.text(max_size=12))
        wrong = st.one_of(st.integers(), st.lists(st.text(), max_size=2))
    if profile == "values":
        return st.one_of(st.none(), right)
    return st.one_of(wrong, _ANYTHING)


@st.composite
def _inputs(draw: st.DrawFn, profile: str) -> dict[str, list[Any]]:
    """Rows of ``_USERS`` users, most of whom have one or two odd values."""
    inputs: dict[str, list[Any]] = raw_rows(
        [f"user-{k}" for k in range(_USERS)], seed=draw(st.integers(0, 50))
    ).to_pydict()
    for row in range(_USERS):
        for name in draw(st.lists(st.sampled_from(SCHEMA.columns), max_size=2)):
            inputs[name][row] = draw(_odd(name, profile))
    if draw(st.integers(0, 19)) == 0:
        del inputs[draw(st.sampled_from(SCHEMA.columns))]
    return inputs


@pytest.fixture(scope="module")
def artifact() -> EncoderArtifact:
    return tiny_artifact(0)


@pytest.fixture(scope="module")
def function(tmp_path_factory: pytest.TempPathFactory, artifact: EncoderArtifact) -> Any:
    url = str(tmp_path_factory.mktemp("encoders"))
    ArtifactStore(url).save(artifact)
    version = artifact.encoder_version
    return EmbeddingTransformation.of(view="v", space=1, encoder_version=version, store=url).udf


def _check_error(error: Exception, inputs: dict[str, list[Any]], row: int | None) -> None:
    assert isinstance(error, MalformedInput | SpaceMismatch)
    message = str(error)
    assert any(f"'{name}'" in message for name in SCHEMA.columns)
    if row is not None:
        assert f"{inputs[USER_KEY][row]}" in message
        assert "expected" in message or "was trained on" in message


def test_ten_thousand_inputs_give_finite_embeddings_or_typed_errors(
    function: Any, artifact: EncoderArtifact, caplog: pytest.LogCaptureFixture
) -> None:
    """Asked for as a whole, and row by row: embeddings, and errors with a name; nothing else."""
    caplog.set_level(logging.ERROR, "transforms.faults")  # ten thousand lines otherwise
    tally: Counter[str] = Counter()

    def check(inputs: dict[str, list[Any]]) -> None:
        tally["inputs"] += _USERS
        configure(on_error="raise")
        try:
            whole, raised = function(inputs), None
        except (MalformedInput, SpaceMismatch) as exc:
            whole, raised = None, exc
        configure(on_error="row")
        try:
            answer = function(inputs)
        except MalformedInput as exc:
            # No row's fault: a column is not there.
            assert set(SCHEMA.columns) - set(inputs)
            _check_error(exc, inputs, None)
            tally["lacking"] += 1
            return
        assert not set(SCHEMA.columns) - set(inputs)
        faulty = [row for row in range(_USERS) if answer["status"][row] == "error"]
        assert (raised is None) == (not faulty)
        if raised is not None:
            # The user is the last word or in brackets: user-1 is no part of user-12.
            named = [row for row in faulty if re.search(rf"user-{row}\b", str(raised))]
            assert len(named) == 1
            _check_error(raised, inputs, named[0])
            tally[type(raised).__name__] += 1
        for row in range(_USERS):
            embedding = answer["embedding"][row]
            if row in faulty:
                assert embedding is None
                tally["errors"] += 1
                continue
            assert embedding.dtype == np.float32
            assert embedding.shape == (artifact.manifest.embedding_dim,)
            assert np.isfinite(embedding).all()
            assert answer["status"][row] in {"warm", "onboarded", "cold"}
            assert all(type(answer[name][row]) is int for name in ("as_of", "n_events"))
            if whole is not None:
                assert np.array_equal(whole["embedding"][row], embedding)
            tally["embeddings"] += 1

    try:
        for profile in _PROFILES:
            run = settings(
                max_examples=_EXAMPLES,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                database=None,
            )(given(inputs=_inputs(profile))(check))
            run()
    finally:
        configure()
    assert tally["inputs"] >= _INPUTS
    # It would prove little if nearly all were of one kind.
    assert min(tally["embeddings"], tally["errors"]) > _INPUTS // 10
    assert min(tally["MalformedInput"], tally["SpaceMismatch"], tally["lacking"]) >= 10
