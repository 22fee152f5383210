"""Raw feature columns -> the encoder's float32 inputs, in numpy only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from encoder.columns import RawBatch, TextColumn
from encoder.errors import ArtifactError
from encoder.moments import CategoryCounts, Moments
from encoder.raw_values import RawReader, column_of
from encoder.row_summary import RowSummary, summarise
from encoder.schema import Block, BlockKind, FeatureSchema

__all__ = ["InputBlock", "Preprocessor"]

Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

MAX_CATEGORIES = 256
"""Most frequent strings of a category that get an input of their own; the rest share one."""

CLIP = 8.0
"""Bound, in standard deviations, of standardised counts and numbers."""

_ABSENT = -1
_ROWS = 1024
"""Rows that are worked on at once; fastest of 64 to 4,096 for 450 to 620 inputs."""


@dataclass(frozen=True)
class InputBlock:
    """Where one block of the schema stands in the encoder's inputs.

    Attributes
    ----------
    name, kind
        As in the schema.
    start, stop : int
        The block's values are ``inputs[:, start:stop]``, zeros where the block is absent.
    mask : int
        ``inputs[:, mask]`` is 1 where the block is present, else 0.
    constant_loss : float
        Loss of the best constant guess on the training rows: 1 for standardised blocks, the
        entropy (nats) of a category. Dividing by it makes the blocks' losses comparable.
    view : str
        Raw view that the block is read from.
    """

    name: str
    kind: BlockKind
    start: int
    stop: int
    mask: int
    constant_loss: float
    view: str = ""

    @property
    def width(self) -> int:
        """Number of values."""
        return self.stop - self.start


class Preprocessor:
    """Turns raw feature columns into encoder inputs, block by block.

    ========== ==================================================== ==============================
    kind       values                                               absent
    ========== ==================================================== ==============================
    pooled     L2-normalised, centred, one scale for the block      null or all zeros
    histogram  square root of the shares, centred, one scale        null or all zeros
    counts     log1p, standardised per element, clipped to +-8      null
    numbers    standardised per element, clipped; NaN element is 0  null or all NaN
    category   one-hot, last input for strings unknown to training  null or ""
    ========== ==================================================== ==============================

    The square root makes the Euclidean distance of two histograms their Hellinger distance, which
    keeps a few large shares from hiding the rest. One scale for a whole pooled vector or histogram
    keeps its geometry. Every block then has mean 0 and mean variance 1 over the training rows, as
    SELU layers expect, and a squared error of 1 is that of guessing the mean.

    Inputs are all values of all blocks in schema order, then one presence mask per block.

    State: means and scales (float32, one per value), the strings of each category, and their
    entropies. Learned by ``fit``; nothing is cached; nothing changes afterwards.

    Parameters
    ----------
    schema : FeatureSchema
    mean, scale : float32 (n_values,)
    categories : mapping of str to tuple of str
        Block name -> known strings, in input order.
    entropies : mapping of str to float
        Block name -> nats, category blocks only.
    """

    def __init__(
        self,
        schema: FeatureSchema,
        mean: Float32,
        scale: Float32,
        categories: Mapping[str, tuple[str, ...]],
        entropies: Mapping[str, float],
    ) -> None:
        if schema.token_columns:
            raise ValueError("A schema with tokens given, one of other blocks expected.")
        self.schema = schema
        self.input_slices = _layout(schema, categories, entropies)
        self.n_values = self.input_slices[-1].stop
        self.n_inputs = self.n_values + len(schema.blocks)
        if mean.shape != (self.n_values,) or scale.shape != (self.n_values,):
            raise ValueError(
                f"mean {mean.shape} and scale {scale.shape} given, "
                f"expected ({self.n_values},) each for this schema and these categories."
            )
        self._mean = mean
        self._scale = scale
        self._factor = (1.0 / scale).astype(np.float32)
        self._categories = dict(categories)
        self._entropies = dict(entropies)
        self._reader = RawReader(schema, [b.start for b in self.input_slices], self.n_inputs)
        self._clipped = [b for b in self.input_slices if b.kind in ("counts", "numbers")]
        self._one_hots = _one_hots(schema, self.input_slices, self._categories)

    @classmethod
    def fit(cls, schema: FeatureSchema, batches: Iterable[RawBatch]) -> Preprocessor:
        """Learn the state in one pass over ``batches``; memory does not grow with the rows.

        Parameters
        ----------
        schema : FeatureSchema
        batches : iterable of RawBatch
            Training rows, consumed once.

        Raises
        ------
        ValueError
            There is no row.
        MalformedInput, SpaceMismatch
            As in ``transform``.
        """
        moments = {b.name: Moments(b.width) for b in schema.blocks if b.kind != "category"}
        counts = {b.name: CategoryCounts() for b in schema.blocks if b.kind == "category"}
        # Which strings there are is not known yet, and no matter: categories are not written.
        layout = _layout(schema, dict.fromkeys(counts, ()), {})
        width = layout[-1].stop
        reader = RawReader(schema, [block.start for block in layout], width)
        n_rows = 0
        for batch in batches:
            reader.check(batch)
            n_rows += batch.n_rows
            values = np.empty((batch.n_rows, width), np.float32)
            present = np.zeros((batch.n_rows, len(layout)), np.bool_)
            if reader.read(batch, slice(None), values, present):
                reader.refuse(batch)
            for number, (block, where) in enumerate(zip(schema.blocks, layout, strict=True)):
                if block.kind == "category":
                    text, valid = _strings(block, batch)
                    counts[block.name].update(text[valid].tolist())
                else:
                    own = values[:, where.start : where.stop]
                    moments[block.name].update(own[present[:, number]])
        if n_rows == 0:
            raise ValueError("No training row was given, at least one is expected.")
        means, scales = [], []
        for block in schema.blocks:
            if block.kind == "category":
                width = len(counts[block.name].most_frequent(MAX_CATEGORIES)) + 1
                means.append(np.zeros(width))
                scales.append(np.ones(width))
                continue
            m = moments[block.name]
            means.append(m.mean)
            scales.append(
                m.deviation() if block.kind in ("counts", "numbers") else _one_scale(block, m)
            )
        return cls(
            schema,
            np.concatenate(means).astype(np.float32),
            np.concatenate(scales).astype(np.float32),
            {name: c.most_frequent(MAX_CATEGORIES) for name, c in counts.items()},
            {name: c.entropy(MAX_CATEGORIES) for name, c in counts.items()},
        )

    def transform(self, batch: RawBatch) -> Float32:
        """Return the encoder's inputs, float32 (n_rows, n_inputs), C-contiguous, always finite.

        Raises
        ------
        MalformedInput
            A column is missing or of another width; NaN or infinity in pooled vectors, histograms
            or counts, infinity in numbers; a negative share or count.
        SpaceMismatch
            A row's pooled vectors were made by other modality encoders than the schema names.
        """
        self._reader.check(batch)
        inputs = np.zeros((batch.n_rows, self.n_inputs), np.float32)
        suspicious = False
        for start in range(0, batch.n_rows, _ROWS):
            rows = slice(start, start + _ROWS)
            suspicious |= self._fill(batch, rows, inputs[rows])
        if suspicious:
            self._reader.refuse(batch)
        return inputs

    def _fill(self, batch: RawBatch, rows: slice, inputs: Float32) -> bool:
        """Fill ``inputs`` (zeros, in place) for some rows; return whether one may be malformed."""
        values = inputs[:, : self.n_values]
        present = np.empty((len(inputs), len(self.input_slices)), np.bool_)
        suspicious = self._reader.read(batch, rows, inputs, present)
        # Extremes overflow to infinity here and come back to the bound in the clip.
        with np.errstate(over="ignore", invalid="ignore"):
            values -= self._mean
            values *= self._factor
        for where in self._clipped:
            part = inputs[:, where.start : where.stop]
            np.minimum(part, CLIP, out=part)
            np.maximum(part, -CLIP, out=part)
            if where.kind == "numbers":
                part[np.isnan(part)] = 0.0
        for one_hot in self._one_hots:
            one_hot.fill(batch, rows, inputs, present)
        everybody = np.logical_and.reduce(present, axis=0).tolist()
        for where, has in zip(self.input_slices, everybody, strict=True):
            if not has and where.kind != "category":
                inputs[~present[:, where.mask - self.n_values], where.start : where.stop] = 0.0
        inputs[:, self.n_values :] = present
        return suspicious

    def summary(self, batch: RawBatch) -> RowSummary:
        """Return age, number of events and status of each row.

        Raises
        ------
        MalformedInput
            As in ``transform``.
        """
        return summarise(batch, self.schema, self._reader)

    def state(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """Return (arrays, JSON types) from which ``from_state`` rebuilds an equal preprocessor."""
        arrays: dict[str, npt.NDArray[Any]] = {"mean": self._mean, "scale": self._scale}
        config = {
            "categories": {name: list(known) for name, known in self._categories.items()},
            "entropies": dict(self._entropies),
        }
        return arrays, config

    @classmethod
    def from_state(
        cls, schema: FeatureSchema, arrays: Mapping[str, npt.NDArray[Any]], config: dict[str, Any]
    ) -> Preprocessor:
        """Rebuild what ``state`` returned.

        Raises
        ------
        ArtifactError
            Arrays are missing, unexpected, or do not fit the schema; each is named.
        """
        expected = {"mean", "scale"}
        if set(arrays) != expected:
            raise ArtifactError(
                f"Preprocessing tensors {', '.join(sorted(arrays)) or 'none'} given, "
                f"{', '.join(sorted(expected))} expected. Fetch the artifact again."
            )
        try:
            return cls(
                schema,
                arrays["mean"],
                arrays["scale"],
                {name: tuple(known) for name, known in config["categories"].items()},
                config["entropies"],
            )
        except (KeyError, ValueError) as exc:
            raise ArtifactError(
                f"The preprocessing state does not fit the schema: {exc} Fetch the artifact again."
            ) from exc


@dataclass(frozen=True)
class _OneHot:
    """The categories of one column: per block its element, its known strings' inputs, the last."""

    column: str
    blocks: list[int]
    lookups: list[tuple[int, dict[str, int], int]]

    def fill(self, batch: RawBatch, rows: slice, inputs: Float32, present: Bool) -> None:
        """Set one input (zeros, in place) per present row and block; tell who is present."""
        column = column_of(batch, self.column, TextColumn)
        text = column.values[rows]
        place = np.empty((len(text), len(self.blocks)), np.int64)
        for k, (offset, known, unknown) in enumerate(self.lookups):
            found = map(known.get, text[:, offset].tolist(), repeat(unknown))
            place[:, k] = np.fromiter(found, np.int64, len(text))
        shown = column.valid[rows, None] & (place != _ABSENT)  # (n, n_categories)
        present[:, self.blocks] = shown
        inputs[shown.nonzero()[0], place[shown]] = 1.0


