"""Raw feature columns -> the encoder's float32 inputs, in numpy only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import repeat
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from encoder.columns import ArrayColumn, RawBatch, ScalarColumn, TextColumn
from encoder.errors import ArtifactError, MalformedInput, SpaceMismatch
from encoder.moments import CategoryCounts, Moments
from encoder.schema import Block, BlockKind, FeatureSchema

__all__ = ["InputBlock", "Preprocessor", "RowSummary"]

Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
ColumnT = TypeVar("ColumnT", ArrayColumn, TextColumn, ScalarColumn)

MAX_CATEGORIES = 256
"""Most frequent strings of a category that get an input of their own; the rest share one."""

CLIP = 8.0
"""Bound, in standard deviations, of standardised counts and numbers."""

_MOST = 2.0**62
"""Counts are told as int64; a float32 near 2**63 would not fit."""

_NOTHING = 1e-30
"""Norms and sums below this count as all zeros; their reciprocal would leave float32."""

_ABSENT = -1
_NO_ONE = "an unnamed user"


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
    """

    name: str
    kind: BlockKind
    start: int
    stop: int
    mask: int
    constant_loss: float

    @property
    def width(self) -> int:
        """Number of values."""
        return self.stop - self.start


class RowSummary(NamedTuple):
    """What is stored beside each embedding.

    Attributes
    ----------
    as_of : int64 (n_rows,)
        Microseconds since the epoch (UTC) of the newest raw feature; 0 when the row has none.
    n_events : int64 (n_rows,)
        Events in the longest window.
    status : object (n_rows,) of str
        ``warm``: has events. ``onboarded``: no events, but onboarding picks. ``cold``: neither.
    """

    as_of: npt.NDArray[np.int64]
    n_events: npt.NDArray[np.int64]
    status: npt.NDArray[np.object_]


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
        self._codes = {
            name: {"": _ABSENT} | {value: code for code, value in enumerate(known)}
            for name, known in categories.items()
        }

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
        n_rows = 0
        for batch in batches:
            _check(schema, batch)
            n_rows += batch.n_rows
            for block in schema.blocks:
                if block.kind == "category":
                    text, valid = _strings(block, batch)
                    counts[block.name].update(text[valid].tolist())
                else:
                    values, present = _observed(block, batch)
                    moments[block.name].update(values[present])
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
        _check(self.schema, batch)
        inputs = np.zeros((batch.n_rows, self.n_inputs), np.float32)
        for block, where in zip(self.schema.blocks, self.input_slices, strict=True):
            target = inputs[:, where.start : where.stop]
            if block.kind == "category":
                present = self._one_hot(block, batch, target)
            else:
                values, present = _observed(block, batch)
                part = slice(where.start, where.stop)
                # Extremes overflow to infinity here and come back to the bound in the clip.
                with np.errstate(over="ignore", invalid="ignore"):
                    np.subtract(values, self._mean[part], out=target)
                    target *= self._factor[part]
                if block.kind in ("counts", "numbers"):
                    np.clip(target, -CLIP, CLIP, out=target)
                if block.kind == "numbers":
                    target[np.isnan(target)] = 0.0
                if not present.all():
                    target[~present] = 0.0
            inputs[:, where.mask] = present
        return inputs

    def summary(self, batch: RawBatch) -> RowSummary:
        """Return age, number of events and status of each row.

        Raises
        ------
        MalformedInput
            As in ``transform``.
        """
        schema, n = self.schema, batch.n_rows
        as_of = np.zeros(n, np.int64)
        for name in schema.as_of_columns:
            column = _column(batch, name, ScalarColumn)
            times = np.where(column.valid, column.values, 0).astype(np.int64)
            np.maximum(as_of, times, out=as_of)
        n_events = _element(schema, batch, schema.event_count.column, schema.event_count.offset)
        status = np.full(n, "cold", object)
        if schema.onboarding_count is not None:
            picks = schema.onboarding_count
            status[_element(schema, batch, picks.column, picks.offset) > 0] = "onboarded"
        status[n_events > 0] = "warm"
        return RowSummary(as_of, n_events, status)

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

    def _one_hot(self, block: Block, batch: RawBatch, target: Float32) -> Bool:
        """Set one input of ``target`` (zeros, in place) per present row; return who is present."""
        text, valid = _strings(block, batch)
        codes = self._codes[block.name]
        unknown = repeat(target.shape[1] - 1)
        code = np.fromiter(map(codes.get, text.tolist(), unknown), np.int64, batch.n_rows)
        present: Bool = valid & (code != _ABSENT)
        rows = np.flatnonzero(present)
        target[rows, code[rows]] = 1.0
        return present


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
        InputBlock(b.name, b.kind, stop - width, stop, stops[-1] + k, entropies.get(b.name, 1.0))
        for k, (b, width, stop) in enumerate(zip(schema.blocks, widths, stops, strict=True))
    )


