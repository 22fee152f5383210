"""What items say, as token ids: byte-level BPE with a guide token for the service in front."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from encoder.errors import ArtifactError, DataFault

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["PAD", "UNKNOWN_SERVICE", "ItemTokenizer", "fit_tokenizer"]

Tokens = npt.NDArray[np.int32]

PAD = 0
"""Token id that fills up a row; no item begins with it."""

UNKNOWN_SERVICE = 1
"""Guide token of a service that the encoder was not trained on."""

_SPECIAL = ("[pad]", "[service]")
_BATCH_TEXTS = 4096
_SMALLEST_VOCABULARY = 256 + len(_SPECIAL)
"""Every byte is a token of its own, so that no text is unknown."""


@dataclass(frozen=True)
class ItemTokenizer:
    """Byte-level BPE over item texts, cut to a length, behind a service's guide token.

    State: immutable; the parsed tokenizer is cached.

    Attributes
    ----------
    services : tuple of str
        Their guide tokens have the ids 2, 3, ..., in this order.
    max_tokens : int
        Width of a row, guide token included.
    definition : str
        JSON of the `tokenizers` library.

    References
    ----------
    CLUE, arXiv 2111.11294, section 3: an item is a guide token and byte-level BPE tokens.
    Radford et al. 2019, "Language models are unsupervised multitask learners" (byte-level BPE).
    """

    services: tuple[str, ...]
    max_tokens: int
    definition: str

    def __post_init__(self) -> None:
        if self.max_tokens < 2:
            raise ValueError(
                f"max_tokens {self.max_tokens} given, at least 2 expected: the service's guide "
                "token and a token of the text."
            )

    @property
    def vocabulary(self) -> int:
        """Number of token ids, special ones included."""
        return int(self._bpe.get_vocab_size(with_added_tokens=True))

    def guide(self, service: str) -> int:
        """Return the guide token of a service; that of unknown services for one not trained on."""
        known = service in self.services
        return 2 + self.services.index(service) if known else UNKNOWN_SERVICE

    def tokenize(self, texts: Sequence[str], services: Sequence[str]) -> Tokens:
        """Return the tokens of items.

        Parameters
        ----------
        texts : sequence of str
            "" is an item of which nothing is known but its service.
        services : sequence of str
            Of each text.

        Returns
        -------
        int32 (n, max_tokens)
            The guide token, the first tokens of the text, then `PAD`.
        """
        rows = np.full((len(texts), self.max_tokens), PAD, np.int32)
        guides = {service: self.guide(service) for service in set(services)}
        rows[:, 0] = [guides[service] for service in services]
        for start in range(0, len(texts), _BATCH_TEXTS):
            part = texts[start : start + _BATCH_TEXTS]
            for row, found in enumerate(self._bpe.encode_batch_fast(list(part)), start):
                ids = found.ids[: self.max_tokens - 1]
                rows[row, 1 : 1 + len(ids)] = ids
        return rows

    def text(self, tokens: Iterable[int]) -> str:
        """Return what tokens say, without guide tokens and padding: to look at, not to encode."""
        return str(self._bpe.decode([int(token) for token in tokens])).strip()

    @cached_property
    def _bpe(self) -> Tokenizer:
        from tokenizers import Tokenizer

        try:
            bpe: Tokenizer = Tokenizer.from_str(self.definition)
        except Exception as exc:  # the library raises nothing narrower
            raise ArtifactError(
                f"The tokenizer cannot be read: {exc}. Fetch the artifact again."
            ) from exc
        # What looks like a special token is what somebody wrote.
        bpe.encode_special_tokens = True
        return bpe

    @cached_property
    def version(self) -> str:
        """Content hash, 12 hex digits: encoders of one version read each other's token ids."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

    def to_json(self) -> str:
        """Return what `from_json` rebuilds the tokenizer from."""
        facts = {
            "services": self.services,
            "max_tokens": self.max_tokens,
            "definition": json.loads(self.definition),
        }
        return json.dumps(facts, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ItemTokenizer:
        """Rebuild a tokenizer written by `to_json`."""
        facts = json.loads(text)
        definition = json.dumps(facts["definition"], sort_keys=True)
        return cls(tuple(facts["services"]), facts["max_tokens"], definition)


def fit_tokenizer(
    texts: Iterable[str], services: Sequence[str], *, vocabulary: int, max_tokens: int
) -> ItemTokenizer:
    """Learn byte-level BPE merges from item texts.

    The same texts in any order give the same tokenizer.

    Parameters
    ----------
    texts : iterable of str
        One an item; streamed.
    services : sequence of str
        Names, each once.
    vocabulary : int
        Token ids at most: bytes, merges, guide tokens and padding.
    max_tokens : int
        Tokens kept of an item, guide token included.

    Raises
    ------
    DataFault
        No text holds anything.
    ValueError
        The vocabulary has no room for all bytes and guide tokens, or a service is given twice.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    if len(set(services)) < len(services):
        raise ValueError(f"Services {', '.join(sorted(services))} given, each once expected.")
    smallest = _SMALLEST_VOCABULARY + len(services)
    if vocabulary < smallest:
        raise ValueError(
            f"vocabulary {vocabulary} given, at least {smallest} expected: "
            f"256 bytes, {len(services)} guide token(s) and {len(_SPECIAL)} others."
        )
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[*_SPECIAL, *(f"[service:{name}]" for name in services)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    given = _Counted(texts)
    bpe.train_from_iterator(given, trainer)
    if not given.characters:
        raise DataFault(
            f"{given.texts} item texts given, none holds a character. Name the items' text columns "
            "in dataset.yaml."
        )
    definition = json.dumps(json.loads(bpe.to_str()), sort_keys=True)
    return ItemTokenizer(tuple(services), max_tokens, definition)


class _Counted:
    """An iterable that knows what went through it."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._given = texts
        self.texts = self.characters = 0

    def __iter__(self) -> Iterator[str]:
        for text in self._given:
            self.texts += 1
            self.characters += len(text)
            yield text
