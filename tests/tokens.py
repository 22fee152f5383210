"""A schema that reads lists of token ids, and such lists."""

from __future__ import annotations

from hypothesis import strategies as st

from encoder.schema import Block, ColumnElement, FeatureSchema

__all__ = ["MOST", "SCHEMA", "TOKENS", "TOKEN_IDS", "token_lists"]

MOST = 12
TOKENS, _COUNT = "user_texts__texts_tokens", "user_texts__texts_count"

SCHEMA = FeatureSchema(
    blocks=(
        Block("texts", "tokens", TOKENS, 0, MOST),
        Block("texts_count", "counts", _COUNT, 0, 1),
    ),
    as_of_columns=("user_texts__texts_as_of",),
    event_count=ColumnElement(_COUNT, 0),
    onboarding_count=None,
    modality_columns=("user_texts__texts_modality",),
    modality_version="0123456789ab",
)

TOKEN_IDS = st.one_of(
    st.integers(0, 2**31 - 1), st.sampled_from([0, 127, 128, 2**14, 2**28, 2**31 - 1])
)


def token_lists(most: int = MOST, max_rows: int = 6) -> st.SearchStrategy[list[list[int] | None]]:
    """Lists of some users, None for one who is not in the view."""
    one = st.one_of(st.none(), st.lists(TOKEN_IDS, max_size=most))
    return st.lists(one, max_size=max_rows)
