"""What each item says, as token ids that raw features carry: the tokenizer and a row an item."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from encoder.clue.tokenizer import UNKNOWN_SERVICE, ItemTokenizer, fit_tokenizer

if TYPE_CHECKING:
    from encoder.modality import Items

__all__ = ["ItemTexts", "TextsSpec", "fit_item_texts"]

Tokens = npt.NDArray[np.int32]

_TOKENS = "texts.tokens"


@dataclass(frozen=True)
class TextsSpec:
    """How item texts become tokens.

    Attributes
    ----------
    services : tuple of str
        Whose events are told apart by a guide token.
    vocabulary : int
        Token ids at most.
    max_tokens : int
        Tokens kept of an item, guide token included.
    tokenizer : ItemTokenizer, optional
        One that was learned elsewhere, in place of one that is learned from the items: then the
        other fields say nothing.
    """

    services: tuple[str, ...]
    vocabulary: int
    max_tokens: int
    tokenizer: ItemTokenizer | None = None


@dataclass(frozen=True)
class ItemTexts:
    """Tokens of items, in the order of some list of items.

    Attributes
    ----------
    tokenizer : ItemTokenizer
    tokens : int32 (n_items, max_tokens)
        In place of the first one, which names the service of an event, stands that of an unknown
        service.
    """

    tokenizer: ItemTokenizer
    tokens: Tokens

    def with_items(self, items: Items) -> ItemTexts:
        """Return the tokens with those of further items behind them."""
        return replace(self, tokens=np.concatenate([self.tokens, _rows(self.tokenizer, items)]))

    def content(self) -> str:
        """Return 12 hex digits of what the items say, which tell a changed file."""
        return hashlib.sha256(np.ascontiguousarray(self.tokens).data).hexdigest()[:12]

    def state(self) -> tuple[dict[str, npt.NDArray[Any]], str]:
        """Return arrays, and JSON, from which `from_state` rebuilds the texts."""
        return {_TOKENS: self.tokens}, self.tokenizer.to_json()

    @classmethod
    def from_state(cls, arrays: Mapping[str, npt.NDArray[Any]], config: str) -> ItemTexts:
        """Rebuild what `state` returned.

        Raises
        ------
        KeyError
            The tokens are missing.
        """
        return cls(ItemTokenizer.from_json(config), arrays[_TOKENS])


def fit_item_texts(items: Items, known: npt.NDArray[np.bool_], spec: TextsSpec) -> ItemTexts:
    """Learn the tokens from what some items say, unless they are given; return those of all.

    Parameters
    ----------
    items : Items
    known : bool (n_items,)
        Items to learn from: those with an event before the cut-off.
    spec : TextsSpec

    Raises
    ------
    DataFault
        No item says anything.
    ValueError
        The vocabulary is too small for the services.
    """
    tokenizer = spec.tokenizer or fit_tokenizer(
        _said(items.take(np.flatnonzero(known))),
        spec.services,
        vocabulary=spec.vocabulary,
        max_tokens=spec.max_tokens,
    )
    return ItemTexts(tokenizer, _rows(tokenizer, items))


def _rows(tokenizer: ItemTokenizer, items: Items) -> Tokens:
    rows = tokenizer.tokenize(_said(items), [""] * len(items.ids))
    rows[:, 0] = UNKNOWN_SERVICE
    return rows


def _said(items: Items) -> list[str]:
    """Return each item's text and tags; one that says nothing is known by its id."""
    n = len(items.ids)
    texts: Sequence[str] = items.text or [""] * n
    tags: Sequence[Sequence[str]] = items.tags or [()] * n
    said = (" ".join([t, *of]).strip() for t, of in zip(texts, tags, strict=True))
    return [s or str(i) for s, i in zip(said, items.ids.to_pylist(), strict=True)]