def _one_hots(
    schema: FeatureSchema,
    layout: Sequence[InputBlock],
    categories: Mapping[str, tuple[str, ...]],
) -> list[_OneHot]:
    columns: dict[str, _OneHot] = {}
    for number, (block, where) in enumerate(zip(schema.blocks, layout, strict=True)):
        if block.kind == "category":
            known = {value: where.start + k for k, value in enumerate(categories[block.name])}
            one_hot = columns.setdefault(block.column, _OneHot(block.column, [], []))
            one_hot.blocks.append(number)
            one_hot.lookups.append((block.offset, {**known, "": _ABSENT}, where.stop - 1))
    return list(columns.values())


def _layout(
    schema: FeatureSchema,
    categories: Mapping[str, tuple[str, ...]],
    entropies: Mapping[str, float],
) -> tuple[InputBlock, ...]:
    widths = [
        len(categories[b.name]) + 1 if b.kind == "category" else b.width for b in schema.blocks
    ]
    stops = np.cumsum(widths).tolist()
    return tuple(
        InputBlock(
            *(b.name, b.kind, stop - width, stop, stops[-1] + k, entropies.get(b.name, 1.0)),
            view=b.column.split("__")[0],
        )
        for k, (b, width, stop) in enumerate(zip(schema.blocks, widths, stops, strict=True))
    )


def _one_scale(block: Block, moments: Moments) -> npt.NDArray[np.float64]:
    """Return the same scale for all elements of a vector of length 1."""
    # An element's root mean square is 1 / sqrt(width); far less than that is a constant block.
    smallest = 0.01 / np.sqrt(block.width)
    return np.full(block.width, max(moments.overall_deviation(), smallest))


def _strings(block: Block, batch: RawBatch) -> tuple[npt.NDArray[np.object_], Bool]:
    column = column_of(batch, block.column, TextColumn)
    return column.values[:, block.offset], column.valid
