"""Parts of the raw features that a study leaves out or weighs as one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from encoder.schema import Block, FeatureSchema
from transforms.layout import ACTIVITY, COUNTS_PER_WINDOW, ONBOARDING, PROFILE

__all__ = ["KINDS", "Part", "parts_of"]

KINDS = ("pooled", "interests", "counts", "context", "profile", "onboarding")
"""Parts that share no block with each other; modalities and windows cut across them."""

_OF_WINDOW = re.compile(r"^(?P<modality>.+?)(_interests)?_(?P<days>\d+)d$")
"""Names of pooled and histogram blocks, see ``RawLayout.schema``."""


@dataclass(frozen=True)
class Part:
    """Blocks, and elements of blocks, that belong together.

    Attributes
    ----------
    name, title : str
    blocks : tuple of str
        Whole blocks.
    elements : mapping of str to tuple of int
        Block name -> its elements that belong to the part: a window's counts.
    modality : str or None
        The part is all of a modality.
    """

    name: str
    title: str
    blocks: tuple[str, ...]
    elements: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    modality: str | None = None


def parts_of(schema: FeatureSchema) -> tuple[Part, ...]:
    """Return the parts of a schema: modalities, windows, kinds of blocks, and views.

    A part that is all of the schema, or the same blocks as an earlier part, is left out.

    Parameters
    ----------
    schema : FeatureSchema
        Of the raw features, all blocks.
    """
    found: dict[tuple[frozenset[str], tuple[str, ...]], Part] = {}
    for part in _parts(schema):
        whole = len(part.blocks) == len(schema.blocks)
        if part.blocks and not whole:
            found.setdefault((frozenset(part.blocks), tuple(part.elements)), part)
    return tuple(found.values())


def _parts(schema: FeatureSchema) -> Iterator[Part]:
    places = {b.name: m for b in schema.blocks if (m := _of_window(b))}
    modalities = dict.fromkeys(m["modality"] for m in places.values())
    windows = list(dict.fromkeys(m["days"] for m in places.values()))

    def named(name: str, title: str, belongs: Callable[[Block], bool]) -> Part:
        return Part(name, title, tuple(b.name for b in schema.blocks if belongs(b)))

    for modality in modalities if len(modalities) > 1 else ():
        own = [name for name, m in places.items() if m["modality"] == modality]
        own += [b.name for b in schema.blocks if b.name == f"{modality}_onboarding"]
        yield Part(modality, f"modality {modality}", tuple(own), modality=modality)
    for place, days in enumerate(windows if len(windows) > 1 else ()):
        blocks = tuple(name for name, m in places.items() if m["days"] == days)
        first = place * len(COUNTS_PER_WINDOW)
        counts = tuple(range(first, first + len(COUNTS_PER_WINDOW)))
        yield Part(f"{days}d", f"window of {days} days", blocks, {"counts": counts})
    yield named("pooled", "mean item vectors", lambda b: b.kind == "pooled" and _in(b, ACTIVITY))
    yield named("interests", "interest histograms", lambda b: b.kind == "histogram")
    yield named("counts", "counts", lambda b: b.kind == "counts" and _in(b, ACTIVITY))
    yield named("context", "context", lambda b: b.kind == "category" and _in(b, ACTIVITY))
    yield named("profile", "demographics", lambda b: _in(b, PROFILE))
    yield named("onboarding", "onboarding", lambda b: _in(b, ONBOARDING))


def _of_window(block: Block) -> re.Match[str] | None:
    if block.kind not in ("pooled", "histogram") or not _in(block, ACTIVITY):
        return None
    return _OF_WINDOW.match(block.name)


def _in(block: Block, view: str) -> bool:
    return block.column.startswith(f"{view}__")
