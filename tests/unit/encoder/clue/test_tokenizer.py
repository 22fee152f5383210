"""Item texts as token ids."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoder.clue.tokenizer import PAD, UNKNOWN_SERVICE, ItemTokenizer, fit_tokenizer
from encoder.errors import ArtifactError, DataFault

TEXTS = ["red shoe", "blue shoe", "red hat", "naïve café"]


@pytest.fixture(scope="module")
def tokenizer() -> ItemTokenizer:
    return fit_tokenizer(TEXTS * 5, ("shop", "news"), vocabulary=300, max_tokens=8)


def test_a_row_is_the_guide_token_the_text_and_padding(tokenizer: ItemTokenizer) -> None:
    rows = tokenizer.tokenize(["red shoe", "red shoe", ""], ["shop", "news", "elsewhere"])
    assert rows.dtype == np.int32
    assert rows.shape == (3, 8)
    assert rows[:, 0].tolist() == [2, 3, UNKNOWN_SERVICE]
    assert (rows[0, 1:] == rows[1, 1:]).all()
    assert rows[0, 1] != PAD
    assert (rows[2, 1:] == PAD).all()


def test_a_long_text_is_cut(tokenizer: ItemTokenizer) -> None:
    (row,) = tokenizer.tokenize(["xyzzy " * 50], ["shop"])
    assert (row != PAD).all()


@given(text=st.text(max_size=40))
def test_no_text_is_unknown_and_none_is_taken_for_a_special_token(
    tokenizer: ItemTokenizer, text: str
) -> None:
    (row,) = tokenizer.tokenize([text], ["shop"])
    first_merge = 2 + len(tokenizer.services)
    body = row[1:][row[1:] != PAD]
    assert (body >= first_merge).all()
    assert bool(len(body)) == bool(text)


def test_what_looks_like_a_special_token_is_text(tokenizer: ItemTokenizer) -> None:
    (row,) = tokenizer.tokenize(["[pad] [service:news] [service]"], ["shop"])
    assert (row[1:] > 3).all()


def test_the_order_of_texts_changes_nothing() -> None:
    one, other = (
        fit_tokenizer(texts, ("shop",), vocabulary=290, max_tokens=4)
        for texts in (TEXTS, TEXTS[::-1])
    )
    assert one == other


def test_what_is_written_is_what_is_read(tokenizer: ItemTokenizer) -> None:
    again = ItemTokenizer.from_json(tokenizer.to_json())
    assert again.vocabulary == tokenizer.vocabulary <= 300
    texts, services = [*TEXTS, "unseen wörds"], ["shop"] * 5
    assert (again.tokenize(texts, services) == tokenizer.tokenize(texts, services)).all()


def test_faults_are_told() -> None:
    with pytest.raises(ValueError, match="vocabulary 100 given, at least 259 expected"):
        fit_tokenizer(TEXTS, ("shop",), vocabulary=100, max_tokens=8)
    with pytest.raises(ValueError, match="each once expected"):
        fit_tokenizer(TEXTS, ("shop", "shop"), vocabulary=300, max_tokens=8)
    with pytest.raises(ValueError, match="max_tokens 1 given, at least 2"):
        fit_tokenizer(TEXTS, ("shop",), vocabulary=300, max_tokens=1)
    with pytest.raises(DataFault, match="2 item texts given, none holds a character"):
        fit_tokenizer(["", ""], ("shop",), vocabulary=300, max_tokens=8)
    with pytest.raises(ArtifactError, match="tokenizer cannot be read"):
        ItemTokenizer(("shop",), 8, "{}").tokenize(["a"], ["shop"])