def _one_scale(block: Block, moments: Moments) -> npt.NDArray[np.float64]:
    """Return the same scale for all elements of a vector of length 1."""
    # An element's root mean square is 1 / sqrt(width); far less than that is a constant block.
    smallest = 0.01 / np.sqrt(block.width)
    return np.full(block.width, max(moments.overall_deviation(), smallest))


def _observed(block: Block, batch: RawBatch) -> tuple[Float32, Bool]:
    """Return a block's values before standardising, float32 (n_rows, width), and who has them.

    Fitting and transforming both start here, so they cannot drift apart. Rows that are not present
    hold anything.
    """
    column = _column(batch, block.column, ArrayColumn)
    values = column.values[:, block.offset : block.offset + block.width]
    valid = column.valid
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        if block.kind == "pooled":
            # float64: the square of a large float32 is no float32.
            norm = np.sqrt(np.einsum("ij,ij->i", values, values, dtype=np.float64))
            _raise_for(block, batch, valid & ~np.isfinite(norm), "a value that is not finite")
            present = valid & (norm > _NOTHING)
            return values * (1.0 / norm).astype(np.float32)[:, None], present
        if block.kind == "numbers":
            infinite = valid & np.isinf(values).any(axis=1)
            _raise_for(block, batch, infinite, "an infinite value")
            return values, valid & ~np.isnan(values).all(axis=1)
        total = values.sum(axis=1, dtype=np.float64)
        _raise_for(block, batch, valid & ~np.isfinite(total), "a value that is not finite")
        _raise_for(block, batch, valid & (values < 0).any(axis=1), "a negative value")
        if block.kind == "counts":
            return np.log1p(values), valid
        shares = values * (1.0 / total).astype(np.float32)[:, None]
        return np.sqrt(shares), valid & (total > _NOTHING)


def _strings(block: Block, batch: RawBatch) -> tuple[npt.NDArray[np.object_], Bool]:
    column = _column(batch, block.column, TextColumn)
    return column.values[:, block.offset], column.valid


def _column(batch: RawBatch, name: str, kind: type[ColumnT]) -> ColumnT:
    column = batch.columns.get(name)
    if isinstance(column, kind):
        return column
    what = "is missing" if column is None else f"is a {type(column).__name__}"
    raise MalformedInput(
        f"Column {name!r} {what}, {kind.__name__} is expected. "
        f"Given: {', '.join(sorted(batch.columns)) or 'no column'}.",
        column=name,
    )


def _element(
    schema: FeatureSchema, batch: RawBatch, name: str, offset: int
) -> npt.NDArray[np.int64]:
    """Return one element of an array column as int64 (n_rows,), 0 where the row has none."""
    column = _column(batch, name, ArrayColumn)
    _check_shape(name, column.values, batch.n_rows, schema.array_columns[name])
    counts = np.where(column.valid, column.values[:, offset], 0)
    return np.minimum(counts, _MOST).astype(np.int64)


def _check(schema: FeatureSchema, batch: RawBatch) -> None:
    for name, width in schema.array_columns.items():
        _check_shape(name, _column(batch, name, ArrayColumn).values, batch.n_rows, width)
    for name, width in schema.text_columns.items():
        _check_shape(name, _column(batch, name, TextColumn).values, batch.n_rows, width)
    for name in schema.modality_columns:
        versions = _column(batch, name, ScalarColumn)
        other = np.flatnonzero(versions.valid & (versions.values != schema.modality_version))
        if other.size:
            row = int(other[0])
            raise SpaceMismatch(
                f"Row {row} ({_user(batch, row) or _NO_ONE}), column {name!r}: pooled vectors of "
                f"modality version {versions.values[row]!r} given, this encoder was trained on "
                f"{schema.modality_version!r}. Build the raw features with the encoder's own "
                "modality encoders, or train a new encoder on these."
            )


def _check_shape(name: str, values: npt.NDArray[Any], n_rows: int, width: int) -> None:
    if values.shape != (n_rows, width):
        raise MalformedInput(
            f"Column {name!r}: values of shape {values.shape} given, ({n_rows}, {width}) expected. "
            "Rebuild the raw features with the encoder's layout.",
            column=name,
        )


def _raise_for(block: Block, batch: RawBatch, faulty: Bool, what: str) -> None:
    rows = np.flatnonzero(faulty)
    if rows.size == 0:
        return
    row = int(rows[0])
    user = _user(batch, row)
    raise MalformedInput(
        f"Row {row} ({user or _NO_ONE}), column {block.column!r}, block {block.name!r}: {what} "
        f"given ({rows.size} such row(s) in the batch), {_EXPECTED[block.kind]} expected. "
        "Correct the user's raw features and encode again.",
        column=block.column,
        row=row,
        user=user,
    )


_EXPECTED = {
    "pooled": "finite numbers",
    "histogram": "finite shares of at least 0",
    "counts": "finite counts of at least 0",
    "numbers": "finite numbers or NaN (missing)",
}


def _user(batch: RawBatch, row: int) -> str | None:
    return batch.users[row] if batch.users else None
