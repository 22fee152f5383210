"""The encoder's input contract: which raw feature columns form which blocks."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

__all__ = ["Block", "BlockKind", "ColumnElement", "FeatureSchema", "TextsModality"]

BlockKind = Literal["pooled", "histogram", "counts", "numbers", "category", "tokens"]


@dataclass(frozen=True)
class Block:
    """One group of encoder inputs with its own presence mask.

    Attributes
    ----------
    name : str
        Unique in the schema, for example ``collaborative_7d``.
    kind : {"pooled", "histogram", "counts", "numbers", "category", "tokens"}
        ``pooled``: weighted mean item vector; all zeros means that no event is covered (absent).
        ``histogram``: shares over item clusters, sum 1; all zeros means absent.
        ``counts``: non-negative magnitudes, log1p then standardised; absent when the column is
        null.
        ``numbers``: real values, standardised; NaN marks a missing element, a row of NaN is absent.
        ``category``: one string of a string-array column; the empty string is absent.
        ``tokens``: the texts of items, a list of token ids; null or empty means absent.
    column : str
        Raw feature column as ``view__field``, for example ``user_activity__pooled``.
    offset : int
        First element of the block in the column's array.
    width : int
        Number of elements; 1 for ``category``; of ``tokens``, which are the whole list, the most.
    """

    name: str
    kind: BlockKind
    column: str
    offset: int
    width: int

    def __post_init__(self) -> None:
        if self.kind not in get_args(BlockKind):
            raise ValueError(
                f"Block {self.name!r}: unknown kind {self.kind!r}. "
                f"Known: {', '.join(sorted(get_args(BlockKind)))}."
            )
        if self.offset < 0 or self.width < 1:
            raise ValueError(
                f"Block {self.name!r}: offset {self.offset} and width {self.width} given, "
                "expected offset >= 0 and width >= 1."
            )
        if self.kind == "category" and self.width != 1:
            raise ValueError(f"Block {self.name!r}: a category has width 1, {self.width} given.")
        if self.kind == "tokens" and self.offset:
            raise ValueError(f"Block {self.name!r}: offset {self.offset} given, tokens begin at 0.")


@dataclass(frozen=True)
class ColumnElement:
    """One element of an array column, for example the event count."""

    column: str
    offset: int


@dataclass(frozen=True)
class TextsModality:
    """The column that tells which item texts a row's tokens were made with, and what it must say.

    Attributes
    ----------
    column : str
        One of the schema's ``modality_columns``.
    version : str
        Of the item texts.
    """

    column: str
    version: str


@dataclass(frozen=True)
class FeatureSchema:
    """All blocks of an encoder and the columns that tell a row's age and status.

    Attributes
    ----------
    blocks : tuple of Block
        In input order.
    as_of_columns : tuple of str
        Int64 columns, microseconds since the epoch (UTC); a row's ``as_of`` is their maximum.
    event_count : ColumnElement
        Where the number of events in the longest window stands; 0 or null: the user is not warm.
    onboarding_count : ColumnElement or None
        Where the number of onboarding picks stands.
    modality_columns : tuple of str
        String columns that carry the version of what a row's pooled vectors or tokens were made
        with.
    modality_version : str
        The version those columns must carry.
    texts_modality : TextsModality or None
        The one among them that must carry another version: item texts have their own. None where
        pooled vectors or tokens are read, not both.
    """

    blocks: tuple[Block, ...]
    as_of_columns: tuple[str, ...]
    event_count: ColumnElement
    onboarding_count: ColumnElement | None
    modality_columns: tuple[str, ...]
    modality_version: str
    texts_modality: TextsModality | None = None

    def __post_init__(self) -> None:
        if self.texts_modality and self.texts_modality.column not in self.modality_columns:
            raise ValueError(
                f"texts_modality names {self.texts_modality.column!r}, one of modality_columns "
                f"expected: {', '.join(self.modality_columns) or 'none'}."
            )
        if not self.blocks:
            raise ValueError("A schema without blocks was given, at least one is expected.")
        twice = sorted(n for n, k in Counter(b.name for b in self.blocks).items() if k > 1)
        if twice:
            raise ValueError(f"Block names must be unique, given twice: {', '.join(twice)}.")

    @property
    def array_columns(self) -> dict[str, int]:
        """Expected width of each float array column (the blocks that read it tile it)."""
        return self._widths("pooled", "histogram", "counts", "numbers")

    @property
    def text_columns(self) -> dict[str, int]:
        """Expected width of each string array column."""
        return self._widths("category")

    @property
    def token_columns(self) -> dict[str, int]:
        """Most tokens of each column of token ids."""
        return self._widths("tokens")

    @property
    def columns(self) -> tuple[str, ...]:
        """Every raw feature column that encoding reads, in a stable order."""
        seen = dict.fromkeys(b.column for b in self.blocks)
        seen |= dict.fromkeys((self.event_count.column,))
        if self.onboarding_count is not None:
            seen |= dict.fromkeys((self.onboarding_count.column,))
        seen |= dict.fromkeys(self.as_of_columns) | dict.fromkeys(self.modality_columns)
        return tuple(seen)

    def modality_version_of(self, column: str) -> str:
        """Return the version that one of ``modality_columns`` must carry."""
        texts = self.texts_modality
        return texts.version if texts and texts.column == column else self.modality_version

    def with_texts(self, texts: FeatureSchema) -> FeatureSchema:
        """Return this schema with the tokens of another, which reads texts alone.

        Of ``texts`` come the blocks of tokens, the columns of time and the version; the number of
        events stays this schema's.
        """
        (column,) = texts.modality_columns
        return replace(
            self,
            blocks=(*self.blocks, *(b for b in texts.blocks if b.kind == "tokens")),
            as_of_columns=(*self.as_of_columns, *texts.as_of_columns),
            modality_columns=(*self.modality_columns, column),
            texts_modality=TextsModality(column, texts.modality_version),
        )

    def _widths(self, *kinds: BlockKind) -> dict[str, int]:
        widths: dict[str, int] = {}
        for block in self.blocks:
            if block.kind in kinds:
                widths[block.column] = max(widths.get(block.column, 0), block.offset + block.width)
        return widths

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; ``from_dict`` gives an equal schema back."""
        data = asdict(self)
        if self.texts_modality is None:
            # Left out, so that schemas without it, and versions made of them, stay what they were.
            del data["texts_modality"]
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FeatureSchema:
        """Rebuild a schema written by ``to_dict``."""
        picks, texts = data["onboarding_count"], data.get("texts_modality")
        return cls(
            blocks=tuple(Block(**b) for b in data["blocks"]),
            as_of_columns=tuple(data["as_of_columns"]),
            event_count=ColumnElement(**data["event_count"]),
            onboarding_count=None if picks is None else ColumnElement(**picks),
            modality_columns=tuple(data["modality_columns"]),
            modality_version=data["modality_version"],
            texts_modality=None if texts is None else TextsModality(**texts),
        )
