"""One encoder of a study: what it is trained with, where that differs from the default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from encoder.schema import Block, FeatureSchema

if TYPE_CHECKING:
    from encoder.training_config import TrainingConfig

__all__ = ["DEFAULT", "Variant"]

DEFAULT = "default"
"""Name of the variant that all others of a study are compared with."""

_ELEMENTWISE = ("counts", "numbers")


@dataclass(frozen=True)
class Variant:
    """One thing changed.

    Attributes
    ----------
    name : str
        Unique in the study: letters, digits, ``.``, ``_`` and ``-``.
    title : str
        For tables and plots.
    drop : tuple of str
        Blocks that the encoder does not know: neither inputs nor targets.
    drop_elements : mapping of str to tuple of int
        Block name -> elements of the block that it does not know; ``counts`` and ``numbers`` only,
        because the elements of other kinds are one thing.
    modality : str or None
        A modality that there is not: with its blocks gone from ``drop``, what comes next of it is
        not predicted either.
    model, training : mapping of str to object
        Fields of ``AutoencoderConfig`` and ``TrainingConfig`` that differ.
    age_days : int
        The training rows end so many days before the cut-off.
    x : float or None
        Place on the study's axis, where it has one.
    """

    name: str
    title: str
    drop: tuple[str, ...] = ()
    drop_elements: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    modality: str | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    age_days: int = 0
    x: float | None = None

    def schema(self, whole: FeatureSchema) -> FeatureSchema:
        """Return the encoder's schema: ``whole`` without what is dropped.

        What is left of a block that loses elements is one block for each run of elements.

        Raises
        ------
        ValueError
            A dropped block or element is not in ``whole``, or no block is left.
        """
        named = {block.name: block for block in whole.blocks}
        unknown = sorted({*self.drop, *self.drop_elements} - set(named))
        if unknown:
            raise ValueError(
                f"Variant {self.name!r} drops {', '.join(unknown)}; blocks of the raw features: "
                f"{', '.join(named)}."
            )
        left: list[Block] = []
        for block in whole.blocks:
            if block.name not in self.drop:
                left += self._rest(block)
        return replace(whole, blocks=tuple(left))

    def predicted(self, future: FeatureSchema | None) -> FeatureSchema | None:
        """Return the blocks that training predicts, of those that the training rows hold."""
        if future is None or self.modality is None:
            return future
        own = tuple(f"{self.modality}_{part}" for part in ("next_", "interests_next_"))
        left = tuple(b for b in future.blocks if not b.name.startswith(own))
        return replace(future, blocks=left)

    def config(self, default: TrainingConfig, seed: int) -> TrainingConfig:
        """Return the training's settings, ``seed`` for weights, order of rows and corruption.

        Raises
        ------
        TypeError, ValueError
            A field is unknown, or does not take the value.
        """
        model = replace(default.model, **{"seed": seed, **self.model})
        return replace(default, **{"seed": seed, **self.training, "model": model})

    def _rest(self, block: Block) -> Iterator[Block]:
        gone = self.drop_elements.get(block.name, ())
        if not gone:
            yield block
            return
        if block.kind not in _ELEMENTWISE or not set(gone) <= set(range(block.width)):
            raise ValueError(
                f"Variant {self.name!r} drops elements {list(gone)} of block {block.name!r}, a "
                f"{block.kind} block of width {block.width}; elements below the width, of blocks "
                f"of kind {' or '.join(_ELEMENTWISE)}, expected."
            )
        kept = [k for k in range(block.width) if k not in gone]
        # Neighbours have the same distance from their place in the list.
        for _, run in groupby(enumerate(kept), key=lambda pair: pair[1] - pair[0]):
            elements = [element for _, element in run]
            first = elements[0]
            name = f"{block.name}_from_{first}"
            yield replace(block, name=name, offset=block.offset + first, width=len(elements))
